"""From an empty workspace to a LoRA on a slider, in a browser, with the real demo model and no stand-ins."""

import json
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageChops
from playwright.sync_api import Download, Page, expect

from backend.config import presets
from backend.config.base import read_toml
from backend.config.train import TrainNetwork
from backend.jobs import Jobs
from backend.workspace import PROJECT, Workspace
from tests.ui.conftest import end_jobs, serving
from tests.ui.test_generate_tab import drag

pytestmark = [pytest.mark.browser, pytest.mark.slow]
STATUS = "#train_network-status"
# Four minutes on two cores that have nothing else to do.
TRAINING = 40 * 60_000
DRAWING = 300_000
PROMPT = "a round red zorgon monster with two eyes on a green background"


def finish(page: Page, workspace: Path) -> None:
    """Wait for the run on the page to end well."""
    state = page.locator(f"{STATUS} .state")
    expect(state).to_have_text(re.compile("finished|failed|interrupted"), timeout=TRAINING)
    jobs = Jobs(Workspace(workspace))
    job = jobs.list()[0]
    assert job.state == "finished", jobs.tail(job.id)[0]
    expect(page.locator("#loss svg").first).to_be_visible()
    expect(page.locator("#files")).to_contain_text(".safetensors")


def picture_of(download: Download) -> Image.Image:
    with Image.open(download.path()) as image:
        return image.convert("RGB").copy()


def drawn(page: Page, change: Callable[[], None]) -> tuple[Image.Image, str]:
    """Do what makes the page draw, and give the new picture and its parameters."""
    before = page.locator("#parameters textarea").all()
    old = before[0].input_value() if before else ""
    change()
    expect(page.locator("#parameters textarea")).not_to_have_value(old, timeout=DRAWING)
    expect(page.locator("#generate-status .figures")).to_be_visible(timeout=DRAWING)
    with page.expect_download() as download:
        page.click("#picture-download")
    return picture_of(download.value), page.locator("#parameters textarea").input_value()


def difference(first: Image.Image, second: Image.Image) -> float:
    """Mean difference of two pictures' pixels, from 0 to 255."""
    histogram = ImageChops.difference(first, second).convert("L").histogram()
    return sum(value * count for value, count in enumerate(histogram)) / sum(histogram)


def play(page: Page) -> None:
    """Draw with the newest LoRA, take it back to 0 and forth to 1 on its slider: only the dose changes the picture."""
    page.get_by_role("tab", name="Generate").click()
    expect(page.locator(".lora-file input")).to_have_value(re.compile(r"\S"))
    page.fill("#prompt textarea", PROMPT)
    page.fill("#generate-steps input[type=number]", "12")
    with_lora, text = drawn(page, lambda: page.click("#generate"))
    seed = re.search(r"Seed: (\d+)", text)
    assert seed is not None
    slider = page.locator(".multiplier").first
    # From -1 to 2, so that 0 is at a third.
    without, other_text = drawn(page, lambda: drag(page, slider, 1 / 3))
    assert f"Seed: {seed[1]}" in other_text
    assert difference(with_lora, without) > 1
    again, again_text = drawn(page, lambda: drag(page, slider, 2 / 3))
    multiplier = re.search(r" x ([\d.]+)", again_text)
    assert multiplier is not None and abs(float(multiplier[1]) - 1) < 0.1
    assert difference(with_lora, again) < difference(with_lora, without)


def test_press_train_then_move_the_slider(open_page: Callable[..., Page], tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    try:
        with serving("webui", workspace) as url:
            page = open_page(url)
            page.click("#train_network-start")
            expect(page.locator("#loss svg").first).to_be_visible(timeout=TRAINING)
            # Nobody looks on: without a GPU the browser would take a third of a core from the training.
            page.close()
            while any(job.active for job in Jobs(Workspace(workspace)).list()):
                time.sleep(1)
            page = open_page(url)
            finish(page, workspace)
            play(page)
    finally:
        end_jobs(workspace)
    output = Jobs(Workspace(workspace)).list()[0].output
    (lora,) = (path for path in output.glob("*.safetensors") if not path.stem[-6:].isdigit())
    a_shell_does_the_same(lora, tmp_path / "shell")
    the_multiplier_doses_the_feature(lora)


def backend(*arguments: str) -> str:
    """What `python -m ...` prints, from the project's root, as a user would start it."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def a_shell_does_the_same(lora: Path, folder: Path) -> None:
    """The documented command line trains with the settings that the browser's run had; two steps show it."""
    line = ["--config_file", "presets/train_network/demo.toml", "--output_dir", str(folder), "--output_name", "demo"]
    backend("backend", "train_network", *line, "--max_train_steps", "2", "--lr_warmup_steps", "1")
    theirs = read_toml(TrainNetwork, lora.with_suffix(".config.toml"))
    ours = read_toml(TrainNetwork, folder / "demo.config.toml")
    told = {"output_dir", "output_name", "max_train_steps", "lr_warmup_steps"}
    assert (folder / "demo.safetensors").is_file()
    assert {name: ours[name] for name in ours if name not in told} == {
        name: theirs[name] for name in theirs if name not in told
    }


def the_multiplier_doses_the_feature(lora: Path) -> None:
    """Read by the picture reader: nothing at 0, more at 0.5, there at 1; and only with the new word.

    `feature` is a picture with horns and stripes, `affected` one with either. At 0.5 only `affected` is in between.
    """
    report = json.loads(backend("backend.demo.evaluate", "--lora", str(lora), "--json"))
    none, half, full = (report[f"multiplier {value}"]["with_word"] for value in ("0", "0.5", "1"))
    assert none["affected"] <= 0.05
    assert full["affected"] >= 0.80
    assert full["feature"] >= 0.80
    assert none["affected"] < half["affected"] < full["affected"]
    assert report["multiplier 1"]["without_word"]["affected"] <= 0.10
    assert min(full["colour"], full["shape"], full["background"]) >= 0.70


@pytest.mark.long
def test_uploaded_pictures_are_trained_the_same_way(open_page: Callable[..., Page], tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    demo = PROJECT / "backend" / "demo" / "dataset" / "images"
    archive = tmp_path / "monsters.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(demo.iterdir()):
            file.write(path, f"folder/{path.name}")
    try:
        with serving("webui", workspace) as url:
            page = open_page(url)
            page.click("#upload > button")
            page.set_input_files("#upload-files input[type=file]", archive)
            expect(page.locator("#upload-name input")).to_have_value("monsters")
            page.click("#upload-add")
            expect(page.locator("#dataset-summary")).to_contain_text("12 pictures")
            page.locator("#dataset-batch_size input").fill("4")
            page.locator("#option-max_train_steps input").fill("40")
            page.click("#train_network-start")
            finish(page, workspace)
            config = json.dumps(presets.imported(TrainNetwork, Jobs(Workspace(workspace)).list()[0].config.read_text()))
            assert str(workspace / "datasets" / "monsters" / "dataset.toml") in config
            play(page)
    finally:
        end_jobs(workspace)
