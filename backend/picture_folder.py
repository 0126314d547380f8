"""A folder of pictures: which file is the caption of which picture, and what in it is not used. Knows no torch.

The trainer and the page both look at folders through this, so that the page shows what a run would take.
"""

import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from backend.images import EXTENSIONS, FOREIGN

CAPTION_EXTENSIONS = (".txt", ".caption")
# What systems and trainers put into folders by themselves.
OWN_FILES = ("thumbs.db", "desktop.ini")
OWN_ENDINGS = (".npz",)
LOOKED_AT = 100_000
EXAMPLES = 3

FORMAT, BELOW, LOOSE, HIDDEN, ODD = "format", "below", "loose", "hidden", "odd"
LONELY, SECOND, SHARED, UNNAMED, LINES, MASKS, OTHER = (
    *("lonely", "second", "shared", "unnamed", "lines", "masks", "other"),
)
# What is said of each kind, for one and for several, and the remedy. In this order.
WORDS: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        FORMAT: (
            "file is of a format that cannot be read here and is left out",
            "files are of a format that cannot be read here and are left out",
            "save them as PNG or JPEG",
        ),
        BELOW: (
            "picture lies in a folder below and is left out",
            "pictures lie in folders below and are left out",
            "move them up, or name their folders too",
        ),
        LOOSE: (
            "file lies beside the numbered folders and is left out",
            "files lie beside the numbered folders and are left out",
            'move them into a folder such as "10_shs dog"',
        ),
        HIDDEN: (
            "picture is hidden (its name begins with a dot) and is left out",
            "pictures are hidden (their names begin with a dot) and are left out",
            "rename them",
        ),
        ODD: (
            "is named like a picture, is no file and is left out",
            "are named like pictures, are no files and are left out",
            "",
        ),
        LONELY: (
            "caption belongs to no picture and is not used",
            "captions belong to no picture and are not used",
            "a caption is named as its picture is, but for the ending",
        ),
        SECOND: (
            "caption is not used, since its picture has another one that comes first",
            "captions are not used, since their pictures have others that come first",
            "caption_extension says which comes first",
        ),
        SHARED: (
            "picture has the name of another one but for the ending, and so its caption too",
            "pictures have the name of another one but for the ending, and so one caption with it",
            "",
        ),
        UNNAMED: (
            "picture is not named by the metadata file and is left out",
            "pictures are not named by the metadata file and are left out",
            "",
        ),
        LINES: (
            "caption has several lines, of which the first alone is used",
            "captions have several lines, of which the first alone is used",
            "enable_wildcard uses all of them",
        ),
        MASKS: ("mask belongs to no picture and is not used", "masks belong to no picture and are not used", ""),
        OTHER: ("other file is not used", "other files are not used", ""),
    }
)

Found = Mapping[str, Sequence[Path]]

_FACE = re.compile(r"(.+)_\d+_\d+_\d+_\d+")


def caption_extensions(explicit: str | None) -> tuple[str, ...]:
    """The caption file extensions to try, in order: the given one, then the two that trainers use."""
    if not explicit:
        return CAPTION_EXTENSIONS
    first = explicit if explicit.startswith(".") else f".{explicit}"
    return (first, *(e for e in CAPTION_EXTENSIONS if e != first))


def is_picture(name: str) -> bool:
    """Whether a file of this name is read as a picture."""
    return Path(name).suffix.lower() in EXTENSIONS and not name.startswith(".")


def same_name(text: str) -> str:
    """Equal for names that differ in Unicode's normal form alone, as those of a Mac do from all others'."""
    return unicodedata.normalize("NFC", text)


def without_face(stem: str) -> str | None:
    """`name` of `name_X_Y_W_H`, a picture whose name says where its face is; None for other names."""
    match = _FACE.fullmatch(stem)
    return match[1] if match else None


class CaptionFiles:
    """Finds the caption files of the pictures of one folder.

    A caption has its picture's name with one of the extensions; of `name_X_Y_W_H.png` also `name.txt` is one. Names
    may differ in Unicode's normal form, endings in upper and lower case.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.used: set[Path] = set()
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            names = []
        self._names = frozenset(names)
        self._alike: dict[tuple[str, str], str] = {}
        for name in names:
            if not name.isascii() or name != name.lower():
                for cut in (place for place, letter in enumerate(name) if letter == "." and place):
                    self._alike.setdefault((same_name(name[:cut]), name[cut:].lower()), name)

    def find(self, picture: Path, extensions: Sequence[str]) -> Path | None:
        """The caption file of a picture, None if it has none; the first extension that there is one of counts."""
        stems = [picture.stem, without_face(picture.stem)]
        for stem in (stem for stem in stems if stem):
            for extension in extensions:
                alike = self._alike.get((same_name(stem), extension.lower()))
                for name in (stem + extension, alike):
                    if name in self._names and name != picture.name and (self.folder / name).is_file():
                        self.used.add(self.folder / name)
                        return self.folder / name
        return None


def left_out(
    folder: Path,
    pictures: Collection[Path],
    captions: Collection[Path] = (),
    extensions: Sequence[str] = CAPTION_EXTENSIONS,
    elsewhere: Collection[Path] = (),
) -> dict[str, list[Path]]:
    """What lies in a folder of pictures and is not used, by kind (a key of WORDS).

    Args:
        folder: whose pictures are used.
        pictures: those that are.
        captions: and their caption files.
        extensions: that caption files have.
        elsewhere: files and folders that are used otherwise, as subsets of their own say.
    """
    found: dict[str, list[Path]] = {}
    elsewhere = {_absolute(path) for path in elsewhere}
    own, taken = {_absolute(path) for path in pictures}, {_absolute(path) for path in captions}
    stems: dict[str, Path] = {}
    for picture in sorted(pictures):
        if picture.parent == folder and stems.setdefault(same_name(picture.stem), picture) != picture:
            found.setdefault(SHARED, []).append(picture)
    stems |= {face: path for stem, path in list(stems.items()) if (face := without_face(stem))}
    for entry in _entries(folder):
        path = folder / entry.name
        absolute = _absolute(path)
        if absolute in own or absolute in taken or absolute in elsewhere:
            continue
        kind = _kind(entry, stems, extensions)
        if kind:
            found.setdefault(kind, []).append(path)
    below = [path for path in _below(folder, elsewhere) if _absolute(path) not in own]
    return found | ({BELOW: below} if below else {})


def beside_folders(folder: Path) -> dict[str, list[Path]]:
    """What lies loose in a folder of numbered folders: pictures and captions, and files that might be meant as such."""
    endings = (*EXTENSIONS, *FOREIGN, *CAPTION_EXTENSIONS)
    loose = [
        folder / entry.name
        for entry in _entries(folder)
        if Path(entry.name).suffix.lower() in endings and not entry.name.startswith(".") and not _is_folder(entry)
    ]
    return {LOOSE: loose} if loose else {}


def unnamed(folder: Path, pictures: Collection[Path], elsewhere: Collection[Path] = ()) -> dict[str, list[Path]]:
    """Pictures of a folder, and of those below, that its metadata file does not name."""
    own = {_absolute(path) for path in pictures}
    others = [folder / entry.name for entry in _entries(folder) if is_picture(entry.name) and not _is_folder(entry)]
    others += _below(folder, {_absolute(path) for path in elsewhere})
    left = [path for path in others if _absolute(path) not in own]
    foreign = [folder / e.name for e in _entries(folder) if Path(e.name).suffix.lower() in FOREIGN]
    return {kind: paths for kind, paths in ((FORMAT, foreign), (UNNAMED, left)) if paths}


def gathered(parts: Iterable[Found]) -> dict[str, list[Path]]:
    """Several folders' in one, in the order of WORDS."""
    every: dict[str, dict[Path, None]] = {kind: {} for kind in WORDS}
    for part in parts:
        for kind, paths in part.items():
            every[kind].update(dict.fromkeys(paths))
    return {kind: list(paths) for kind, paths in every.items() if paths}


def told(found: Found) -> list[str]:
    """One line for each kind: how many, what is wrong, the first few, and the remedy."""
    lines = []
    for kind, (one, several, remedy) in WORDS.items():
        paths = found.get(kind)
        if paths:
            words = f"{len(paths)} {one if len(paths) == 1 else several}: {names_of(paths)}"
            lines.append(f"{words}; {remedy}" if remedy else words)
    return lines


def names_of(paths: Sequence[Path], most: int = EXAMPLES) -> str:
    """The first few of them, readable whatever bytes their names have."""
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(readable(path) for path in paths[:most]) + more


def readable(name: str | Path) -> str:
    """A name of a file as text that every terminal and page can show: bytes that are no UTF-8 become \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _kind(entry: os.DirEntry[str], stems: Mapping[str, Path], extensions: Sequence[str]) -> str:
    """What an entry that is not used is, "" for what nobody would miss."""
    ending = Path(entry.name).suffix.lower()
    if entry.name.startswith("."):
        hidden = ending in (*EXTENSIONS, *FOREIGN) and not entry.name.startswith("._") and not _is_folder(entry)
        return HIDDEN if hidden else ""
    if _is_folder(entry):
        return ""
    if ending in EXTENSIONS:
        return ODD
    if ending in FOREIGN:
        return FORMAT
    for extension in extensions:
        if entry.name.lower().endswith(extension.lower()):
            stem = entry.name[: -len(extension)]
            return SECOND if same_name(stem) in stems else LONELY
    return "" if entry.name.lower() in OWN_FILES or ending in OWN_ENDINGS else OTHER


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as listed:
            return sorted(listed, key=lambda entry: entry.name)
    except OSError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _below(folder: Path, elsewhere: Collection[str]) -> list[Path]:
    """The pictures in the folders below, but for hidden ones and those that are used otherwise."""
    found, seen = [], 0
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and _absolute(Path(here, name)) not in elsewhere
        )
        seen += len(folders) + len(names)
        if seen > LOOKED_AT:
            break
        if Path(here) != folder:
            found += [Path(here, name) for name in sorted(names) if is_picture(name)]
    return [path for path in found if _absolute(path) not in elsewhere]


def _absolute(path: Path) -> str:
    return os.path.abspath(path)
