"""What the Train tab shows of a run: curves and sample pictures, light enough for a slow line."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from backend.job import Job
from backend.jobs import Jobs
from backend.workspace import Workspace
from tabs import watch as watching
from tabs.charts import chart, charts, number
from tabs.status import status_html
from tabs.strip import strip
from tabs.training_view import TrainingView
from tabs.watch import Sample, Watch, follow
from tests.ui.test_train_tab import START, STATUS, set_option


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(Workspace(tmp_path / "workspace"), check=lambda *_: None)


@pytest.fixture
def job(jobs: Jobs) -> Job:
    return jobs.start("train_network", "", "title")


def tell(job: Job, *events: dict[str, object]) -> None:
    with job.events.open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def progress(step: int, total: int = 100_000) -> dict[str, object]:
    return {
        "event": "progress", "step": step, "total": total, "loss": 1.0 + 1 / step, "loss_average": 1.25,
        "lr": {f"unet_block{block}": 1e-4 / block for block in range(1, 26)}, "gradient_norm": 0.123456789 * step,
        "weight_norm": {"mean": 1.0, "max": 2.0}, "seconds_per_step": 0.25, "pictures_per_second": 16.0,
        "memory": {"process": 3e9, "gpu_peak": 9.4e9, "gpu": 24e9},
    }  # fmt: skip


def test_a_long_run_stays_small_in_memory_and_on_the_line(jobs: Jobs, job: Job) -> None:
    watch = Watch(job.id)
    for begin in range(1, 100_001, 10_000):
        tell(job, *(progress(step) for step in range(begin, begin + 10_000, 2)))
        tell(job, {"event": "validation", "step": begin, "loss": 0.5})
        follow(jobs, watch, job)
    assert len(watch.losses) <= watching.KEPT_LOSSES
    assert all(len(points) <= watching.KEPT_POINTS for series in watch.curves.values() for points in series.values())
    sent = json.dumps(watching.loss_curves(watch)) + charts(watch.curves) + status_html(watch, job, "")
    assert len(sent) < 80_000
    shown = watching.loss_curves(watch)
    assert shown["series"].count("validation") == 10 and shown["step"][-1] == 90_001
    assert {step for step, name in zip(shown["step"], shown["series"], strict=True) if name == "loss"} >= {99_999}


def test_the_status_has_speed_memory_and_validation(jobs: Jobs, job: Job) -> None:
    watch = Watch(job.id)
    tell(job, progress(4, 8), {"event": "validation", "step": 4, "loss": 0.51239})
    follow(jobs, watch, job)
    html = status_html(watch, replace(job, state="running", started=1.0), "")
    text = re.sub("<[^>]+>", " ", html)
    for words in ("4.0 steps/s", "16 / s", "0:01", "1.2500", "0.5124", "9.4 GB of 24.0 GB"):
        assert words in text, words


def test_numbers_that_are_none_are_no_points(jobs: Jobs, job: Job) -> None:
    watch = Watch(job.id)
    tell(job, progress(1) | {"gradient_norm": float("inf"), "lr": None, "weight_norm": {"mean": "x"}, "loss": None})
    tell(job, {"event": "validation", "step": 1, "loss": float("nan")}, {"event": "validation", "loss": 1.0})
    follow(jobs, watch, job)
    assert watch.curves == {} and watch.losses == [] and watch.validation == []


def test_a_chart_reaches_from_nothing_to_the_largest_value() -> None:
    html = chart("a <b>", {"<i>": [(10, 1.0), (20, 4.0), (30, 2.0)], "other": [(10, 0.0), (30, 0.0)]})
    lines = re.findall(r'points="([^"]+)"', html)
    assert lines[1].split() == ["0.0,52.0", "150.0,1.0", "300.0,35.0"]
    assert lines[0].split() == ["0.0,69.0", "300.0,69.0"]
    assert "<b>A &lt;b&gt;</b>" in html and "&lt;i&gt; <b>2</b>" in html and "step 10" in html
    assert chart("one point", {"a": [(1, 1.0)]}) == ""
    many = chart("many", {f"s{index}": [(1, 1.0), (2, 1.0)] for index in range(9)})
    assert "and 3 more" in many and many.count("<polyline") == 9
    assert [number(value) for value in (0, 12.345, 0.01234, 0.00095, 2.5e-7)] == [
        "0",
        "12.3",
        "0.0123",
        "9.5e-4",
        "2.5e-7",
    ]


def test_the_strip_has_a_row_for_each_prompt_and_a_column_for_each_step(job: Job) -> None:
    folder = job.output / "sample"
    folder.mkdir()
    samples: dict[int, dict[int, Sample]] = {0: {}, 1: {}}
    for step in range(1, 101):
        for index in (0, 1):
            path = folder / f"{step}_{index} #.png"
            if step > 90:
                Image.effect_noise((300, 300), 90).save(path)
            samples[index][step] = Sample(str(path), f"prompt <{index}>", str(index))
    del samples[1][95]
    html = strip(job, samples, (job.folder,))
    assert html.count("<tr>") == 3 and len(re.findall(r"<th>\d+</th>", html)) == watching.COLUMNS
    head = [int(step) for step in re.findall(r"<th>(\d+)</th>", html)]
    assert head == list(range(41, 101))
    assert html.count("<img") == 19 and html.count('loading="lazy"') == 19
    assert "prompt &lt;1&gt;" in html and "<1>" not in html and "seed 1" in html
    small = re.findall(r'<img src="gradio_api/file=([^"]+)"', html)
    assert all("/thumbnails/" in path for path in small) and "%23.png" in html
    sizes = [path.stat().st_size for path in (job.folder / "thumbnails").rglob("*.webp")]
    assert len(sizes) == 19 and max(sizes) < (folder / "100_0 #.png").stat().st_size / 2
    assert strip(job, {}, ()) == ""


def test_nothing_is_sent_twice(jobs: Jobs, job: Job) -> None:
    view = TrainingView(None, None, None, (job.folder,))
    watch = Watch(job.id)
    tell(job, progress(1), progress(2))
    follow(jobs, watch, job)
    first, second = view.updates(watch, job), view.updates(watch, job)
    assert first[0]["visible"] and "Gradient norm" in first[2]["value"]
    assert all(update == {"__type__": "update"} for update in second)


@pytest.mark.browser
def test_a_run_is_watched_and_a_picture_seen_large(open_page: Callable[..., Page]) -> None:
    page = open_page()
    set_option(page, "max_train_steps", "320")
    page.click(START)
    expect(page.locator(f"{STATUS} .state")).to_have_text("finished")
    expect(page.locator("#samples tbody tr")).to_have_count(2)
    expect(page.locator("#samples thead th")).to_have_count(16)
    expect(page.locator("#curves svg")).to_have_count(3)
    expect(page.locator("#loss")).to_contain_text("validation")
    expect(page.locator(STATUS)).to_contain_text("validation loss")
    # The newest is in sight; the strip scrolls, the page does not.
    last = page.locator("#samples tbody tr").first.locator("img").last
    assert last.evaluate("image => image.complete && image.naturalWidth > 0")
    box, around = last.bounding_box(), page.locator("#samples .strip").bounding_box()
    assert box is not None and around is not None and box["x"] + box["width"] <= around["x"] + around["width"] + 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("#samples .strip").evaluate("strip => strip.scrollWidth > strip.clientWidth + 300")
    last.click()
    large = page.locator("dialog.large-sample")
    expect(large).to_contain_text("step 290, seed 7: <img src=x onerror=alert(1)>")
    assert large.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
    large.locator("img").click()
    expect(large).to_have_count(0)
