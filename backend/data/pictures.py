"""Picture files: found, checked, and turned into pixels of their bucket's size. Sizes are (width, height)."""

import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backend.data.augment import Crop, Tint, centred, tinted
from backend.data.decode import cpu_count, flatten, opacity
from backend.data.masks import OPTION, latent_mask
from backend.errors import UserError
from backend.images import DECODE_ERRORS, EXTENSIONS, FOREIGN, TURNED, opened, orientation, reason, upright
from backend.picture_folder import is_picture, names_of
from backend.tables.buckets import Size
from backend.terminal import track

# Whose weights grow with the reduction, so that nothing is left out of a picture that gets much smaller.
PILLOW: Mapping[str | None, Image.Resampling] = MappingProxyType(
    {"lanczos": Image.Resampling.LANCZOS, "box": Image.Resampling.BOX}
)
OPENCV: Mapping[str, int] = MappingProxyType(
    {
        "nearest": cv2.INTER_NEAREST_EXACT,
        "bilinear": cv2.INTER_LINEAR,
        "bicubic": cv2.INTER_CUBIC,
        "area": cv2.INTER_AREA,
    }
)

# Endings that are named where no picture is found.
USUAL = 8


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
        interpolation: how it is resized, None for the usual way.
        alpha_mask: its opacity is its mask.
        mask_path: the picture whose red is its mask, if there is one.
        content, mask_content: hashes of the two files' bytes, "" where nothing is kept on the disk.
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
    interpolation: str | None = None
    alpha_mask: bool = False
    mask_path: Path | None = None
    content: str = ""
    mask_content: str = ""

    @property
    def masked(self) -> bool:
        """Whether it has a mask."""
        return self.alpha_mask or self.mask_path is not None


@dataclass(frozen=True)
class Facts:
    """What is known of a picture file: its upright size and, where it was asked for, the hash of its bytes."""

    size: Size
    content: str = ""


class PictureMemory(Protocol):
    """Remembers facts of files from run to run."""

    def facts(self, path: Path, status: os.stat_result) -> Facts | None: ...
    def learn(self, path: Path, status: os.stat_result, facts: Facts, now: float) -> None: ...


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
    found = [p for p in entries if is_picture(p.name)]
    # A link that leads nowhere is a picture that is missing, and is told like a damaged one.
    paths = sorted((p for p in found if p.is_file() or not p.exists()), key=_natural_order)
    if not paths:
        raise UserError(_no_pictures(folder), "image_dir")
    return paths


def measure_pictures(
    paths: Sequence[Path], memory: PictureMemory | None = None, field: str = "image_dir"
) -> list[Facts]:
    """Decode every picture once, on all CPU threads.

    Args:
        paths: of the pictures.
        memory: knows pictures of earlier runs, which need not be read again; with it the contents are hashed too.
        field: the option that errors are about.

    Raises:
        UserError: if some cannot be decoded, naming them.
    """
    with ThreadPoolExecutor(cpu_count()) as pool:
        measured = pool.map(lambda path: _measure(path, memory), paths)
        results = list(track(measured, "checking pictures", len(paths)))
    damaged = [(path, result) for path, result in zip(paths, results, strict=True) if isinstance(result, str)]
    if damaged:
        shown = ", ".join(f"{path} ({why})" for path, why in damaged[:5])
        more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        raise UserError(f"cannot decode {shown}{more}: replace or remove it and start again", field)
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
    return to_float(torch.from_numpy(load_sample(picture, flip)[0]))


def load_sample(
    picture: Picture, flip: bool = False, crop: Crop | None = None, tint: Tint | None = None
) -> tuple[np.ndarray, Tensor | None]:
    """A picture as one sample shows it, and its mask.

    Args:
        picture: of a scanned set.
        flip: mirror it, after the crop.
        crop: the part that is shown; left out, the middle.
        tint: its colours; left out, its own.

    Returns:
        uint8 [height, width, 3], a quarter of the bytes of `load_pixels` to pass between processes; and the mask
        [1, height / 8, width / 8] in [0, 1], None for a picture that has none.

    Raises:
        UserError: if a file cannot be decoded any more.
    """
    crop = crop or centred(picture.resized, picture.bucket)
    pixels, mask = _read(picture)
    pixels = _shown(pixels, picture, crop, flip)
    if tint is not None:
        pixels = tinted(pixels, tint)
    return pixels, None if mask is None else latent_mask(_shown(mask, picture, crop, flip))


def to_float(pixels: Tensor) -> Tensor:
    """uint8 [..., height, width, 3] -> float [..., 3, height, width] in [-1, 1]."""
    return pixels.movedim(-1, -3).contiguous().float().div_(127.5).sub_(1.0)


def resize(pixels: np.ndarray, size: Size, interpolation: str | None = None) -> np.ndarray:
    """Resize uint8 [height, width, 3] or [height, width] to (width, height).

    Args:
        pixels: of the whole picture.
        size: wanted.
        interpolation: one of the choices of `resize_interpolation`; left out, by area down and by Lanczos up.
    """
    height, width = pixels.shape[:2]
    if (width, height) == tuple(size):
        return pixels
    if interpolation in PILLOW:
        return np.asarray(Image.fromarray(pixels).resize(size, PILLOW[interpolation]))
    if interpolation is not None:
        return cv2.resize(pixels, size, interpolation=OPENCV[interpolation])
    shrinks = size[0] * size[1] < width * height
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4)


def _shown(pixels: np.ndarray, picture: Picture, crop: Crop, flip: bool) -> np.ndarray:
    """Resized, cut and mirrored."""
    width, height = picture.bucket
    pixels = resize(pixels, crop.resized, picture.interpolation)
    pixels = pixels[crop.top : crop.top + height, crop.left : crop.left + width]
    return (pixels[:, ::-1] if flip else pixels).copy()


def _read(picture: Picture) -> tuple[np.ndarray, np.ndarray | None]:
    """RGB of the picture on white, and its mask of the same size where it has one."""
    with _opened(picture.path, picture.content, "image_dir") as image:
        pixels = np.asarray(flatten(image))
        if picture.alpha_mask:
            return pixels, np.asarray(opacity(image))
    if picture.mask_path is None:
        return pixels, None
    with _opened(picture.mask_path, picture.mask_content, OPTION) as image:
        mask = np.asarray(flatten(image, ground=0).getchannel("R"))
    return pixels, resize(mask, (pixels.shape[1], pixels.shape[0]))


@contextmanager
def _opened(path: Path, content: str, field: str) -> Iterator[Image.Image]:
    """The picture of a file, upright; with `content` only while it has the bytes that were hashed."""
    try:
        data = path.read_bytes()
        if content and _hash(data) != content:
            raise UserError(f"{path} was changed while it was being read: start again", field)
        with opened(BytesIO(data), path.name) as image:
            yield upright(image)
    except DECODE_ERRORS as error:
        raise UserError(f"cannot decode {path} ({reason(error)}): replace or remove it", field) from error


def _measure(path: Path, memory: PictureMemory | None) -> Facts | str:
    try:
        if memory is None:
            return Facts(_upright_size(path))
        # Before the file is read: should it change in between, what is remembered fits no file any more.
        status, now = path.stat(), time.time()
        known = memory.facts(path, status)
        if known is None:
            data = path.read_bytes()
            known = Facts(_upright_size(BytesIO(data), path.name), _hash(data))
            memory.learn(path, status, known, now)
    except DECODE_ERRORS as error:
        return reason(error)
    return known


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _upright_size(file: Path | BytesIO, name: str = "") -> Size:
    with opened(file, name) as image:
        width, height = image.size
        turned = orientation(image) in TURNED
        # A JPEG is decoded at an eighth of its size: every byte is still read, in half the time.
        image.draft("RGB", (max(1, width // 8), max(1, height // 8)))
        image.load()
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
    kinds = ", ".join(EXTENSIONS[:USUAL]) + f" and {len(EXTENSIONS) - USUAL} other endings"
    inner = sorted(p.parent.name for p in folder.glob("*/*") if is_picture(p.name))
    foreign = sorted(path for path in folder.iterdir() if path.suffix.lower() in FOREIGN)
    if foreign:
        return f"no pictures in {folder} that can be read: save {names_of(foreign)} as PNG or JPEG"
    hint = f"its folder {inner[0]} has some, name that one" if inner else "put some there or name another folder"
    return f"no pictures in {folder} (looked for {kinds}, not in folders below): {hint}"
