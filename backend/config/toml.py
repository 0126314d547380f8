"""toml in and out (`tomlkit`): flat or by sections when read, by sections when written, never a null."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backend import bounded
from backend.config.declare import Command, leaves
from backend.config.merge import flatten, values
from backend.config.paths import meant_path
from backend.errors import UserError


def load(path: str | Path, field: str = "config_file") -> dict[str, Any]:
    """The tables of a toml file as they stand; `.toml` may be left out of the name.

    Raises:
        UserError: the file is missing, unreadable or not toml; names the line.
    """
    file = named_file(path, field)
    # Unlike Path.exists these say no of a name that is too long for any file.
    if not os.path.exists(file) and file.suffix != ".toml" and os.path.exists(f"{file}.toml"):
        file = Path(f"{file}.toml")
    return bounded.read_toml(file, field)


def load_json(path: str | Path, field: str) -> dict[str, Any]:
    """The object that a JSON file holds; see `load`."""
    file = named_file(path, field)
    found = bounded.read_json(file, field)
    if not isinstance(found, dict):
        raise UserError(f"{file} must hold a JSON object, {{...}}", field)
    return found


def named_file(path: str | Path, field: str) -> Path:
    """The file that a text means; see `meant_path`. A `Path` is taken as it is, but for `~`.

    Raises:
        UserError: it cannot be told which.
    """
    if isinstance(path, Path):
        return Path(os.path.expanduser(path))  # which leaves an unknown user's `~name` as it is
    try:
        meant = meant_path(path)
    except ValueError as error:
        raise UserError(str(error), field) from error
    if not meant:
        raise UserError("must name a file", field)
    return Path(meant)


def read_text(file: Path, field: str, kind: str) -> str:
    """The text of a file that a user has named; see `bounded.read_text`."""
    return bounded.read_text(file, field, kind)


def loads(text: str, source: str, field: str = "config_file") -> dict[str, Any]:
    """As `load`, from the text itself; `source` is its name in messages."""
    return bounded.parse_toml(text, source, field)


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
    if isinstance(value, str | Path):
        # A path may have bytes that are no UTF-8; written as `\\udce9` they are read back (paths.py).
        return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, list | tuple):
        return [_writable(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _writable(item) for key, item in value.items() if item is not None}
    return value
