"""Picture files: found, checked, and turned into pixels of their bucket's size. Sizes are (width, height)."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from backend.data.decode import DECODE_ERRORS, EXTENSIONS, TURNED, cpu_count, flatten, reason
from backend.errors import UserError
from backend.tables.buckets import Size


@dataclass(frozen=True)
class Picture:
    """One picture of a training set.

    Attributes:
        path: of the file.
        size: upright, before resizing.
        resized: after resizing, before the crop to the bucket.
        bucket: the size it is trained at.
        caption: as found; `build_caption` makes each sample's from it.
        repeats: how often it is shown in an epoch.
        is_reg: whether it is a regularisation picture.
        flip_aug: whether its samples may be mirrored.
        dataset: index of its dataset in the config.
        subset: index of its subset in the dataset.
    """

    path: Path
    size: Size
    resized: Size
    bucket: Size
    caption: str
    repeats: int
    is_reg: bool = False
    flip_aug: bool = False
    dataset: int = 0
    subset: int = 0


def list_pictures(folder: Path) -> list[Path]:
    """The pictures on the top level of a folder, in natural order (2 before 10), the same on every machine.

    Raises:
        UserError: if the folder is missing or holds no picture.
    """
    if not folder.is_dir():
        raise UserError(_missing_folder(folder), "image_dir")
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise UserError(f"cannot list {folder} ({error.strerror}): check its permissions", "image_dir") from error
    found = [p for p in entries if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".")]
    paths = sorted((p for p in found if p.is_file()), key=_natural_order)
    if not paths:
        raise UserError(_no_pictures(folder), "image_dir")
    return paths


def measure_pictures(paths: list[Path]) -> list[Size]:
    """Decode every picture once, on all CPU threads, and give the upright sizes.

    Raises:
        UserError: if some cannot be decoded, naming them.
    """
    with ThreadPoolExecutor(cpu_count()) as pool:
        results = list(pool.map(_measure, paths))
    damaged = [(path, result) for path, result in zip(paths, results, strict=True) if isinstance(result, str)]
    if damaged:
        shown = ", ".join(f"{path} ({why})" for path, why in damaged[:5])
        more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        raise UserError(f"cannot decode {shown}{more}: replace or remove it and start again", "image_dir")
    return [result for result in results if not isinstance(result, str)]


def load_pixels(picture: Picture, flip: bool = False) -> Tensor:
    """Load a picture at its bucket's size.

    Args:
        picture: of a scanned set.
        flip: mirror it, after the crop.

    Returns:
        Float tensor [3, height, width] in [-1, 1].

    Raises:
        UserError: if the file cannot be decoded any more.
    """
    return to_float(torch.from_numpy(load_array(picture, flip)))


def load_array(picture: Picture, flip: bool = False) -> np.ndarray:
    """As `load_pixels`, but uint8 [height, width, 3]: a quarter of the bytes to pass between processes."""
    pixels = resize(_read_rgb(picture.path), picture.resized)
    width, height = picture.bucket
    left, top = (picture.resized[0] - width) // 2, (picture.resized[1] - height) // 2
    pixels = pixels[top : top + height, left : left + width]
    return (pixels[:, ::-1] if flip else pixels).copy()


def to_float(pixels: Tensor) -> Tensor:
    """uint8 [..., height, width, 3] -> float [..., 3, height, width] in [-1, 1]."""
    return pixels.movedim(-1, -3).contiguous().float().div_(127.5).sub_(1.0)


def resize(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Resize uint8 [height, width, 3] to (width, height): by area down, by Lanczos up."""
    height, width = pixels.shape[:2]
    if (width, height) == tuple(size):
        return pixels
    shrinks = size[0] * size[1] < width * height
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4)


def _read_rgb(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(flatten(ImageOps.exif_transpose(image)))
    except DECODE_ERRORS as error:
        raise UserError(f"cannot decode {path} ({reason(error)}): replace or remove it", "image_dir") from error


def _measure(path: Path) -> Size | str:
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation) in TURNED
            # A JPEG is decoded at an eighth of its size: every byte is still read, in half the time.
            image.draft("RGB", (max(1, width // 8), max(1, height // 8)))
            image.load()
    except DECODE_ERRORS as error:
        return reason(error)
    return (height, width) if turned else (width, height)


def _natural_order(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    parts = re.findall(r"[0-9]+|[^0-9]+", path.name.casefold())
    return [(0, int(part), "") if part[0].isdecimal() else (1, 0, part) for part in parts], path.name


def _missing_folder(folder: Path) -> str:
    if folder.exists():
        return f"{folder} is a file: name the folder that holds the pictures"
    siblings = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
    near = get_close_matches(folder.name, siblings, n=1)
    hint = "check the path; a relative one starts at the working directory"
    if near:
        hint = f"did you mean {folder.parent / near[0]}?"
    return f"there is no folder {folder}: {hint}"


def _no_pictures(folder: Path) -> str:
    kinds = ", ".join(EXTENSIONS)
    inner = sorted(p.parent.name for p in folder.glob("*/*") if p.suffix.lower() in EXTENSIONS)
    hint = f"its folder {inner[0]} has some, name that one" if inner else "put some there or name another folder"
    return f"no pictures in {folder} (looked for {kinds}, not in folders below): {hint}"
