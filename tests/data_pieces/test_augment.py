"""Random crops, face crops, colours and interpolation: drawn by the sample's place, and true to what is shown."""

import colorsys
import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from backend.config.dataset import DatasetConfig
from backend.data.augment import Crop, Face, Tint, draw_crop, draw_tint, face_of, tinted
from backend.data.batches import Item
from backend.data.loader import PixelLoader
from backend.data.pictures import Picture, load_sample, resize
from backend.errors import ConfigError, UserError

TOML = """
[general]
enable_bucket = true
min_bucket_reso = 32
max_bucket_reso = 128
bucket_reso_steps = 16
[[datasets]]
resolution = 64
batch_size = 4
  [[datasets.subsets]]
  image_dir = "train"
  num_repeats = 8
"""


@dataclass(frozen=True)
class Options:
    random_crop: bool = False
    face_crop_aug_range: tuple[float, float] | None = None


def position_picture(path: Path, size: tuple[int, int]) -> None:
    """Red tells the column, green the row."""
    rows, columns = np.indices((size[1], size[0]))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8)).save(path)


def items_of(found, epoch: int = 0) -> list[Item]:
    return [item for batch in found.epoch_batches(3, epoch) for item in batch.items]


def test_random_crops_reach_every_place_equally_and_stay_inside():
    crops = [
        draw_crop((99, 99), (68, 64), (64, 64), None, Options(random_crop=True), random.Random(i)) for i in range(500)
    ]
    places = Counter((crop.left, crop.top) for crop in crops)
    assert set(places) == {(left, 0) for left in range(5)} and min(places.values()) > 70
    assert {crop.resized for crop in crops} == {(68, 64)}


def test_what_is_loaded_is_what_the_sizes_tell(tmp_path, scan):
    """SDXL is told how much was cut off at the top and at the left of what is shown, mirrored or not."""
    position_picture(tmp_path / "train/a.png", (120, 100))
    found = scan(TOML.replace("enable_bucket = true", "").replace("8", "40") + "random_crop = true\nflip_aug = true\n")
    (picture,) = found.pictures
    assert picture.resized == (120, 100)  # without buckets a large picture is not made smaller
    seen = set()
    for item in items_of(found):
        pixels, _ = load_sample(item.picture, item.flip, item.crop, item.tint)
        height, width, top, left, down, across = item.sizes
        assert (height, width, down, across) == (100, 120, 64, 64)
        corner = pixels[0, 0]
        assert (int(corner[0]), int(corner[1])) == (119 - left if item.flip else left, top)
        seen.add((item.flip, left, top))
    assert len(seen) > 30


def test_small_pictures_are_enlarged_to_cover(tmp_path, scan):
    position_picture(tmp_path / "train/a.png", (120, 40))
    found = scan(TOML.replace("enable_bucket = true", "") + "random_crop = true\n")
    assert found.pictures[0].resized == (192, 64)
    assert {item.crop.top for item in items_of(found)} == {0}
    assert len({item.crop.left for item in items_of(found)}) > 3


def test_crops_hang_on_the_sample_not_on_batches_or_workers(tmp_path, scan):
    for i in range(3):
        position_picture(tmp_path / f"train/{i}.png", (110, 70))
    toml = TOML + "random_crop = true\ncolor_aug = true\n"
    four, one = scan(toml), scan(toml.replace("batch_size = 4", "batch_size = 1"))
    draws = [{item.index_in_epoch: (item.crop, item.tint) for item in items_of(found)} for found in (four, one)]
    assert draws[0] == draws[1]
    assert draws[0] != {item.index_in_epoch: (item.crop, item.tint) for item in items_of(four, epoch=1)}
    batches = four.epoch_batches(3, 0)
    here, there = (list(PixelLoader(workers).epoch(batches)) for workers in (0, 2))
    assert all(torch.equal(a, b) for (_, a, _), (_, b, _) in zip(here, there, strict=True))


def test_without_the_options_nothing_is_drawn(tmp_path, scan):
    position_picture(tmp_path / "train/a_5_5_5_5.png", (110, 70))
    assert {(item.crop, item.tint) for item in items_of(scan(TOML))} == {(None, None)}


def test_colours_change_crops_do_not(tmp_path, scan):
    """One draw has nothing to do with the other."""
    position_picture(tmp_path / "train/a.png", (110, 70))
    plain, coloured = scan(TOML + "random_crop = true\n"), scan(TOML + "random_crop = true\ncolor_aug = true\n")
    crops = [{item.index_in_epoch: item.crop for item in items_of(found)} for found in (plain, coloured)]
    assert crops[0] == crops[1]


@pytest.mark.parametrize(
    ("name", "face"),
    [
        ("anna_100_80_40_50.png", Face(100, 80, 40, 50)),
        ("a_b_1_2_3_4_5.jpg", Face(2, 3, 4, 5)),
        ("100_80_40_50.png", None),
        ("anna_100_80_40_0.png", None),
        ("anna_100_80_x_50.png", None),
        ("anna_1_2_-3_4.png", None),
        ("anna.png", None),
    ],
)
def test_faces_are_read_from_names(name, face):
    assert face_of(Path("pictures") / name) == face


def test_a_face_has_the_size_asked_for_and_stands_in_the_middle():
    crop = draw_crop(
        (400, 300),
        (85, 64),
        (64, 64),
        Face(200, 150, 40, 30),
        Options(face_crop_aug_range=(2.0, 2.0)),
        random.Random(0),
    )
    # 64 pixels are to be twice the face: 40 becomes 32, so all becomes 0.8 of it.
    assert crop == Crop((320, 240), 160 - 32, 120 - 32)


def test_scales_are_drawn_over_the_range_and_faces_stay_near_the_middle():
    options = Options(face_crop_aug_range=(1.0, 4.0))
    face = Face(500, 400, 80, 100)
    crops = [draw_crop((1000, 800), (80, 64), (64, 64), face, options, random.Random(i)) for i in range(400)]
    ratios = [64 / (100 * crop.resized[0] / 1000) for crop in crops]  # side of the cut by the face's
    assert 1.0 <= min(ratios) < 1.1 and 3.5 < max(ratios) <= 4.1
    scales = [1 / ratio for ratio in ratios]
    assert sum(scales) / len(scales) == pytest.approx((0.25 + 1) / 2, abs=0.03)
    for crop in crops:
        scale = crop.resized[0] / 1000
        assert abs(crop.left + 32 - 500 * scale) <= 5 * scale + 1 and abs(crop.top + 32 - 400 * scale) <= 5 * scale + 1


def test_a_face_never_uncovers_the_bucket_nor_enlarges_the_picture():
    far, near = Options(face_crop_aug_range=(50.0, 50.0)), Options(face_crop_aug_range=(1.0, 1.0))
    covering = draw_crop((400, 300), (85, 64), (64, 64), Face(0, 0, 40, 30), far, random.Random(0))
    assert covering == Crop((85, 64), 0, 0)
    whole = draw_crop((400, 300), (85, 64), (64, 64), Face(390, 290, 40, 30), near, random.Random(0))
    assert whole == Crop((400, 300), 400 - 64, 300 - 64)
    small = draw_crop((40, 30), (86, 64), (64, 64), Face(20, 15, 10, 10), near, random.Random(0))
    assert small.resized == (85, 64)


def test_random_crops_around_a_face_show_more_of_the_rest():
    face, wide = Face(500, 500, 100, 100), Options(True, (2.0, 2.0))
    crops = [draw_crop((1000, 1000), (64, 64), (64, 64), face, wide, random.Random(i)) for i in range(400)]
    away = [abs(crop.left + 32 - 160) for crop in crops]
    assert max(away) > 100 and sum(distance < 50 for distance in away) > 150
    assert all(0 <= crop.left <= 320 - 64 and 0 <= crop.top <= 320 - 64 for crop in crops)


def test_face_crops_are_what_training_shows(tmp_path, scan):
    position_picture(tmp_path / "train/a_100_60_16_16.png", (200, 120))
    found = scan(TOML + "face_crop_aug_range = [4, 4]\n")
    for item in items_of(found):
        pixels, _ = load_sample(item.picture, item.flip, item.crop, item.tint)
        down, across = pixels.shape[:2]
        middle = pixels[down // 2, across // 2]
        assert abs(int(middle[0]) - 100) <= 2 and abs(int(middle[1]) - 60) <= 2


def test_names_without_a_face_are_told(draw, scan):
    draw("train/a.png", caption="a")
    with pytest.raises(UserError, match=r"face_crop_aug_range: 1 of 1 pictures in train have no face in their names"):
        scan(TOML + "face_crop_aug_range = [1, 2]\n")
    draw("train/b_30_30_10_10.png", caption="b")
    assert "face_crop_aug_range: 1 of 2 pictures" in scan(TOML + "face_crop_aug_range = [1, 2]\n").warnings[0]


@pytest.mark.parametrize("text", ["[2, 1]", "[0, 1]", "[1]", '"x"'])
def test_a_wrong_range_is_refused_by_name(text):
    with pytest.raises(ConfigError, match="face_crop_aug_range"):
        DatasetConfig.loads(TOML + f"face_crop_aug_range = {text}\n")


def test_a_third_of_the_pictures_change_colour():
    tints = [draw_tint(random.Random(i)) for i in range(3000)]
    hues = [tint.hue for tint in tints if tint and tint.hue]
    gammas = [tint.gamma for tint in tints if tint and tint.gamma != 1]
    assert 430 < len(hues) < 570 and 430 < len(gammas) < 570
    assert max(hues) > 15 and min(hues) < -15 and all(abs(hue) <= 16 for hue in hues)
    assert all(0.95 <= gamma <= 1.05 for gamma in gammas) and max(gammas) - min(gammas) > 0.09


def test_colours_follow_their_formulas():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(tinted(pixels, Tint()), pixels)
    expected = 255 * (pixels / 255) ** 1.05
    assert np.abs(tinted(pixels, Tint(gamma=1.05)) - expected).max() <= 0.51
    turned = tinted(pixels, Tint(hue=-12.0))
    for before, after in zip(pixels.reshape(-1, 3), turned.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255))
        wanted = np.array(colorsys.hsv_to_rgb((hue - 12 / 360) % 1, saturation, value)) * 255
        assert np.abs(after - wanted).max() <= 1.01


def test_each_interpolation_is_its_own():
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    mean = noise.reshape(32, 2, 48, 2, 3).mean((1, 3))
    made = {
        name: resize(noise, (48, 32), name) for name in ("lanczos", "nearest", "bilinear", "bicubic", "area", "box")
    }
    for name, rounding in (("area", 0.5), ("bilinear", 0.5), ("box", 1.0)):  # at half the size the mean of four
        assert np.abs(made[name] - mean).max() <= rounding, name
    assert set(made["nearest"].reshape(-1, 3).astype(int).sum(1)) <= set(noise.reshape(-1, 3).astype(int).sum(1))
    lanczos = np.asarray(Image.fromarray(noise).resize((48, 32), Image.Resampling.LANCZOS))
    assert np.array_equal(made["lanczos"], lanczos)
    assert np.array_equal(made["bicubic"], cv2.resize(noise, (48, 32), interpolation=cv2.INTER_CUBIC))
    assert np.array_equal(resize(noise, (192, 128), "nearest"), noise.repeat(2, 0).repeat(2, 1))
    assert np.array_equal(
        resize(noise, (200, 130), "bilinear"), cv2.resize(noise, (200, 130), interpolation=cv2.INTER_LINEAR)
    )


def test_the_subsets_interpolation_comes_before_the_datasets(draw, scan):
    draw("train/a.png", (93, 64), caption="a", value=77)
    draw("other/a.png", (93, 64), caption="a", value=77)
    found = scan(
        TOML.replace("resolution = 64", 'resolution = 64\nresize_interpolation = "cubic"')
        + 'resize_interpolation = "nearest"\n[[datasets.subsets]]\nimage_dir = "other"\n'
    )
    assert [picture.interpolation for picture in found.pictures] == ["nearest", "bicubic"]
    train, other = (load_sample(picture)[0] for picture in found.pictures)
    assert set(np.unique(train)) == {77, 255} and len(np.unique(other)) > 2
    (dataset,) = json.loads(found.info["ss_datasets"])
    assert [subset["resize_interpolation"] for subset in dataset["subsets"]] == ["nearest", "bicubic"]
    assert dataset["resize_interpolation"] is None and found.info["ss_resize_interpolation"] == "None"


def test_the_metadata_tells_of_the_options(draw, scan):
    draw("train/a_9_9_9_9.png", caption="a")
    plain = scan(TOML).info
    assert (plain["ss_face_crop_aug_range"], plain["ss_resize_interpolation"]) == ("None", "None")
    options = 'face_crop_aug_range = [1, 2.5]\nresize_interpolation = "area"\ncolor_aug = true\nrandom_crop = true\n'
    info = scan(TOML + options).info
    assert (info["ss_face_crop_aug_range"], info["ss_resize_interpolation"]) == ("(1.0, 2.5)", "area")
    for found, value in ((plain, "false"), (info, "true")):
        assert f'"color_aug": {value}' in found["ss_datasets"] and f'"random_crop": {value}' in found["ss_datasets"]


def test_a_picture_in_memory_alone_is_loaded_as_before(draw):
    path = draw("a.png", (96, 64))
    picture = Picture(path, (96, 64), (96, 64), (64, 64), "", 1)
    middle = load_sample(picture)[0]
    assert np.array_equal(middle, load_sample(picture, crop=Crop((96, 64), 16, 0))[0])
    assert not np.array_equal(middle, load_sample(picture, crop=Crop((96, 64), 0, 0))[0])
