"""`<lora:name:0.8>` in prompts, as the WebUI writes it: read out of the text, and found among the known files."""

import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from backend.errors import UserError
from backend.workspace import WEIGHTS, Workspace, default_root

_TAG = re.compile(r"<\s*(lora|lyco|lycoris|locon|loha)\s*:([^<>\n]*)>", re.IGNORECASE)
_OTHER = re.compile(r"<\s*(hypernet)\s*:([^<>\n]*)>", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class Tag:
    """A LoRA that a prompt asks for.

    Attributes:
        name: as it is written.
        unet, text: its multiplier in the U-Net and in the text encoders.
        written: the whole tag.
    """

    name: str
    unet: float
    text: float
    written: str


@dataclass(frozen=True)
class Dose:
    """A LoRA file and how strongly it acts.

    Attributes:
        path: the file.
        unet: multiplier in the U-Net.
        text: multiplier in the text encoders; None is that of the U-Net.
    """

    path: Path
    unet: float
    text: float | None = None

    def __str__(self) -> str:
        apart = "" if self.text in (None, self.unet) else f" (text encoders {self.text:g})"
        # It goes into the pictures' text, which is UTF-8, and a file's name may be none.
        name = os.fsencode(self.path.stem).decode("utf-8", "replace")
        return f"{name} x {self.unet:g}{apart}"


def has_tags(text: str) -> bool:
    """Whether a text asks for a LoRA."""
    return bool(_TAG.search(text) or _OTHER.search(text))


def take_tags(text: str) -> tuple[str, tuple[Tag, ...]]:
    """A prompt without its tags, and these.

    `<lora:name>` is a LoRA at 1, `<lora:name:0.8>` at 0.8, `<lora:name:0.5:0.8>` at 0.5 in the text encoders and 0.8 in
    the U-Net, which can also be written `te=0.5` and `unet=0.8`. The text around a tag closes up.

    Raises:
        UserError: a tag cannot be read; names it.
    """
    other = _OTHER.search(text)
    if other:
        raise UserError(f"{other[0]}: hypernetworks are not supported; leave it out")
    tags = tuple(_read(match[0], match[2]) for match in _TAG.finditer(text))
    if not tags:
        return text, ()
    plain = _TAG.sub("\0", text)
    # Where a tag stood between two separators, one of them goes with it.
    plain = re.sub(r"(^|,)[ \t]*\0(?:[ \t]*\0)*[ \t]*(?=,|$)", "", plain)
    plain = re.sub(r"[ \t]*\0", "", plain)
    return plain.strip().removeprefix(",").strip(), tags


def _read(written: str, inner: str) -> Tag:
    name, *rest = (part.strip() for part in inner.split(":"))
    named = dict(part.split("=", 1) for part in rest if "=" in part)
    given = [part for part in rest if "=" not in part]
    unknown = [key for key in named if key.strip() not in ("te", "unet")]
    if not name or len(given) > 2 or unknown:
        raise UserError(f"{written} is no LoRA of a prompt; write <lora:name:0.8>")
    text = _multiplier(named.get("te", given[0] if given else "1"), written)
    unet = _multiplier(named.get("unet", given[1] if len(given) > 1 else str(text)), written)
    return Tag(name, unet, text, written)


def _multiplier(text: str, written: str) -> float:
    text = text.strip()
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise UserError(f"{written} has {text!r} for a multiplier, which is no number; write <lora:name:0.8>")
    return float(text)


def known_loras(given: Iterable[Path] = ()) -> tuple[list[Path], list[str]]:
    """LoRA files that a prompt can name, and where they were looked for: beside the given files, in the workspace."""
    folders = list(dict.fromkeys(path.parent for path in given))
    files = list(dict.fromkeys(given))
    for folder in folders:
        files += sorted(path for path in _listing(folder) if path.suffix.lower() in WEIGHTS and path.is_file())
    root = default_root()
    if root.is_dir():
        try:
            files += [Path(path) for _, path in Workspace(root).list_loras()]
        except UserError:  # a workspace that cannot be written to has none to offer
            root = Path(f"{root} (which cannot be used)")
    return files, [*(str(folder) for folder in folders), f"the workspace {root}"]


def _listing(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def find_loras(tags: Sequence[Tag], given: Iterable[Path] = ()) -> list[Dose]:
    """The files that tags ask for.

    A name is that of a file, with or without its ending, and with the folders before it where it has any; capitals
    count only where two names differ by nothing else. What was given comes before what lies beside it, and that before
    the workspace.

    Raises:
        UserError: there is no such file, or two of the name; says where it was looked for.
    """
    if not tags:
        return []
    files, places = known_loras(given)
    return [Dose(_find(tag, files, places), tag.unet, tag.text) for tag in tags]


def _find(tag: Tag, files: Sequence[Path], places: Sequence[str]) -> Path:
    for fold in (str, str.lower):
        wanted = fold(tag.name.replace("\\", "/"))
        for file in files:
            whole = fold(file.as_posix())
            bare = whole.removesuffix(fold(file.suffix))
            if any(name == wanted or name.endswith("/" + wanted) for name in (bare, whole)):
                return file
    raise UserError(f"{tag.written}: there is no LoRA of this name in {' or '.join(places)}; put its file there")
