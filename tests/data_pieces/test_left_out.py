"""What a run leaves out is counted and named at its start; what people bring is found."""

import json
import os
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from backend.config.dataset import DatasetConfig
from backend.config.dataset_folders import dataset_of
from backend.config.training.data import Data
from backend.data.captions import find_caption, tag_frequency
from backend.data.dataset import TrainingSet
from backend.errors import UserError
from backend.picture_folder import CaptionFiles, left_out, told

ONE = "[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = 'train'\n"


def said(found: TrainingSet, *words: str) -> str:
    """The one warning that has all of these words."""
    (line,) = [line for line in found.warnings if all(word in line for word in words)]
    return line


def test_everything_that_is_passed_over_is_one_line_for_each_kind(draw, scan, tmp_path):
    for name in ("a.png", "b.png", "b.jpg", "below/c.png", "below/deep/d.png", ".hidden.png"):
        draw(f"train/{name}", caption="a")
    folder = tmp_path / "train"
    (folder / "a.txt").write_text("one\n\ntwo")
    (folder / "a.caption").write_text("second")
    for name in ("alone.txt", "x.heic", "y.JXL", "z.mp4", "notes.pdf", "list.csv", "a.png.txt"):
        (folder / name).write_bytes(b"x")
    for name in ("a.npz", "Thumbs.db", ".DS_Store", "._a.png"):
        (folder / name).write_bytes(b"x")
    (folder / "dir.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    found = scan(ONE)
    assert said(found, "of a format").startswith("4 files are")
    names = "train/notes.pdf, train/x.heic, train/y.JXL and 1 more; save them as PNG or JPEG"
    assert names in said(found, "of a format")
    assert said(found, "in folders below").startswith("2 pictures lie")
    assert "train/.hidden.png" in said(found, "1 picture is hidden")
    assert "train/a.png.txt, train/alone.txt" in said(found, "2 captions belong to no picture")
    assert "train/a.caption" in said(found, "1 caption is not used")
    assert "train/b.png" in said(found, "1 picture has the name of another one")
    assert "train/a.txt" in said(found, "1 caption has several lines")
    assert "train/list.csv" in said(found, "1 other file is not used")
    assert "train/pipe.png" in said(found, "1 is named like a picture, is no file")
    assert len(found.warnings) == 9


def test_folders_of_other_subsets_and_masks_are_not_left_out(draw, scan, tmp_path):
    draw("train/a.png", caption="a")
    draw("train/more/b.png", caption="b")
    draw("train/masks/a.png")
    draw("train/masks/spare.png")
    (tmp_path / "train/masks/b.heic").write_bytes(b"x")
    found = scan(
        ONE + "conditioning_data_dir = 'train/masks'\n[[datasets.subsets]]\nimage_dir = 'train/more'\nnum_repeats = 2\n"
    )
    assert len(found.warnings) == 2
    assert "train/masks/b.heic" in said(found, "of a format")
    assert "train/masks/spare.png" in said(found, "1 mask belongs to no picture")


def test_masks_of_every_format_and_normal_form_are_found(draw, scan, tmp_path):
    draw(f"train/{unicodedata.normalize('NFC', 'é')}.png", caption="a")
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.new("L", (64, 64), 255).save(masks / f"{unicodedata.normalize('NFD', 'é')}.avif")
    assert scan(ONE + "conditioning_data_dir = 'masks'").pictures[0].mask_path.suffix == ".avif"
    for path in masks.iterdir():
        path.rename(masks / "x.heic")
    with pytest.raises(UserError, match=r"has no mask for .*: save .*x\.heic as PNG, or add one"):
        scan(ONE + "conditioning_data_dir = 'masks'")


def test_pictures_beside_numbered_folders_are_told(draw, tmp_path):
    for name in ("img/2_cat/a.png", "img/loose.png", "img/b.avif", "img/0_none/c.png"):
        draw(name, caption="a")
    config = dataset_of(Data(train_data_dir=tmp_path / "img"), {"resolution": (64, 64)})
    found = TrainingSet.scan(config)
    assert "0_none is left out: its name says 0 repeats" in found.warnings[0]
    assert found.warnings[1].startswith("4 files lie beside the numbered folders")
    assert len(found.warnings) == 2 and len(found.pictures) == 1


def test_a_subset_that_is_shown_0_times_is_left_out_and_told(draw, scan):
    draw("train/a.png", caption="a")
    draw("spare/b.png", caption="b")
    found = scan(ONE + "[[datasets.subsets]]\nimage_dir = 'spare'\nnum_repeats = 0\n")
    assert [picture.path.name for picture in found.pictures] == ["a.png"]
    assert found.warnings == ("spare is left out: its num_repeats is 0",)
    assert "spare" not in found.info["ss_dataset_dirs"]
    with pytest.raises(UserError, match="num_repeats: is 0 in every subset"):
        scan(ONE + "num_repeats = 0")


def test_names_that_are_no_utf8_are_trained_described_and_told(draw, tmp_path):
    content = draw("plain.png").read_bytes()
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    (folder / os.fsdecode(b"below\xe9")).mkdir(parents=True)
    for name in (b"na\xefve.png", b"below\xe9/x\xff.png"):
        (folder / os.fsdecode(name)).write_bytes(content)
    (folder / os.fsdecode(b"na\xefve.txt")).write_text("red cat")
    tables = {"datasets": [{"resolution": 64, "subsets": [{"image_dir": str(folder)}]}]}
    found = TrainingSet.scan(DatasetConfig.from_tables(tables, "d.toml"))
    assert found.pictures[0].caption == "red cat"
    assert r"caf\xe9/below\xe9/x\xff.png" in said(found, "in a folder below")
    assert json.loads(found.info["ss_tag_frequency"]) == {r"caf\xe9": {"red cat": 1}}
    for value in (*found.warnings, *found.info.values()):
        value.encode("utf-8")


def test_faulty_and_missing_captions_are_named_with_their_files(draw, scan, tmp_path):
    draw("train/a.png")
    draw("train/b.png", caption="b")
    assert said(scan(ONE), "no caption file").endswith("train/a.png")
    (tmp_path / "train" / "a.txt").write_bytes("赤い猫".encode("cp932"))
    with pytest.raises(UserError, match=r"caption_extension: train/a\.txt is not a text in UTF-8 .*Shift-JIS"):
        scan(ONE)


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_a_dataset_config_that_never_ends_is_refused_at_once(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe.{suffix}")
    (tmp_path / f"zero.{suffix}").symlink_to("/dev/zero")
    for name in (f"pipe.{suffix}", f"zero.{suffix}"):
        with pytest.raises(UserError, match="is a device or a pipe"):
            DatasetConfig.load(tmp_path / name)
    (tmp_path / f"large.{suffix}").write_bytes(b" " * (4 * 2**20 + 1))
    with pytest.raises(UserError, match="is larger than 4 MB"):
        DatasetConfig.load(tmp_path / f"large.{suffix}")


def test_backslashes_in_a_dataset_toml_are_told_as_such(tmp_path):
    with pytest.raises(UserError, match=r"write the path with / in place of"):
        DatasetConfig.loads(ONE.replace("'train'", '"C:\\Users\\me"'))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["datasets", "subsets", "general", "image_dir", "num_repeats", "resolution", "metadata_file", "class_tokens", "x"]
)
TABLES = st.dictionaries(
    KEYS, JSON | st.lists(st.dictionaries(KEYS, JSON | st.lists(st.dictionaries(KEYS, JSON)), max_size=3)), max_size=4
)


@settings(deadline=None)
@given(TABLES)
def test_any_json_is_a_dataset_or_lines_that_name_what_is_wrong(tables):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "d.json"
        path.write_text(json.dumps(tables))
        try:
            assert DatasetConfig.load(path).datasets
        except UserError as error:
            assert str(error)


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: (ONE + text).encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_dataset_toml_or_are_told(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "d.toml"
        path.write_bytes(data)
        try:
            assert DatasetConfig.load(path).datasets
        except UserError as error:
            assert str(error)


@settings(deadline=None)
@given(st.binary(max_size=80) | st.text(max_size=40).map(lambda text: text.encode("utf-16", "surrogatepass")))
def test_any_bytes_are_a_caption_or_are_refused_by_name(data):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.txt").write_bytes(data)
        try:
            one, every = (find_caption(Path(folder) / "a.png", (".txt",), None, whole) for whole in (False, True))
        except UserError as error:
            assert "a.txt" in str(error) and "\n" not in str(error)
            return
        assert "\n" not in one.text and "\r" not in one.text
        assert one.text in (every.text.split("\n")[0], "")
        tag_frequency([every.text])
        one.text.encode()


NAMES = st.sampled_from(
    [
        *("a.png", "a.PNG", "a.txt", "A.txt", "a.png.txt", "a.caption"),
        *("b.heic", ".c.png", "d_1_2_3_4.png", "d.txt", "e", "f.zip"),
    ]
)


@settings(deadline=None)
@given(st.sets(NAMES), st.sets(NAMES))
def test_every_file_of_a_folder_is_used_or_told(names, below):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "set"
        (folder / "below").mkdir(parents=True)
        for name in names:
            (folder / name).write_text("x")
        for name in below:
            (folder / "below" / name).write_text("x")
        pictures = [folder / name for name in names if name.lower().endswith(".png") and name[0] != "."]
        files = CaptionFiles(folder)
        for picture in pictures:
            files.find(picture, (".txt", ".caption"))
        found = left_out(folder, pictures, files.used)
        shown = {path for kind, paths in found.items() if kind != "shared" for path in paths}
        assert shown | set(pictures) | files.used >= {folder / name for name in names}
        assert not shown & (set(pictures) | files.used)
        seen = {path.name for path in shown if path.parent.name == "below"}
        assert seen == {name for name in below if name.lower().endswith(".png") and name[0] != "."}
        assert len(told(found)) == len([kind for kind in found if found[kind]])
