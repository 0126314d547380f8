"""Sizes of smaller pictures against numbers worked out by hand, and what holds for all of them."""

import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.tables.resizing import count_buckets, limited_size, target_size

SIDES = st.integers(1, 6000)


@pytest.mark.parametrize(
    ("picture", "area", "divisible_by", "expected"),
    [
        ((1200, 600), (512, 512), 1, (724, 362)),  # sqrt(2) * 512 = 724.08, 512 / sqrt(2) = 362.04
        ((1200, 600), (384, 384), 1, (543, 271)),
        ((600, 1200), (384, 384), 1, (271, 543)),
        ((1200, 600), (512, 512), 64, (704, 320)),
        ((1000, 1000), (512, 512), 1, (512, 512)),  # 1000 * 0.512 is 512, not 511.99
        ((1000, 1000), (768, 512), 1, (627, 627)),  # only the area of a size counts: sqrt(393216) = 627.07
        ((4000, 3000), (512, 512), 8, (584, 440)),  # 591.2 x 443.4
        ((512, 512), (512, 512), 1, (512, 512)),
        ((513, 511), (512, 512), 1, None),  # 262143 pixels, one fewer
        ((300, 300), (512, 512), 1, None),
        ((2000, 100), (128, 128), 64, None),  # 572 x 28
        ((2000, 100), (128, 128), 28, (560, 28)),
        ((5000, 1), (32, 32), 1, (1024, 1)),  # a height of 0.45 pixels
    ],
)
def test_sizes_worked_out_by_hand(picture, area, divisible_by, expected) -> None:
    assert target_size(*picture, *area, divisible_by) == expected


@given(SIDES, SIDES, st.integers(1, 2048), st.integers(1, 2048), st.integers(1, 64))
def test_never_larger_never_of_another_shape(width, height, area_w, area_h, divisible_by) -> None:
    found = target_size(width, height, area_w, area_h, divisible_by)
    swapped = target_size(height, width, area_h, area_w, divisible_by)
    assert swapped == (None if found is None else found[::-1])
    limited = limited_size(width, height, area_w, area_h)
    if limited is None:
        assert width * height < area_w * area_h and found is None
        return
    assert limited[0] * limited[1] <= area_w * area_h and limited[0] <= width and limited[1] <= height
    if min(limited) > 1:
        # Each side is less than a pixel off the exact one: side^2 = area * width / height.
        for side, ratio in zip(limited, (Fraction(width, height), Fraction(height, width)), strict=True):
            assert side**2 <= area_w * area_h * ratio < (side + 1) ** 2
    if found:
        assert all(a % divisible_by == 0 and 0 <= b - a < divisible_by for a, b in zip(found, limited, strict=True))
    else:
        assert min(limited) < divisible_by


def test_buckets() -> None:
    sizes = [(724, 362), (512, 512), (640, 400), (362, 724), (505, 517)]
    # Nearest to 2 is 704 / 320 = 2.2, before 640 / 384 = 1.67; nearest to 1 / 2 is 320 / 704; to 1.6, 640 / 384.
    expected = {(320, 704): 1, (512, 512): 2, (640, 384): 1, (704, 320): 1}
    assert list(count_buckets(sizes, 512, 512).items()) == list(expected.items())
    assert list(count_buckets([(9, 9)], 1, 1)) == [(1, 1)]
    assert list(count_buckets([(32, 32)], 32, 32)) == [(32, 32)]


def test_the_page_may_use_it() -> None:
    code = "import sys, backend.tables.resizing; assert not {'torch', 'cv2', 'PIL', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
