"""Our config as a toml that sd-scripts reads: flat, with its forms of lists, and nothing that it does not know."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backend.config.declare import leaves
from backend.config.dialects.reading import CHANGED, NO_COUNTERPART, OPEN, Note
from backend.config.dialects.scripts import DEFAULTS, PAIRS, PROGRAM, differs
from backend.config.messages import shown
from backend.config.train import TrainNetwork

REASONS = {
    "overwrite": "sd-scripts always replaces existing files",
    "revision": "sd-scripts takes the model's main branch; download the one that is meant",
}
# There since sd-scripts' later versions.
NEW_NETWORKS = ("networks.loha", "networks.lokr")
CAPTIONS_OF_OURS = ".txt"


def to_scripts(values: Mapping[str, Any]) -> tuple[str, list[Note]]:
    """A toml for sd-scripts, and what in the config it cannot say.

    What is at its default here is written too where sd-scripts has another.

    Args:
        values: options of `TrainNetwork` by name, checked; those that are left out are at their defaults.
    """
    import tomlkit  # as in toml.py

    known = leaves(TrainNetwork)
    document = tomlkit.document()
    notes: list[Note] = []
    for name, leaf in known.items():
        value = values.get(name, leaf.default)
        if name in DEFAULTS:
            plain = None if value is None else _plain(name, value)
            # What is left out must be the default on both sides.
            if plain is not None and (differs(name, plain) or value != leaf.default):
                document.add(name, plain)
        elif name in values and value is not None and value != leaf.default:
            notes.append(
                Note(name, shown(value), REASONS.get(name, f"{NO_COUNTERPART.replace('here', f'in {PROGRAM}')}"))
            )
    if "caption_extension" not in document:
        document.add("caption_extension", CAPTIONS_OF_OURS)
        text = f"is added: by itself {PROGRAM} reads .caption files only, here .txt and .caption are both found"
        notes.append(Note("caption_extension", shown(CAPTIONS_OF_OURS), text, CHANGED))
    if values.get("network_module") in NEW_NETWORKS:
        text = f"is only in the later versions of {PROGRAM}"
        notes.append(Note("network_module", shown(values["network_module"]), text, OPEN))
    return tomlkit.dumps(document), notes


def _plain(name: str, value: Any) -> Any:
    """A value as sd-scripts expects it in a toml."""
    if name in PAIRS:
        items = value.items() if isinstance(value, Mapping) else ()
        return [f"{key}={_argument(name, item)}" for key, item in items] or (list(value) or None)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain("", item) for item in value] or None
    # It takes every decimal number for a share of all steps.
    if name.endswith("_steps") and isinstance(value, float) and value >= 1:
        return int(value)
    return value


def _argument(table: str, value: Any) -> str:
    if isinstance(value, list | tuple):
        # Both are read back by their kind: lists of a network between commas, other values as Python writes them.
        return ",".join(str(item) for item in value) if table == "network_args" else str(tuple(value))
    return str(value)
