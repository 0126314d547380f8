"""What a tool tells of its work: the same for the terminal and for the page, which knows no tool."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from backend import events
from backend.terminal import say

MODULE_COLUMNS = ("module (least kept)", "rank", "energy kept")
# Modules that the terminal shows; the page has them all.
LEAST = 10
UNITS = ("B", "kB", "MB", "GB")


@dataclass(frozen=True)
class Made:
    """A file that was written, or would be.

    Attributes:
        path: of the file.
        bytes: its size.
        note: what sets it apart from the others, such as "rank 4"; may be empty.
    """

    path: str
    bytes: int
    note: str = ""


@dataclass(frozen=True)
class Bars:
    """One number per part, to be drawn as bars.

    Attributes:
        title: what is drawn, with its unit.
        names: of the parts, in order.
        values: one each.
    """

    title: str
    names: tuple[str, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """What each rank would cost and keep.

    Attributes:
        ranks: in rising order.
        errors: relative error of the whole, |result - wanted| / |wanted|, 0 to 1, one per rank.
        bytes: size of the file, one per rank.
    """

    ranks: tuple[int, ...]
    errors: tuple[float, ...]
    bytes: tuple[int, ...]


@dataclass(frozen=True)
class Report:
    """The outcome of a tool.

    Attributes:
        title: one line.
        dry_run: nothing was written.
        files: what was written, or would be.
        facts: pairs of name and text.
        columns, rows: a table of texts; may be empty.
        modules: the same for each module: its key, rank and share of energy kept; may be empty.
        bars, curve: numbers to be drawn, if there are any.
        notes: lines that the user should read.
    """

    title: str
    dry_run: bool = False
    files: tuple[Made, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    modules: tuple[tuple[str, str, str], ...] = ()
    bars: Bars | None = None
    curve: Curve | None = None
    notes: tuple[str, ...] = field(default=())


def tell(report: Report) -> None:
    """Print the report, and send it to the page as an event of the kind "report" with its fields."""
    say(as_text(report))
    plain: dict[str, Any] = asdict(report)
    events.emit("report", **plain)
    if not report.dry_run:
        for made in report.files:
            events.emit("file", path=made.path, final=True)


def as_text(report: Report) -> str:
    """The report for a terminal."""
    lines = [report.title]
    width = max((len(name) for name, _ in report.facts), default=0)
    lines += [f"  {name:<{width}}  {text}" for name, text in report.facts]
    if report.rows:
        lines += ["", *_table(report.columns, report.rows)]
    if report.modules:
        least = sorted(report.modules, key=lambda row: float(row[2].split()[0]))[:LEAST]
        lines += ["", *_table(MODULE_COLUMNS, least)]
    if report.curve:
        curve = report.curve
        rows = [
            (str(rank), f"{100 * error:.2f} %", size_text(size))
            for rank, error, size in zip(curve.ranks, curve.errors, curve.bytes, strict=True)
        ]
        lines += ["", *_table(("rank", "error", "file"), rows)]
    if report.files:
        verb = "would write" if report.dry_run else "wrote"
        lines += ["", *(_file_line(verb, made) for made in report.files)]
    return "\n".join([*lines, *(f"Note: {note}" for note in report.notes)])


def percent(share: float) -> str:
    """A share for people."""
    return f"{100 * share:.4g} %"


def size_text(size: float) -> str:
    """A number of bytes for people.

    >>> size_text(2_132_000_000)
    '2.1 GB'
    """
    power = 0
    while size >= 1000 and power < len(UNITS) - 1:
        size, power = size / 1000, power + 1
    return f"{size:.1f} {UNITS[power]}" if power else f"{size:.0f} B"


def _file_line(verb: str, made: Made) -> str:
    note = f", {made.note}" if made.note else ""
    return f"{verb} {Path(made.path)} ({size_text(made.bytes)}{note})"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(text) for text in column) for column in zip(columns, *rows, strict=True)]
    return [
        "  ".join(text.ljust(width) if index == 0 else text.rjust(width) for index, (text, width) in cells).rstrip()
        for cells in (list(enumerate(zip(row, widths, strict=True))) for row in (columns, *rows))
    ]
