"""The Resume button of the Train tab, over jobs that only pretend."""

import json
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.ui.conftest import serving
from tests.ui.test_train_tab import START, STATUS, STOP, jobs_of, set_option

pytestmark = pytest.mark.browser
RESUME = "#run-resume"


def started(page: Page, steps: int) -> None:
    set_option(page, "max_train_steps", str(steps))
    page.click(START)
    expect(page.locator(f"{STATUS} .figures")).to_contain_text(f"/ {steps}")


def step_of(state: Path) -> int:
    return json.loads((state / "state.json").read_text())["step"]


def test_a_stopped_run_goes_on_from_its_step_also_after_a_restart_of_the_server(
    open_page: Callable[..., Page], tmp_path: Path
) -> None:
    home = tmp_path / "workspace"
    with serving("tests.ui.fake_server", home) as url:
        page = open_page(url)
        started(page, 400)
        expect(page.locator(RESUME)).not_to_be_visible()
        page.click(STOP)
        expect(page.locator(f"{STATUS} .state")).to_have_text("stopped by you")
        page.close()
    (first,) = jobs_of(home)
    (state,) = (first / "output").glob("*-state")
    step = step_of(state)
    with serving("tests.ui.fake_server", home) as url:
        page = open_page(url)
        expect(page.locator(RESUME)).to_have_text(f"Resume from step {step}")
        expect(page.locator(STATUS)).to_contain_text(f"Its state after step {step} is saved")
        page.click(RESUME)
        # At once, before a step has been done.
        expect(page.locator(f"{STATUS} .figures")).to_contain_text(f"{step} / 400", timeout=5000)
        expect(page.locator(RESUME)).not_to_be_visible()
        expect(page.locator("#jobs label").first).to_contain_text(f"from step {step}")
        page.locator("#jobs label").last.click()
        expect(page.locator(RESUME)).to_be_disabled()
        expect(page.locator(RESUME)).to_have_text("Cannot resume: a run goes on from it")
        page.locator("#jobs label").first.click()
        expect(page.locator(f"{STATUS} .state")).to_have_text("finished")
        expect(page.locator(RESUME)).not_to_be_visible()
    second = jobs_of(home)[-1]
    told = [json.loads(line) for line in (second / "events.jsonl").read_text().splitlines()]
    steps = [event["step"] for event in told if event["event"] == "progress" and "loss" in event]
    assert steps == list(range(1, 401))
    config = tomllib.loads((second / "config.toml").read_text())
    assert config["state"]["resume"] == str(second / "output" / state.name)
    assert config["save"]["output_dir"] == str(second / "output")


def test_a_run_without_a_state_says_why_it_cannot_be_resumed(open_page: Callable[..., Page], workspace: Path) -> None:
    page = open_page()
    started(page, 9000)
    expect(page.locator(f"{STATUS} .state")).to_have_text("running")
    page.click(STOP)
    expect(page.locator(f"{STATUS} .state")).to_have_text("stopped by you")
    job = jobs_of(workspace)[-1]
    (state,) = (job / "output").glob("*-state")
    expect(page.locator(RESUME)).to_be_enabled()
    shutil.rmtree(state)
    expect(page.locator(RESUME)).to_have_text("Cannot resume: its states are gone or broken")
    expect(page.locator(RESUME)).to_be_disabled()
    events = (job / "events.jsonl").read_text()
    (job / "events.jsonl").write_text(re.sub('"event": "state"', '"event": "other"', events))
    page.reload()
    expect(page.locator(RESUME)).to_have_text("Cannot resume: no state was saved")
    expect(page.locator(STATUS)).to_contain_text("It saved no state, so it cannot be resumed.")
