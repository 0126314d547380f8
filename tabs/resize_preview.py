"""What resizing a folder of pictures would give, from the sizes in their headers: nothing is decoded or written."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path

from backend.config.paths import likely_path
from backend.errors import UserError
from backend.images import DECODE_ERRORS, TURNED, opened, orientation
from backend.picture_folder import is_picture
from backend.tables.buckets import Size, select_bucket_no_upscale
from backend.tables.resizing import target_size
from tabs.text import empty, table

LOOKED_AT = 400
SHOWN_BUCKETS = 8


@dataclass(frozen=True)
class Outcome:
    """What one of the sizes would give.

    Attributes:
        size: as asked for.
        made: how many pictures.
        small: how many are too small for it.
        buckets: how many pictures by the size that they are trained at.
        narrow: how many are made, but too narrow for any bucket.
    """

    size: Size
    made: int
    small: int
    buckets: Mapping[Size, int]
    narrow: int


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder, by name; none if it cannot be read."""
    try:
        found = [name for name in os.listdir(folder) if is_picture(name)]
    except (OSError, ValueError):
        return []
    return [folder / name for name in sorted(found)]


def sizes_of(pictures: Sequence[Path]) -> list[Size]:
    """Width and height of the first LOOKED_AT pictures, as they are to be seen; broken ones are left out."""
    found = []
    for picture in pictures[:LOOKED_AT]:
        try:
            size = _size(str(picture), picture.stat().st_mtime_ns)
        except OSError:
            continue
        found += [size] if size is not None else []
    return found


@lru_cache(maxsize=16 * LOOKED_AT)
def _size(path: str, _modified_ns: int) -> Size | None:
    """A picture's size from its header; None if it is broken."""
    try:
        with opened(path) as image:
            return image.size[::-1] if orientation(image) in TURNED else image.size
    except DECODE_ERRORS:
        return None


def bucket_step(sizes: Sequence[Size]) -> int:
    """What the sides of buckets are multiples of: 64, and less where the smallest size has no room for that."""
    return 64 if min(min(size) for size in sizes) >= 256 else 8


def outcomes(pictures: Sequence[Size], sizes: Sequence[Size], divisible_by: int) -> list[Outcome]:
    """What each size would give, trained with `bucket_no_upscale` as the dataset that is made of it asks for."""
    largest = max(sizes, key=lambda size: size[0] * size[1])
    step = bucket_step(sizes)
    found = []
    for size in sizes:
        made = [made for picture in pictures if (made := target_size(*picture, *size, divisible_by)) is not None]
        buckets = Counter(bucket for one in made if (bucket := _bucket(one, largest, step)) is not None)
        narrow = len(made) - sum(buckets.values())
        found.append(Outcome(size, len(made), len(pictures) - len(made), buckets, narrow))
    return found


def _bucket(size: Size, largest: Size, step: int) -> Size | None:
    try:
        return select_bucket_no_upscale(size, largest, step)[0]
    except UserError:
        return None


def preview_html(folder: str, sizes: Sequence[Size], divisible_by: int) -> str:
    """The outcome for a folder as a table, or what there is to do first."""
    if not folder.strip():
        return empty("No pictures yet", "Choose a dataset or type a folder: what each size gives is shown here.")
    pictures = pictures_in(likely_path(folder))
    measured = sizes_of(pictures)
    if not measured:
        return empty("No pictures there", "The folder holds no picture that can be read. Choose another.")
    rows = [_row(outcome) for outcome in outcomes(measured, sizes, divisible_by)]
    made = sum(int(row[1]) for row in rows)
    count = f"{len(measured)} picture{'s' * (len(measured) != 1)}"
    source = count if len(pictures) <= LOOKED_AT else f"the first {count} of {len(pictures):,}"
    head = f"From {source}: {made} smaller cop{'ies' if made != 1 else 'y'}."
    if not made:
        head = f"Nothing would be made: {source}, and none is as large as any of the sizes."
    text = table(("size", "made", "too small", "buckets they are trained in"), rows)
    return f'<div class="status report"><div class="top"><span class="name">{escape(head)}</span></div>{text}</div>'


def _row(outcome: Outcome) -> tuple[str, str, str, str]:
    known = sorted(outcome.buckets.items(), key=lambda item: (-item[1], item[0]))
    words = [f"{width}×{height}: {count}" for (width, height), count in known[:SHOWN_BUCKETS]]
    words += [f"{len(known) - SHOWN_BUCKETS} more"] if len(known) > SHOWN_BUCKETS else []
    words += [f"{outcome.narrow} too narrow"] if outcome.narrow else []
    return f"{outcome.size[0]}×{outcome.size[1]}", str(outcome.made), str(outcome.small), ", ".join(words) or "–"
