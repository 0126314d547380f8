"""Takes pictures and captions that came through the browser into a dataset's folder.

Nothing that arrives is trusted: only pictures that can be decoded and short texts are kept, under names that are made
here; names inside a ZIP never become paths.
"""

import os
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO

from PIL import Image, UnidentifiedImageError

from backend.errors import UserError, workspace_errors
from backend.workspace import make_slug

FORMATS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp"}
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTIONS = (".txt", ".caption")
FILE_BYTES = 100 * 1024**2
CAPTION_BYTES = 64 * 1024
TOTAL_BYTES = 8 * 1024**3
FILES = 20_000
PIXELS = 100_000_000
MIN_SIDE = 8


@dataclass
class Report:
    """What became of an upload.

    Attributes:
        pictures: names under which pictures were kept.
        captions: how many captions were.
        refused: pairs of the name that was sent and why it was not taken.
    """

    pictures: list[str] = field(default_factory=list)
    captions: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)

    def text(self) -> str:
        """The report in words, one line, and the refusals below."""
        known = {1: "1 picture"}.get(len(self.pictures), f"{len(self.pictures)} pictures")
        texts = {1: "1 caption"}.get(self.captions, f"{self.captions} captions")
        lines = [f"Taken: {known} and {texts}."]
        if self.refused:
            lines.append(f"Left out: {len(self.refused)}")
            lines += [f"{name}: {reason}" for name, reason in self.refused[:8]]
            lines += [f"and {len(self.refused) - 8} more"] if len(self.refused) > 8 else []
        return "\n".join(lines)


@dataclass(frozen=True)
class _Item:
    """One file of an upload: where it comes from, its name there, and its contents."""

    origin: str
    name: str
    data: bytes

    @property
    def stem(self) -> tuple[str, str]:
        """What a picture and its caption have in common."""
        return self.origin, str(PurePosixPath(self.name).with_suffix(""))

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix.lower()


def take(files: Sequence[Path], folder: Path) -> Report:
    """Take uploaded files (pictures, captions, ZIP files of them) into a folder of pictures.

    A caption goes with the picture of its name, of this upload or already there. A picture whose name is taken gets a
    number, unless the one that is there is the same.

    Args:
        files: what the browser has sent, already on disk.
        folder: made if it is not there.

    Raises:
        UserError: the disk is full, or nothing at all could be taken.
    """
    report = Report()
    kept: dict[tuple[str, str], list[str]] = {}
    captions: list[_Item] = []
    with workspace_errors("upload"):
        folder.mkdir(parents=True, exist_ok=True)
        taken = {path.stem.lower(): path.stem for path in folder.iterdir() if path.suffix.lower() in PICTURES}
        for item in _unpack(files, report):
            if item.suffix in CAPTIONS:
                captions.append(item)
            else:
                _keep_picture(item, folder, kept, taken, report)
        for item in captions:
            there = taken.get(_slug(item.name).lower())
            stems = kept.get(item.stem) or ([there] if there else [])
            if not stems:
                report.refused.append((item.name, "a caption without a picture of its name"))
                continue
            for stem in stems:
                write_caption(folder, stem, _decode(item.data))
            report.captions += 1
    if not report.pictures and not report.captions:
        reasons = "; ".join(f"{name}: {why}" for name, why in report.refused[:3])
        raise UserError(f"nothing could be taken{f' ({reasons})' if reasons else ''}; send pictures or a ZIP", "upload")
    return report


def write_caption(folder: Path, stem: str, text: str) -> None:
    """Write the caption of the picture of this stem, in place of one it may have."""
    first, *others = CAPTIONS
    _write(folder / f"{stem}{first}", " ".join(text.split()).encode())
    for suffix in others:
        (folder / f"{stem}{suffix}").unlink(missing_ok=True)


@dataclass
class _Budget:
    """What one upload may cost, taken or refused: every member is read or at least listed."""

    count: int = 0
    total: int = 0

    def take(self, size: int) -> None:
        self.count, self.total = self.count + 1, self.total + size

    @property
    def spent(self) -> bool:
        return self.count > FILES or self.total > TOTAL_BYTES


def _unpack(files: Sequence[Path], report: Report) -> Iterator[_Item]:
    budget = _Budget()
    for file in files:
        read = _read_zip if zipfile.is_zipfile(file) else _read_file
        yield from read(file, report, budget)
        if budget.spent:
            report.refused.append((file.name, f"more than {FILES} files or {TOTAL_BYTES // 1024**3} GB at a time"))
            return


def _read_file(file: Path, report: Report, budget: "_Budget") -> Iterator[_Item]:
    with file.open("rb") as stream:
        yield from _read_one("", file.name, stream, report, budget)


def _read_zip(file: Path, report: Report, budget: "_Budget") -> Iterator[_Item]:
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                name = member.filename.replace("\\", "/")
                parts = PurePosixPath(name).parts
                if member.is_dir() or not parts or any(_is_hidden(part) for part in parts[:-1]):
                    continue
                if budget.spent:
                    return
                if stat.S_ISLNK(member.external_attr >> 16):
                    budget.take(0)
                    report.refused.append((name, "a link"))
                    continue
                try:
                    with archive.open(member) as stream:
                        yield from _read_one(file.name, name, stream, report, budget)
                except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
                    reason = "is encrypted" if member.flag_bits & 1 else f"cannot be unpacked ({error})"
                    report.refused.append((name, reason))
    except (zipfile.BadZipFile, ValueError) as error:
        report.refused.append((file.name, f"is a broken ZIP ({error})"))


def _is_hidden(part: str) -> bool:
    return part.startswith((".", "__MACOSX")) and part != ".."


def _read_one(origin: str, name: str, stream: IO[bytes], report: Report, budget: "_Budget") -> Iterator[_Item]:
    item = _Item(origin, name, b"")
    if PurePosixPath(name).name.startswith("."):
        return
    if item.suffix not in PICTURES + CAPTIONS:
        budget.take(0)
        report.refused.append((name, "neither a picture (png, jpg, webp, bmp) nor a caption (txt)"))
        return
    limit = CAPTION_BYTES if item.suffix in CAPTIONS else FILE_BYTES
    # Read to the limit, whatever the ZIP's directory says of the size.
    data = stream.read(limit + 1)
    budget.take(len(data))
    if budget.spent:
        return
    if len(data) > limit:
        report.refused.append((name, f"is larger than {limit // 1024} KB"))
        return
    yield _Item(origin, name, data)


def _keep_picture(
    item: _Item, folder: Path, kept: dict[tuple[str, str], list[str]], taken: dict[str, str], report: Report
) -> None:
    suffix = _picture_suffix(item, report)
    if suffix is None:
        return
    base = _slug(item.name)
    stem, number = base, 1
    while stem.lower() in taken:
        twin = folder / f"{taken[stem.lower()]}{suffix}"
        if twin.is_file() and twin.stat().st_size == len(item.data) and twin.read_bytes() == item.data:
            stem = taken[stem.lower()]
            break
        number += 1
        stem = f"{base}-{number}"
    if stem.lower() not in taken:
        _write(folder / f"{stem}{suffix}", item.data)
        taken[stem.lower()] = stem
    kept.setdefault(item.stem, []).append(stem)
    report.pictures.append(f"{stem}{suffix}")


def _slug(name: str) -> str:
    # Without a dot, so that what stands before the suffix is the same for everyone.
    return make_slug(PurePosixPath(name).stem.replace(".", "_"), "picture")


def _picture_suffix(item: _Item, report: Report) -> str | None:
    try:
        with Image.open(BytesIO(item.data), formats=tuple(FORMATS)) as image:
            if image.width * image.height > PIXELS:
                report.refused.append((item.name, f"has more than {PIXELS // 1_000_000} megapixels"))
                return None
            if min(image.size) < MIN_SIDE:
                report.refused.append((item.name, f"is smaller than {MIN_SIDE} pixels"))
                return None
            # A file that is cut short opens well and breaks only here.
            image.load()
            return FORMATS[image.format or ""]
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError, KeyError) as error:
        known = isinstance(error, UnidentifiedImageError)
        reason = "is not a picture that can be read" if known else f"is a broken picture ({error})"
        report.refused.append((item.name, reason))
        return None


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig").replace("\0", "")
    except UnicodeDecodeError:
        return data.decode("latin-1").replace("\0", "")


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
