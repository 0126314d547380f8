"""What is wrong with a config, in words: "did you mean", what an option expects, pydantic's errors made readable."""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from backend.config.declare import Leaf, gist
from backend.errors import one_line

NOUNS = {
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "str": "text",
    "path": "a path",
    "table": 'a table or a list of "key=value"',
}
# Values that toml would take if they did not stand in quotes.
UNQUOTED = {
    "bool": (r"true|false",),
    "int": (r"[+-]?\d+",),
    "float": (r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?",),
}
# Secrets that other trainers take as options, and where they belong.
SECRETS = {"wandb_api_key": "WANDB_API_KEY", "huggingface_token": "HF_TOKEN"}
PLURALS = {"int": "integers", "float": "numbers", "str": "texts", "path": "paths"}


def suggestion(word: str, known: Iterable[str]) -> str:
    """The known word that is nearest to a misspelt one, or "" where none is near."""
    spellings = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), spellings, n=1, cutoff=0.6)
    return spellings[near[0]] if near else ""


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """`; did you mean X?`, or "" where nothing known is near. Of a secret it says where that belongs."""
    if word in SECRETS:
        return f"; secrets are never written into a config: set {SECRETS[word]} in the environment"
    near = suggestion(word, known)
    return f"; did you mean {prefix}{near}?" if near else ""


def bounds(leaf: Leaf) -> str:
    """The bounds of a number in words: "greater than 0", "from 0 to 1", "" if it has none."""
    words = []
    if leaf.ge is not None and leaf.le is not None:
        words.append(f"from {shown(leaf.ge)} to {shown(leaf.le)}")
    elif leaf.ge is not None:
        words.append(f"at least {shown(leaf.ge)}")
    if leaf.gt is not None:
        words.append(f"greater than {shown(leaf.gt)}")
    if leaf.le is not None and leaf.ge is None:
        words.append(f"at most {shown(leaf.le)}")
    if leaf.lt is not None:
        words.append(f"less than {shown(leaf.lt)}")
    if leaf.multiple_of is not None:
        words.append(f"a multiple of {shown(leaf.multiple_of)}")
    return " and ".join(words)


def expectation(leaf: Leaf) -> str:
    """What a value of the leaf has to be: "an integer", "one of no, fp16, bf16", "a list of numbers"."""
    if leaf.kind == "choice":
        return f"one of {', '.join(leaf.choices)}"
    if leaf.kind == "list":
        count = f"{leaf.length} " if leaf.length else ""
        items = f"from {', '.join(leaf.choices)}" if leaf.item == "choice" else PLURALS[leaf.item]
        return f"a list of {count}{items}"
    return NOUNS[leaf.kind]


def shown(value: Any) -> str:
    """A value as a message shows it: as toml writes it, and cut where it is long."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | Path):
        text = f'"{value}"'
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(shown(item) for item in value) + "]"
    elif isinstance(value, Mapping):
        text = "a table"
    else:
        text = str(value).removesuffix(".0")
    text = one_line(text)
    return text if len(text) <= 80 else text[:77] + "..."


def wrong_type(leaf: Leaf, value: Any) -> str:
    """The message for a value that is not of the leaf's type."""
    hint = did_you_mean(value, leaf.choices) if leaf.kind == "choice" and isinstance(value, str) else ""
    return f"must be {expectation(leaf)}, got {shown(value)}{hint}"


def unknown(name: str, known: Iterable[str], owner: str, source: str = "") -> str:
    """The message for a key that nothing declares."""
    where = f" (in {source})" if source else ""
    return f"is not an option of {owner}{where}{did_you_mean(name, known)}"


def problems_of(error: ValidationError, by_location: Mapping[tuple[str, ...], Leaf]) -> list[tuple[str, str]]:
    """pydantic's errors as pairs (field, message).

    Args:
        error: what validation raised.
        by_location: leaf by where it stands in the validated model, ("optim", "learning_rate") say.
    """
    problems: list[tuple[str, str]] = []
    depth = max((len(location) for location in by_location), default=1)
    for item in error.errors(include_url=False):
        if item["type"] == "problems":
            problems.extend(tuple(problem) for problem in item["ctx"]["problems"])
            continue
        location = item["loc"]
        leaf = by_location.get(tuple(location[:depth]))
        if leaf is None:
            text = str(item["ctx"]["error"]) if item["type"] == "value_error" else item["msg"]
            problems.append((str(location[-1]) if location else "", text))
            continue
        place = f"item {location[depth] + 1} " if len(location) > depth and isinstance(location[depth], int) else ""
        problems.append((leaf.name, place + _message(item, leaf.element if place else leaf)))
    return problems


def _message(item: Mapping[str, Any], leaf: Leaf) -> str:
    kind, value = item["type"], item["input"]
    if kind == "missing":
        return f"is required: {gist(leaf.help)}"
    if kind == "value_error":
        return str(item["ctx"]["error"])
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "multiple_of"):
        return f"must be {bounds(leaf.element)}, got {shown(value)}"
    if kind == "finite_number":
        return f"must be a finite number, got {shown(value)}"
    if kind == "string_too_short":
        return "must not be empty"
    if value is None:
        return f"needs a value: {expectation(leaf)}"
    quoted = isinstance(value, str) and any(re.fullmatch(form, value) for form in UNQUOTED.get(leaf.kind, ()))
    return wrong_type(leaf, value) + ("; write it without quotes" if quoted else "")
