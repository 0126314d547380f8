"""What holds on every tab: the line about the GPU, questions before things are lost, words that can be read."""

import ast
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from backend.gpus import Verdict
from backend.workspace import DEMO_MODEL, PROJECT, Workspace
from tabs import device_line, train
from tabs.form import draw_form
from tests.ui.conftest import serving
from tests.ui.contrast import texts
from tests.ui.test_train_tab import START, STATUS, STOP, jobs_of, set_option

FIND = "#find-option textarea, #find-option input"
NAME = "#preset-name input, #preset-name textarea"
MODEL = "#option-pretrained_model_name_or_path input"
# A driver that is too old for every build of PyTorch that is supported.
NVIDIA_SMI = """#!/bin/sh
echo "NVIDIA GeForce RTX 2080, 8192, 470.57.02, 7.5, [N/A]"
"""


@pytest.fixture(scope="module")
def address(workspace: Path, chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with stand-ins on a machine whose GPU cannot be used."""
    program = tmp_path_factory.mktemp("bin") / "nvidia-smi"
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
        with serving("tests.ui.fake_server", workspace) as url:
            yield url


def test_no_message_floats_over_the_page() -> None:
    """What the tabs have to say stands in its place: a toast may cover the button that it is about."""
    floating = {"Info", "Warning", "Error", "Success"}
    found = [
        f"{path.name}:{node.lineno}"
        for path in (PROJECT / "tabs").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in floating and ast.unparse(node.value) == "gr"
    ]
    assert not found


def test_the_line_about_the_gpu_is_escaped_and_marked() -> None:
    assert device_line(Verdict("GPU: <b>", True, True)) == '<span class="used">GPU: &lt;b&gt;</span>'
    assert 'class="unused"' in device_line(Verdict("x", True, False))
    assert 'class="used"' in device_line(Verdict("No GPU was found", False, False))


def test_only_a_full_size_model_on_the_cpu_of_a_machine_with_a_gpu_is_doubted(monkeypatch: pytest.MonkeyPatch) -> None:
    full, small = {"pretrained_model_name_or_path": "org/full"}, {"pretrained_model_name_or_path": DEMO_MODEL}
    for there, usable in ((True, True), (False, False), (True, False)):
        monkeypatch.setattr(train.gpus, "verdict", partial(Verdict, "The GPU is not used: old", there, usable))
        assert bool(train.doubt(full)) is (there and not usable)
        assert not train.doubt(small)
    assert "The GPU is not used: old" in train.doubt(full)


def test_a_search_that_finds_nothing_is_told_so() -> None:
    import gradio as gr

    with gr.Blocks():
        form = draw_form(train.TrainNetwork)
    assert form.finds("") and form.finds("grad norm") and form.finds("NETWORK_DIM")
    assert not form.finds("zzz") and not form.finds("network_dim zzz")


def test_what_is_wrong_with_files_and_sizes_is_said_at_the_field(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox --w 708 --h 512\n")
    values = {
        "pretrained_model_name_or_path": "/gone.safetensors",
        "vae": "/gone.pt",
        "dataset_config": "backend/demo/dataset/dataset.toml",
        "sample_prompts": str(prompts),
        "sample_at_first": True,
    }
    found = train.check(workspace, values, {})
    assert found.keys() == {"pretrained_model_name_or_path", "vae", "sample_prompts"}
    assert found["sample_prompts"] == "line 1: width must be a multiple of 8, got 708"


@pytest.mark.browser
def test_train_asks_before_a_full_size_model_goes_onto_the_cpu(open_page: Callable[..., Page], workspace: Path) -> None:
    page = open_page(width=1280, height=800)
    expect(page.locator("#device")).to_contain_text("The GPU is not used (NVIDIA GeForce RTX 2080, 8 GB)")
    before = len(jobs_of(workspace))
    page.fill(MODEL, "org/full-size")
    page.keyboard.press("Tab")
    page.click(START)
    expect(page.locator("#train_network-problems .warning")).to_contain_text("The GPU is not used")
    page.click("#train_network-rather-not")
    expect(page.locator("#train_network-despite")).not_to_be_visible()
    assert len(jobs_of(workspace)) == before
    page.click(START)
    page.click("#train_network-despite")
    expect(page.locator(f"{STATUS} .state")).to_have_text("running")
    expect(page.locator("#train_network-despite")).not_to_be_visible()
    assert len(jobs_of(workspace)) == before + 1
    # A model that is not there is red at its field, and nothing is queued.
    page.fill(MODEL, "/no/such/model.safetensors")
    page.keyboard.press("Tab")
    page.click(START)
    expect(page.locator("#option-pretrained_model_name_or_path.invalid")).to_contain_text("there is no file or folder")
    assert len(jobs_of(workspace)) == before + 1


@pytest.mark.browser
def test_what_is_said_of_a_stop_covers_no_button(open_page: Callable[..., Page], workspace: Path) -> None:
    page = open_page(width=1280, height=800)
    set_option(page, "max_train_steps", "4000")
    page.fill(FIND, "training_comment")
    set_option(page, "training_comment", "stubborn")
    page.fill(FIND, "")
    page.click(START)
    # A run of a test before may still be the one that is shown.
    expect(page.locator(STATUS)).to_contain_text("/ 4000")
    page.click(STOP)
    expect(page.locator(STATUS)).to_contain_text("Press Kill to end it at once")
    for width, height in ((1280, 800), (1920, 1080), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        page.locator(STOP).scroll_into_view_if_needed()
        on_top = "e => e.contains(document.elementFromPoint(...(b => [b.x + b.width / 2, b.y + b.height / 2])"
        assert page.locator(STOP).evaluate(f"{on_top}(e.getBoundingClientRect())))")
    page.click(STOP)
    expect(page.locator(f"{STATUS} .state")).to_have_text("stopped by you")


@pytest.mark.browser
def test_what_gradio_says_stands_away_from_what_was_pressed(open_page: Callable[..., Page]) -> None:
    page = open_page(width=390, height=844)
    for edge, taken in (("start", "bottom"), ("end", "top")):
        page.locator("#preset-save").evaluate("(e, block) => e.scrollIntoView({ block })", edge)
        page.click("#preset-save")
        place = page.evaluate(
            """() => {
              const wrap = Object.assign(document.createElement("div"), { className: "toast-wrap" });
              wrap.style.cssText = "position: fixed; top: 16px; height: 90px";
              document.querySelector(".gradio-container").append(wrap);
              const { y } = wrap.getBoundingClientRect();
              wrap.remove();
              return y > innerHeight / 2 ? "bottom" : "top";
            }"""
        )
        assert place == taken


@pytest.mark.browser
def test_saving_over_a_preset_asks_and_shipped_ones_stay(open_page: Callable[..., Page], workspace: Path) -> None:
    page = open_page()
    home = workspace / "presets" / "train_network"
    answer, really = page.locator("#preset-answer"), page.locator("#preset-really")
    page.fill(NAME, "mine")
    page.click("#preset-save")
    expect(answer).to_contain_text("Saved as mine")
    first = (home / "mine.toml").read_bytes()
    set_option(page, "network_dim", "17")
    page.click("#preset-save")
    expect(really).to_have_text("Replace mine")
    assert (home / "mine.toml").read_bytes() == first
    page.click("#preset-keep")
    expect(really).not_to_be_visible()
    page.click("#preset-save")
    # The question was about this one, whatever is typed meanwhile.
    expect(really).to_have_text("Replace mine")
    page.fill(NAME, "other")
    really.click()
    expect(answer).to_contain_text("mine is replaced")
    assert b"17" in (home / "mine.toml").read_bytes() and [path.name for path in home.iterdir()] == ["mine.toml"]
    page.fill(NAME, "demo")
    page.click("#preset-save")
    expect(answer).to_contain_text("demo is a shipped preset and stays as it is")
    expect(really).not_to_be_visible()
    page.fill(FIND, "zzz")
    expect(page.locator("#find-nothing")).to_contain_text("No option has “zzz”")
    page.fill(FIND, "rank")
    expect(page.locator("#find-nothing")).to_have_text("")


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_can_be_read(open_page: Callable[..., Page], address: str, theme: str) -> None:
    page = open_page(f"{address}?__theme={theme}", height=900)
    set_option(page, "network_dim", "0")
    page.click(START)
    expect(page.locator("#option-network_dim.invalid")).to_be_visible()
    set_option(page, "network_dim", "8")
    page.fill(FIND, "zzz")
    expect(page.locator("#find-nothing .empty")).to_be_visible()
    found = texts(page)
    page.fill(FIND, "")
    page.click("#blocks > button")
    expect(page.locator("#blocks-picture .cell").first).to_be_visible()
    found += texts(page)
    for name in ("Merge", "Resize", "Generate"):
        page.get_by_role("tab", name=name, exact=True).click()
        expect(page.locator(".empty:visible").first).to_be_visible()
        found += texts(page)
    assert len(found) > 400
    assert [one for one in found if one["ratio"] < 4.5] == []
