"""The Train tab in a browser, over a server whose jobs only pretend."""

import threading
import tomllib
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from tests.ui.conftest import serving

pytestmark = pytest.mark.browser
START, STOP, STATUS = "#train_network-start", "#train_network-stop", "#train_network-status"


def picture(color: str = "red", size: tuple[int, int] = (80, 80), kind: str = "PNG") -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, color).save(buffer, kind)
    return buffer.getvalue()


def archive(**files: bytes) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
    return buffer.getvalue()


def jobs_of(workspace: Path) -> list[Path]:
    return sorted((workspace / "jobs").glob("[0-9]*"))


def set_option(page: Page, name: str, value: str) -> None:
    field = page.locator(f"#option-{name} input, #option-{name} textarea").first
    field.fill(value)
    field.blur()


def bring(page: Page, file: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.click("#preset-import")
    chooser.value.set_files(file)


def test_the_tabs_have_their_names_and_order(open_page: Callable[..., Page]) -> None:
    names = ["Train", "DyLoRA Extract", "Merge", "SVD Merge", "Diff Extract", "Resize", "Generate"]
    for width in (1400, 390):
        page = open_page(width=width)
        assert page.locator("button[role=tab]:visible").all_inner_texts() == names


def test_train_with_nothing_edited_runs_the_demo_preset(open_page: Callable[..., Page], workspace: Path) -> None:
    page = open_page()
    before = len(jobs_of(workspace))
    page.click(START)
    expect(page.locator(STATUS)).to_contain_text("running")
    expect(page.locator(f"{STATUS} .figures")).to_contain_text("time left")
    expect(page.locator("#loss")).to_be_visible()
    job = jobs_of(workspace)[-1]
    assert len(jobs_of(workspace)) == before + 1
    config = tomllib.loads((job / "config.toml").read_text())
    assert config["model"]["pretrained_model_name_or_path"] == "backend/demo/model"
    assert config["data"]["dataset_config"] == "backend/demo/dataset/dataset.toml"
    assert config["save"]["output_dir"] == str(job / "output")
    expect(page.locator(STATUS)).to_contain_text("finished", timeout=60_000)
    expect(page.locator("#samples img").first).to_be_visible()
    expect(page.locator("#files")).to_contain_text(".safetensors")
    expect(page.locator("#jobs label")).to_have_count(before + 1)
    steps = config["optim"]["max_train_steps"]
    assert f"step {steps}/{steps}" in page.locator("#log textarea").input_value()
    # In its column, below the rest, not beside it where nobody sees it.
    log, runs = page.locator("#log-box").bounding_box(), page.locator("#jobs").bounding_box()
    assert log is not None and runs is not None and log["y"] > runs["y"] and log["x"] < 1400
    with page.expect_download() as download:
        page.locator("#files a").first.click()
    assert Path(download.value.path()).read_bytes() == b"weights" * 64


def test_an_ended_run_is_deleted_once_it_is_asked_for_twice(open_page: Callable[..., Page], workspace: Path) -> None:
    page = open_page()
    before = jobs_of(workspace)
    set_option(page, "max_train_steps", "400")
    page.click(START)
    expect(page.locator(f"{STATUS} .state")).to_have_text("running")
    expect(page.locator("#run-delete")).not_to_be_visible()
    expect(page.locator(f"{STATUS} .state")).to_have_text("finished")
    (job,) = set(jobs_of(workspace)) - set(before)
    page.click("#run-delete")
    page.click("#run-keep")
    expect(page.locator("#run-really")).not_to_be_visible()
    page.click("#run-delete")
    page.click("#run-really")
    expect(page.locator("#jobs label")).to_have_count(len(before))
    expect(page.locator("#run-really")).not_to_be_visible()
    assert not job.exists() and jobs_of(workspace) == before


def test_an_exported_toml_says_what_holds_in_this_workspace_only(
    open_page: Callable[..., Page], workspace: Path
) -> None:
    def exported(page: Page) -> str:
        with page.expect_download() as download:
            page.click("#preset-export")
        return Path(download.value.path()).read_text()

    page = open_page()
    expect(page.locator("#option-network_dim input")).to_have_value("16")
    text = exported(page)
    assert tomllib.loads(text)["samples"]["sample_prompts"] == "backend/demo/dataset/prompts.txt" and "#" not in text
    assert not (workspace / "prompts").exists()
    set_option(page, "sample_prompts", "a red fox --s 5")
    text = exported(page)
    assert tomllib.loads(text)["samples"]["sample_prompts"].startswith(str(workspace))
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert comments[0].startswith("# sample_prompts names a file of this workspace") and comments[1:] == [
        "#   a red fox --s 5"
    ]


def test_a_closed_tab_loses_nothing_and_a_restarted_server_finds_the_job(
    open_page: Callable[..., Page], tmp_path: Path
) -> None:
    home = tmp_path / "workspace"
    with serving("tests.ui.fake_server", home) as url:
        page = open_page(url)
        set_option(page, "max_train_steps", "9000")
        page.click(START)
        expect(page.locator(f"{STATUS} .figures")).to_contain_text("/ 9000")
        page.close()
    with serving("tests.ui.fake_server", home) as url:
        page = open_page(url)
        expect(page.locator(f"{STATUS} .state")).to_have_text("running")
        expect(page.locator(f"{STATUS} .figures")).to_contain_text("/ 9000")
        page.click(STOP)
        expect(page.locator(f"{STATUS} .state")).to_have_text("stopped by you")


@pytest.mark.long
def test_a_second_press_of_stop_kills(open_page: Callable[..., Page]) -> None:
    page = open_page()
    set_option(page, "max_train_steps", "9000")
    page.fill("#find-option textarea, #find-option input", "training_comment")
    set_option(page, "training_comment", "stubborn")
    page.click(START)
    expect(page.locator(f"{STATUS} .figures")).to_contain_text("/ 9000")
    page.click(STOP)
    expect(page.locator(STOP)).to_have_text("Kill")
    expect(page.locator(f"{STATUS} .state")).to_have_text("stopping …")
    page.click(STOP)
    expect(page.locator(f"{STATUS} .state")).to_have_text("stopped by you")
    expect(page.locator(STOP)).to_be_disabled()


def test_why_a_job_failed_stands_there_and_is_text(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.fill("#find-option textarea, #find-option input", "training_comment")
    set_option(page, "training_comment", "broken")
    page.click(START)
    why = page.locator(f"{STATUS} .why")
    expect(why).to_have_text("pretrained_model_name_or_path: there is no <b>model</b> here")
    expect(page.locator(f"{STATUS} .state")).to_have_text("failed")


def test_nothing_can_be_typed_that_the_filling_of_the_page_would_take_away(open_page: Callable[..., Page]) -> None:
    first = open_page()
    held: list[Route] = []
    page = first.context.new_page()
    opening = threading.Event()
    page.route("**/gradio_api/queue/join*", lambda it: it.continue_() if opening.is_set() else held.append(it))
    page.goto(first.url)
    field = page.locator("#option-network_dim input")
    expect(field).to_be_visible()
    expect(field).to_be_disabled()
    expect(page.locator(START)).to_be_disabled()
    expect(page.locator("#dataset-resolution textarea, #dataset-resolution input").first).to_be_disabled()
    opening.set()
    for route in held:
        route.continue_()
    expect(field).to_be_enabled()
    expect(field).to_have_value("16")
    expect(page.locator(START)).to_be_enabled()


def test_wrong_values_are_named_beside_the_form_and_at_the_field(
    open_page: Callable[..., Page], workspace: Path
) -> None:
    page = open_page()
    before = len(jobs_of(workspace))
    set_option(page, "network_dim", "0")
    set_option(page, "learning_rate", "")
    page.click(START)
    lines = page.locator("#train_network-problems li")
    expect(lines).to_have_count(2)
    expect(page.locator("#train_network-problems")).to_contain_text("network_dim must be at least 1, got 0")
    expect(page.locator("#option-network_dim.invalid")).to_contain_text("must be at least 1")
    assert len(jobs_of(workspace)) == before
    set_option(page, "network_dim", "2")
    set_option(page, "learning_rate", "0.001")
    set_option(page, "max_train_steps", "3")
    page.click(START)
    expect(page.locator("#train_network-problems")).to_have_text("")
    expect(page.locator(".invalid")).to_have_count(0)


def test_what_is_wrong_in_a_folded_section_is_seen(open_page: Callable[..., Page]) -> None:
    page = open_page()
    find = "#find-option textarea, #find-option input"
    page.fill(find, "validation_split")
    set_option(page, "validation_split", "3")
    page.fill(find, "")
    field = page.locator("#option-validation_split")
    expect(page.locator("#option-network_dim")).to_be_visible()
    expect(field).not_to_be_visible()
    set_option(page, "network_args", "unit=2")
    page.click(START)
    expect(field).to_be_visible()
    expect(page.locator("#option-validation_split.invalid")).to_contain_text("must be from 0 to 1, got 3")
    expect(page.locator("#option-network_args.invalid")).to_contain_text("unit has no meaning for networks.lora")


def test_folders_named_by_repeats_take_the_place_of_a_dataset(
    open_page: Callable[..., Page], workspace: Path, tmp_path: Path
) -> None:
    (tmp_path / "train" / "3_sks dog").mkdir(parents=True)
    (tmp_path / "train" / "3_sks dog" / "one.png").write_bytes(picture())
    page = open_page()
    page.click("#dataset-folders > button")
    set_option(page, "train_data_dir", str(tmp_path / "train"))
    expect(page.locator("#dataset-summary")).to_contain_text("1 picture · resolution and train_batch_size")
    expect(page.locator("#option-dataset_config input")).to_have_value("")
    expect(page.locator("#dataset-resolution")).not_to_be_visible()
    page.click(START)
    expect(page.locator("#option-resolution.invalid")).to_be_visible()
    set_option(page, "resolution", "64")
    set_option(page, "max_train_steps", "3")
    page.click(START)
    expect(page.locator(STATUS)).to_contain_text("last · train")
    config = tomllib.loads((jobs_of(workspace)[-1] / "config.toml").read_text())
    assert config["data"]["train_data_dir"] == str(tmp_path / "train") and "dataset_config" not in config["data"]
    page.click("#option-dataset_config input")
    page.get_by_role("option", name="demo", exact=True).click()
    expect(page.locator("#dataset-summary")).to_contain_text("12 pictures")
    expect(page.locator("#option-train_data_dir input, #option-train_data_dir textarea").first).to_have_value("")
    expect(page.locator("#dataset-resolution")).to_be_visible()


def test_the_search_shows_what_is_sought_even_what_is_folded_away(open_page: Callable[..., Page]) -> None:
    page = open_page()
    expect(page.locator("#option-max_grad_norm")).not_to_be_visible()
    page.fill("#find-option textarea, #find-option input", "grad norm")
    expect(page.locator("#option-max_grad_norm")).to_be_visible()
    expect(page.locator("#option-network_dim")).not_to_be_visible()
    page.fill("#find-option textarea, #find-option input", "")
    expect(page.locator("#option-network_dim")).to_be_visible()


def test_presets_are_saved_loaded_renamed_deleted(open_page: Callable[..., Page], workspace: Path) -> None:
    page = open_page()
    home = workspace / "presets" / "train_network"
    set_option(page, "network_dim", "17")
    page.fill("#preset-name input, #preset-name textarea", "mine")
    page.click("#preset-save")
    expect(page.locator("#preset-answer")).to_contain_text("Saved as mine")
    assert tomllib.loads((home / "mine.toml").read_text())["network"]["network_dim"] == 17
    set_option(page, "network_dim", "3")
    page.click("#preset-load")
    expect(page.locator("#option-network_dim input")).to_have_value("17")
    page.fill("#preset-name input, #preset-name textarea", "yours")
    page.click("#preset-rename")
    expect(page.locator("#preset-answer")).to_contain_text("now called yours")
    assert [path.name for path in home.iterdir()] == ["yours.toml"]
    page.click("#preset-delete")
    page.click("#preset-really")
    expect(page.locator("#preset-answer")).to_contain_text("yours is deleted")
    assert not list(home.iterdir())


def test_a_preset_name_cannot_leave_its_folder(open_page: Callable[..., Page], workspace: Path) -> None:
    page = open_page()
    page.fill("#preset-name input, #preset-name textarea", "../../evil")
    page.click("#preset-save")
    expect(page.locator("#preset-answer .problems")).to_contain_text("preset")
    assert not list(workspace.parent.rglob("evil*"))


def test_export_and_import_are_each_others_way_back(open_page: Callable[..., Page], tmp_path: Path) -> None:
    page = open_page()
    set_option(page, "network_dim", "23")
    with page.expect_download() as download:
        page.click("#preset-export")
    text = Path(download.value.path()).read_text()
    assert tomllib.loads(text)["network"]["network_dim"] == 23
    file = tmp_path / "flat.toml"
    file.write_text("network_dim = 31\n")
    bring(page, file)
    expect(page.locator("#option-network_dim input")).to_have_value("31")
    file.write_text("network_dmi = 31\n")
    bring(page, file)
    expect(page.locator("#preset-answer")).to_contain_text("did you mean network_dim?")


def test_uploaded_pictures_become_a_dataset_that_is_trained_on(open_page: Callable[..., Page], workspace: Path) -> None:
    page = open_page()
    page.click("#upload > button")
    page.set_input_files(
        "#upload-files input[type=file]",
        [
            {"name": "cat.png", "mimeType": "image/png", "buffer": picture("red")},
            {"name": "cat.txt", "mimeType": "text/plain", "buffer": b"a <b>red</b> cat"},
            {"name": "dog.jpg", "mimeType": "image/jpeg", "buffer": picture("blue", kind="JPEG")},
            {"name": "virus.exe", "mimeType": "application/x-dosexec", "buffer": b"MZ"},
        ],
    )
    expect(page.locator("#upload-name input, #upload-name textarea")).to_have_value("my-pictures")
    page.fill("#upload-name input, #upload-name textarea", "pets")
    page.click("#upload-add")
    expect(page.locator("#upload-answer")).to_contain_text("Taken: 2 pictures and 1 caption.")
    expect(page.locator("#upload-answer")).to_contain_text("virus.exe")
    expect(page.locator("#dataset-summary")).to_contain_text("2 pictures")
    expect(page.locator("#dataset-pictures")).to_contain_text("a <b>red</b> cat")
    home = workspace / "datasets" / "pets"
    assert sorted(path.name for path in (home / "pictures").iterdir()) == ["cat.png", "cat.txt", "dog.jpg"]

    page.locator("#dataset-pictures button").nth(1).click()
    page.fill("#caption textarea", "a blue dog")
    page.click("#caption-save")
    expect(page.locator("#dataset-pictures")).to_contain_text("a blue dog")
    assert (home / "pictures" / "dog.txt").read_text() == "a blue dog"

    page.locator("#dataset-num_repeats input").fill("5")
    set_option(page, "max_train_steps", "3")
    page.click(START)
    expect(page.locator(STATUS)).to_contain_text("pets")
    toml = tomllib.loads((home / "dataset.toml").read_text())
    assert toml["datasets"][0]["subsets"][0]["num_repeats"] == 5
    assert toml["datasets"][0]["resolution"] == [64, 64]
    config = tomllib.loads((jobs_of(workspace)[-1] / "config.toml").read_text())
    assert config["data"]["dataset_config"] == str(home / "dataset.toml")


def test_a_zip_is_unpacked_without_its_paths(open_page: Callable[..., Page], workspace: Path) -> None:
    page = open_page()
    page.click("#upload > button")
    data = archive(**{"../../../evil.png": picture(), "a/one.png": picture("green"), "a/one.txt": b"one"})
    page.set_input_files(
        "#upload-files input[type=file]", [{"name": "zoo.zip", "mimeType": "application/zip", "buffer": data}]
    )
    expect(page.locator("#upload-name input, #upload-name textarea")).to_have_value("zoo")
    page.click("#upload-add")
    expect(page.locator("#upload-answer")).to_contain_text("Taken: 2 pictures and 1 caption.")
    # Gradio's own copies of what is shown lie in a folder of their own.
    found = [path for path in workspace.parent.rglob("*.png") if ".gradio" not in path.parts]
    assert {path.name for path in found if path.parent == workspace / "datasets" / "zoo" / "pictures"} == {
        "evil.png",
        "one.png",
    }
    assert [path for path in found if path.name == "evil.png" and path.parent.name != "pictures"] == []


def test_a_phone_can_reach_everything(open_page: Callable[..., Page]) -> None:
    page = open_page(width=390, height=844)
    expect(page.locator(START)).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_page_stays_small(open_page: Callable[..., Page]) -> None:
    page = open_page()
    layout = ("row", "column", "accordion", "form", "group", "tabs", "tabitem")
    kinds = page.evaluate("window.gradio_config.components.map(component => component.type)")
    assert sum(kind not in layout for kind in kinds) <= 7 * 84
    marks = "window.gradio_config.dependencies.map(event => [event.show_progress, event.show_progress_on])"
    assert all(marked == [] for shown, marked in page.evaluate(marks) if shown == "hidden")
