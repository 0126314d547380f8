"""Named partial configs: the shipped ones are read-only in `presets/<command>/`, a user's own live in the workspace."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend import workspace
from backend.config.declare import Command
from backend.config.merge import flatten, problems
from backend.config.messages import did_you_mean
from backend.config.toml import load, loads, to_toml
from backend.errors import ConfigError, UserError, workspace_errors

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
    ]


def read(command_class: type[Command], name: str, root: Path | None = None) -> dict[str, Any]:
    """The values of a preset as a flat dict; shipped names come first.

    Raises:
        UserError: there is none of this name (with the nearest), or it is not valid.
    """
    known = listed(command_class, root)
    for preset in known:
        if preset.name == name:
            return checked(command_class, load(preset.path, "preset"), f"preset {name}")
    names = [preset.name for preset in known]
    hint = did_you_mean(name, names) or (f"; there are: {', '.join(names)}" if names else "")
    raise UserError(f"there is no preset {name} for {command_class.command}{hint}", "preset")


def save(command_class: type[Command], name: str, config: Mapping[str, Any], root: Path | None = None) -> Preset:
    """Write the user's own preset, replacing one of the same name. The values may be a part of a config.

    Raises:
        UserError: the name is not allowed or is a shipped preset's, or a value is wrong.
    """
    path = _own_path(command_class, name, root)
    text = to_toml(checked(command_class, config, ""), command_class)
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


def imported(command_class: type[Command], text: str, source: str = "the toml") -> dict[str, Any]:
    """The values of a toml text someone brings along, checked; the way back of `to_toml`.

    Raises:
        UserError: it is not toml, or a key or value is wrong.
    """
    return checked(command_class, loads(text, source, "preset"), source)


def checked(command_class: type[Command], config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Flat values of a partial config, all known and, as far as they go, valid.

    Raises:
        ConfigError: with every problem.
    """
    flat = {name: value for name, value in flatten(command_class, config, source).items() if value is not None}
    wrong = problems(command_class, flat, partial=True)
    if wrong:
        raise ConfigError(list(wrong.items()))
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
