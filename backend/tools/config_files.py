"""The commands `import_config` and `export_config`: configs of other programs in, configs for them out. No torch."""

import sys
from collections.abc import Iterable
from pathlib import Path

from backend.config import presets
from backend.config.base import read_toml, to_toml
from backend.config.conversion import ExportConfig, ImportConfig
from backend.config.dialects.export import to_scripts
from backend.config.dialects.foreign import read_foreign
from backend.config.dialects.reading import CHANGED, LOST, OPEN, Note
from backend.config.toml import named_file
from backend.config.train import TrainNetwork
from backend.errors import UserError
from backend.replacing import replacing

TITLES = {LOST: "Not carried over", CHANGED: "Carried over in another form", OPEN: "To be completed"}


def bring(config: ImportConfig) -> None:
    """The command `import_config`.

    Raises:
        UserError: the file cannot be read or is no config, or a file is there already.
    """
    options = config.conversion
    prompts = options.dst.with_name(f"{options.dst.stem}_prompts.txt") if options.dst else None
    _check_free(options.overwrite, options.dst, options.dataset_toml)
    found = read_foreign(options.src, options.src.name)
    values, notes = dict(found.values), list(found.notes)
    if found.prompts and prompts:
        _check_free(options.overwrite, prompts)
        _write(prompts, found.prompts + "\n")
        values["sample_prompts"] = prompts
        notes.append(Note("sample_prompts", "", f"its text is in {prompts}", CHANGED))
    elif found.prompts:
        notes.append(Note("sample_prompts", "", "is a text; name DST to have it written beside it", OPEN))
    if found.dataset and options.dataset_toml:
        _write(options.dataset_toml, found.dataset)
    elif found.dataset:
        notes.append(Note("dataset_toml", "", "name a file to have the dataset toml written to it", OPEN))
    _put(options.dst, to_toml(values, TrainNetwork))
    lines = [f"{len(values)} options are taken from {options.src.name}, a {found.source_kind}", *report(notes)]
    _say(lines + [f"{line}" for line in found.counts()])


def give(config: ExportConfig) -> None:
    """The command `export_config`.

    Raises:
        UserError: there is no such toml or preset, a value in it is wrong, or the file is there already.
    """
    options = config.conversion
    _check_free(options.overwrite, options.dst)
    path = named_file(options.src, "src")
    if path.exists() or path.suffix == ".toml":
        values = presets.checked(TrainNetwork, read_toml(TrainNetwork, path), path.name)
    else:
        values = presets.read(TrainNetwork, options.src)
    text, notes = to_scripts(values)
    _put(options.dst, text)
    _say(report(notes))


def report(notes: Iterable[Note]) -> list[str]:
    """Notes as lines under their headings."""
    lines: list[str] = []
    notes = list(notes)
    for kind, title in TITLES.items():
        told = [note.line() for note in notes if note.kind == kind]
        lines += [f"{title}:", *(f"  {line}" for line in told)] if told else []
    return lines


def _check_free(overwrite: bool, *paths: Path | None) -> None:
    for path in paths:
        if path is not None and path.exists() and not overwrite:
            raise UserError(f"{path} is there already; name another file, or set overwrite", "overwrite")


def _put(path: Path | None, text: str) -> None:
    if path is None:
        sys.stdout.write(text)
    else:
        _write(path, text)


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _say(lines: list[str]) -> None:
    if lines:
        sys.stderr.write("\n".join([*lines, ""]))
