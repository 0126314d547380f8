"""The five tool tabs in a browser, over a server whose jobs only pretend."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from backend.workspace import CHECKPOINT_PREFIX
from tests.ui.fake_tool import BLOCKS, HOSTILE, weights

pytestmark = pytest.mark.browser
DYLORA, MERGE, SVD = "extract_lora_from_dylora", "merge_lora", "svd_merge_lora"
DIFF, RESIZE = "extract_lora_from_models", "resize_images_to_resolution"
TOOLS = {DYLORA: "DyLoRA Extract", MERGE: "Merge", SVD: "SVD Merge", DIFF: "Diff Extract", RESIZE: "Resize"}


@pytest.fixture(autouse=True)
def files(workspace: Path) -> None:
    """LoRAs, models and a dataset to work with."""
    for folder, name, key in (
        ("loras", "horns", "lora_unet_a.alpha"),
        ("loras", "stripes", "lora_unet_a.alpha"),
        ("models", "original", f"{CHECKPOINT_PREFIX}a"),
        ("models", "tuned", f"{CHECKPOINT_PREFIX}a"),
    ):
        (workspace / folder).mkdir(parents=True, exist_ok=True)
        (workspace / folder / f"{name}.safetensors").write_bytes(weights(key))
    pictures = workspace / "datasets" / "pets" / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for number, size in enumerate([(800, 600), (1024, 1024), (300, 300)]):
        Image.new("RGB", size, "red").save(pictures / f"{number}.png")
    toml = f'[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = "{pictures}"\n'
    (pictures.parent / "dataset.toml").write_text(toml)


def open_tool(page: Page, command: str) -> None:
    page.get_by_role("tab", name=TOOLS[command], exact=True).click()
    page.wait_for_selector(f"#{command}-start")


def choose(page: Page, field: str, label: str, nth: int = 0) -> None:
    box = page.locator(f"{field} input").nth(nth)
    for _ in range(4):
        box.click()
        page.get_by_role("option", name=label).first.click()
        # The choices may have been renewed between the two.
        if label in box.input_value():
            return
    raise AssertionError(f"{label} cannot be chosen")


def choose_lora(page: Page, command: str, row: int, label: str) -> None:
    choose(page, f"#{command}-option-models .lora-file", f"loras/{label}.safetensors", row)


def options_with(page: Page, field: str, wanted: str) -> list[str]:
    """What can be chosen once `wanted` is among it; an open list does not change, so it is opened again and again."""
    found: list[str] = []
    for _ in range(20):
        page.locator(f"{field} input").first.click()
        expect(page.get_by_role("option").first).to_be_visible()
        found = [text.strip().removeprefix("✓").strip() for text in page.get_by_role("option").all_inner_texts()]
        page.keyboard.press("Escape")
        if any(label.startswith(wanted) for label in found):
            return found
        page.locator(f"{field} input").first.blur()
        page.wait_for_timeout(1000)
    raise AssertionError(f"{wanted} is not among {found}")


def fill(page: Page, command: str, option: str, value: str) -> None:
    field = page.locator(f"#{command}-option-{option} input, #{command}-option-{option} textarea").first
    field.fill(value)
    field.blur()


def run(page: Page, command: str, button: str = "start") -> None:
    """Press and wait for that run, not one before it, to end well."""
    page.click(f"#{command}-{button}")
    expect(page.locator(f"#{command}-status .state").and_(page.locator(".queued, .running"))).to_be_visible()
    expect(page.locator(f"#{command}-status .state")).to_have_text("finished")
    expect(page.locator(f"#{command}-report .name")).to_be_visible()


def newest(workspace: Path) -> tuple[Path, dict[str, Any]]:
    """The newest job's folder and its options, of whatever section."""
    job = max((workspace / "jobs").glob("[0-9]*"), key=lambda path: (path / "job.json").stat().st_mtime_ns)
    config = tomllib.loads((job / "config.toml").read_text())
    return job, {name: value for section in config.values() for name, value in section.items()}


def count_jobs(workspace: Path) -> int:
    return len(list((workspace / "jobs").glob("[0-9]*")))


def test_rows_become_models_and_ratios_and_the_result_is_drawn(open_page: Callable[..., Page], workspace: Path) -> None:
    page = open_page()
    open_tool(page, MERGE)
    rows = page.locator(f"#{MERGE}-option-models .lora-row:visible")
    expect(rows).to_have_count(2)
    page.click(f"#{MERGE}-lora-add")
    expect(rows).to_have_count(3)
    choose_lora(page, MERGE, 0, "horns")
    choose_lora(page, MERGE, 2, "stripes")
    # The second row stays empty, and so does not count.
    ratio = rows.nth(2).locator(".multiplier input[type=number]")
    ratio.fill("-0.5")
    ratio.blur()
    fill(page, MERGE, "save_to", "my mix")
    run(page, MERGE)
    job, options = newest(workspace)
    assert options == {
        "models": [str(workspace / "loras" / f"{name}.safetensors") for name in ("horns", "stripes")],
        "ratios": [1.0, -0.5],
        "save_to": str(job / "output" / "my mix.safetensors"),
    }
    report = page.locator(f"#{MERGE}-report")
    expect(report).to_contain_text(f"Done with {HOSTILE}")
    expect(report.locator("tbody tr")).to_have_count(len(BLOCKS))
    expect(page.locator(f"#{MERGE}-bars svg text").first).to_be_visible()
    # In the order of the network, not of the alphabet.
    labels = page.locator(f"#{MERGE}-bars svg text").all_text_contents()
    assert [label for label in labels if label in BLOCKS] == list(BLOCKS)
    expect(page.locator(f"#{MERGE}-curve svg text").first).to_be_visible()
    expect(page.locator(f"#{MERGE}-sizes tbody tr").nth(3)).to_contain_text(re.compile(r"8\s*12.00 %\s*4.8 MB"))
    expect(page.locator(f"#{MERGE}-jobs label").first).to_contain_text("horns + stripes")
    with page.expect_download() as download:
        page.locator(f"#{MERGE}-files a").first.click()
    assert Path(download.value.path()).read_bytes() == (job / "output" / "my mix.safetensors").read_bytes()
    # Not a second copy of what may be a whole checkpoint.
    assert (job / "output" / "my mix.safetensors").stat().st_nlink == 2
    page.click(f"#{MERGE}-use")
    expect(page.locator("#generate")).to_be_visible()
    expect(page.locator(".lora-file input").last).to_be_attached()
    expect(page.locator("#loras .lora-file input").first).to_have_value(re.compile("^my mix · "))


@pytest.mark.long
def test_a_row_that_is_removed_does_not_count(open_page: Callable[..., Page], workspace: Path) -> None:
    page = open_page()
    open_tool(page, SVD)
    choose_lora(page, SVD, 0, "horns")
    choose_lora(page, SVD, 1, "stripes")
    page.locator(f"#{SVD}-option-models").get_by_role("button", name="Remove").first.click()
    expect(page.locator(f"#{SVD}-option-models .lora-row:visible")).to_have_count(1)
    run(page, SVD)
    assert newest(workspace)[1]["models"] == [str(workspace / "loras" / "stripes.safetensors")]


@pytest.mark.long
def test_a_preview_runs_dry_and_offers_nothing(open_page: Callable[..., Page], workspace: Path) -> None:
    page = open_page()
    open_tool(page, DYLORA)
    choose(page, f"#{DYLORA}-option-model", "loras/horns.safetensors")
    run(page, DYLORA, "preview")
    job, options = newest(workspace)
    assert options["dry_run"] is True and options["save_to"] == str(job / "output" / "rank.safetensors")
    # A field that is left empty is not a 0.
    assert "unit" not in options
    expect(page.locator(f"#{DYLORA}-report")).to_contain_text("nothing was written")
    expect(page.locator(f"#{DYLORA}-report")).to_contain_text("rank-000016.safetensors")
    expect(page.locator(f"#{DYLORA}-use")).not_to_be_visible()
    expect(page.locator(f"#{DYLORA}-files")).not_to_be_visible()
    expect(page.locator(f"#{DYLORA}-jobs label").first).to_contain_text("Preview · horns")
    run(page, DYLORA)
    expect(page.locator(f"#{DYLORA}-files a")).to_have_count(6)
    assert "dry_run" not in newest(workspace)[1]


@pytest.mark.long
def test_a_merged_checkpoint_is_a_model_elsewhere(open_page: Callable[..., Page], workspace: Path) -> None:
    page = open_page()
    open_tool(page, MERGE)
    expect(page.locator(f"#{MERGE}-option-sd_model input")).to_have_value("none: merge into one LoRA")
    choose(page, f"#{MERGE}-option-sd_model", "models/original.safetensors")
    choose_lora(page, MERGE, 0, "horns")
    fill(page, MERGE, "save_to", "baked.safetensors")
    run(page, MERGE)
    job, options = newest(workspace)
    assert options["sd_model"] == str(workspace / "models" / "original.safetensors")
    assert options["save_to"] == str(job / "output" / "baked.safetensors")
    open_tool(page, DIFF)
    models = options_with(page, f"#{DIFF}-option-model_tuned", "baked")
    assert models[0] == "demo" and models[1].startswith("baked") and "models/tuned.safetensors" in models
    (workspace / "loras" / "later.safetensors").write_bytes(weights("lora_unet_a.alpha"))
    open_tool(page, SVD)
    loras = options_with(page, f"#{SVD}-option-models .lora-file", "loras/later")
    assert not any(label.startswith("baked") for label in loras)


def test_the_difference_of_two_models(open_page: Callable[..., Page], workspace: Path) -> None:
    page = open_page()
    open_tool(page, DIFF)
    choose(page, f"#{DIFF}-option-model_org", "models/original.safetensors")
    choose(page, f"#{DIFF}-option-model_tuned", "models/tuned.safetensors")
    fill(page, DIFF, "dim", "16")
    run(page, DIFF)
    job, options = newest(workspace)
    assert options == {
        "model_org": str(workspace / "models" / "original.safetensors"),
        "model_tuned": str(workspace / "models" / "tuned.safetensors"),
        "dim": 16,
        "save_to": str(job / "output" / "difference.safetensors"),
    }


@pytest.mark.long
def test_what_is_wrong_is_said_and_nothing_starts(open_page: Callable[..., Page], workspace: Path) -> None:
    page = open_page()
    before = count_jobs(workspace)
    open_tool(page, MERGE)
    fill(page, MERGE, "save_to", "../../evil")
    fill(page, MERGE, "new_rank", "0")
    page.click(f"#{MERGE}-start")
    problems = page.locator(f"#{MERGE}-problems")
    expect(problems.locator("li")).to_have_count(3)
    expect(problems).to_contain_text("models is required")
    expect(problems).to_contain_text("save_to '../../evil' is not a name")
    expect(problems).to_contain_text("new_rank must be at least 1, got 0")
    expect(page.locator(f"#{MERGE}-option-new_rank.invalid")).to_be_visible()
    expect(page.locator(f"#{MERGE}-option-save_to.invalid")).to_be_visible()
    expect(page.locator(f"#{MERGE}-option-models .lora-file.invalid").first).to_be_visible()
    field = page.locator(f"#{MERGE}-option-models .lora-file input").first
    field.fill("/nowhere/x.safetensors")
    field.press("Enter")
    page.click(f"#{MERGE}-preview")
    expect(problems).to_contain_text("there is no file /nowhere/x.safetensors")
    open_tool(page, DIFF)
    page.click(f"#{DIFF}-start")
    expect(page.locator(f"#{DIFF}-problems li")).to_have_count(2)
    assert count_jobs(workspace) == before


@pytest.mark.long
def test_why_a_tool_failed_stands_there_and_a_slow_one_is_stopped(open_page: Callable[..., Page]) -> None:
    page = open_page()
    open_tool(page, SVD)
    choose_lora(page, SVD, 0, "horns")
    fill(page, SVD, "save_to", "broken")
    page.click(f"#{SVD}-start")
    expect(page.locator(f"#{SVD}-status .why")).to_have_text("models: these LoRAs do <b>not</b> fit together")
    expect(page.locator(f"#{SVD}-report")).not_to_be_visible()
    fill(page, SVD, "save_to", "slow")
    page.click(f"#{SVD}-start")
    expect(page.locator(f"#{SVD}-status .hint").last).to_contain_text(re.compile("reading|adding up"))
    page.click(f"#{SVD}-stop")
    expect(page.locator(f"#{SVD}-status .state")).to_have_text("stopped by you")


@pytest.mark.long
def test_uploads_come_into_the_workspace_and_into_the_form(
    open_page: Callable[..., Page], workspace: Path, tmp_path: Path
) -> None:
    page = open_page()
    open_tool(page, DYLORA)
    good, bad = tmp_path / "sent <b>.safetensors", tmp_path / "model.safetensors"
    good.write_bytes(weights("lora_unet_sent.alpha"))
    bad.write_bytes(weights(f"{CHECKPOINT_PREFIX}a"))
    bring(page, f"#{DYLORA}-upload", bad)
    expect(page.get_by_text("is a whole model and no LoRA").first).to_be_visible()
    bring(page, f"#{DYLORA}-upload", good)
    expect(page.locator(f"#{DYLORA}-option-model input")).to_have_value("loras/sent_b.safetensors")
    assert (workspace / "loras" / "sent_b.safetensors").read_bytes() == good.read_bytes()
    open_tool(page, MERGE)
    choose_lora(page, MERGE, 0, "horns")
    bring(page, f"#{MERGE}-upload", good)
    fields = page.locator(f"#{MERGE}-option-models .lora-file input")
    expect(fields.nth(1)).to_have_value("loras/sent_b.safetensors")
    expect(fields.nth(0)).to_have_value("loras/horns.safetensors")
    (workspace / "loras" / "sent_b.safetensors").unlink()


def bring(page: Page, button: str, file: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.click(button)
    chooser.value.set_files(file)


def test_resizing_is_shown_before_it_runs_and_makes_a_dataset(open_page: Callable[..., Page], workspace: Path) -> None:
    page = open_page()
    open_tool(page, RESIZE)
    outcome = page.locator(f"#{RESIZE}-outcome")
    expect(outcome).to_contain_text("Choose a dataset")
    choose(page, f"#{RESIZE}-option-src", "pets")
    expect(outcome).to_contain_text("From 3 pictures: 7 smaller copies.")
    expect(outcome.locator("tbody tr").first).to_contain_text(re.compile(r"512×512\s*2\s*1\s*512×512: 1, 576×384: 1"))
    fill(page, RESIZE, "max_resolution", "640x640")
    expect(outcome).to_contain_text("From 3 pictures: 2 smaller copies.")
    assert not (workspace / "datasets" / "small").exists()
    fill(page, RESIZE, "dst", "small")
    run(page, RESIZE, "preview")
    assert not (workspace / "datasets" / "small").exists()
    run(page, RESIZE)
    expect(page.locator(f"#{RESIZE}-files")).to_contain_text("one+640x640")
    _, options = newest(workspace)
    pictures = workspace / "datasets" / "small" / "pictures"
    assert options == {
        "src": str(workspace / "datasets" / "pets" / "pictures"),
        "dst": str(pictures),
        "max_resolution": ["640x640"],
        # What the preset has chosen.
        "save_as_png": True,
        "copy_associated_files": True,
    }
    page.click(f"#{RESIZE}-start")
    expect(page.locator(f"#{RESIZE}-problems")).to_contain_text("has pictures already")
    page.locator(f"#{RESIZE}-replace input").check()
    run(page, RESIZE)
    expect(page.locator(f"#{RESIZE}-problems")).to_have_text("")
    assert newest(workspace)[1]["overwrite"] is True
    page.get_by_role("tab", name="Train", exact=True).click()
    options_with(page, "#option-dataset_config", "small")


@pytest.mark.long
def test_a_preset_fills_the_rows_and_the_result(open_page: Callable[..., Page], workspace: Path) -> None:
    page = open_page()
    open_tool(page, SVD)
    choose_lora(page, SVD, 0, "horns")
    page.click("text=Presets >> visible=true")
    choose(page, f"#{SVD}-preset", "keep-95-percent")
    expect(page.locator(f"#{SVD}-option-new_rank input")).to_have_value("64")
    expect(page.locator(f"#{SVD}-option-dynamic input")).to_have_value("energy=0.95")
    expect(page.locator(f"#{SVD}-option-models .lora-file input").first).to_have_value("loras/horns.safetensors")
    page.fill(f"#{SVD}-preset-name input, #{SVD}-preset-name textarea", "mine")
    page.click(f"#{SVD}-preset-save")
    expect(page.locator(f"#{SVD}-preset-answer")).to_contain_text("Saved as mine")
    toml = tomllib.loads((workspace / "presets" / SVD / "mine.toml").read_text())
    assert toml["mixture"]["models"] == [str(workspace / "loras" / "horns.safetensors")]
    toml_file = workspace.parent / "three.toml"
    toml_file.write_text('models = ["a.pt", "b.pt", "c.pt"]\nratios = [1, 0.5, -1]\nsave_to = "x/three.ckpt"\n')
    bring(page, f"#{SVD}-preset-import", toml_file)
    expect(page.locator(f"#{SVD}-option-models .lora-row:visible")).to_have_count(3)
    expect(page.locator(f"#{SVD}-option-models .lora-file input").nth(2)).to_have_value("c.pt")
    expect(page.locator(f"#{SVD}-option-models .multiplier input[type=number]").nth(2)).to_have_value("-1")
    expect(page.locator(f"#{SVD}-option-save_to input")).to_have_value("three")
    expect(page.locator(f"#{SVD}-kind input")).to_have_value(".ckpt")


@pytest.mark.long
def test_only_the_tab_that_is_seen_asks_the_server(open_page: Callable[..., Page]) -> None:
    page = open_page()
    open_tool(page, DIFF)
    page.wait_for_timeout(6000)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.post_data or "") if "queue/join" in request.url else None)
    page.wait_for_timeout(12_000)
    functions = {re.search(r'"fn_index":\s*(\d+)', body)[1] for body in asked}  # type: ignore[index]
    assert 1 <= len(asked) <= 4 and len(functions) == 1


@pytest.mark.long
def test_a_phone_can_reach_everything(open_page: Callable[..., Page]) -> None:
    page = open_page(width=390, height=844)
    for command in TOOLS:
        open_tool(page, command)
        expect(page.locator(f"#{command}-status")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, command
        option = {DYLORA: "model", DIFF: "model_org", RESIZE: "src"}.get(command, "models")
        for part in (f"#{command}-option-{option}", f"#{command}-status", f"#{command}-log"):
            bounds = page.locator(part).bounding_box()
            assert bounds is not None and bounds["width"] > 250, f"{part} is squeezed"
        start, stop = (page.locator(f"#{command}-{name}").bounding_box() for name in ("start", "stop"))
        assert start is not None and stop is not None, command
        assert start["y"] == stop["y"] and stop["x"] + stop["width"] <= 390, command
