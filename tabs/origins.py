"""Where the pictures and captions of a dataset came from, remembered so that captions that come later find them.

What is kept stands in a hidden file beside the folder of the pictures. Without it, or where it is damaged, the names
that the pictures have here are all that is known.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.bounded import read_json
from backend.errors import UserError
from backend.picture_folder import CAPTION_EXTENSIONS, is_picture, readable
from backend.replacing import replacing
from tabs.matching import Slot, Source

VERSION = 1
MOST_BYTES = 64 * 1024**2


@dataclass
class Kept:
    """A picture of a dataset's folder.

    Attributes:
        path: of its file.
        slot: where it came from, and its caption.
        digest: hash of its bytes, "" where it was not counted yet.
    """

    path: Path
    slot: Slot
    digest: str = ""


class Origins:
    """The pictures of a folder, by their names without endings, in the order in which they came.

    Args:
        folder: of the pictures.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder.parent / f".{folder.name}.names.json"
        self.kept: dict[str, Kept] = {}
        known = _read(self.path)
        names = sorted(name for name in _list(folder) if is_picture(name))
        files: dict[str, str] = {}
        for name in names:
            files.setdefault(Path(name).stem, name)
        for stem in [*(stem for stem in known if stem in files), *(stem for stem in files if stem not in known)]:
            self.kept[stem] = _kept(folder, files[stem], known.get(stem))

    @property
    def slots(self) -> list[Slot]:
        """Of all pictures."""
        return [kept.slot for kept in self.kept.values()]

    def add(self, path: Path, slot: Slot, digest: str) -> None:
        """Count a new picture."""
        self.kept[path.stem] = Kept(path, slot, digest)

    def digest(self, kept: Kept) -> str:
        """Hash of a picture's bytes."""
        if not kept.digest:
            try:
                kept.digest = digest_of(kept.path.read_bytes())
            except OSError:
                return ""
        return kept.digest

    def save(self) -> None:
        """Write down what is known.

        Raises:
            OSError: it cannot be written.
        """
        pictures = {stem: _entry(kept) for stem, kept in self.kept.items()}
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps({"version": VERSION, "pictures": pictures}), encoding="utf-8")


def digest_of(data: bytes) -> str:
    """A hash that tells files apart."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def caption_bytes(folder: Path, stem: str) -> bytes | None:
    """The caption that lies beside a picture; None if there is none."""
    for suffix in CAPTION_EXTENSIONS:
        try:
            return (folder / f"{stem}{suffix}").read_bytes()
        except OSError:
            continue
    return None


def _list(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = read_json(path, None, MOST_BYTES)
    except UserError:
        return {}
    pictures = found.get("pictures") if isinstance(found, dict) else None
    return pictures if isinstance(pictures, dict) else {}


def _kept(folder: Path, name: str, entry: Any) -> Kept:
    path, stem = folder / name, Path(name).stem
    data = caption_bytes(folder, stem)
    text = None if data is None else data.decode("utf-8", "replace")
    source, digest, caption = Source("", "", readable(name)), "", None
    if isinstance(entry, Mapping):
        source, digest = _source(entry.get("from")) or source, str(entry.get("digest", ""))
        told = entry.get("caption")
        # One that was changed here since came from here.
        if isinstance(told, Mapping) and data is not None and told.get("digest") == digest_of(data):
            caption = _source(told.get("from"))
    slot = Slot(source, fresh=False, text=text, caption=caption, kept="" if isinstance(entry, Mapping) else stem)
    return Kept(path, slot, digest if _unchanged(path, entry) else "")


def _unchanged(path: Path, entry: Any) -> bool:
    try:
        return isinstance(entry, Mapping) and entry.get("bytes") == path.stat().st_size
    except OSError:
        return False


def _source(told: Any) -> Source | None:
    if isinstance(told, list) and len(told) == 3 and all(isinstance(part, str) for part in told):
        return Source(*told)
    return None


def _entry(kept: Kept) -> dict[str, Any]:
    source = kept.slot.source
    entry: dict[str, Any] = {"from": [source.origin, source.folder, source.name], "digest": kept.digest}
    try:
        entry["bytes"] = kept.path.stat().st_size
    except OSError:
        entry["bytes"] = -1
    caption, data = kept.slot.caption, caption_bytes(kept.path.parent, kept.path.stem)
    if caption is not None and data is not None:
        entry["caption"] = {"from": [caption.origin, caption.folder, caption.name], "digest": digest_of(data)}
    return entry
