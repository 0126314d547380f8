"""From a path that names a LoRA to its tensors and settings: a file, or the folder of a PEFT adapter.

Safetensors files are read by their header and not by the library, which cannot open names that are no UTF-8 and takes
numbers of dimensions that torch cannot compute with.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backend.bounded import read_json
from backend.errors import UserError
from backend.header import read_header
from backend.lora.kinds import methods_of
from backend.lora.peft_settings import CONFIG, PARTS, PEFT_SETTINGS, as_metadata, checked
from backend.lora.pickled import load_pickled
from backend.lora.stream import DTYPE_NAMES

SAFETENSORS = (".safetensors",)
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
# What PEFT and Diffusers call the weights in a folder, in the order in which they take them.
_STEMS = ("adapter_model", "pytorch_lora_weights")
WEIGHTS = tuple(f"{stem}{suffix}" for stem in _STEMS for suffix in (".safetensors", ".bin"))
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_PEFT_NAME = re.compile(r"\.(?:lora_[AB]|hada_w1_a)\b")


@dataclass(frozen=True)
class AdapterFile:
    """A file of weights that is one LoRA, or a part of one.

    Attributes:
        file: the weights.
        config: PEFT's settings beside it, if there are any.
        prefix: what its names stand for in the whole, such as "unet."; "" where they say so themselves.
    """

    file: Path
    config: Path | None = None
    prefix: str = ""


def adapter_files(path: str | Path) -> tuple[AdapterFile, ...]:
    """The files that a path names: itself, or those of a folder as PEFT and Diffusers write it.

    A folder has the adapter itself, one named adapter in a folder below, or one adapter for each part of a pipeline in
    folders of these names.

    Raises:
        UserError: the folder has no adapter, or several.
    """
    path = Path(path)
    # os.path takes whatever cannot be looked at for something that is not there.
    if not os.path.isdir(path):
        return (_beside(path),)
    own = _in_folder(path)
    if own is not None:
        return (own,)
    below = {folder.name: found for folder in _folders(path) if (found := _in_folder(folder))}
    parts = {name: found for name, found in below.items() if f"{name}." in PARTS}
    if parts and len(parts) == len(below):
        return tuple(AdapterFile(found.file, found.config, f"{name}.") for name, found in sorted(parts.items()))
    if len(below) == 1:
        return tuple(below.values())
    if below:
        raise UserError(f"has several adapters ({', '.join(sorted(below))}); name the folder of one", field=str(path))
    message = f"is a folder without {CONFIG} and {WEIGHTS[0]}; name a LoRA file, or the folder of a PEFT adapter"
    raise UserError(message, field=str(path))


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if os.path.isdir(entry))
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", field=str(path)) from error


def _in_folder(folder: Path) -> AdapterFile | None:
    found = next((folder / name for name in WEIGHTS if os.path.isfile(folder / name)), None)
    return None if found is None else _beside(found)


def _beside(file: Path) -> AdapterFile:
    config = file.parent / CONFIG
    return AdapterFile(file, config if os.path.exists(config) else None)


def stamp_of(path: str | Path) -> tuple[tuple[str, int, int], ...]:
    """Changes when anything does that the LoRA of a path is read from.

    Raises:
        UserError: there is no such file.
    """
    found = []
    for one in adapter_files(path):
        for file in (one.file, one.config):
            if file is None:
                continue
            try:
                status = file.stat()
            except (OSError, ValueError):
                raise UserError("no such file; choose a LoRA that exists", field=str(path)) from None
            found.append((str(file.absolute()), status.st_size, status.st_mtime_ns))
    return tuple(found)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a LoRA under the names that they have there, and its metadata.

    Settings of PEFT beside the file come as Diffusers writes them into the metadata, under `PEFT_SETTINGS`.

    Args:
        path: a file, or the folder of a PEFT adapter.

    Raises:
        UserError: the file is missing or broken, or the settings are.
    """
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    settings: dict[str, dict[str, Any]] = {}
    for one in adapter_files(path):
        own, fields = _of_file(one.file)
        tensors |= {one.prefix + name: tensor for name, tensor in own.items()}
        metadata |= fields
        if one.config is not None and PEFT_SETTINGS not in fields and needs_settings(own):
            settings[one.prefix] = read_config(one.config)
            # An adapter of another method is called by its name, which comes with the names of its tensors.
            if not methods_of(own):
                checked(settings[one.prefix], str(one.config))
    return tensors, metadata | (as_metadata(settings) if settings else {})


def needs_settings(names: Iterable[str]) -> bool:
    """Whether tensors are named as PEFT does and none says how strong it is."""
    names = list(names)
    return any(_PEFT_NAME.search(name) for name in names) and not any(name.endswith(".alpha") for name in names)


def read_config(path: Path) -> dict[str, Any]:
    """PEFT's settings in a file, as they stand there; see `peft_settings.settings_of`.

    Raises:
        UserError: they are broken.
    """
    table = read_json(path, None)
    if not isinstance(table, dict):
        raise UserError("holds no settings of PEFT; save the adapter again", field=str(path))
    return {str(name): value for name, value in table.items()}


def _of_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    suffix = path.suffix.lower()
    if suffix not in SAFETENSORS + PICKLES:
        raise UserError(f"a LoRA file ends in {', '.join(SAFETENSORS + PICKLES)}", field=str(path))
    try:
        if suffix in PICKLES:
            return pickled_tensors(path), {}
        header = read_header(path)
        return dict(_tensors(path, header.tensors, header.size)), header.metadata
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", field=str(path)) from error
    except ValueError as error:
        raise UserError("is no name of a file", field=repr(str(path))) from error


def _tensors(path: Path, infos: Mapping[str, Any], start: int) -> Iterator[tuple[str, Tensor]]:
    """A safetensors file's tensors by name, each in memory of its own."""
    with open(path, "rb") as file:
        for name, info in infos.items():
            if info.dtype not in DTYPES:
                raise UserError(f"{ascii(name[:80])} is of type {info.dtype[:20]!a}, which no LoRA has", str(path))
            tensor = torch.empty(info.shape, dtype=DTYPES[info.dtype])
            if tensor.numel():
                file.seek(start + info.start)
                if file.readinto(tensor.reshape(-1).view(torch.uint8).numpy()) != info.end - info.start:
                    raise UserError("was cut off while it was read", field=str(path))
            yield name, tensor


def pickled_tensors(path: Path) -> dict[str, Tensor]:
    """The table of tensors in a file of torch's own format.

    Raises:
        UserError: it is none; a textual inversion embedding and a hypernetwork are called so.
        OSError: it cannot be opened.
    """
    loaded = load_pickled(path)
    if isinstance(loaded, list) and loaded:
        message = "is a list without names, as cloneofsimo's LoRAs are; save it with the names of its layers"
        raise UserError(message, field=str(path))
    if isinstance(loaded, dict):
        if "string_to_param" in loaded:
            raise UserError("is a textual inversion embedding and no LoRA", field=str(path))
        if any(isinstance(name, int) and isinstance(value, list | tuple) for name, value in loaded.items()):
            raise UserError("is a hypernetwork and no LoRA", field=str(path))
        loaded = loaded.get("state_dict", loaded)
    if isinstance(loaded, dict):
        loaded = {name: _as_tensor(name, value) for name, value in loaded.items()}
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise UserError("holds no table of tensors and so is no LoRA", field=str(path))
    return loaded


def _as_tensor(name: object, value: object) -> object:
    """Alpha, which some programs save as a number, as a tensor."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return torch.tensor(float(value)) if is_number and str(name).endswith("alpha") else value
