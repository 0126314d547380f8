"""Any config that can be taken over, whatever wrote it: the one door for the page and the shell."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from backend.config.declare import leaves
from backend.config.dialects.gui import looks_like_gui, read_gui
from backend.config.dialects.judging import finish
from backend.config.dialects.lora_file import read_metadata
from backend.config.dialects.reading import Imported
from backend.config.dialects.scripts import DEFAULTS, PAIRS, read_scripts, reading_of
from backend.config.messages import suggestion
from backend.config.train import TrainNetwork
from backend.errors import UserError
from backend.header import parse_header, read_header

LORA, JSON, TOML = ".safetensors", ".json", ".toml"
SUFFIXES = (TOML, JSON, LORA)
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
    if "datasets" in tables:
        raise UserError("describes a dataset and no training: name it as dataset_config", name)
    plain = {key for key, value in tables.items() if not isinstance(value, Mapping)}
    inner = {key for value in tables.values() if isinstance(value, Mapping) for key in value}
    if len(plain) + len(inner) > KEYS:
        raise UserError(f"has more than {KEYS} keys, so it is no config", name)
    if _is_own(tables):
        reading = reading_of(tables)
        reading.by_name({}, {}, "train_network")
        return finish(reading, OWN)
    # The toml that the GUI writes for a run is sd-scripts' own.
    if is_json and looks_like_gui(tables):
        return read_gui(tables)
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
    try:
        if isinstance(source, Path):
            with source.open("rb") as file:
                source = file.read(TEXT_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", name) from error
    if len(source) > TEXT_BYTES:
        raise UserError(f"is larger than {TEXT_BYTES // 1024} kB, so it is no config", name)
    try:
        return source.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError("is not a text file in UTF-8; choose a toml, a json or a .safetensors file", name) from error


def _from_json(text: str, name: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not valid JSON: {error}", name) from error
    return found if isinstance(found, dict) else {}


def _from_toml(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not valid toml: {error}", name) from error
