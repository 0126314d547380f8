"""Small copies of pictures, for the page to show."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from backend.images import DECODE_ERRORS, opened, upright
from backend.workspace import make_slug

THUMBNAIL = 256
SMALL_FILE = 64 * 1024
SHOWN_BY_BROWSERS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp")


def thumbnail(picture: Path, cache: Path, served: Sequence[Path] = ()) -> Path | None:
    """A small copy of a picture to be shown, made once; None if the picture is broken.

    Args:
        picture: itself given back if it is small and may be served.
        cache: where copies are kept, and served from.
        served: folders whose files the server gives out; a picture from anywhere else it would refuse.
    """
    try:
        status = picture.stat()
        shown = picture.suffix.lower() in SHOWN_BY_BROWSERS and str(picture).isprintable()
        if shown and status.st_size <= SMALL_FILE and _is_within(picture, served):
            return picture
        told = f"\0{status.st_size}\0{status.st_mtime_ns}".encode()
        key = hashlib.sha256(os.fsencode(picture) + told).hexdigest()[:32]
        small = cache / key / f"{make_slug(picture.stem)}.webp"
        if not small.exists():
            small.parent.mkdir(parents=True, exist_ok=True)
            with opened(picture) as image:
                image.draft("RGB", (THUMBNAIL * 2, THUMBNAIL * 2))
                copy = upright(image)
                # 16-bit grey, which Pillow would clip.
                copy = copy.convert("I").point(lambda value: value / 257).convert("L") if copy.mode[0] == "I" else copy
                copy = copy.convert("RGB")
            copy.thumbnail((THUMBNAIL, THUMBNAIL))
            copy.save(small, quality=85)
    except DECODE_ERRORS:
        return None
    return small


def _is_within(path: Path, places: Sequence[Path]) -> bool:
    return any(path.resolve().is_relative_to(place.resolve()) for place in places)
