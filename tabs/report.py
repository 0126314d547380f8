"""What a tool tells at its end, drawn: facts, notes, a table, bars, and what each rank would cost and keep.

The page knows no tool, and what it reads was written by another process: whatever is not as it should be is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import pandas

from backend.job import Job
from backend.workspace import WEIGHTS
from tabs import watch as watching
from tabs.text import figures, file_size, table
from tabs.theme import ACCENT
from tabs.watch import Watch

MAX_ROWS = 400
MAX_MODULES = 2000
MAX_FILES = 40
# Beyond this many a bar's name has room below it only upright, and then not at all.
SLANTED_BARS, NAMED_BARS = 12, 60
SERIES = "series"


@dataclass(frozen=True)
class ReportView:
    """The widgets, in the order of `outputs`.

    Attributes:
        root: the workspace; files outside it are not offered.
        text: what is said.
        bars: a number for each part.
        curve: error against rank.
        sizes: the same as a table, with the size of the file.
        use: the button that leads to the Generate tab.
    """

    root: Path
    text: gr.HTML
    bars: gr.BarPlot
    curve: gr.LinePlot
    sizes: gr.HTML
    use: gr.Button

    @property
    def outputs(self) -> list[Any]:
        return [self.text, self.bars, self.curve, self.sizes, self.use]

    def updates(self, watch: Watch, job: Job | None) -> list[Any]:
        """Updates of `outputs`; they are hidden where there is no report."""
        report = watch.report if job is not None else {}
        usable = job is not None and job.state == "finished" and any(map(_is_lora_or_model, self.files(watch, job)))
        use = gr.update(visible=usable) if watch.changed("use", usable) else gr.skip()
        # By the time it was written; the report itself may be long.
        if not watch.changed("report", report.get("time", bool(report))):
            return [*[gr.skip()] * 4, use]
        bars, curve = bars_of(report), curve_of(report)
        return [
            report_html(report),
            _show_bars(bars),
            gr.update(visible=False) if curve is None else gr.update(value=_curve_frame(curve), visible=True),
            "" if curve is None else _curve_table(curve),
            use,
        ]

    def files(self, watch: Watch, job: Job) -> list[Path]:
        """What can be downloaded: the files of the report that lie in the workspace, and the config that made them."""
        told = watch.report.get("files") if not watch.report.get("dry_run") else None
        found = [Path(str(one.get("path", ""))) for one in _mappings(told)][:MAX_FILES]
        kept = [path for path in found if self._is_ours(path)]
        return list(dict.fromkeys([*kept, *watching.outputs(job)]))

    def _is_ours(self, path: Path) -> bool:
        try:
            return path.is_file() and path.resolve().is_relative_to(self.root)
        except (OSError, RuntimeError, ValueError):
            return False


def draw_report(root: Path, prefix: str) -> ReportView:
    """Draw what a report is shown in, hidden until there is one."""
    text = gr.HTML(elem_id=f"{prefix}report", padding=False)
    common: dict[str, Any] = {"show_label": False, "visible": False, "buttons": ["fullscreen"]}
    bars = gr.BarPlot(
        x="part",
        y="value",
        color=SERIES,
        color_map={SERIES: ACCENT},
        colors_in_legend=[],
        x_title=" ",
        y_title=" ",
        height=260,
        elem_id=f"{prefix}bars",
        **common,
    )
    curve = gr.LinePlot(
        x="rank",
        y="error",
        color=SERIES,
        color_map={SERIES: ACCENT},
        colors_in_legend=[],
        x_title="rank",
        y_title="error in %",
        title="Error of the whole at each rank",
        y_lim=[0, None],
        height=240,
        elem_id=f"{prefix}curve",
        **common,
    )
    sizes = gr.HTML(elem_id=f"{prefix}sizes", padding=False)
    use = gr.Button("Open in Generate", size="md", visible=False, elem_id=f"{prefix}use")
    return ReportView(root, text, bars, curve, sizes, use)


def report_html(report: Mapping[str, Any]) -> str:
    """Title, facts, notes, files of a preview and table of a report; empty without one."""
    if not report:
        return ""
    mark = '<span class="state">preview, nothing was written</span>' if report.get("dry_run") else ""
    lines = [f'<div class="top"><span class="name">{escape(str(report.get("title", "")))}</span>{mark}</div>']
    facts = [pair for pair in _lists(report.get("facts")) if len(pair) == 2]
    lines += [figures((str(name), str(text)) for name, text in facts)] if facts else []
    lines += [f'<div class="warn">{escape(str(note))}</div>' for note in _sequence(report.get("notes"))]
    lines += [_files_table(report)] if report.get("dry_run") else []
    lines += _main_table(report)
    return f'<div class="status report">{"".join(lines)}</div>'


def bars_of(report: Mapping[str, Any]) -> tuple[str, list[str], list[float]] | None:
    """Title, names and values of the bars, in the order given; None if there are none."""
    bars = report.get("bars")
    if not isinstance(bars, dict):
        return None
    names, values = _sequence(bars.get("names")), _sequence(bars.get("values"))
    if not names or len(names) != len(values) or not all(map(_is_number, values)):
        return None
    return str(bars.get("title", "")), _distinct([str(name) for name in names]), [float(value) for value in values]


def curve_of(report: Mapping[str, Any]) -> list[tuple[int, float, int]] | None:
    """Rank, error in percent and bytes of the file for every rank; None if there is no curve."""
    curve = report.get("curve")
    if not isinstance(curve, dict):
        return None
    columns = [_sequence(curve.get(name)) for name in ("ranks", "errors", "bytes")]
    if not columns[0] or len({len(column) for column in columns}) != 1:
        return None
    if not all(_is_number(value) for column in columns for value in column):
        return None
    return [(int(rank), 100.0 * float(error), int(size)) for rank, error, size in zip(*columns, strict=True)]


def _show_bars(bars: tuple[str, list[str], list[float]] | None) -> dict[str, Any]:
    if bars is None:
        return gr.update(visible=False)
    title, names, values = bars
    frame = pandas.DataFrame({"part": names, "value": values, SERIES: SERIES})
    # Named in their order: left to itself the plot sorts them by the alphabet.
    return gr.update(
        value=frame,
        sort=names,
        title=title,
        x_label_angle=-90 if len(names) > SLANTED_BARS else -45,
        x_axis_labels_visible=len(names) <= NAMED_BARS,
        visible=True,
    )


def _curve_frame(curve: list[tuple[int, float, int]]) -> pandas.DataFrame:
    ranks, errors, _ = zip(*curve)
    return pandas.DataFrame({"rank": ranks, "error": errors, SERIES: SERIES})


def _curve_table(curve: list[tuple[int, float, int]]) -> str:
    rows = [(str(rank), f"{error:.2f} %", file_size(size)) for rank, error, size in curve]
    return f'<div class="report">{table(("rank", "error", "file"), rows)}</div>'


def _files_table(report: Mapping[str, Any]) -> str:
    """What a preview would have written."""
    files = _mappings(report.get("files"))
    rows = [
        (Path(str(one.get("path", ""))).name, str(one.get("note", "")), file_size(float(one.get("bytes") or 0)))
        for one in files[:MAX_ROWS]
        if _is_number(one.get("bytes") or 0)
    ]
    more = f'<div class="hint">and {len(files) - MAX_ROWS} more files</div>' if len(files) > MAX_ROWS else ""
    return table(("would be written", "", "size"), rows) + more


def _main_table(report: Mapping[str, Any]) -> list[str]:
    columns = [str(name) for name in _sequence(report.get("columns"))]
    rows = [[str(text) for text in row] for row in _lists(report.get("rows")) if len(row) == len(columns)]
    lines = [table(columns, rows[:MAX_ROWS])]
    if len(rows) > MAX_ROWS:
        lines.append(f'<div class="hint">and {len(rows) - MAX_ROWS} more rows, which stand in the log</div>')
    modules = [[str(text) for text in row] for row in _lists(report.get("modules")) if len(row) == 3]
    if modules:
        whole = table(("module", "rank", "energy kept"), modules[:MAX_MODULES])
        lines.append(f"<details><summary>Every module</summary>{whole}</details>")
    return lines


def _is_lora_or_model(path: Path) -> bool:
    return path.suffix.lower() in WEIGHTS


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _sequence(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _lists(value: Any) -> list[list[Any]]:
    return [_sequence(item) for item in _sequence(value)]


def _mappings(value: Any) -> list[dict[str, Any]]:
    return [item for item in _sequence(value) if isinstance(item, dict)]


def _distinct(names: list[str]) -> list[str]:
    """The names, the second of its kind with a number: two bars of one name would be drawn as one."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found
