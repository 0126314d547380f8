"""One picture made smaller: decoded once, resized to every size from its own pixels, written. No torch.

A process of its own may do this, so whatever goes in and comes out can be pickled.
"""

import io
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from backend.data.decode import eight_bits, flatten
from backend.images import DECODE_ERRORS, opened, reason, upright
from backend.replacing import replacing
from backend.tables.buckets import Size
from backend.tables.resizing import limited_size, target_size

INTERPOLATIONS = {"area": cv2.INTER_AREA, "cubic": cv2.INTER_CUBIC, "lanczos4": cv2.INTER_LANCZOS4}
GREY = ("1", "L", "I", "F")


@dataclass(frozen=True)
class Look:
    """How pictures are made.

    Attributes:
        divisible_by: what width and height are multiples of.
        interpolation: a name in INTERPOLATIONS.
        png: PNG, with transparency; else JPEG, on white.
    """

    divisible_by: int = 1
    interpolation: str = "area"
    png: bool = False


@dataclass(frozen=True)
class Target:
    """A file to be made: its path, and the size whose area limits it."""

    path: Path
    area: Size


@dataclass(frozen=True)
class Task:
    """What is to be done with one picture.

    Attributes:
        source: its file.
        size: upright, as its header has it.
        targets: what is made of it.
        copies: pairs of file and copy, itself among them, made only if it can be decoded.
    """

    source: Path
    size: Size
    targets: tuple[Target, ...]
    copies: tuple[tuple[Path, Path], ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a picture.

    Attributes:
        sizes: of the pictures made of it, one per target.
        bytes: written, copies included.
        broken: why it cannot be decoded; then nothing was written.
        flattened: it has transparency and was put on white.
    """

    sizes: tuple[Size, ...] = ()
    bytes: int = 0
    broken: str = ""
    flattened: bool = False


def make(task: Task, look: Look) -> Outcome:
    """Decode a picture, write what is made of it, then copy it and what belongs to it.

    Raises:
        OSError: a file cannot be written, with its name.
    """
    try:
        pixels, profile, flattened = read(task.source, look.png)
    except DECODE_ERRORS as error:
        return Outcome(broken=reason(error))
    sizes, written = [], 0
    for target in task.targets:
        small = shrink(pixels, target.area, look)
        sizes.append((small.shape[1], small.shape[0]))
        written += write(target.path, encode(small, look.png, profile))
    written += sum(copy(source, path) for source, path in task.copies)
    return Outcome(tuple(sizes), written, flattened=flattened and bool(sizes))


def read(path: Path, keep_alpha: bool) -> tuple[np.ndarray, bytes | None, bool]:
    """Decode a picture, upright.

    Returns:
        uint8 [height, width] for grey, [height, width, 3] for colours or [height, width, 4] with alpha; the colour
        profile that goes with them, if there is one; whether transparency was put on white.

    Raises:
        one of DECODE_ERRORS: it cannot be decoded.
    """
    with opened(path) as stored:
        image = upright(stored)
        profile = image.info.get("icc_profile")
        flat = False
        if image.has_transparency_data:
            pixels = np.asarray(image.convert("RGBA"))
            # An alpha that is 255 everywhere says nothing.
            transparent = pixels[..., 3].min() < 255
            flat = transparent and not keep_alpha
            if flat:
                pixels = np.asarray(flatten(image))
            elif not transparent:
                pixels = np.ascontiguousarray(pixels[..., :3])
        elif image.mode.partition(";")[0] in GREY:
            pixels = np.asarray(eight_bits(image).convert("L"))
        else:
            pixels = np.asarray(image.convert("RGB"))
    # One made for other colours, such as those of a CMYK file, would be wrong for these.
    space = b"GRAY" if pixels.ndim == 2 else b"RGB "
    return pixels, profile if profile and profile[16:20] == space else None, bool(flat)


def shrink(pixels: np.ndarray, area: Size, look: Look) -> np.ndarray:
    """Resize to at most an area with the shape kept, then cut the edges off, the same at both sides.

    Args:
        pixels: as `read` gives them.
        area: a size that `target_size` allows.
        look: interpolation and divisible_by.

    Returns:
        uint8 of as many channels.

    Raises:
        ValueError: the picture has no such size.
    """
    height, width = pixels.shape[:2]
    resized, cut = limited_size(width, height, *area), target_size(width, height, *area, look.divisible_by)
    if resized is None or cut is None:
        raise ValueError(f"a picture of {width}x{height} cannot be made {area[0]}x{area[1]}")
    if resized != (width, height):
        pixels = _resize(pixels, resized, INTERPOLATIONS[look.interpolation])
    left, top = (resized[0] - cut[0]) // 2, (resized[1] - cut[1]) // 2
    return pixels[top : top + cut[1], left : left + cut[0]]


def encode(pixels: np.ndarray, png: bool, profile: bytes | None) -> bytes:
    """The bytes of a PNG, or of a JPEG of quality 100 whose colours have as many pixels as its brightness (4:4:4)."""
    if png and not profile:
        # Five times as fast as Pillow; but it refuses profiles that other programs take.
        done, data = cv2.imencode(".png", _blue_first(pixels))
        if not done:
            raise RuntimeError("OpenCV could not make a PNG")
        return data.tobytes()
    memory = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    options = {} if png else {"quality": 100, "subsampling": 0}
    image.save(memory, "PNG" if png else "JPEG", icc_profile=profile, **options)
    return memory.getvalue()


def write(path: Path, data: bytes) -> int:
    """Write a file whole or not at all; gives its bytes.

    Raises:
        OSError: it cannot be written, with its name.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return len(data)


def copy(source: Path, path: Path) -> int:
    """Copy a file byte for byte, whole or not at all; gives its bytes.

    Raises:
        OSError: it cannot be read or written, with its name.
    """
    with replacing(path) as temporary:
        shutil.copyfile(source, temporary)
        return temporary.stat().st_size


def _blue_first(pixels: np.ndarray) -> np.ndarray:
    """The order of channels that OpenCV writes from."""
    if pixels.ndim == 2:
        return pixels
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)


def _resize(pixels: np.ndarray, size: Size, interpolation: int) -> np.ndarray:
    if pixels.ndim == 2 or pixels.shape[2] == 3:
        return cv2.resize(pixels, size, interpolation=interpolation)
    # Colours count by their opacity, or what lies hidden under transparent pixels would show at the edges.
    alpha = pixels[..., 3]
    weighted = np.multiply(pixels, alpha[..., None], dtype=np.uint16)
    weighted[..., 3] = np.multiply(alpha, 255, dtype=np.uint16)
    small = cv2.resize(weighted, size, interpolation=interpolation).astype(np.float32)
    opacity = small[..., 3:]
    colours = np.divide(255 * small[..., :3], opacity, out=np.zeros_like(small[..., :3]), where=opacity > 0)
    return (np.concatenate([colours, opacity / 255], axis=2) + 0.5).clip(0, 255).astype(np.uint8)
