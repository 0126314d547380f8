"""toml in (`tomllib`) and out (`tomlkit`): flat or by sections when read, by sections when written, never a null."""

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backend.config.declare import Command, leaves
from backend.config.merge import flatten, values
from backend.errors import UserError


def load(path: str | Path, field: str = "config_file") -> dict[str, Any]:
    """The tables of a toml file as they stand; `.toml` may be left out of the name.

    Raises:
        UserError: the file is missing, unreadable or not toml; names the line.
    """
    file = Path(os.path.expanduser(path))
    if not file.exists() and file.suffix != ".toml" and Path(f"{file}.toml").exists():
        file = Path(f"{file}.toml")
    return loads(read_text(file, field, "toml"), str(file), field)


def load_json(path: str | Path, field: str) -> dict[str, Any]:
    """The object that a JSON file holds; see `load`."""
    file = Path(os.path.expanduser(path))
    try:
        found = json.loads(read_text(file, field, "JSON"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON: {error}", field) from error
    if not isinstance(found, dict):
        raise UserError(f"{file} must hold a JSON object, {{...}}", field)
    return found


def read_text(file: Path, field: str, kind: str) -> str:
    """The text of a file that a user has named; `kind` says what it ought to be.

    Raises:
        UserError: it is missing, unreadable or no text.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"there is no file {file}", field) from None
    except IsADirectoryError:
        raise UserError(f"{file} is a folder; name a {kind} file", field) from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}", field) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not a text file in UTF-8", field) from error


def loads(text: str, source: str, field: str = "config_file") -> dict[str, Any]:
    """As `load`, from the text itself; `source` is its name in messages."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{source} is not valid toml: {error}", field) from error


def read_toml(command_class: type[Command], path: str | Path) -> dict[str, Any]:
    """The values of a toml file, flat or in sections, as a flat dict. Keys are checked, values are not yet.

    Raises:
        UserError: the file is missing or not toml.
        ConfigError: it has keys that the command does not know, or one twice.
    """
    return flatten(command_class, load(path), Path(path).name)


def to_toml(config: Command | Mapping[str, Any], command_class: type[Command] | None = None) -> str:
    """A config, or flat values of it, as sectioned toml that reads back equal. None, which toml lacks, is left out.

    Args:
        config: a resolved config, or flat values such as `values(config, changed_only=True)`.
        command_class: needed with flat values.
    """
    import tomlkit  # a 40 ms import that a command line does not need before it saves something

    if isinstance(config, Command):
        command_class, config = type(config), values(config)
    if command_class is None:
        raise TypeError("flat values need their command_class")
    flat = flatten(command_class, config)
    document = tomlkit.document()
    for name, leaf in leaves(command_class).items():
        if flat.get(name) is None:
            continue
        if leaf.section not in document:
            document.add(leaf.section, tomlkit.table())
        item = _writable(flat[name])
        if isinstance(item, dict):
            inline = tomlkit.inline_table()
            inline.update(item)
            item = inline
        document[leaf.section].add(name, item)
    return tomlkit.dumps(document)


def resolved_toml(config: Command) -> str:
    """The whole resolved config as toml, defaults included, to be saved beside what the command wrote."""
    return to_toml(config)


def _writable(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_writable(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _writable(item) for key, item in value.items() if item is not None}
    return value
