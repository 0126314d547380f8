"""Layers of values (defaults < preset < toml < flags or form) merged once, validated once, frozen after."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from backend.config.declare import Command, Leaf, Section, leaves, section_leaves
from backend.config.messages import problems_of, unknown
from backend.config.reference_options import judge, known_to
from backend.errors import ConfigError

Problems = list[tuple[str, str]]


def flatten(command_class: type[Command], data: Mapping[str, Any], source: str = "") -> dict[str, Any]:
    """Bring flat or sectioned values under the one name of each leaf.

    A table that is not itself an option is a section, under whatever name: sd-scripts' toml files call their sections
    as they like, and leaf names are unique.

    Args:
        command_class: the command whose options they are.
        data: what a toml file holds, a form's values, or a flat dict.
        source: where the values come from, for messages: a file's name, say.

    Raises:
        ConfigError: every key that is unknown (with the nearest known one) or given twice.
    """
    values, problems = collect(command_class, data, source)
    if problems:
        raise ConfigError(problems)
    return values


def resolve(command_class: type[Command], *layers: Mapping[str, Any]) -> Command:
    """Merge the layers, later ones winning, and validate the result.

    Raises:
        ConfigError: with every problem found, one line each.
    """
    problems: Problems = []
    merged: dict[str, Any] = {}
    for layer in layers:
        values, found = collect(command_class, layer)
        merged |= values
        problems += found
    config, found = validate(command_class, merged)
    problems += found
    if config is None or problems:
        raise ConfigError(problems)
    return config


def problems(command_class: type[Command], *layers: Mapping[str, Any], partial: bool = False) -> dict[str, str]:
    """What is wrong with the values, as field -> message; empty when nothing is. For forms and presets.

    Args:
        command_class: the command whose options they are.
        layers: as for `resolve`.
        partial: values that are still missing are no problem.
    """
    found: Problems = []
    merged: dict[str, Any] = {}
    for layer in layers:
        values, unknown_keys = collect(command_class, layer)
        merged |= values
        found += unknown_keys
    if partial:
        merged = {name: value for name, value in merged.items() if value is not None}
    missing = {leaf.name for leaf in leaves(command_class).values() if leaf.required and leaf.name not in merged}
    found += [(field, text) for field, text in validate(command_class, merged)[1] if not (partial and field in missing)]
    by_field: dict[str, str] = {}
    for field, text in found:
        by_field[field] = f"{by_field[field]}; {text}" if field in by_field else text
    return by_field


def values(config: Command, changed_only: bool = False) -> dict[str, Any]:
    """A config as a flat dict of leaf name -> value.

    Args:
        config: a resolved config.
        changed_only: leave out what equals its default.
    """
    flat = {name: getattr(getattr(config, leaf.section), name) for name, leaf in leaves(type(config)).items()}
    if not changed_only:
        return flat
    known = leaves(type(config))
    return {name: value for name, value in flat.items() if known[name].required or value != known[name].default}


def collect(
    command_class: type[Command], data: Mapping[str, Any], source: str = "", told: list[str] | None = None
) -> tuple[dict[str, Any], Problems]:
    """As `flatten`, but with the problems returned beside what could be understood.

    Args:
        command_class: the command whose options they are.
        data: flat or sectioned values.
        source: where the values come from, for messages.
        told: takes a line for each option of the reference that has no effect here.
    """
    known = leaves(command_class)
    names = {alias: name for name, leaf in known.items() for alias in (name, *leaf.aliases)}
    found: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    wrong: Problems = []

    def take(key: str, value: Any) -> None:
        name = names.get(key)
        if name is None and known_to(command_class.command, [key]):
            theirs[key] = value
        elif name is None:
            wrong.append((key, unknown(key, names, command_class.command or command_class.__name__, source)))
        elif name in found:
            wrong.append((name, f"is given twice{f' in {source}' if source else ''}"))
        else:
            found[name] = value

    for key, value in data.items():
        if isinstance(value, Mapping) and key not in names and (value or key in command_class.model_fields):
            for inner, inner_value in value.items():
                take(inner, inner_value)
        else:
            take(key, value)
    values, lines, refused = judge(command_class.command, theirs)
    for name, value in values.items():
        take(name, value)
    if told is not None:
        told += lines
    return found, wrong + refused


def validate(command_class: type[Command], flat: Mapping[str, Any]) -> tuple[Command | None, Problems]:
    """Validate values that `collect` has named; the config is None when there are problems."""
    known = leaves(command_class)
    nested: dict[str, dict[str, Any]] = {section: {} for section in command_class.model_fields}
    for name, value in flat.items():
        if value is None and known[name].required:
            continue  # an empty field of a form: reported as missing
        nested[known[name].section][name] = value
    locations = {(leaf.section, name): leaf for name, leaf in known.items()}
    try:
        return command_class.model_validate(nested), []
    except ValidationError as error:
        return None, problems_of(error, locations)


def validate_section(section_class: type[Section], flat: Mapping[str, Any]) -> tuple[Any, Problems]:
    """Validate one section by itself; the section is None when there are problems."""
    locations: dict[tuple[str, ...], Leaf] = {(name,): leaf for name, leaf in section_leaves(section_class).items()}
    try:
        return section_class.model_validate(dict(flat)), []
    except ValidationError as error:
        return None, problems_of(error, locations)
