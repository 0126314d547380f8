"""Metadata files: pictures and captions that stand in one JSON file."""

import json

import pytest

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
