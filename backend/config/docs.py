"""docs/options.md, written from the declarations: `python -m backend --write-docs`."""

from backend.config.argv import GENERAL, HELP, usage
from backend.config.dataset import DatasetOptions, SubsetOptions
from backend.config.declare import Command, Leaf, heading, leaves, section_leaves
from backend.config.messages import bounds, shown
from backend.config.network import NETWORK_ARGS

INTRODUCTION = """# Options

Written by `python -m backend --write-docs` from the declarations in `backend/config`; edit those.

Every option is a flag (`--name value`), a key of a toml file given with `--config_file` (flat, or in the sections
below), and a field of the form in the browser. Later ones win: default, preset, toml, flag.
"""
COLUMNS = "| option | value | default | what it does |\n|---|---|---|---|"


def options_markdown(commands: list[type[Command]]) -> str:
    """The whole page: every command by sections, then the dataset toml and the network arguments."""
    parts = [INTRODUCTION]
    for command_class in commands:
        parts.append(f"## {command_class.command}\n\n{heading(command_class)}.\n")
        sections: dict[str, list[Leaf]] = {"General": [HELP, *GENERAL]}
        for leaf in leaves(command_class).values():
            sections.setdefault(f"{leaf.title} (`[{leaf.section}]`)", []).append(leaf)
        for title, members in sections.items():
            parts.append(_table(f"### {title}", members))
    parts.append(
        "## Dataset toml\n\nA value is looked up in `[[datasets.subsets]]`, then `[[datasets]]`, then `[general]`.\n"
    )
    parts.append(_table("### Of a dataset", list(section_leaves(DatasetOptions).values())))
    parts.append(_table("### Of a subset", list(section_leaves(SubsetOptions).values())))
    parts.append("## network_args\n")
    for module, section_class in NETWORK_ARGS.items():
        members = list(section_leaves(section_class).values())
        parts.append(_table(f"### {module}", members) if members else f"### {module}\n\nTakes none.\n")
    return "\n".join(parts)


def _table(title: str, members: list[Leaf]) -> str:
    rows = [f"| {' | '.join(_cell(text) for text in _row(leaf))} |" for leaf in members]
    return "\n".join([title, "", COLUMNS, *rows, ""])


def _row(leaf: Leaf) -> tuple[str, str, str, str]:
    kind = leaf.element.kind
    value = ", ".join(leaf.choices) if kind == "choice" else "key=value" if kind == "table" else kind
    value = f"{value}: {', '.join(leaf.suggestions)}, or another" if leaf.suggestions else value
    value = f"list of {value}" if leaf.kind == "list" else value
    limits = bounds(leaf.element)
    needed = " or ".join(("required", *leaf.alternatives))
    default = needed if leaf.required else "" if leaf.default in (None, (), {}, "") else f"`{_plain(leaf.default)}`"
    also = "".join(f" Also `--{alias}`." for alias in leaf.aliases)
    name = usage(leaf) if leaf.positional else leaf.name
    return f"`{name}`", f"{value}, {limits}" if limits else value, default, leaf.help + also


def _plain(value: object) -> str:
    return value if isinstance(value, str) else shown(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
