"""A job as a browser follows it."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from backend.job import Job
from backend.jobs import Jobs
from backend.workspace import Workspace
from tabs import watch as watching
from tabs.status import status_html
from tabs.text import duration, problem_list, speed
from tabs.watch import Sample, Watch, follow, smooth, thin


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(Workspace(tmp_path / "workspace"), check=lambda *_: None)


@pytest.fixture
def job(jobs: Jobs) -> Job:
    return jobs.start("train_network", "", "<b>title</b>")


def tell(job: Job, *events: dict[str, object]) -> None:
    with job.events.open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def progress(step: int, loss: float = 1.0) -> dict[str, object]:
    return {"event": "progress", "step": step, "total": 9, "loss": loss, "seconds_per_step": 2.0, "lr": {"unet": 1e-3}}


def test_only_what_is_new_is_read(jobs: Jobs, job: Job) -> None:
    watch = Watch(job.id)
    tell(job, progress(1), progress(2))
    job.log.write_text("one\n")
    follow(jobs, watch, job)
    assert watch.losses == [(1, 1.0), (2, 1.0)]
    first = watch.events_offset
    tell(job, progress(3, 0.5))
    with job.log.open("a") as file:
        file.write("two\n")
    follow(jobs, watch, job)
    assert watch.losses == [(1, 1.0), (2, 1.0), (3, 0.5)]
    assert watch.log == "one\ntwo\n"
    assert watch.events_offset > first


def test_a_progress_bar_is_one_line_of_the_log() -> None:
    assert watching.last_lines("a\n10%\r20%\r30%\nb") == "a\n30%\nb"
    assert watching.last_lines("x\r\ny") == "x\ny"
    assert len(watching.last_lines("line\n" * 9000).splitlines()) <= watching.LOG_LINES


def test_samples_outside_the_jobs_folder_are_not_shown(jobs: Jobs, job: Job, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    Image.new("RGB", (8, 8)).save(job.output / "inside.png")
    (job.output / "link.png").symlink_to(tmp_path / "outside.png")
    for path in (tmp_path / "outside.png", job.output / "link.png", job.output / "inside.png", Path("/etc/passwd")):
        tell(job, {"event": "sample", "path": str(path), "prompt": "p", "step": 4})
    watch = Watch(job.id)
    follow(jobs, watch, job)
    assert watch.samples == {0: {4: Sample(str(job.output / "inside.png"), "p", "")}}


def test_very_many_losses_are_thinned_and_stay_true(jobs: Jobs, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "KEPT_LOSSES", 10)
    tell(job, *(progress(step, float(step)) for step in range(1, 13)))
    watch = Watch(job.id)
    follow(jobs, watch, job)
    assert watch.losses == [(3, 2.0), (6, 5.0), (9, 8.0), (12, 11.0)]


def test_thin_keeps_means_and_the_last_step() -> None:
    points = [(step, float(step % 2)) for step in range(1, 101)]
    few = thin(points, 10)
    assert len(few) == 10
    assert all(loss == 0.5 for _, loss in few)
    assert few[-1][0] == 100
    assert thin(points[:5], 10) == points[:5]


def test_the_average_is_right_from_its_first_point() -> None:
    assert smooth([(1, 3.0), (2, 3.0)]) == [(1, pytest.approx(3.0)), (2, pytest.approx(3.0))]
    assert smooth([(1, 0.0), (2, 1.0)], keep=0.5)[1][1] == pytest.approx(2 / 3)


def test_the_status_says_how_far_and_how_long(jobs: Jobs, job: Job) -> None:
    running = Job(job.id, job.folder, job.command, job.title, "running", job.created, started=1.0)
    watch = Watch(job.id)
    tell(job, {"event": "phase", "name": "caching latents", "step": 3, "total": 12})
    follow(jobs, watch, running)
    assert "caching latents" in status_html(watch, running, "")
    assert "width:25.0%" in status_html(watch, running, "")
    tell(job, {"event": "phase", "name": "training"}, progress(3), {"event": "warning", "message": "<i>mind</i>"})
    follow(jobs, watch, running)
    html = status_html(watch, running, "")
    assert "3 / 9" in html and "0:12" in html and "2.0 s/step" in html and "width:33.3%" in html
    assert "&lt;b&gt;title" in html and "<b>title" not in html
    assert "&lt;i&gt;mind" in html
    failed = Job(job.id, job.folder, job.command, job.title, "failed", job.created)
    assert "a &lt; b" in status_html(watch, failed, "a < b")


def test_files_are_weights_newest_first_then_the_config(job: Job) -> None:
    for age, name in enumerate(("a.toml", "a-000001.safetensors", "a.safetensors", ".a.safetensors.tmp", "a.png")):
        (job.output / name).write_bytes(b"x")
        os.utime(job.output / name, (age, age))
    assert [path.name for path in watching.outputs(job)] == ["a.safetensors", "a-000001.safetensors", "a.toml"]


def test_parts_are_sent_once_and_again_for_another_job() -> None:
    watch = Watch("one")
    assert watch.changed("log", "x")
    assert not watch.changed("log", "x")
    watch.look_at("one")
    assert not watch.changed("log", "x")
    watch.look_at("two")
    assert watch.changed("log", "x")
    assert watch.job_id == "two"


def test_words() -> None:
    assert [duration(seconds) for seconds in (0.4, 75, 3723)] == ["0:00", "1:15", "1:02:03"]
    assert [speed(seconds) for seconds in (0, 0.25, 3)] == ["–", "4.0 steps/s", "3.0 s/step"]
    assert problem_list([]) == ""
    assert "<code>a&lt;</code> b&gt;" in problem_list([("a<", "b>")])
