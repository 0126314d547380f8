"""Buckets equal the reference's, row by row."""

import json
from pathlib import Path

import pytest

from backend.errors import UserError
from backend.tables.buckets import make_buckets, select_bucket, select_bucket_no_upscale

SETTINGS = json.loads((Path(__file__).parents[1] / "data" / "buckets.json").read_text())


def settings(no_upscale: bool) -> list[dict]:
    return [s for s in SETTINGS if s["no_upscale"] is no_upscale]


def test_the_reference_covers_both_kinds():
    assert sum(len(s["rows"]) for s in settings(False)) >= 80
    assert sum(len(s["rows"]) for s in settings(True)) >= 80


@pytest.mark.parametrize("setting", settings(False))
def test_buckets_and_choices_equal_the_reference(setting):
    buckets = make_buckets(tuple(setting["resolution"]), setting["min"], setting["max"], setting["step"])
    assert [list(b) for b in buckets] == setting["predefined"]
    for width, height, bucket, resized in setting["rows"]:
        assert select_bucket((width, height), buckets) == (tuple(bucket), tuple(resized)), (width, height)


@pytest.mark.parametrize("setting", settings(True))
def test_choices_without_upscaling_equal_the_reference(setting):
    for width, height, bucket, resized in setting["rows"]:
        chosen = select_bucket_no_upscale((width, height), tuple(setting["resolution"]), setting["step"])
        assert chosen == (tuple(bucket), tuple(resized)), (width, height)


def test_no_side_exceeds_the_largest():
    assert make_buckets((512, 512), 256, 704, 64)[0] == (256, 704)


def test_a_picture_of_a_buckets_size_is_left_alone():
    assert select_bucket((64, 64), ((32, 32), (64, 64))) == ((64, 64), (64, 64))
    assert select_bucket((704, 320), make_buckets((512, 512), 256, 1024, 64)) == ((704, 320), (704, 320))


def test_a_small_picture_is_not_enlarged():
    assert select_bucket_no_upscale((200, 130), (512, 512), 64) == ((192, 128), (200, 130))


@pytest.mark.parametrize("size", [(60, 200), (200, 60), (20000, 40)])
def test_a_picture_below_one_step_is_an_error(size):
    with pytest.raises(UserError, match="bucket_reso_steps"):
        select_bucket_no_upscale(size, (512, 512), 64)


def test_every_bucket_covers_its_picture_and_keeps_the_area():
    buckets = make_buckets((96, 64), 32, 160, 8)
    assert all(w * h <= 96 * 64 and w % 8 == 0 and h % 8 == 0 for w, h in buckets)
    for size in [(31, 200), (500, 77), (64, 64), (1, 1), (640, 10)]:
        bucket, resized = select_bucket(size, buckets)
        assert resized[0] >= bucket[0] and resized[1] >= bucket[1]


def test_limits_between_two_steps_are_widened_to_them():
    assert make_buckets((512, 512), 300, 1000, 64) == make_buckets((512, 512), 256, 1024, 64)
    assert all(side >= 64 for bucket in make_buckets((512, 512), 8, 600, 64) for side in bucket)


def test_no_possible_bucket_is_an_error():
    with pytest.raises(UserError, match="bucket"):
        make_buckets((32, 32), 64, 128, 64)
