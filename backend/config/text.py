"""Options written as text: one word of a command line, a form's text box, or the value behind `key=`."""

import ast
import math
import re
from collections.abc import Mapping
from typing import Any

from backend.bounded import MAX_WHOLE
from backend.config.declare import Leaf, Section, section_leaves, spelled
from backend.config.merge import Problems, validate_section
from backend.config.messages import expectation, shown, unknown, wrong_type

TRUE = ("true", "yes", "on", "1")
FALSE = ("false", "no", "off", "0")
# Longer or deeper than the argument of any optimizer.
LITERAL_LENGTH, LITERAL_DEPTH = 4000, 64


def parse_text(leaf: Leaf, text: str) -> Any:
    """The value of a leaf from its text. The text of a list has its items between commas.

    Raises:
        ValueError: saying what is expected. Bounds are left to validation.
    """
    word = spelled(leaf, text.strip())
    if not isinstance(word, str) or (leaf.kind == "choice" and word in leaf.choices):
        return word
    if leaf.optional and word.lower() == "none" and leaf.kind not in ("str", "path"):
        return None
    if leaf.kind == "bool" and word.lower() in TRUE + FALSE:
        return word.lower() in TRUE
    if leaf.kind in ("int", "float"):
        try:
            number = int(word) if leaf.kind == "int" else float(word)
        except ValueError:
            raise ValueError(wrong_type(leaf, text)) from None
        if leaf.kind == "int" and abs(number) > MAX_WHOLE:
            raise ValueError(f"must be {expectation(leaf)} of at most 64 bits, got {shown(text)}")
        return number
    if leaf.kind in ("str", "path"):
        return text
    if leaf.kind == "list":
        return tuple(parse_text(leaf.element, item) for item in word.split(",")) if word else ()
    if leaf.kind == "table":
        return read_pairs(text)
    raise ValueError(wrong_type(leaf, text))


def read_pairs(value: Any) -> dict[str, Any]:
    """Key=value pairs as the documents write them: a list of "key=value", one string with several, or a table.

    Returns:
        A new dict; the values of a list or string are text.

    Raises:
        ValueError: naming the item that has no `=`, or the key that is given twice.
    """
    if isinstance(value, Mapping):
        return dict(value)
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise ValueError('must be a table or a list of "key=value"')
    pairs: dict[str, Any] = {}
    for item in items:
        # Several pairs in one string: a new one begins at a word followed by "=".
        for pair in re.split(r"[\s,;]+(?=[A-Za-z_]\w*\s*=)", item.strip()):
            if not pair:
                continue
            key, equals, text = pair.partition("=")
            if not equals or not key.strip():
                raise ValueError(f'must be "key=value", got "{pair}"')
            if key.strip() in pairs:
                raise ValueError(f"{key.strip()} is given twice")
            pairs[key.strip()] = text.strip()
    return pairs


def read_literals(value: Any) -> dict[str, Any]:
    """As `read_pairs`, with texts that are Python literals (0.01, True, (0.9, 0.99)) turned into what they say."""
    pairs = {key: read_literal(text) if isinstance(text, str) else text for key, text in read_pairs(value).items()}
    return {key: tuple(item) if isinstance(item, list) else item for key, item in pairs.items()}


def read_section(
    section_class: type[Section], value: Any, field: str, owner: str, from_text: bool | None = None
) -> tuple[dict[str, Any], Problems]:
    """Key=value pairs checked against the section that declares them.

    Args:
        section_class: declares the keys that are allowed.
        value: what `read_pairs` reads; text is read by the type of its key.
        field: the option that holds the pairs, for messages.
        owner: whose keys they are, for messages.
        from_text: texts are read by the type of their key; left out, they are unless the pairs are a table.

    Returns:
        The given keys with their typed values (defaults are not filled in), and the problems.
    """
    known = section_leaves(section_class)
    try:
        pairs = read_pairs(value)
    except ValueError as error:
        return {}, [(field, str(error))]
    typed: dict[str, Any] = {}
    problems: Problems = []
    if from_text is None:
        from_text = not isinstance(value, Mapping)
    for key, item in pairs.items():
        leaf = known.get(key)
        if leaf is None:
            allowed = f"; allowed: {', '.join(known)}" if known else f"; {owner} takes none"
            problems.append((f"{field}.{key}", unknown(key, known, owner) + allowed))
            continue
        try:
            as_text = isinstance(item, str) and (from_text or leaf.kind == "list")
            typed[key] = parse_text(leaf, item) if as_text else item
        except ValueError as error:
            problems.append((f"{field}.{key}", str(error)))
    section, found = validate_section(section_class, typed)
    problems += [(f"{field}.{key}" if key else field, text) for key, text in found]
    return ({key: getattr(section, key) for key in typed} if section is not None else {}), problems


def read_literal(text: str) -> Any:
    """What a text says as a Python literal of what toml can hold (numbers, truths, lists, tables); else the text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if len(text) > LITERAL_LENGTH or len(re.findall(r"[(\[{]", text)) > LITERAL_DEPTH:
        return text
    try:
        found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text
    return found if _is_plain(found) else text


def _is_plain(value: Any, inside: bool = False) -> bool:
    """Whether toml can hold a value; None stands for a value that is left out."""
    if isinstance(value, list | tuple):
        return all(_is_plain(item, True) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item, True) for key, item in value.items())
    if isinstance(value, float):
        return math.isfinite(value)
    if type(value) is int:
        return abs(value) <= MAX_WHOLE
    return isinstance(value, str | bool) or (value is None and not inside)
