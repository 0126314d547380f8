"""A command line as a config: every option as a flag, `--config_file`, `--preset`, and the text of `--help`.

argparse is not used, since it takes negative numbers with exponents (`--ratios 1 -1e-3`) for flags.
"""

import shutil
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from backend.config import presets
from backend.config.declare import Command, Leaf, heading, leaves
from backend.config.merge import Problems, collect, validate
from backend.config.messages import bounds, did_you_mean, expectation, shown
from backend.config.reference_options import FLAG, MANY, REFERENCE_OPTIONS, ReferenceOption
from backend.config.text import TRUE, parse_text
from backend.config.toml import load, named_file, resolved_toml
from backend.errors import ConfigError, UserError
from backend.replacing import replacing

CONFIG_FILE = Leaf(
    "config_file", "path", help="Read options from this toml file, flat or in sections; may be given several times."
)
PRESET = Leaf("preset", "str", help="Start from a preset, shipped or your own, by its name.")
OUTPUT_CONFIG = Leaf(
    "output_config", "bool", help="Write the resolved config to the file that config_file names last, and end."
)
GENERAL = (CONFIG_FILE, PRESET, OUTPUT_CONFIG)
HELP = Leaf("help", "bool", help="Show this text.")


@dataclass
class Parsed:
    """What the words of a command line say: layers still to be merged, and what is wrong with them.

    Attributes:
        theirs: options that only the reference has, by name; `reference` are those it knows.
    """

    flags: dict[str, Any] = field(default_factory=dict)
    theirs: dict[str, Any] = field(default_factory=dict)
    config_files: list[str] = field(default_factory=list)
    presets: list[str] = field(default_factory=list)
    output_config: bool = False
    help: bool = False
    problems: Problems = field(default_factory=list)
    reference: Mapping[str, ReferenceOption] = field(default_factory=dict)


def from_argv(command_class: type[Command], argv: list[str]) -> Command:
    """The config that a command line asks for: defaults < presets < toml files < flags.

    Raises:
        ConfigError: with every problem of the words, the files and the values.
        SystemExit: after `--help` has been shown, or `--output_config` has written its file.
    """
    parsed = parse(command_class, argv)
    if parsed.help:
        sys.stdout.write(help_text(command_class))
        raise SystemExit(0)
    merged: dict[str, Any] = {}
    told: list[str] = []
    wrong = list(parsed.problems)
    target = _take_target(parsed, wrong) if parsed.output_config else None
    for name in parsed.presets:
        try:
            merged |= presets.read(command_class, name)
        except UserError as error:
            wrong += _as_problems(error)
    for path in parsed.config_files:
        try:
            found, unknown_keys = collect(command_class, load(path), PurePath(path).name, told)
        except UserError as error:
            wrong += _as_problems(error)
            continue
        merged |= found
        wrong += unknown_keys
    found, refused = collect(command_class, parsed.theirs | parsed.flags, told=told)
    merged |= found
    wrong += refused
    config, found = validate(command_class, merged)
    named = {name for name, _ in wrong}
    # A flag whose text could not be read is not also missing; after a bad file nobody knows what is.
    unsure = bool(named & {CONFIG_FILE.name, PRESET.name})
    missing = {name for name, leaf in leaves(command_class).items() if leaf.required and name not in merged}
    wrong += [(name, text) for name, text in found if name not in named and not (unsure and name in missing)]
    if config is None or wrong:
        raise ConfigError(wrong)
    if target is not None:
        with replacing(target) as temporary:
            temporary.write_text(resolved_toml(config), encoding="utf-8")
        raise SystemExit(0)
    if told:
        from backend.terminal import warn  # a progress bar's library, which a plain start does not wait for

        for line in told:
            warn(line)
    return config


def _take_target(parsed: Parsed, wrong: Problems) -> Path | None:
    """The file that `--output_config` writes: the last config_file, which is not read then."""
    if not parsed.config_files:
        wrong.append((OUTPUT_CONFIG.name, "needs config_file, the toml to write"))
        return None
    try:
        target = named_file(parsed.config_files.pop(), CONFIG_FILE.name)
    except UserError as error:
        wrong += _as_problems(error)
        return None
    target = target if target.suffix == ".toml" else target.with_name(f"{target.name}.toml")
    if target.exists():
        wrong.append((OUTPUT_CONFIG.name, f"{target} is there already; name a new file as the last config_file"))
    return target


def parse(command_class: type[Command], argv: list[str]) -> Parsed:
    """Sort the words of a command line by option, and read each by its option's type."""
    known = leaves(command_class)
    flags = {leaf.name: leaf for leaf in (*GENERAL, HELP)}
    flags |= {alias: leaf for leaf in known.values() if not leaf.positional for alias in (leaf.name, *leaf.aliases)}
    positional = [leaf for leaf in known.values() if leaf.positional]
    parsed, words = Parsed(reference=REFERENCE_OPTIONS.get(command_class.command, {})), list(argv)
    while words:
        word = words.pop(0)
        if word == "-h":
            parsed.help = True
        elif word.startswith("-"):
            _take_flag(parsed, flags, word, words)
        elif positional:
            leaf = positional.pop(0)
            _store(parsed, leaf, [word])
        else:
            hint = f"; put it in quotes if it belongs to the value before it{did_you_mean(word, flags, '--')}"
            parsed.problems.append((word, f"is a value without an option{hint}"))
    return parsed


def _take_flag(parsed: Parsed, flags: dict[str, Leaf], word: str, words: list[str]) -> None:
    spelling, equals, text = word.partition("=")
    name = spelling.lstrip("-").replace("-", "_") if spelling.startswith("--") else spelling
    leaf, negated = flags.get(name), False
    if leaf is None and name.startswith("no_"):
        leaf = flags.get(name.removeprefix("no_"))
        negated = leaf is not None and leaf.kind == "bool"
        leaf = leaf if negated else None
    theirs = parsed.reference.get(name) if leaf is None else None
    if theirs is not None:
        given = [text] if equals else []
        while theirs.takes != FLAG and words and not _is_flag(words[0]) and (theirs.takes == MANY or not given):
            given.append(words.pop(0))
        parsed.theirs[name] = given if theirs.takes == MANY else given[0] if given else True
        return
    if leaf is None:
        parsed.problems.append((spelling, f"is not an option{did_you_mean(name, flags, '--')}"))
        while words and not _is_flag(words[0]):
            words.pop(0)  # they belong to the unknown flag
        return
    if leaf.kind == "bool":
        value = text if equals else "true"
        _store(parsed, leaf, [str(value.lower() not in TRUE)] if negated else [value])
        return
    many = leaf.kind in ("list", "table")
    given = [text] if equals else []
    while words and not _is_flag(words[0]) and (many or not given):
        given.append(words.pop(0))
    if not given and not many:
        near = f' (write {spelling}="{words[0]}" if that is meant)' if words else ""
        parsed.problems.append((leaf.name, f"needs a value: {expectation(leaf)}{near}"))
        return
    _store(parsed, leaf, given)


def _store(parsed: Parsed, leaf: Leaf, words: list[str]) -> None:
    if leaf is HELP:
        parsed.help = True
    elif leaf is CONFIG_FILE:
        parsed.config_files += words
    elif leaf is PRESET:
        parsed.presets += words
    elif leaf is OUTPUT_CONFIG:
        parsed.output_config = parse_text(leaf, words[0])
    elif leaf.kind == "table":
        parsed.flags[leaf.name] = [*parsed.flags.get(leaf.name, []), *words]
    else:
        try:
            if leaf.kind == "list":
                items = tuple(parse_text(leaf.element, word) for word in words)
                parsed.flags[leaf.name] = (*parsed.flags.get(leaf.name, ()), *items)
            else:
                parsed.flags[leaf.name] = parse_text(leaf, words[0])
        except ValueError as error:
            parsed.problems.append((leaf.name, str(error)))


def _is_flag(word: str) -> bool:
    return word == "-h" or (word.startswith("--") and len(word) > 2 and not _is_number(word))


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _as_problems(error: UserError) -> Problems:
    return error.problems if isinstance(error, ConfigError) else [(error.field or "", error.message)]


def usage(leaf: Leaf) -> str:
    """How the option is written: `--network_dim INT`, `--[no_]xformers`, `SRC`."""
    if leaf.positional:
        return leaf.name.upper()
    if leaf.kind == "bool":
        return f"--[no_]{leaf.name}" if leaf is not HELP else "-h, --help"
    words = {"choice": "|".join(leaf.choices), "list": f"{leaf.item.upper()} ...", "table": "KEY=VALUE ..."}
    return f"--{leaf.name} {words.get(leaf.kind, leaf.kind.upper())}"


def help_text(command_class: type[Command]) -> str:
    """The text of `--help`, by sections, with types, bounds, choices and defaults."""
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))
    known = leaves(command_class)
    positional = [leaf for leaf in known.values() if leaf.positional]
    places = "".join(f" {usage(leaf)}" if leaf.required else f" [{usage(leaf)}]" for leaf in positional)
    lines = [f"python -m backend {command_class.command}{places} [options]", "", f"{heading(command_class)}.", ""]
    sections: dict[str, list[Leaf]] = {"General": [HELP, *GENERAL]}
    for leaf in known.values():
        sections.setdefault(leaf.title, []).append(leaf)
    for title, members in sections.items():
        lines.append(f"{title}:")
        for leaf in members:
            lines.append(f"  {usage(leaf)}")
            indents = {"initial_indent": " " * 6, "subsequent_indent": " " * 6}
            lines += textwrap.wrap(describe(leaf), width, break_on_hyphens=False, **indents)
        lines.append("")
    return "\n".join(lines)


def describe(leaf: Leaf) -> str:
    """Help, bounds, and what the default is, as one paragraph."""
    parts = [leaf.help]
    if bounds(leaf.element):
        parts.append(f"{bounds(leaf.element).capitalize()}.")
    if leaf.suggestions:
        parts.append(f"Known: {', '.join(leaf.suggestions)}.")
    if leaf.aliases:
        parts.append(f"Also: {', '.join('--' + alias for alias in leaf.aliases)}.")
    if leaf.required:
        parts.append(f"Required{''.join(f', or {other}' for other in leaf.alternatives)}.")
    elif leaf.kind != "bool" and leaf.default not in (None, (), {}, ""):
        parts.append(f"Default: {leaf.default if leaf.kind == 'choice' else shown(leaf.default)}.")
    return " ".join(part for part in parts if part)
