"""The files of an upload one by one, out of ZIPs too. Whatever cannot be read is named, and the rest is taken.

Names inside a ZIP never become paths: they only say which caption belongs to which picture.
"""

import lzma
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from backend.images import EXTENSIONS, FOREIGN
from backend.picture_folder import CAPTION_EXTENSIONS, OWN_FILES, readable, same_name
from tabs.matching import Source

FILE_BYTES = 100 * 1024**2
CAPTION_BYTES = 64 * 1024
TOTAL_BYTES = 8 * 1024**3
FILES = 20_000
ARCHIVES = (".rar", ".7z", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".lha", ".lzh", ".zipx", ".cbz", ".cbr")
UNKNOWN = "neither a picture nor a caption (.txt)"
# What a damaged, odd or hostile ZIP raises, found by feeding it altered ones.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    OverflowError,
    TypeError,
    AttributeError,
    MemoryError,
    OSError,
)

Refuse = Callable[[Source, str], None]


@dataclass(frozen=True)
class Item:
    """One file of an upload: where it stood, and its contents."""

    source: Source
    data: bytes

    @property
    def is_caption(self) -> bool:
        """Whether it is a text; else it is called as pictures are."""
        return suffix_of(self.source.name) in CAPTION_EXTENSIONS


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


def suffix_of(name: str) -> str:
    """The ending of a name, in lower case."""
    return PurePosixPath(name).suffix.lower()


def source_of(name: str, origin: str = "") -> Source:
    """Where a file of this name stood; only for telling files apart, so that ".." and drives mean nothing."""
    parts = [part for part in same_name(name).replace("\\", "/").split("/") if part not in ("", ".", "..")]
    parts = parts or ["(a file without a name)"]
    return Source(origin, "/".join(parts[:-1]), parts[-1])


def unpack(files: Sequence[tuple[Path, str]], refuse: Refuse) -> Iterator[Item]:
    """The pictures and captions of an upload, in the order in which they came.

    Args:
        files: pairs of path and the name that the file had where it came from.
        refuse: is told of each file that is not given, and why.
    """
    budget = _Budget()
    for path, name in files:
        name = readable(name)
        suffix = suffix_of(name)
        if suffix not in (*EXTENSIONS, *CAPTION_EXTENSIONS) and (suffix == ".zip" or _is_zip(path)):
            yield from _read_zip(path, name, refuse, budget)
        else:
            yield from _read_file(path, name, refuse, budget)
        if budget.spent:
            refuse(source_of(name), f"more than {FILES} files or {TOTAL_BYTES // 1024**3} GB at a time")
            return


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except OSError:
        return False


def _read_file(path: Path, name: str, refuse: Refuse, budget: _Budget) -> Iterator[Item]:
    source = source_of(name)
    try:
        with path.open("rb") as stream:
            yield from _read_one(source, stream, refuse, budget)
    except (OSError, ValueError) as error:
        refuse(source, f"cannot be read ({getattr(error, 'strerror', None) or error})")


def _read_zip(path: Path, name: str, refuse: Refuse, budget: _Budget) -> Iterator[Item]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if budget.spent:
                    return
                yield from _read_member(archive, member, name, refuse, budget)
    except ZIP_ERRORS as error:
        refuse(source_of(name), f"is a broken ZIP, or was cut off ({_words(error)})")


def _read_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, origin: str, refuse: Refuse, budget: _Budget
) -> Iterator[Item]:
    source = source_of(_name(member), origin)
    parts = source.shown.split("/")
    if _name(member).endswith(("/", "\\")) or "__MACOSX" in parts:
        return
    if stat.S_ISLNK(member.external_attr >> 16):
        budget.take(0)
        refuse(source, "a link")
        return
    if any(part.startswith(".") for part in parts[:-1]):
        budget.take(0)
        refuse(source, "is in a hidden folder")
        return
    try:
        # All of it before anything is done with it: what fails later fails for another reason.
        with archive.open(member) as stream:
            items = list(_read_one(source, stream, refuse, budget))
    except ZIP_ERRORS as error:
        budget.take(0)
        refuse(source, "is encrypted" if member.flag_bits & 1 else f"cannot be unpacked ({_words(error)})")
        return
    yield from items


def _name(member: zipfile.ZipInfo) -> str:
    """The name of a member. Old programs write UTF-8 without saying so; what they write else stays as it is read."""
    if member.flag_bits & 0x800:
        return readable(member.filename)
    try:
        return member.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return readable(member.filename)


def _read_one(source: Source, stream: IO[bytes], refuse: Refuse, budget: _Budget) -> Iterator[Item]:
    suffix = suffix_of(source.name)
    if source.name.startswith("._") or source.name == ".DS_Store" or source.name.lower() in OWN_FILES:
        return
    why = _why_not(source.name, suffix)
    if why:
        budget.take(0)
        refuse(source, why)
        return
    limit = CAPTION_BYTES if suffix in CAPTION_EXTENSIONS else FILE_BYTES
    # Read to the limit, whatever the ZIP's directory says of the size.
    data = stream.read(limit + 1)
    budget.take(len(data))
    if budget.spent:
        # The last one is named by who counts.
        return
    if len(data) > limit:
        refuse(source, f"is larger than {limit // 1024} KB")
        return
    yield Item(source, data)


def _why_not(name: str, suffix: str) -> str:
    if name.startswith("."):
        return "is hidden: its name begins with a dot"
    if suffix in FOREIGN:
        return "is of a format that cannot be read here; save it as PNG or JPEG"
    if suffix == ".zip":
        return "a ZIP inside a ZIP; send it by itself"
    if suffix in ARCHIVES:
        return "an archive of another kind; send a ZIP"
    return "" if suffix in (*EXTENSIONS, *CAPTION_EXTENSIONS) else UNKNOWN


def _words(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    return " ".join(str(error).split())[:120] or type(error).__name__


def name_of(path: str | os.PathLike[str]) -> str:
    """The name that a file had where it came from: `orig_name`, if the browser has told, else that of the path."""
    return getattr(path, "orig_name", "") or Path(path).name
