"""Sizes of pictures that are made smaller, and the buckets they fall into. All sizes are (width, height) in pixels.

No torch and no picture is needed, so a page can show what resizing would give.
"""

import math
from collections import Counter
from collections.abc import Iterable

from backend.tables.buckets import Size, make_buckets, select_bucket

BUCKET_STEP = 64  # the trainer's usual bucket_reso_steps


def limited_size(width: int, height: int, area_w: int, area_h: int) -> Size | None:
    """The size of a picture once its area is at most `area_w` x `area_h`, its shape kept.

    Both sides are scaled by sqrt(area / (width * height)) and cut to whole pixels, so the area is never exceeded; in
    whole numbers, so that 1000x1000 becomes exactly 512x512.

    Returns:
        The size, or None if the picture's area is smaller already.
    """
    area = area_w * area_h
    if width * height < area:
        return None
    # A side of a very thin picture may come to less than a pixel; the other one then holds the whole area.
    return min(math.isqrt(area * width // height) or 1, area), min(math.isqrt(area * height // width) or 1, area)


def target_size(width: int, height: int, area_w: int, area_h: int, divisible_by: int) -> Size | None:
    """The size of a picture after resizing to an area and cutting its edges off to multiples of `divisible_by`.

    Args:
        width, height: of the picture, upright.
        area_w, area_h: the size whose area it is limited to, such as 512 and 512.
        divisible_by: what both sides are multiples of.

    Returns:
        The size, or None if there is none: the picture is smaller than that area and is never enlarged, or a side of
        it would be shorter than `divisible_by`.
    """
    limited = limited_size(width, height, area_w, area_h)
    if limited is None or min(limited) < divisible_by:
        return None
    return limited[0] - limited[0] % divisible_by, limited[1] - limited[1] % divisible_by


def count_buckets(sizes: Iterable[Size], area_w: int, area_h: int) -> dict[Size, int]:
    """How many pictures of these sizes fall into which bucket of training at `area_w` x `area_h`, in rising order.

    The buckets are those of steps of 64 pixels with sides from half to twice those of the square.
    """
    side = math.isqrt(area_w * area_h)
    step = min(BUCKET_STEP, side)
    buckets = make_buckets((area_w, area_h), side // 2, side * 2, step)
    counts = Counter(select_bucket(size, buckets)[0] for size in sizes)
    return dict(sorted(counts.items()))
