"""Named partial configs: the shipped ones are read-only in `presets/<command>/`, a user's own live in the workspace."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend import workspace
from backend.config.declare import Command, leaves
from backend.config.dialects.programs import program_of, refusal
from backend.config.merge import collect, problems
from backend.config.messages import did_you_mean
from backend.config.toml import load, loads, to_toml
from backend.errors import ConfigError, UserError, one_line, workspace_errors

SHIPPED = workspace.PROJECT / "presets"


@dataclass(frozen=True)
class Preset:
    """A preset's name and file; `shipped` ones can be used, but not changed."""

    name: str
    path: Path
    shipped: bool


def listed(command_class: type[Command], root: Path | None = None) -> list[Preset]:
    """All presets of a command, the shipped ones first, each group by name.

    Args:
        command_class: the command they configure.
        root: the workspace; the default one if None.
    """
    return [
        Preset(path.stem, path, shipped)
        for folder, shipped in ((_shipped(command_class), True), (_own(command_class, root), False))
        for path in sorted(folder.glob("*.toml"), key=lambda file: file.name.lower())
        if one_line(path.name) == path.name  # others have names that no page can show
    ]


def read(
    command_class: type[Command], name: str, root: Path | None = None, told: list[str] | None = None
) -> dict[str, Any]:
    """The values of a preset as a flat dict; shipped names come first.

    Args:
        command_class: the command it configures.
        name: of the preset.
        root: the workspace; the default one if None.
        told: takes a line for each option that is passed over.

    Raises:
        UserError: there is none of this name (with the nearest), or it is not valid.
    """
    known = listed(command_class, root)
    for preset in known:
        if preset.name == name:
            tables = load(preset.path, "preset")
            return portable(command_class, checked(command_class, tables, f"preset {name}", told), told)
    names = [preset.name for preset in known]
    hint = did_you_mean(name, names) or (f"; there are: {', '.join(names)}" if names else "")
    raise UserError(f"there is no preset {name} for {command_class.command}{hint}", "preset")


def save(command_class: type[Command], name: str, config: Mapping[str, Any], root: Path | None = None) -> Preset:
    """Write the user's own preset, replacing one of the same name. The values may be a part of a config.

    Where several machines meet is left out: that belongs to each of them.

    Raises:
        UserError: the name is not allowed or is a shipped preset's, or a value is wrong.
    """
    path = _own_path(command_class, name, root)
    text = to_toml(portable(command_class, checked(command_class, config, "")), command_class)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with workspace_errors("preset"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return Preset(path.stem, path, shipped=False)


def existing(command_class: type[Command], name: str, root: Path | None = None) -> Preset | None:
    """The user's own preset of this name, which saving would replace; None without one.

    Raises:
        UserError: the name is not allowed or is a shipped preset's.
    """
    path = _own_path(command_class, name, root)
    return Preset(path.stem, path, shipped=False) if path.exists() else None


def rename(command_class: type[Command], name: str, new_name: str, root: Path | None = None) -> Preset:
    """Give the user's own preset another name.

    Raises:
        UserError: it does not exist or is shipped, or the new name is taken or not allowed.
    """
    path, target = _existing(command_class, name, root), _own_path(command_class, new_name, root)
    if target.exists():
        raise UserError(f"there is a preset {target.stem} already", "preset")
    with workspace_errors("preset"):
        os.replace(path, target)
    return Preset(target.stem, target, shipped=False)


def delete(command_class: type[Command], name: str, root: Path | None = None) -> None:
    """Delete the user's own preset.

    Raises:
        UserError: it does not exist or is shipped.
    """
    path = _existing(command_class, name, root)
    with workspace_errors("preset"):
        path.unlink()


def imported(
    command_class: type[Command], text: str, source: str = "the toml", told: list[str] | None = None
) -> dict[str, Any]:
    """The values of a toml text someone brings along, checked; the way back of `to_toml`.

    Args:
        command_class: the command it configures.
        text: the toml.
        source: what it is called in messages.
        told: takes a line for each option that is passed over.

    Raises:
        UserError: it is not toml, another program's, or a key or value is wrong.
    """
    tables = loads(text, source, "preset")
    program = program_of(tables)
    if program is not None and not program.taken:
        raise UserError(f"{source} {refusal(program)}", "preset")
    return portable(command_class, checked(command_class, tables, source, told), told)


def portable(
    command_class: type[Command], values: Mapping[str, Any], told: list[str] | None = None
) -> dict[str, Any]:
    """Flat values without those that say where this machine meets others.

    A preset that somebody has sent must not have a run connect to a machine of theirs.
    """
    known = leaves(command_class)
    own = [name for name, value in values.items() if known[name].of_this_machine and value != known[name].default]
    if told is not None:
        told += [f"{name} is passed over: presets do not say where machines meet; set it by hand" for name in own]
    return {name: value for name, value in values.items() if not known[name].of_this_machine}


def checked(
    command_class: type[Command], config: Mapping[str, Any], source: str, told: list[str] | None = None
) -> dict[str, Any]:
    """Flat values of a partial config, all known and, as far as they go, valid.

    Raises:
        ConfigError: with every problem.
    """
    found, wrong = collect(command_class, config, source, told)
    if wrong:
        raise ConfigError(wrong)
    flat = {name: value for name, value in found.items() if value is not None}
    faults = problems(command_class, flat, partial=True)
    if faults:
        raise ConfigError(list(faults.items()))
    return flat


def _shipped(command_class: type[Command]) -> Path:
    return SHIPPED / command_class.command


def _own(command_class: type[Command], root: Path | None) -> Path:
    return (root if root is not None else workspace.default_root()) / "presets" / command_class.command


def _own_path(command_class: type[Command], name: str, root: Path | None) -> Path:
    name = workspace.slug(name, "preset")
    if (_shipped(command_class) / f"{name}.toml").exists():
        raise UserError(f"{name} is a shipped preset and stays as it is; choose another name", "preset")
    return _own(command_class, root) / f"{name}.toml"


def _existing(command_class: type[Command], name: str, root: Path | None) -> Path:
    path = _own_path(command_class, name, root)
    if not path.exists():
        raise UserError(f"there is no preset {name} of your own", "preset")
    return path
