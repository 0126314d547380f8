"""Aspect-ratio buckets: which sizes a training set may use, and which one a picture falls into.

All sizes are (width, height) in pixels. The rules are those of the kohya trainer, so that a set gives the same buckets
there and here.
"""

import math

from backend.errors import UserError

Size = tuple[int, int]


def make_buckets(resolution: Size, min_size: int, max_size: int, step: int) -> tuple[Size, ...]:
    """List the buckets of about the area of `resolution`.

    For every width between the limits, in steps, the tallest height is taken that keeps the area; each pair is used
    both ways round, and the square is always among them. All sides are multiples of `step`.

    Args:
        resolution: sets the area that no bucket exceeds.
        min_size: smallest side, rounded down to `step`.
        max_size: largest side, rounded up to `step`.
        step: what the sides are multiples of.

    Returns:
        The buckets in rising order.

    Raises:
        UserError: if no bucket is possible.
    """
    min_size = max(min_size // step, 1) * step
    max_size = -(-max_size // step) * step
    area = resolution[0] * resolution[1]
    square = math.isqrt(area) // step * step
    buckets = {(square, square)} if square else set()
    for side in range(min_size, max_size + 1, step):
        other = min(max_size, area // side // step * step)
        if other >= min_size:
            buckets |= {(side, other), (other, side)}
    if not buckets:
        raise UserError(f"no bucket of step {step} fits into {resolution[0]}x{resolution[1]}", "bucket_reso_steps")
    return tuple(sorted(buckets))


def select_bucket(size: Size, buckets: tuple[Size, ...]) -> tuple[Size, Size]:
    """Choose the bucket whose aspect ratio is nearest, scaling the picture up or down so that it covers the bucket.

    Args:
        size: of the picture.
        buckets: as `make_buckets` gives them; a bucket equal to `size` is taken as it is.

    Returns:
        The bucket, and the size to resize the picture to before it is cropped to the bucket.
    """
    if size in buckets:
        return size, size
    width, height = size
    aspect = width / height
    bucket = min(buckets, key=lambda b: abs(b[0] / b[1] - aspect))
    scale = bucket[1] / height if aspect > bucket[0] / bucket[1] else bucket[0] / width
    return bucket, (int(width * scale + 0.5), int(height * scale + 0.5))


def select_bucket_no_upscale(size: Size, resolution: Size, step: int) -> tuple[Size, Size]:
    """Choose the bucket of a picture that must not be enlarged (`bucket_no_upscale`).

    A picture of more than the area of `resolution` is scaled down to it, the side rounded to `step` being the one that
    keeps the aspect ratio better; a smaller one keeps its size. The bucket is that size cut down to multiples of
    `step`.

    Args:
        size: of the picture.
        resolution: sets the largest area.
        step: every side of a bucket is a multiple of this.

    Returns:
        The bucket and the size after resizing, as `select_bucket`.

    Raises:
        UserError: if the picture, once scaled, has a side shorter than `step`.
    """
    width, height = size
    area = resolution[0] * resolution[1]
    resized = size
    if width * height > area:
        aspect = width / height
        ideal_width = math.sqrt(area * aspect)
        by_width = _floor_to(ideal_width, step)
        by_height = _floor_to(area / ideal_width, step)
        if _aspect_error(by_width, _floor_to(by_width / aspect, step), aspect) < _aspect_error(
            _floor_to(by_height * aspect, step), by_height, aspect
        ):
            resized = (by_width, int(by_width / aspect + 0.5))
        else:
            resized = (int(by_height * aspect + 0.5), by_height)
    bucket = (resized[0] - resized[0] % step, resized[1] - resized[1] % step)
    if 0 in bucket:
        message = (
            f"a picture of {width}x{height} has a side below bucket_reso_steps ({step}) and may not be enlarged: "
            "remove it, lower bucket_reso_steps or turn bucket_no_upscale off"
        )
        raise UserError(message, "bucket_no_upscale")
    return bucket, resized


def _floor_to(length: float, step: int) -> int:
    whole = int(length + 0.5)
    return whole - whole % step


def _aspect_error(width: int, height: int, aspect: float) -> float:
    return abs(width / height - aspect) if height else math.inf
