"""Metadata files: pictures and their captions in one JSON file, as sd-scripts' fine-tuning has them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backend.config.dataset import SubsetOptions
from backend.config.toml import read_text
from backend.data.captions import Caption, first_line, lines_of
from backend.data.decode import EXTENSIONS
from backend.errors import UserError

FIELD = "metadata_file"


def read_metadata(subset: SubsetOptions) -> tuple[list[Path], list[Caption]]:
    """The pictures that a subset's metadata file names, in its order, and their captions.

    The file is an object, path -> {"caption", "tags"}, or in a file that ends in .jsonl one object a line with its
    "image_path". Paths that are not absolute begin in `image_dir` and may lack their extension. Whatever else stands
    in the file, such as the sizes of pictures, is measured and not read.

    Raises:
        UserError: the file is missing or not of this form, or a picture is not there.
    """
    file = Path(subset.metadata_file)
    text = read_text(file, FIELD, "JSON")
    try:
        entries = _lines(text) if file.suffix.lower() == ".jsonl" else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON: {error}", FIELD) from error
    if not isinstance(entries, dict) or not entries or not all(isinstance(each, dict) for each in entries.values()):
        raise UserError(f'{file} must be a JSON object of pictures, path -> {{"caption": ..., "tags": ...}}', FIELD)
    paths = [_picture(subset.image_dir / key, file) for key in entries]
    return paths, [Caption(_caption(key, each, subset), file) for key, each in entries.items()]


def _lines(text: str) -> dict[str, Any]:
    """The entries of JSON Lines by path; one that is not an object with its path makes the whole of the wrong form."""
    found = [json.loads(line) for line in lines_of(text)]
    named = all(isinstance(each, dict) and isinstance(each.get("image_path"), str) for each in found)
    return {each["image_path"]: each for each in found} if named else {}


def _picture(path: Path, file: Path) -> Path:
    for candidate in (path, *(path.with_name(path.name + extension) for extension in EXTENSIONS)):
        if candidate.is_file():
            return candidate
    raise UserError(f"{file} names {path}, and there is no such picture; take it out or set image_dir", FIELD)


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
