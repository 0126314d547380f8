"""What the LoRA tools share: files in, checked against each other, and files out, whole or not at all."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from backend.config.lora_tools import LoraResult
from backend.errors import UserError
from backend.header import METADATA_KEY, pack_header
from backend.lora.algebra import vanishes
from backend.lora.file import PICKLES, LoraFile, listing, read_lora, tensors_of, write_lora
from backend.lora.layer import Layer, LoraLayer
from backend.lora.metadata import minimum_metadata
from backend.lora.places import block_of, order_of_blocks
from backend.lora.provenance import Source
from backend.tables.identity import title_of
from backend.terminal import warn
from backend.tools.report import Made

DTYPES = {"float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def check_target(result: LoraResult) -> None:
    """Refuse early what would destroy something late.

    Raises:
        UserError: the file is there and may not be replaced.
    """
    check_free(result.save_to, result)


def check_free(path: Path, result: LoraResult) -> None:
    """Refuse to replace a file that may not be replaced.

    Raises:
        UserError: naming it.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file", field="save_to")
    if path.exists() and not result.overwrite and not result.dry_run:
        raise UserError(f"{path} exists; give --overwrite to replace it", field="save_to")


def read_files(paths: Sequence[Path], allow_unmatched: bool) -> list[LoraFile]:
    """Read LoRA files that are to be used together.

    Args:
        allow_unmatched: leave out layers that no model has, with a warning.

    Raises:
        UserError: a file is broken, has keys that no model has, or they are made for different models.
    """
    files = [read_lora(path) for path in paths]
    family = common_family(paths, files)
    files = [_known(path, file, family, allow_unmatched) for path, file in zip(paths, files, strict=True)]
    sizes: dict[str, tuple[tuple[int, int], Path]] = {}
    for path, file in zip(paths, files, strict=True):
        for key, layer in file.layers.items():
            shape, first = sizes.setdefault(key, (layer.shape, path))
            if shape != layer.shape:
                message = f"{key} is made for a weight of {layer.shape}, in {first} it is {shape}"
                raise UserError(f"{message}; choose LoRAs for the same model", field=str(path))
    return files


def common_family(paths: Sequence[Path], files: Sequence[LoraFile]) -> str | None:
    """The family that files are made for; None where none of them tells.

    Raises:
        UserError: they are made for different ones.
    """
    known = {path: file.family for path, file in zip(paths, files, strict=True) if file.family}
    if len(set(known.values())) > 1:
        told = ", ".join(f"{path} for {title_of(family)}" for path, family in known.items())
        raise UserError(f"are made for different models: {told}", field="models")
    return next(iter(known.values()), None)


def _known(path: Path, file: LoraFile, family: str | None, allow_unmatched: bool) -> LoraFile:
    unmatched = [key for key in file.layers if block_of(key, family) is None]
    if not unmatched:
        return file
    model = "any model" if family is None else f"a {title_of(family)} model"
    message = f"{len(unmatched)} of its keys match no module of {model}: {listing(unmatched)}"
    if not allow_unmatched or len(unmatched) == len(file.layers):
        raise UserError(f"{message}; give --allow_unmatched to leave them out", field=str(path))
    warn(f"{path}: {message}; left out")
    return LoraFile({key: layer for key, layer in file.layers.items() if key not in set(unmatched)}, file.metadata)


def only_loras(paths: Sequence[Path], files: Sequence[LoraFile]) -> list[dict[str, LoraLayer]]:
    """The layers of files that must be LoRAs.

    Raises:
        UserError: one is of another kind.
    """
    for path, file in zip(paths, files, strict=True):
        other = next((layer for layer in file.layers.values() if not isinstance(layer, LoraLayer)), None)
        if other is not None:
            message = f"is a {other.KIND}, whose sum with others is no LoRA; merge it into a checkpoint"
            raise UserError(message, field=str(path))
    return [file.layers for file in files]


def sources_of(paths: Sequence[Path], files: Sequence[LoraFile], ratios: Sequence[float]) -> list[Source]:
    """Where a result comes from."""
    return [Source(path, file.metadata, ratio) for path, file, ratio in zip(paths, files, ratios, strict=True)]


def check_effect(sums: Iterable[tuple[Sequence[LoraLayer], Sequence[float]]]) -> None:
    """Refuse a result that changes nothing.

    Args:
        sums: layers and their ratios, by module.

    Raises:
        UserError: every layer is zero, or they cancel each other out.
    """
    if vanishes(sums):
        message = "would change nothing: every layer is zero, or they cancel each other out"
        raise UserError(message, field="models")


def by_block(keys: Iterable[str], family: str | None) -> dict[str, list[str]]:
    """Keys by the part of the model that they belong to, in the order of the parts."""
    found: dict[str, list[str]] = {}
    for key in keys:
        found.setdefault(block_of(key, family) or "other", []).append(key)
    return {name: found[name] for name in sorted(found, key=order_of_blocks)}


def file_size(path: Path, layers: Mapping[str, Layer], metadata: Mapping[str, str], dtype: torch.dtype | None) -> int:
    """Bytes that `save` would write, to a few hundred (hashes; and the format of pickles differs a little)."""
    entries: dict[str, object] = {} if path.suffix.lower() in PICKLES else {METADATA_KEY: dict(metadata)}
    end = 0
    for name, tensor in tensors_of(layers).items():
        kept = tensor.dtype if dtype is None or name.endswith(".alpha") else dtype
        start, end = end, end + tensor.numel() * kept.itemsize
        entries[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    return len(pack_header(entries)) + end


def save(
    path: Path,
    result: LoraResult,
    layers: Mapping[str, Layer],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None,
    note: str = "",
) -> Made:
    """Write a LoRA, or only say how large it would be.

    Args:
        dtype: of the weights; None keeps each tensor's own.
        note: see `Made`.

    Raises:
        UserError: numbers do not fit into the precision.
    """
    metadata = minimum_metadata(metadata) if result.no_metadata else metadata
    if result.dry_run:
        return Made(str(path), file_size(path, layers, metadata, dtype), note)
    check_range(layers, dtype)
    write_lora(path, tensors_of(layers), metadata, dtype)
    return Made(str(path), path.stat().st_size, note)


def check_range(layers: Mapping[str, Layer], dtype: torch.dtype | None) -> None:
    """Refuse numbers that would become infinite.

    Raises:
        UserError: naming the first layer.
    """
    if dtype is None:
        return
    largest = torch.finfo(dtype).max
    for key, layer in layers.items():
        if any(float(factor.abs().max()) > largest for factor in layer.factors.values() if factor.numel()):
            raise UserError(f"{key} has numbers that do not fit; save in bf16 or float", field="save_precision")


def arguments_of(metadata: Mapping[str, str]) -> dict[str, object]:
    """The network's own arguments as a file's metadata has them."""
    try:
        found = json.loads(metadata.get("ss_network_args", "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
