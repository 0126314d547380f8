"""The dataset box in a browser: what is left out is named, a refused name keeps the files, a dataset is deleted."""

import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from backend.config.dataset import DatasetConfig

pytestmark = pytest.mark.browser
NAME = "#upload-name input, #upload-name textarea"


def png(color: str) -> bytes:
    memory = BytesIO()
    Image.new("RGB", (40, 40), color).save(memory, "PNG")
    return memory.getvalue()


def send(page: Page, name: str, *files: tuple[str, bytes]) -> None:
    page.click("#upload > button")
    page.set_input_files(
        "#upload-files input[type=file]",
        [{"name": each, "mimeType": "application/octet-stream", "buffer": data} for each, data in files],
    )
    expect(page.locator(NAME)).not_to_have_value("")
    page.fill(NAME, name)
    page.click("#upload-add")


def zipped(**members: bytes) -> bytes:
    memory = BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return memory.getvalue()


def test_a_refused_name_keeps_the_files_and_folders_say_their_repeats(
    open_page: Callable[..., Page], workspace: Path
) -> None:
    page = open_page()
    data = zipped(
        **{
            "set/10_shs dog/a.png": png("red"),
            "set/10_shs dog/a.txt": b"first\nsecond",
            "set/3_cat/a.png": png("blue"),
            "set/3_cat/lost.txt": b"lost",
        }
    )
    send(page, "a/b", ("zoo.zip", data))
    expect(page.locator("#upload-answer")).to_contain_text("is not a name")
    page.fill(NAME, "zoo")
    page.click("#upload-add")
    answer = page.locator("#upload-answer")
    expect(answer).to_contain_text("Taken: 2 pictures and 1 caption.")
    expect(answer).to_contain_text("Folder 10_shs_dog: num_repeats 10, class_tokens shs dog.")
    expect(answer).to_contain_text("set/3_cat/lost.txt: a caption without a picture of its name")
    expect(page.locator("#dataset-summary")).to_contain_text("10_shs_dog × 10 · 3_cat × 3")
    expect(page.locator("#dataset-num_repeats input")).to_be_disabled()
    (options,) = DatasetConfig.load(workspace / "datasets" / "zoo" / "dataset.toml").datasets
    assert [(s.image_dir.name, s.num_repeats, s.class_tokens) for s in options.subsets] == [
        ("10_shs_dog", 10, "shs dog"),
        ("3_cat", 3, "cat"),
    ]


def test_what_a_run_would_leave_out_is_named_in_the_box(
    open_page: Callable[..., Page], workspace: Path, tmp_path: Path
) -> None:
    home = tmp_path / "theirs"
    (home / "below").mkdir(parents=True)
    for name in ("a.png", "b.avif", "below/c.png"):
        Image.new("RGB", (32, 32), "red").save(home / name)
    (home / "a.txt").write_text("a cat\nand more")
    (home / "b.txt").write_bytes("猫の絵です".encode("cp932"))
    (home / "alone.txt").write_text("alone")
    (home / "x.heic").write_bytes(b"x")
    toml = tmp_path / "d.toml"
    toml.write_text(f'[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = "{home}"\n')
    page = open_page()
    page.fill("#option-dataset_config input", str(toml))
    page.keyboard.press("Enter")
    told = page.locator("#dataset-summary .passed-over")
    for words in (
        "x.heic",
        "1 file is of a format that cannot be read here",
        "1 picture lies in a folder below",
        "1 caption belongs to no picture",
        "1 caption has several lines",
        "b.txt is not a text in UTF-8",
    ):
        expect(told).to_contain_text(words)


def test_a_dataset_is_deleted_once_that_was_asked(open_page: Callable[..., Page], workspace: Path) -> None:
    page = open_page()
    send(page, "gone", ("a.png", png("green")), ("a.txt", b"green"))
    expect(page.locator("#upload-answer")).to_contain_text("Taken: 1 picture and 1 caption.")
    home = workspace / "datasets" / "gone"
    assert home.is_dir()
    page.click("#dataset-delete")
    expect(page.locator("#dataset-delete-ask")).to_contain_text("Delete gone with its 1 picture?")
    page.click("#dataset-keep")
    expect(page.locator("#dataset-delete-ask")).to_be_hidden()
    assert home.is_dir()
    page.click("#dataset-delete")
    page.click("#dataset-really")
    expect(page.locator("#option-dataset_config input")).not_to_have_value("gone")
    expect(page.locator("#dataset-delete")).to_be_hidden()
    assert not home.exists() and not list((workspace / "datasets").glob(".deleted*"))
