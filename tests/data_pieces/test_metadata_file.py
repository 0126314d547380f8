"""Metadata files: pictures and captions that stand in one JSON file."""

import json
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.config.dataset import SubsetOptions
from backend.data.metadata_file import read_metadata
from backend.errors import UserError

TOML = """
[[datasets]]
resolution = 64
  [[datasets.subsets]]
  metadata_file = "meta.json"
  image_dir = "train"
"""


@pytest.fixture
def write(tmp_path):
    def write_one(entries: object, name: str = "meta.json") -> None:
        text = entries if isinstance(entries, str) else json.dumps(entries)
        (tmp_path / name).write_text(text, encoding="utf-8")

    return write_one


def test_pictures_and_captions_are_the_files(draw, scan, write, tmp_path):
    draw("train/a.png", (128, 64), "not read")
    draw("train/b.jpg.png")
    elsewhere = draw("other/c.png")
    draw("train/unnamed.png")
    entries = {
        "a.png": {"caption": "a cat", "tags": "fur, tail", "train_resolution": [8, 8]},
        "b.jpg": {"tags": "dog"},
        str(elsewhere): {"caption": "bird\nsecond"},
    }
    write(entries)
    found = scan(TOML)
    assert [(p.path.name, p.caption) for p in found.pictures] == [
        ("a.png", "a cat,fur, tail"),
        ("b.jpg.png", "dog"),
        ("c.png", "bird"),
    ]
    assert found.pictures[0].size == (128, 64)
    info = {key: json.loads(found.info[key]) for key in ("ss_dataset_dirs", "ss_tag_frequency", "ss_datasets")}
    assert info["ss_dataset_dirs"] == {"meta.json": {"n_repeats": 1, "img_count": 3}}
    assert info["ss_tag_frequency"]["meta.json"]["fur"] == 1
    assert info["ss_datasets"][0]["is_dreambooth"] is False
    assert info["ss_datasets"][0]["subsets"][0]["metadata_file"] == "meta.json"


def test_with_wildcards_tags_go_to_every_line(draw, scan, write):
    draw("train/a.png")
    draw("train/b.png")
    write({"a.png": {"caption": "one\n\ntwo", "tags": "x\ny"}, "b.png": {"caption": "", "tags": "x"}})
    captions = [p.caption for p in scan(TOML + "enable_wildcard = true\n").pictures]
    assert captions == ["one,x,y\ntwo,x,y", "x"]


def test_paths_begin_beside_the_file_where_no_folder_is_named(draw, scan, write):
    draw("train/a.png")
    write({"a": {"caption": "c"}}, "train/meta.json")
    toml = TOML.replace('"meta.json"', '"train/meta.json"').replace('image_dir = "train"', "")
    assert [p.path.name for p in scan(toml).pictures] == ["a.png"]


def test_json_lines(draw, scan, write):
    draw("train/a.png")
    write('{"image_path": "a.png", "caption": "c", "image_size": [1, 1]}\n\n', "meta.jsonl")
    assert [p.caption for p in scan(TOML.replace("meta.json", "meta.jsonl")).pictures] == ["c"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("{", "meta.json is not valid JSON"),
        ([], "meta.json must be a JSON object of pictures"),
        ({}, "meta.json must be a JSON object of pictures"),
        ({"a.png": "caption"}, "meta.json must be a JSON object of pictures"),
        ({"a.png": {"caption": 3}}, "caption and tags of a.png must be text"),
        ({"gone": {"caption": ""}}, "names train/gone, and there is no such picture"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(draw, scan, write, entries, message):
    draw("train/a.png")
    write(entries)
    with pytest.raises(UserError, match=f"metadata_file: .*{message}"):
        scan(TOML)


def test_a_missing_file_is_named(scan):
    with pytest.raises(UserError, match=r"metadata_file: there is no file meta\.json"):
        scan(TOML)


@pytest.mark.parametrize(
    "key",
    [
        "sub dir\\a.png",
        "C:\\train\\sub dir\\a.png",
        "\\\\host\\share\\sub dir\\a.PNG",
        "/home/me/train/sub dir/a.png",
        "sub dir/a.PNG",
        "sub dir/a",
        "D:/x/sub dir\\a",
    ],
)
def test_paths_of_another_machine_are_found_by_what_lies_under_the_folder(draw, scan, write, key):
    draw("train/sub dir/a.png")
    write({key: {"caption": "found"}})
    assert [(p.path.name, p.caption) for p in scan(TOML).pictures] == [("a.png", "found")]


def test_a_path_of_another_machine_may_begin_within_the_folder(draw, scan, write):
    draw("train/a.png")
    write({"C:\\train\\a.png": {"caption": "found"}})
    assert [p.caption for p in scan(TOML).pictures] == ["found"]


@pytest.mark.parametrize("keys", [("C:\\one\\a.png", "C:\\two\\a.png"), ("a", "a.png"), ("a.png", "x\\a.PNG")])
def test_two_names_of_one_picture_are_refused_by_name(draw, scan, write, keys):
    draw("train/a.png")
    write({key: {"caption": key} for key in keys})
    with pytest.raises(UserError, match=r"names train/a\.png twice, as .* and as"):
        scan(TOML)


def test_every_format_and_normal_form_is_found_by_its_name_alone(draw, scan, write):
    for name in ("a.avif", "b.tiff", "c.gif"):
        draw(f"train/{name}")
    draw(f"train/{unicodedata.normalize('NFC', 'é')}.png")
    write({name: {"tags": name} for name in ("a", "b", "c", unicodedata.normalize("NFD", "é"))})
    assert [p.path.suffix for p in scan(TOML).pictures] == [".avif", ".tiff", ".gif", ".png"]


def test_lines_of_json_lines_end_where_lines_end(draw, scan, write):
    draw("train/a.png")
    draw("train/b.png")
    lines = ['{"image_path": "a.png", "caption": "x\u2028y\x85z"}', '{"image_path": "b.png", "caption": "c"}']
    write("\r".join(lines), "meta.jsonl")
    toml = TOML.replace("meta.json", "meta.jsonl")
    assert [p.caption for p in scan(toml).pictures] == ["x\u2028y\x85z", "c"]
    write("\n".join([lines[0], "{"]), "meta.jsonl")
    with pytest.raises(UserError, match=r"metadata_file: line 2 of meta\.jsonl is not valid JSON"):
        scan(toml)


def test_a_picture_that_the_file_does_not_name_is_told(draw, scan, write):
    for name in ("a.png", "b.png", "below/c.png"):
        draw(f"train/{name}")
    write({"a.png": {"caption": "a"}})
    (line,) = scan(TOML).warnings
    assert line.startswith("2 pictures are not named by the metadata file and are left out: train/b.png")


def test_a_faulty_line_is_named_by_its_number_in_the_file(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "meta.jsonl").write_text('\n{"image_path": "a.png"}\n\n{broken\n')
    with pytest.raises(UserError, match=r"line 4 of .*meta\.jsonl is not valid JSON"):
        read_metadata(SubsetOptions(image_dir=tmp_path, metadata_file=tmp_path / "meta.jsonl"))


NAMES = ("a.png", "a", "x\\a.png", "b", "..", "", "/", "a" * 300, "C:\\", "\0", "é")
KEYS = st.sampled_from(NAMES) | st.text(max_size=9)
VALUES = st.none() | st.integers() | st.text(max_size=9) | st.lists(st.text(max_size=3), max_size=2)
ENTRIES = st.dictionaries(
    KEYS, VALUES | st.dictionaries(st.sampled_from(["caption", "tags", "image_path"]), VALUES), max_size=4
)


@settings(deadline=None)
@given(st.binary(max_size=60) | (ENTRIES | st.lists(ENTRIES, max_size=2)).map(lambda tree: json.dumps(tree).encode()))
def test_any_metadata_file_is_read_or_is_one_line(data):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "a.png").write_bytes(b"x")
        for name in ("meta.json", "meta.jsonl"):
            (folder / name).write_bytes(data)
            subset = SubsetOptions(image_dir=folder, metadata_file=folder / name)
            try:
                paths, captions = read_metadata(subset)
            except UserError as error:
                assert "\n" not in str(error)
                continue
            assert [path.name for path in paths] == ["a.png"] and len(captions) == 1
