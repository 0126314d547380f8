"""Any config that can be taken over, whatever wrote it: the one door for the page and the shell."""

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from backend import bounded
from backend.config.declare import leaves
from backend.config.dialects.easy import read_easy
from backend.config.dialects.gui import looks_like_gui, read_gui
from backend.config.dialects.judging import finish
from backend.config.dialects.lora_file import read_metadata
from backend.config.dialects.one_trainer import read_one_trainer
from backend.config.dialects.programs import EASY, LORA_SCRIPTS, ONE_TRAINER, program_of, program_of_text, refusal
from backend.config.dialects.reading import Imported
from backend.config.dialects.scripts import DEFAULTS, PAIRS, read_lora_scripts, read_scripts, reading_of
from backend.config.messages import suggestion
from backend.config.train import TrainNetwork
from backend.errors import UserError
from backend.header import parse_header, read_header

LORA, JSON, TOML = ".safetensors", ".json", ".toml"
# YAML is read by no option here, but its programs are told by name.
SUFFIXES = (TOML, JSON, LORA, ".yaml", ".yml")
FILE = "the file"
# A config is a few kilobytes.
TEXT_BYTES = 1024 * 1024
# More than any of these programs has options.
KEYS = 2000
KEYS_TRIED = 50
OWN = "config of our own"


def read_foreign(source: Path | bytes, name: str) -> Imported:
    """The options of a config that another program or we have written, or of a LoRA file's metadata.

    Args:
        source: the file, or what stands in it.
        name: of the file; its ending tells a LoRA file from a text.

    Raises:
        UserError: it cannot be read, or is none of these.
    """
    if PurePath(name).suffix.lower() == LORA:
        return read_metadata(_metadata(source, name), name)
    text = _text(source, name)
    is_json = text.lstrip()[:1] == "{"
    tables = _from_json(text, name) if is_json else _from_toml(text, name)
    if _is_own(tables):
        reading = reading_of(tables)
        reading.by_name({}, {}, "train_network")
        return finish(reading, OWN)
    plain = {key for key, value in tables.items() if not isinstance(value, Mapping)}
    inner = {key for value in tables.values() if isinstance(value, Mapping) for key in value}
    if len(plain) + len(inner) > KEYS:
        raise UserError(f"has more than {KEYS} keys, so it is no config", name)
    program = program_of(tables)
    if program is EASY:
        return read_easy(tables, name)
    if program is ONE_TRAINER:
        return read_one_trainer(tables, name)
    if program is LORA_SCRIPTS:
        return read_lora_scripts(tables, name)
    # The toml that the GUI writes for a run is sd-scripts' own.
    if is_json and looks_like_gui(tables):
        return read_gui(tables)
    if program is not None and not program.taken:
        raise UserError(refusal(program), name)
    if "datasets" in tables:
        raise UserError("describes a dataset and no training: name it as dataset_config", name)
    known = set(DEFAULTS) | set(leaves(TrainNetwork))
    if not any(key in known or suggestion(key, known) for key in sorted(plain | inner)[:KEYS_TRIED]):
        raise UserError("has no option of train_network or sd-scripts; choose a config or a LoRA file", name)
    return read_scripts(tables)


def _metadata(source: Path | bytes, name: str) -> Mapping[str, str]:
    try:
        header = read_header(source) if isinstance(source, Path) else parse_header(source, len(source), name)
    except UserError as error:
        raise UserError(error.message, name) from error
    if len(header.metadata) > KEYS:
        raise UserError(f"has more than {KEYS} fields of metadata, so it is no LoRA file of a trainer", name)
    return header.metadata


def _is_own(tables: Mapping[str, Any]) -> bool:
    """Whether every table is one of our sections, with our options in it; a flat file counts as sd-scripts'."""
    sections = {key: value for key, value in tables.items() if isinstance(value, Mapping) and key not in PAIRS}
    known = leaves(TrainNetwork)
    return (
        bool(sections)
        and len(sections) == len(tables)
        and all(key in known and known[key].section == name for name, section in sections.items() for key in section)
    )


def _text(source: Path | bytes, name: str) -> str:
    if isinstance(source, Path):
        source = bounded.read_bytes(source, name, "config", TEXT_BYTES)
    if len(source) > TEXT_BYTES:
        raise UserError(f"is larger than {TEXT_BYTES // 1024} kB, so it is no config", name)
    return bounded.decoded(source, FILE, name)


def _from_json(text: str, name: str) -> dict[str, Any]:
    found = bounded.parse_json(text, FILE, name)
    return found if isinstance(found, dict) else {}


def _from_toml(text: str, name: str) -> dict[str, Any]:
    try:
        return bounded.parse_toml(text, FILE, name)
    except UserError:
        program = program_of_text(text)
        if program is None and PurePath(name).suffix.lower() != JSON:
            raise
        if program is None:
            raise UserError("holds no JSON object, {...}, so it is no config", name) from None
        raise UserError(refusal(program), name) from None
