"""How large a picture becomes when it is made smaller for training. All sizes are in pixels."""

import math


def target_size(width: int, height: int, area_w: int, area_h: int, divisible_by: int) -> tuple[int, int] | None:
    """The size of a picture that is scaled to the area of `area_w` x `area_h` in its own shape, then cropped.

    Args:
        width, height: of the picture.
        area_w, area_h: whose product is the most pixels that it may have.
        divisible_by: both sides are cropped to multiples of this.

    Returns:
        Width and height; None where the picture has fewer pixels, as it is never enlarged, or nothing would be left.
    """
    pixels, area = width * height, area_w * area_h
    if pixels < area:
        return None
    scale = math.sqrt(area / pixels)
    sides = (int(width * scale + 1e-6), int(height * scale + 1e-6))
    cropped = (sides[0] - sides[0] % divisible_by, sides[1] - sides[1] % divisible_by)
    return cropped if 0 not in cropped else None
