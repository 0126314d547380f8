"""Words that somebody has added to a model's vocabulary: read from the folder of its tokenizer, written back."""

import json
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from backend.bounded import TEXT_BYTES, parse_json, read_json
from backend.errors import UserError

# Numbers of CLIP's own vocabulary are below.
OWN_TOKENS = 49408
# Where a single file has them, in its metadata; no other program looks for them there.
METADATA_KEY = "loraloom.added_tokens"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class AddedToken:
    """A word with a number of its own, and how it is found in a text: what transformers' `AddedToken` says.

    Attributes:
        content: the word as it is written.
        single_word: it is none within a longer word.
        lstrip, rstrip: it takes the spaces before or behind it with it.
        normalized: it is looked for in the text after that was put into lower case, itself in lower case too.
        special: it is looked for before all others.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False


AddedTokens = Mapping[int, AddedToken]


def read_added_tokens(folder: Path, own: Container[str] = ()) -> dict[int, AddedToken]:
    """The added tokens of a tokenizer's folder by number, from whichever of its files tell of them.

    `tokenizer_config.json` (`added_tokens_decoder`) and `tokenizer.json` (`added_tokens`) say how a token is found as
    well, `added_tokens.json` its number alone, and `special_tokens_map.json` (`additional_special_tokens`) not even
    that: such tokens are numbered on from the highest. What an earlier one of these files says counts.

    Args:
        folder: of the tokenizer; one that is not there has none.
        own: words of the vocabulary itself, which need no number.

    Raises:
        UserError: a file is damaged; names it.
    """
    found: dict[int, AddedToken] = {}
    config = _object(folder / "tokenizer_config.json")
    special = config.get("additional_special_tokens") or config.get("extra_special_tokens")
    for number, told in _object_in(config, "added_tokens_decoder", folder / "tokenizer_config.json").items():
        _add(found, number, told, folder / "tokenizer_config.json")
    whole = _object(folder / "tokenizer.json")
    for told in _list_in(whole, "added_tokens", folder / "tokenizer.json"):
        number = told.get("id") if isinstance(told, Mapping) else None
        _add(found, number, told, folder / "tokenizer.json")
    for content, number in _object(folder / "added_tokens.json").items():
        _add(found, number, content, folder / "added_tokens.json")
    mapped = _object(folder / "special_tokens_map.json")
    unnumbered = [*(special if isinstance(special, list) else ()), *_specials(mapped)]
    for told in unnumbered:
        content = told.get("content") if isinstance(told, Mapping) else told
        if isinstance(content, str) and content not in own:
            _add(found, max([OWN_TOKENS - 1, *found]) + 1, told, folder / "special_tokens_map.json", special=True)
    return {number: found[number] for number in sorted(found) if number >= OWN_TOKENS}


def _specials(mapped: Mapping[str, Any]) -> list[Any]:
    told = mapped.get("additional_special_tokens") or mapped.get("extra_special_tokens") or []
    return told if isinstance(told, list) else []


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = read_json(path, None, TEXT_BYTES)
    if not isinstance(found, dict):
        raise UserError("holds no JSON object", field=str(path))
    return found


def _object_in(found: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    inner = found.get(key) or {}
    if not isinstance(inner, Mapping):
        raise UserError(f"{key} is no JSON object", field=str(path))
    return inner


def _list_in(found: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    inner = found.get(key) or []
    if not isinstance(inner, list):
        raise UserError(f"{key} is no list", field=str(path))
    return inner


def _add(found: dict[int, AddedToken], number: Any, told: Any, path: Path, special: bool = False) -> None:
    """Take a token in, unless its number or its word is known already."""
    content = told.get("content") if isinstance(told, Mapping) else told
    if isinstance(number, str) and number.isascii() and number.isdigit():
        number = int(number)
    if not isinstance(number, int) or isinstance(number, bool) or number < 0 or not isinstance(content, str):
        raise UserError(f"{str(content)[:40]!r} is no token with a number", field=str(path))
    if not content or number in found or any(token.content == content for token in found.values()):
        return
    flags = {"special": special, "normalized": not special}
    if isinstance(told, Mapping):
        flags |= {name: bool(told[name]) for name in FLAGS if name in told}
    found[number] = AddedToken(content, **flags)


def to_metadata(added: Mapping[str, AddedTokens]) -> dict[str, str]:
    """The tokens of a model's tokenizers as an entry of a single file's metadata; none where there are none."""
    told = {name: write_added_tokens(tokens) for name, tokens in added.items() if tokens}
    return {METADATA_KEY: json.dumps(told)} if told else {}


def from_metadata(metadata: Mapping[str, str], source: str) -> dict[str, AddedTokens]:
    """What `to_metadata` has told.

    Raises:
        UserError: the entry is damaged.
    """
    if METADATA_KEY not in metadata:
        return {}
    path = Path(source)
    told = parse_json(metadata[METADATA_KEY], f"the entry {METADATA_KEY} of {source}", None)
    if not isinstance(told, dict):
        raise UserError(f"its entry {METADATA_KEY} is no JSON object", field=source)
    added: dict[str, AddedTokens] = {}
    for name in told:
        found: dict[int, AddedToken] = {}
        for number, token in _object_in(told, name, path).items():
            _add(found, number, token, path)
        added[name] = found
    return added


def write_added_tokens(added: AddedTokens) -> dict[str, Any]:
    """The entry `added_tokens_decoder` of `tokenizer_config.json`."""
    return {str(number): asdict(token) for number, token in added.items()}
