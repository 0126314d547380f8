"""A tool's report as the page draws it."""

import json
import os
import time
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from backend.job import Job
from backend.jobs import Jobs
from backend.tools.report import Bars, Curve, Made, Report, tell
from backend.workspace import Workspace
from tabs import report as drawing
from tabs.downloads import forget, offered
from tabs.report import ReportView, bars_of, curve_of, draw_report, report_html
from tabs.status import status_html
from tabs.watch import Watch, follow


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(Workspace(tmp_path / "workspace"), check=lambda *_: None)


@pytest.fixture
def job(jobs: Jobs) -> Job:
    return jobs.start("merge_lora", "", "a + b")


@pytest.fixture
def view(jobs: Jobs) -> ReportView:
    with gr.Blocks():
        return draw_report(jobs.workspace.root, "x-")


def finished(job: Job) -> Job:
    return Job(job.id, job.folder, job.command, job.title, "finished", job.created, 1.0, 3.0, 0)


def seen(jobs: Jobs, job: Job, report: Report, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """What a browser knows once a tool has told its report in its own way."""
    monkeypatch.setenv("LORALOOM_EVENTS", str(job.events))
    tell(report)
    watch = Watch(job.id)
    follow(jobs, watch, job)
    return watch


def test_what_a_tool_tells_is_what_is_drawn(
    jobs: Jobs, job: Job, view: ReportView, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = job.output / "merged.safetensors"
    file.write_bytes(b"weights")
    report = Report(
        title="Merged <b>2</b> LoRAs",
        files=(Made(str(file), 7, "rank 4"),),
        facts=(("rank", "4 <i>"),),
        columns=("layer", "error"),
        rows=(("down <0>", "3 %"),),
        bars=Bars("Energy kept, %", ("zebra", "ant", "mid"), (3.0, 1.0, 2.0)),
        curve=Curve((1, 2), (0.5, 0.25), (600_000, 1_200_000)),
        notes=("mind <this>",),
    )
    watch = seen(jobs, job, report, monkeypatch)
    text, bars, curve, sizes, use = view.updates(watch, finished(job))
    for shown in ("Merged &lt;b&gt;2", "4 &lt;i&gt;", "down &lt;0&gt;", "mind &lt;this&gt;", "<th>error</th>"):
        assert shown in text
    assert "preview" not in text
    assert bars["sort"] == ["zebra", "ant", "mid"] and bars["title"] == "Energy kept, %" and bars["visible"]
    assert list(bars["value"]["part"]) == ["zebra", "ant", "mid"] and list(bars["value"]["value"]) == [3.0, 1.0, 2.0]
    assert list(curve["value"]["rank"]) == [1, 2] and list(curve["value"]["error"]) == [50.0, 25.0]
    assert "<td>50.00 %</td><td>600.0 kB</td>" in sizes
    assert use["visible"] is True
    assert view.files(watch, job) == [file]
    # What has been shown is not sent again.
    assert all(update == gr.skip() for update in view.updates(watch, finished(job)))


def test_a_preview_says_what_would_be_written_and_offers_nothing(
    jobs: Jobs, job: Job, view: ReportView, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Report("Would merge", dry_run=True, files=(Made("/x/merged.safetensors", 9_400_000, "rank 4"),))
    watch = seen(jobs, job, report, monkeypatch)
    text, bars, curve, sizes, use = view.updates(watch, finished(job))
    assert "nothing was written" in text
    assert "<td>merged.safetensors</td><td>rank 4</td><td>9.4 MB</td>" in text
    assert (bars["visible"], curve["visible"], sizes, use["visible"]) == (False, False, "", False)
    assert view.files(watch, job) == []


def test_files_outside_the_workspace_are_not_offered(
    jobs: Jobs, job: Job, view: ReportView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside, inside = tmp_path / "secret.safetensors", jobs.workspace.datasets / "a.png"
    for path in (outside, inside):
        path.write_bytes(b"x")
    link = job.output / "link.png"
    link.symlink_to(outside)
    files = tuple(Made(str(path), 1) for path in (outside, link, inside, Path("/etc/passwd"), Path("\0")))
    watch = seen(jobs, job, Report("Done", files=files), monkeypatch)
    assert view.files(watch, job) == [inside]


@pytest.mark.parametrize(
    "report",
    [
        {"title": 3, "facts": "no", "rows": 5, "columns": None, "notes": {}, "files": ["x", 3], "bars": [], "curve": 1},
        {"facts": [["alone"], 7], "rows": [["a"], "b"], "columns": ["x", "y"], "bars": {"names": ["a"]}},
        {"bars": {"names": ["a"], "values": ["1"]}, "curve": {"ranks": [1], "errors": [None], "bytes": [1]}},
        {"bars": {"names": [], "values": []}, "curve": {"ranks": [1, 2], "errors": [0.1], "bytes": [1, 2]}},
        {"bars": {"names": ["a"], "values": [float("nan")]}, "dry_run": True, "files": [{"bytes": "many"}]},
    ],
)
def test_a_broken_report_breaks_nothing(view: ReportView, job: Job, report: dict[str, Any]) -> None:
    watch = Watch(job.id, report=report)
    assert len(view.updates(watch, finished(job))) == len(view.outputs)
    assert bars_of(report) is None and curve_of(report) is None


def test_bars_of_one_name_are_not_drawn_as_one() -> None:
    found = bars_of({"bars": {"title": "t", "names": ["mid", "mid"], "values": [1, 2]}})
    assert found == ("t", ["mid", "mid (2)"], [1.0, 2.0])


def test_a_long_table_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "MAX_ROWS", 2)
    report = {"title": "t", "columns": ["a"], "rows": [["1"], ["2"], ["3"]], "facts": [["n", "3"]]}
    assert "<td>2</td>" in report_html(report) and "<td>3</td>" not in report_html(report)
    assert "and 1 more rows" in report_html(report)


def test_each_phase_has_its_bar_and_the_newest_comes_last(jobs: Jobs, job: Job) -> None:
    running = Job(job.id, job.folder, job.command, job.title, "running", job.created, started=time.time())
    watch = Watch(job.id)
    for name, step in (("reading", 1), ("adding", 1), ("reading", 3)):
        with job.events.open("a") as file:
            file.write(json.dumps({"event": "phase", "name": name, "step": step, "total": 4}) + "\n")
    follow(jobs, watch, running)
    html = status_html(watch, running, "")
    assert html.index("adding") < html.index("reading 3 of 4")
    assert html.count('class="bar"') == 2 and "width:75.0%" in html and "width:100.0%" in html
    assert "took" in status_html(watch, finished(job), "") and "0:02" in status_html(watch, finished(job), "")


def test_a_download_is_the_file_itself_and_its_room_is_given_back(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "served"))
    file = job.output / "a.safetensors"
    file.write_bytes(b"old")
    link = offered(job, file)
    assert link != file and link.samefile(file) and link.is_relative_to(tmp_path / "served")
    fresh = job.output / "fresh"
    fresh.write_bytes(b"new")
    os.replace(fresh, file)
    assert offered(job, file) == link and link.read_bytes() == b"new"
    forget(job.id)
    assert not link.exists() and file.exists()
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link")))
    assert offered(job, file) == file
