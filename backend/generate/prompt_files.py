"""Files of prompts: lines of text, toml, JSON; a fault is named with its file and its line."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from backend.bounded import parse_json, parse_toml, read_text, split_lines
from backend.errors import UserError
from backend.generate.prompts import KEYS, Request, parse_line, parse_table

_SUBSET = re.compile(r"[ \t]*\[\[[ \t]*[\"']?prompt[\"']?[ \t]*\.[ \t]*[\"']?subset[\"']?[ \t]*\]\]")


def read_prompts(path: Path | str, defaults: Request, field: str | None = None) -> list[Request]:
    """The prompts of a file.

    A .toml file has a table [prompt] with what all prompts share and a table [[prompt.subset]] for each; a .json file
    has a list of such tables or of prompt lines. Any other file has one prompt a line; empty lines and those that start
    with `#` are left out.

    Args:
        path: of the file.
        defaults: the settings of the run.
        field: the option that names the file, for messages about it as a whole.

    Raises:
        UserError: the file cannot be read, holds no prompt, or has a faulty line or table.
    """
    if field and not Path(path).exists():
        raise UserError(f"there is no file {path}; write the prompts into a text file, one a line, and name it", field)
    kind, text = Path(path).suffix.lower(), read_text(path, field, "prompts")
    read = {".toml": _of_toml, ".json": _of_json}.get(kind, _of_lines)
    prompts = read(text, defaults, str(path))
    if not prompts:
        raise UserError("holds no prompt; write one a line", field=str(path))
    return prompts


@contextmanager
def _named(place: str) -> Iterator[None]:
    """What is wrong within it is said of a place in a file."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).removeprefix(f"{place}: "), field=place) from error


def _of_lines(text: str, defaults: Request, source: str) -> list[Request]:
    found = []
    for number, line in enumerate(split_lines(text), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            place = f"{source}, line {number}"
            with _named(place):
                found.append(replace(parse_line(line, defaults), source=place))
    return found


def _of_toml(text: str, defaults: Request, source: str) -> list[Request]:
    tables = parse_toml(text, source, None)
    shared = tables.get("prompt")
    if set(tables) != {"prompt"} or not isinstance(shared, Mapping):
        raise UserError("must have a table [prompt] and nothing else; in it, [[prompt.subset]] for each", field=source)
    subsets = shared.get("subset", [{}])
    if not isinstance(subsets, list) or not all(isinstance(subset, Mapping) for subset in subsets):
        raise UserError("subset must be written as tables [[prompt.subset]]", field=source)
    own = {key: value for key, value in shared.items() if key != "subset"}
    lines = [number for number, line in enumerate(split_lines(text), start=1) if _SUBSET.match(line)]
    found = []
    for place, subset in zip(_places(source, lines, len(subsets)), subsets, strict=True):
        with _named(place):
            request = parse_table(_without_twin(own, subset) | dict(subset), defaults, place)
            found.append(replace(request, source=place))
    return found


def _of_json(text: str, defaults: Request, source: str) -> list[Request]:
    found = parse_json(text, source, None)
    if not isinstance(found, list) or not all(isinstance(item, str | dict) for item in found):
        raise UserError("must be a list of prompts, each a line of text or a table", field=source)
    prompts = []
    for place, item in zip(_places(source, _item_lines(text), len(found)), found, strict=True):
        with _named(place):
            line = isinstance(item, str)
            request = parse_line(item, defaults) if line else parse_table(item, defaults, place)
            prompts.append(replace(request, source=place))
    return prompts


def _places(source: str, lines: Sequence[int], count: int) -> list[str]:
    """What the prompts of a file are called: with the line that each begins in, where these are known."""
    numbers = range(1, count + 1)
    if len(lines) != count:
        return [f"prompt {number} of {source}" for number in numbers]
    return [f"prompt {number} of {source}, line {line}" for number, line in zip(numbers, lines, strict=True)]


def _item_lines(text: str) -> list[int]:
    """The line that each item of a JSON list begins in."""
    lines, decoder = [], json.JSONDecoder()
    gap = re.compile(r"[\s,\[]*")
    at = gap.match(text).end()
    while at < len(text) and text[at] != "]":
        lines.append(text.count("\n", 0, at) + 1)
        at = gap.match(text, decoder.raw_decode(text, at)[1]).end()
    return lines


def _without_twin(shared: Mapping[str, Any], subset: Mapping[str, Any]) -> dict[str, Any]:
    """The shared keys but for those of which a subset says the same under another name."""
    said = {KEYS[key][0] for key in subset if key in KEYS}
    return {key: value for key, value in shared.items() if key not in KEYS or KEYS[key][0] not in said}
