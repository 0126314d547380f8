"""Random crops and colours: drawn as plain values from a generator, and applied to pixels.

Sizes are (width, height).
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from backend.tables.buckets import Size

TINTED = 1 / 3  # share of the pictures whose colours change, half of them in hue and half in brightness
MOST_HUE = 16.0  # degrees of the colour circle
MOST_GAMMA = 0.05
FACE_SHIFT = 20  # a face is moved by at most this fraction of its size
FACE_NUMBERS = 4


class CropOptions(Protocol):
    """What `draw_crop` reads of a subset's options."""

    @property
    def random_crop(self) -> bool: ...
    @property
    def face_crop_aug_range(self) -> tuple[float, float] | None: ...


@dataclass(frozen=True)
class Crop:
    """Which part of a picture is trained.

    Attributes:
        resized: size of the whole picture before it is cut.
        left, top: of the cut, which is as large as the bucket.
    """

    resized: Size
    left: int
    top: int


@dataclass(frozen=True)
class Tint:
    """Changed colours: the hue turned by `hue` degrees, then v -> v ** `gamma` of values in [0, 1]."""

    hue: float = 0.0
    gamma: float = 1.0


@dataclass(frozen=True)
class Face:
    """Where a face is in the upright picture: centre and size in its pixels."""

    x: int
    y: int
    width: int
    height: int


def centred(resized: Size, bucket: Size) -> Crop:
    """The crop to the middle."""
    return Crop(resized, (resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2)


def face_of(path: Path) -> Face | None:
    """The face that a file's name tells of: `anything_<centre x>_<centre y>_<width>_<height>.png`; None where none."""
    parts = path.stem.split("_")
    numbers = parts[-FACE_NUMBERS:]
    if len(parts) <= FACE_NUMBERS or not all(number.isdecimal() and number.isascii() for number in numbers):
        return None
    face = Face(*map(int, numbers))
    return face if face.width and face.height else None


def draw_crop(
    size: Size, resized: Size, bucket: Size, face: Face | None, options: CropOptions, rng: random.Random
) -> Crop:
    """The crop of one sample.

    Without a face the place is uniform over the picture. With one, the scale is uniform between the two at which the
    shorter side of the bucket is `face_crop_aug_range` times the face; the picture always covers the bucket and is not
    enlarged for the face's sake. The face comes to the middle, moved a little where the range leaves room for chance,
    and with `random_crop` by the sum of two uniform draws, so that it often stays near the middle.

    Args:
        size: of the upright picture.
        resized: the size that it has before the crop where no face says otherwise.
        bucket: size of the crop.
        face: in the picture.
        options: of the subset.
        rng: the draws of this sample.
    """
    if face is None or options.face_crop_aug_range is None:
        if not options.random_crop:
            return centred(resized, bucket)
        return Crop(resized, *(rng.randint(0, whole - part) for whole, part in zip(resized, bucket, strict=True)))
    least, most = options.face_crop_aug_range
    side, face_side = min(bucket), max(face.width, face.height)
    covering = max(bucket[0] / size[0], bucket[1] / size[1])
    low = max(covering, min(1.0, side / (face_side * most)))
    high = max(low, min(1.0, side / (face_side * least)))
    scale = rng.uniform(low, high)
    scaled = (max(bucket[0], int(size[0] * scale + 0.5)), max(bucket[1], int(size[1] * scale + 0.5)))
    corner = []
    for centre, whole, part in zip((face.x, face.y), scaled, bucket, strict=True):
        middle = int(centre * scale + 0.5)
        reach = 0 if least == most else int(face_side * scale) // FACE_SHIFT
        move = rng.randint(-reach, reach)
        if options.random_crop:
            reach = max(whole - middle, middle)
            move = rng.randint(0, reach) + rng.randint(0, reach) - reach
        corner.append(max(0, min(middle - part // 2 + move, whole - part)))
    return Crop(scaled, *corner)


def draw_tint(rng: random.Random) -> Tint | None:
    """The colours of one sample: two thirds keep theirs, one sixth gets another hue, one sixth another brightness."""
    chosen, amount = rng.random(), rng.uniform(-1, 1)
    if chosen >= TINTED:
        return None
    return Tint(hue=MOST_HUE * amount) if chosen < TINTED / 2 else Tint(gamma=1 + MOST_GAMMA * amount)


def tinted(pixels: np.ndarray, tint: Tint) -> np.ndarray:
    """uint8 RGB [height, width, 3] in other colours."""
    values = pixels.astype(np.float32) / 255
    if tint.hue:
        hsv = cv2.cvtColor(values, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0] + tint.hue) % 360
        values = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return (values**tint.gamma * 255 + 0.5).clip(0, 255).astype(np.uint8)
