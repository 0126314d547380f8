"""Metadata files: pictures and their captions in one JSON file, as sd-scripts' fine-tuning has them."""

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from backend.bounded import parse_json, read_text, split_lines
from backend.config.dataset import SubsetOptions
from backend.data.captions import Caption, first_line, lines_of
from backend.errors import UserError
from backend.images import EXTENSIONS
from backend.picture_folder import same_name

FIELD = "metadata_file"
# A million pictures with long captions.
MOST_BYTES = 512 * 1024 * 1024


def read_metadata(subset: SubsetOptions) -> tuple[list[Path], list[Caption]]:
    """The pictures that a subset's metadata file names, in its order, and their captions.

    The file is an object, path -> {"caption", "tags"}, or in a file that ends in .jsonl one object a line with its
    "image_path". Paths that are not absolute begin in `image_dir` and may lack their extension. Those of another
    machine, of Windows say, are found by as much of their end as lies under `image_dir`. Whatever else stands in the
    file, such as the sizes of pictures, is measured and not read.

    Raises:
        UserError: the file is missing or not of this form, or a picture is not there.
    """
    file = Path(subset.metadata_file)
    text = read_text(file, FIELD, "JSON", MOST_BYTES)
    entries = _lines(text, file) if file.suffix.lower() == ".jsonl" else parse_json(text, str(file), FIELD)
    if not isinstance(entries, dict) or not entries or not all(isinstance(each, dict) for each in entries.values()):
        raise UserError(f'{file} must be a JSON object of pictures, path -> {{"caption": ..., "tags": ...}}', FIELD)
    finder = _Finder(Path(subset.image_dir), file)
    paths = [finder.find(key) for key in entries]
    return paths, [Caption(_caption(key, each, subset), file) for key, each in entries.items()]


def _lines(text: str, file: Path) -> dict[str, Any]:
    """The entries of JSON Lines by path; one that is not an object with its path makes the whole of the wrong form."""
    lines = enumerate(split_lines(text), start=1)
    found = [parse_json(line, f"line {number} of {file}", FIELD) for number, line in lines if line.strip()]
    named = all(isinstance(each, dict) and isinstance(each.get("image_path"), str) for each in found)
    return {each["image_path"]: each for each in found} if named else {}


class _Finder:
    """Finds the pictures that a metadata file names.

    Args:
        root: where paths begin that are not absolute.
        file: for messages.
    """

    def __init__(self, root: Path, file: Path) -> None:
        self.root = root
        self.file = file
        self._listed: dict[Path, dict[str, str]] = {}
        self._keys: dict[Path, str] = {}

    def find(self, key: str) -> Path:
        """The picture of a key.

        Raises:
            UserError: there is none, or a key before led to the same one.
        """
        path = self._there(self.root / key) or self._by_end(key)
        if path is None:
            message = f"{self.file} names {self.root / key}, and there is no such picture; take it out or set image_dir"
            raise UserError(message, FIELD)
        other = self._keys.setdefault(path, key)
        if other != key:
            raise UserError(f"{self.file} names {path} twice, as {other} and as {key}; take one out", FIELD)
        return path

    def _by_end(self, key: str) -> Path | None:
        """For a path of another machine: the picture under `root` by the longest end of it that leads to one."""
        parts = [part for part in PurePosixPath(key.replace("\\", "/")).parts if part not in ("/", "..")]
        for start in range(len(parts)):
            path = self._there(self.root.joinpath(*parts[start:]))
            if path is not None:
                return path
        return None

    def _there(self, path: Path) -> Path | None:
        """The file of a path, whose ending may be left out or in upper case, and whose name of a Mac's spelling."""
        names = self._names(path.parent)
        wanted = same_name(path.name)
        for ending in ("", *EXTENSIONS):
            name = names.get(wanted + ending) or names.get(_folded(wanted + ending))
            if name is not None and _is_file(path.with_name(name)):
                return path.with_name(name)
        return None

    def _names(self, folder: Path) -> dict[str, str]:
        """The names of a folder's files as they are, by what they are when spelt as everybody's."""
        if folder not in self._listed:
            try:
                names = sorted(os.listdir(folder), reverse=True)
            except (OSError, ValueError):
                names = []
            alike = {_folded(same_name(name)): name for name in names}
            self._listed[folder] = alike | {same_name(name): name for name in names}
        return self._listed[folder]


def _folded(name: str) -> str:
    """With the ending in lower case."""
    stem, ending = os.path.splitext(name)
    return stem + ending.lower()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _caption(key: str, entry: Mapping[str, Any], subset: SubsetOptions) -> str:
    """The caption, then the tags; with wildcards the tags go to every line of the caption."""
    caption, tags = (entry.get(name) or "" for name in ("caption", "tags"))
    if not isinstance(caption, str) or not isinstance(tags, str):
        raise UserError(f"{subset.metadata_file}: caption and tags of {key} must be text", FIELD)
    if not subset.enable_wildcard:
        caption = first_line(caption)
    tags = subset.caption_separator.join(lines_of(tags))
    lines = lines_of(caption) or ([""] if tags else [])
    return "\n".join(subset.caption_separator.join(part for part in (line, tags) if part) for line in lines)
