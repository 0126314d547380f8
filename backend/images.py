"""Image files: the one list of formats that are read here, and the one way to open them. Knows no torch.

Only formats of this list are tried, so that no file starts Ghostscript or another decoder that was not meant. Text in a
PNG is not read: generators put whole workflows there, megabytes of it, and a few bytes may unpack to gigabytes.
"""

import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from PIL import Image

# Of each format of Pillow's: the ending that a file of it gets here, then the others that it may have.
FORMATS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "PNG": (".png", ".apng"),
        "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif"),
        "MPO": (".jpg", ".mpo"),
        "WEBP": (".webp",),
        "BMP": (".bmp",),
        "DIB": (".dib",),
        "AVIF": (".avif", ".avifs"),
        "GIF": (".gif",),
        "TIFF": (".tif", ".tiff"),
        "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
        "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
        "TGA": (".tga", ".icb", ".vda", ".vst"),
        "QOI": (".qoi",),
        "PCX": (".pcx",),
        "DDS": (".dds",),
        "SGI": (".sgi",),
    }
)
# Those that most people have first.
EXTENSIONS = tuple(
    dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".bmp", *(each for every in FORMATS.values() for each in every)))
)
# Nothing in their first bytes is sure, so they count only under their own endings.
_BY_NAME = ("TGA", "PCX")
# What people keep beside such pictures, and what cannot be read here.
FOREIGN = (
    *(".heic", ".heif", ".hif", ".jxl", ".svg", ".svgz", ".psd", ".psb", ".xcf", ".kra", ".clip", ".ai", ".eps"),
    *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".srw", ".orf", ".rw2", ".raf", ".pef", ".raw"),
    *(".exr", ".hdr", ".pfm", ".ico", ".cur", ".icns", ".jxr", ".wdp", ".hdp", ".bpg", ".flif", ".xbm", ".xpm", ".emf"),
    *(".pdf", ".wmf", ".fits", ".fit", ".blp", ".ras", ".rgb", ".rgba", ".bw", ".pxr", ".pcd", ".webm", ".mp4"),
    *(".m4v", ".mov", ".avi", ".mkv", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".gifv", ".ogv"),
)
# What Pillow raises for damaged files of these formats, found by feeding it cut and altered ones.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    MemoryError,
    RuntimeError,
    Image.DecompressionBombError,
)
ORIENTATION = 0x0112  # the tag of EXIF
TURNED = (5, 6, 7, 8)  # its values that swap width and height
_TURNS: Mapping[int, Image.Transpose] = MappingProxyType(
    {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
)

# What files that are named like pictures are instead, told by how they begin.
_CONTENTS = (
    (re.compile(rb".{4}ftyp(?:hei|hev|mif1|msf1)", re.DOTALL), "it is a HEIC picture; save it as PNG or JPEG"),
    (re.compile(rb"\xff\n|\0{3}\x0cJXL "), "it is a JPEG XL picture; save it as PNG or JPEG"),
    (re.compile(rb"\s*<(?:!doctype html|html)", re.IGNORECASE), "it is a web page; download the picture itself"),
    (re.compile(rb"version https://git-lfs"), 'it is a pointer of Git LFS; fetch the picture with "git lfs pull"'),
    (re.compile(rb".{4}ftyp(?!avi[fs])|\x1aE\xdf\xa3", re.DOTALL), "it is a video"),
)

_PNG = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# Texts that may say how a picture is turned.
_EXIF_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
_MOST_TEXT = 2**20  # what Pillow unpacks of one chunk
_MOST_CHUNK = 2**24

# Pillow tells of bad EXIF with two lines and a piece of its source; what cannot be read is an error anyway.
warnings.filterwarnings("ignore", module=r"PIL\.")


@contextmanager
def opened(source: str | Path | BinaryIO, name: str = "") -> Iterator[Image.Image]:
    """An image file, its header read, its pixels not yet; the first picture of an animation.

    Args:
        source: its path, or a stream of it.
        name: of the file, where the source is a stream; a few formats are known by their ending alone.

    Raises:
        one of DECODE_ERRORS: it is damaged, none of FORMATS, or has pixels whose range nobody can know.
    """
    with ExitStack() as stack:
        if isinstance(source, str | Path):
            name = name or os.fspath(source)
            source = stack.enter_context(open(source, "rb"))
        source.seek(0)
        if source.read(len(_PNG)) == _PNG:
            source = _Pieces(source, _without_texts(source))
        source.seek(0)
        ending = Path(name).suffix.lower()
        known = tuple(each for each in _known() if each not in _BY_NAME or ending in FORMATS[each])
        try:
            image = Image.open(source, formats=known)
        except Image.UnidentifiedImageError as error:
            raise Image.UnidentifiedImageError(_told_by_content(source) or str(error)) from None
        with image:
            if image.mode in ("F", "LAB", "HSV") or (image.mode == "I" and image.format == "TIFF"):
                raise ValueError(f"its pixels are of the kind {image.mode}; save it with 8 or 16 bits a colour")
            yield image


def _told_by_content(source: BinaryIO) -> str:
    """What a file that is no picture of FORMATS is; "" where that is not known."""
    source.seek(0)
    beginning = source.read(64)
    return next((told for sign, told in _CONTENTS if sign.match(beginning)), "")


@cache
def _known() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow was built with; MPO is found by way of JPEG."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def orientation(image: Image.Image) -> int:
    """How the EXIF of an image says that it is turned, 1 to 8; 1 where it says nothing that can be understood."""
    try:
        found = image.getexif().get(ORIENTATION)
    except DECODE_ERRORS:
        return 1
    return found if isinstance(found, int) and found in _TURNS else 1


def upright(image: Image.Image) -> Image.Image:
    """The image as it is to be seen."""
    image.load()
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def reason(error: BaseException) -> str:
    """Why an image cannot be decoded, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, Image.UnidentifiedImageError):
        return next((told for _, told in _CONTENTS if told == str(error)), "empty, damaged or not a picture")
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    if isinstance(error, OSError | ValueError | SyntaxError | Image.DecompressionBombError):
        return " ".join(str(error).split()) or type(error).__name__
    return "damaged"


def _without_texts(stream: BinaryIO) -> list[tuple[int, int]]:
    """The pieces (start, end) of a PNG that are not its texts, nor a colour profile that unpacks to too much."""
    end = stream.seek(0, os.SEEK_END)
    pieces, kept, place = [], 0, len(_PNG)
    while place + 12 <= end:
        stream.seek(place)
        length, kind = struct.unpack(">I4s", stream.read(8))
        following = place + 12 + length
        if following > end:
            break
        if (kind in _TEXTS or kind == b"iCCP") and not _is_wanted(kind, length, stream):
            pieces.append((kept, place))
            kept = following
        place = following
        if kind == b"IEND":
            break
    pieces.append((kept, end))
    return pieces


def _is_wanted(kind: bytes, length: int, stream: BinaryIO) -> bool:
    if length > _MOST_CHUNK:
        return False
    data = stream.read(length)
    if kind != b"iCCP" and not data.startswith(_EXIF_TEXTS):
        return False
    name, _, rest = data.partition(b"\0")
    if kind == b"tEXt":
        return length <= _MOST_TEXT
    if kind == b"iTXt":
        if rest[:1] == b"\0":
            return length <= _MOST_TEXT
        parts = rest[2:].split(b"\0", 2)
        packed = parts[2] if len(parts) == 3 and rest[1:2] == b"\0" else b""
    else:
        packed = rest[1:] if rest[:1] == b"\0" else b""
    if not name or not packed:
        return False
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(packed, _MOST_TEXT)
    except zlib.error:
        return False
    return not unpacking.unconsumed_tail


class _Pieces(io.RawIOBase):
    """A stream of some pieces of another one, as if they stood one behind the other."""

    def __init__(self, stream: BinaryIO, pieces: list[tuple[int, int]]) -> None:
        super().__init__()
        self._stream = stream
        self._pieces = [(start, end) for start, end in pieces if end > start]
        self._size = sum(end - start for start, end in self._pieces)
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._place)
        left = left if size is None or size < 0 else min(size, left)
        parts, before = [], 0
        for start, end in self._pieces:
            length = end - start
            inside = self._place - before
            if left and 0 <= inside < length:
                self._stream.seek(start + inside)
                part = self._stream.read(min(left, length - inside))
                parts.append(part)
                self._place += len(part)
                left -= len(part)
            before += length
        return b"".join(parts)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
