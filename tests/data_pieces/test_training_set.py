"""Scanning a dataset toml: counts, buckets, regularisation pictures, warnings, metadata."""

import json

import pytest

from backend.data.dataset import balance_repeats
from backend.errors import UserError

ONE = """
[[datasets]]
resolution = 64
  [[datasets.subsets]]
  image_dir = "train"
  class_tokens = "monster"
"""


def test_pictures_carry_size_bucket_caption_and_repeats(draw, scan):
    draw("train/a.png", (128, 64), "red")
    draw("train/b.png", (40, 80))
    found = scan(
        """
        [general]
        enable_bucket = true
        min_bucket_reso = 32
        max_bucket_reso = 128
        bucket_reso_steps = 16
        [[datasets]]
        resolution = [64, 64]
          [[datasets.subsets]]
          image_dir = "train"
          num_repeats = 3
          class_tokens = "monster"
        """
    )
    a, b = found.pictures
    assert (a.size, a.bucket, a.resized) == ((128, 64), (80, 48), (96, 48))
    assert (b.size, b.bucket, b.resized) == ((40, 80), (48, 80), (48, 96))
    assert (a.caption, b.caption) == ("red", "monster")
    assert [p.repeats for p in found.pictures] == [3, 3]
    assert found.num_train_images == 6


def test_without_buckets_pictures_cover_the_resolution(draw, scan):
    draw("train/a.png", (100, 50), "a")
    draw("train/b.png", (10, 20), "b")
    found = scan(ONE)
    assert [(p.bucket, p.resized) for p in found.pictures] == [((64, 64), (128, 64)), ((64, 64), (64, 128))]


def test_a_picture_that_may_not_be_enlarged_is_named(draw, scan):
    draw("train/tiny.png", (10, 60), "a")
    toml = ONE.replace("64\n", "64\nenable_bucket = true\nbucket_no_upscale = true\nbucket_reso_steps = 16\n")
    toml = toml.replace("enable_bucket", "min_bucket_reso = 32\nenable_bucket")
    with pytest.raises(UserError, match=r"bucket_no_upscale: .*tiny\.png: a picture of 10x60"):
        scan(toml)


def test_no_upscale_keeps_small_pictures(draw, scan):
    draw("train/small.png", (50, 36), "a")
    toml = ONE.replace("64\n", "64\nenable_bucket = true\nbucket_no_upscale = true\nbucket_reso_steps = 16\n")
    toml = toml.replace("enable_bucket", "min_bucket_reso = 32\nenable_bucket")
    (picture,) = scan(toml).pictures
    assert (picture.bucket, picture.resized) == ((48, 32), (50, 36))


def test_same_stem_different_extension_are_two_pictures(draw, scan):
    draw("train/a.png", caption="both")
    draw("train/a.bmp")
    assert [(p.path.name, p.caption) for p in scan(ONE).pictures] == [("a.bmp", "both"), ("a.png", "both")]


def test_the_subsets_caption_extension_comes_first(draw, scan):
    draw("train/a.png", caption="from txt").with_suffix(".tags").write_text("from tags")
    draw("train/b.png", caption="from txt")
    found = scan(ONE.replace('"train"', '"train"\ncaption_extension = ".tags"'))
    assert [p.caption for p in found.pictures] == ["from tags", "from txt"]


def test_missing_and_empty_captions_are_counted_in_one_warning(draw, scan):
    draw("train/a.png", caption="a")
    draw("train/b.png")
    draw("train/c.png", caption="")
    draw("other/d.png")
    found = scan(ONE + '[[datasets.subsets]]\nimage_dir = "other"\n')
    assert found.warnings == (
        "2 of 4 pictures have no caption file (1 take their class_tokens, 1 an empty caption): "
        "train/b.png, other/d.png; 1 of 4 captions are empty: train/c.txt",
    )


def test_a_set_with_all_captions_warns_of_nothing(draw, scan):
    draw("train/a.png", caption="a")
    assert scan(ONE).warnings == ()


def test_a_corrupt_picture_stops_the_scan_by_name(draw, scan):
    draw("train/a.png", caption="a")
    path = draw("train/b.png", caption="a")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"train/b\.png"):
        scan(ONE)


def test_a_link_that_leads_nowhere_stops_the_scan_by_name(draw, scan, tmp_path):
    draw("train/a.png", (64, 64), "a")
    (tmp_path / "train" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"gone\.png \(No such file"):
        scan("[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = 'train'")


@pytest.mark.parametrize(
    "repeats, target, expected",
    [
        ([1, 1, 1], 3, [1, 1, 1]),
        ([1, 1, 1], 8, [3, 3, 2]),
        ([2, 2], 7, [4, 3]),
        ([3, 1], 6, [4, 2]),
        ([1, 1, 1, 1], 2, [1, 1, 0, 0]),
        ([3, 3], 4, [3, 3]),
        ([5], 3, [5]),
        ([2, 3, 4], 4, [2, 3, 0]),
    ],
)
def test_regularisation_repeats(repeats, target, expected):
    assert balance_repeats(repeats, target) == expected


REG = ONE + '[[datasets.subsets]]\nimage_dir = "reg"\nis_reg = true\n'


def test_regularisation_pictures_go_round_until_they_match(draw, scan):
    for name in ("a", "b", "c"):
        draw(f"train/{name}.png", caption="a")
    for name in ("x", "y"):
        draw(f"reg/{name}.png", caption="a")
    found = scan(REG.replace('"train"', '"train"\nnum_repeats = 3'))
    reg = [p.repeats for p in found.pictures if p.is_reg]
    assert reg == [5, 4] and found.num_train_images == 9
    assert found.num_reg_images == 2


def test_surplus_regularisation_pictures_are_left_out_with_a_warning(draw, scan):
    draw("train/a.png", caption="a")
    for name in ("x", "y", "z"):
        draw(f"reg/{name}.png", caption="a")
    found = scan(REG)
    assert [(p.path.name, p.repeats) for p in found.pictures] == [("a.png", 1), ("x.png", 1)]
    assert "2 regularisation pictures are not used" in found.warnings[0]


def test_regularisation_pictures_alone_are_an_error(draw, scan):
    draw("train/a.png", caption="a")
    with pytest.raises(UserError, match="is_reg"):
        scan(ONE.replace('"train"', '"train"\nis_reg = true'))


def test_a_folder_given_twice_counts_once(draw, scan):
    draw("train/a.png", caption="a")
    found = scan(ONE + '[[datasets.subsets]]\nimage_dir = "./train/"\nnum_repeats = 9\n')
    assert found.num_train_images == 1
    assert "twice" in found.warnings[0]


def test_the_same_folder_in_two_datasets_is_used_at_both_sizes(draw, scan):
    draw("train/a.png", (64, 64), caption="a")
    found = scan(ONE + ONE.replace("64", "32"))
    assert [p.bucket for p in found.pictures] == [(64, 64), (32, 32)]


def test_metadata_describes_the_set_as_the_reference_does(draw, scan):
    draw("train/a.png", (128, 64), "Red, horns")
    draw("train/b.png", (64, 64), "red")
    draw("reg/x.png", (64, 64), "plain")
    options = (
        "batch_size = 2\nenable_bucket = true\nmin_bucket_reso = 32\nmax_bucket_reso = 128\nbucket_reso_steps = 16\n"
    )
    found = scan(REG.replace("64\n", "64\n" + options).replace('"train"', '"train"\nnum_repeats = 2'))
    assert all(isinstance(value, str) for value in found.info.values())
    info = {key: json.loads(value) for key, value in found.info.items() if value != "None"}
    assert info["ss_num_train_images"] == 4 and info["ss_num_reg_images"] == 1
    assert info["ss_dataset_dirs"] == {"train": {"n_repeats": 2, "img_count": 2}}
    assert info["ss_reg_dataset_dirs"] == {"reg": {"n_repeats": 1, "img_count": 1}}
    assert info["ss_tag_frequency"] == {"train": {"red": 2, "horns": 1}, "reg": {"plain": 1}}
    # a.png: 80/48 for 2; b.png and x.png are square; x.png is shown 4 times to match.
    assert info["ss_bucket_info"] == {
        "buckets": {"0": {"resolution": [64, 64], "count": 6}, "1": {"resolution": [80, 48], "count": 2}},
        "mean_img_ar_error": pytest.approx((2 - 80 / 48) / 3),
    }
    (dataset,) = info["ss_datasets"]
    assert dataset["bucket_info"] == info["ss_bucket_info"]
    assert dataset["resolution"] == [64, 64] and dataset["batch_size_per_device"] == 2
    assert [(s["image_dir"], s["img_count"], s["num_repeats"], s["is_reg"]) for s in dataset["subsets"]] == [
        ("train", 2, 2, False),
        ("reg", 1, 1, True),
    ]


def test_folders_of_the_same_name_get_numbers_in_the_metadata(draw, scan):
    draw("p/cat/a.png", caption="a")
    draw("q/cat/a.png", caption="a")
    found = scan(ONE.replace("train", "p/cat") + '[[datasets.subsets]]\nimage_dir = "q/cat"\n')
    assert list(json.loads(found.info["ss_dataset_dirs"])) == ["cat", "cat (2)"]
