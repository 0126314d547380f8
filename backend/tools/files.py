"""What the LoRA tools share: files in, checked against each other, and files out, whole or not at all."""

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from backend.config.base import Command, resolved_toml
from backend.config.lora_tools import LoraResult, Mixture
from backend.errors import UserError
from backend.header import METADATA_KEY, pack_header
from backend.lora.algebra import by_key, vanishes
from backend.lora.family import family_keys, spelled_for, titles_of
from backend.lora.file import LoraFile, listing, read_lora, tensors_of, write_lora
from backend.lora.fit import LEAVE_OUT
from backend.lora.layer import Layer, LoraLayer
from backend.lora.metadata import minimum_metadata
from backend.lora.places import block_of, order_of_blocks
from backend.lora.provenance import Source
from backend.lora.source import PICKLES
from backend.replacing import replacing
from backend.tables.identity import title_of
from backend.terminal import warn
from backend.tools.report import Made

Sum = tuple[Sequence[LoraLayer], Sequence[float]]
# Bytes of a LoRA file beside its numbers, per module: names, shapes and alpha.
OVERHEAD = 320
DTYPES = {"float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def check_target(path: Path, result: LoraResult) -> None:
    """Refuse early what would fail or destroy something late.

    Raises:
        UserError: the file is there and may not be replaced, or cannot be written.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file", field="save_to")
    if os.path.lexists(path) and not result.overwrite:
        raise UserError(f"{path} exists; give --overwrite to replace it", field="save_to")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        message = f"{path} cannot be written ({error.strerror or error}); choose another folder"
        raise UserError(message, field="save_to") from None


def keep_config(config: Command, result: LoraResult) -> None:
    """Keep the resolved config beside the result."""
    if not result.dry_run:
        with replacing(result.save_to.with_suffix(".config.toml")) as temporary:
            # A path that is no UTF-8 cannot stand in a toml.
            temporary.write_text(resolved_toml(config), encoding="utf-8", errors="replace")


@dataclass(frozen=True)
class Inputs:
    """LoRA files that are used together: those whose ratio is not 0.

    Attributes:
        paths, files, ratios: one for each.
        family: that they are made for; None where none of them tells.
    """

    paths: tuple[Path, ...]
    files: tuple[LoraFile, ...]
    ratios: tuple[float, ...]
    family: str | None

    @property
    def sources(self) -> list[Source]:
        """Where a result comes from."""
        named = zip(self.paths, self.files, self.ratios, strict=True)
        return [Source(path, file.metadata, ratio) for path, file, ratio in named]

    def sums(self) -> dict[str, Sum]:
        """The layers that are added up under each key, with their ratios.

        Raises:
            UserError: a file is of another kind than LoRA.
        """
        return by_key(only_loras(self.paths, self.files), self.ratios)


def read_files(mixture: Mixture, family: str | None = None) -> Inputs:
    """Read LoRA files that are to be used together.

    Args:
        family: of the model that they are for, where that is known.

    Raises:
        UserError: a file is broken, has keys that no model has, or they are made for different models.
    """
    used = [(path, ratio) for path, ratio in zip(mixture.models, mixture.weights, strict=True) if ratio]
    paths, ratios = (tuple(part) for part in zip(*used, strict=True))
    files = [read_lora(path, mixture.allow_unmatched) for path in paths]
    family = family or common_family(paths, files)
    spelling = family or ("sdxl" if any(spelled_for(file.shapes) == "sdxl" for file in files) else "sd1")
    files = [
        _known(path, file, family, spelling, mixture.allow_unmatched) for path, file in zip(paths, files, strict=True)
    ]
    for path, file in zip(paths, files, strict=True):
        for note in file.notes:
            warn(f"{path}: {note}")
    files = [replace(file, notes=()) for file in files]
    sizes: dict[str, tuple[tuple[int, int], Path]] = {}
    for path, file in zip(paths, files, strict=True):
        for key, layer in file.layers.items():
            shape, first = sizes.setdefault(key, (layer.shape, path))
            if shape != layer.shape:
                message = f"{key} is made for a weight of {layer.shape}, in {first} it is {shape}"
                raise UserError(f"{message}; choose LoRAs for the same model", field=str(path))
    return Inputs(paths, tuple(files), ratios, family)


def common_family(paths: Sequence[Path], files: Sequence[LoraFile]) -> str | None:
    """The family that files are made for; None where they leave it open.

    Raises:
        UserError: they are made for different ones.
    """
    known = {path: file.families for path, file in zip(paths, files, strict=True) if file.families}
    common = frozenset.intersection(*known.values()) if known else frozenset()
    if known and not common:
        told = ", ".join(f"{path} for {titles_of(families)}" for path, families in known.items())
        raise UserError(f"are made for different models: {told}", field="models")
    return next(iter(common)) if len(common) == 1 else None


def _known(path: Path, file: LoraFile, family: str | None, spelling: str, allow_unmatched: bool) -> LoraFile:
    """The file with the keys of its family, which one alone may not tell.

    Args:
        family: None where it is not known.
        spelling: the family whose spelling the keys get.

    Raises:
        UserError: it has keys that no model of the family has.
    """
    if family is not None and file.families and family not in file.families:
        raise UserError(f"is made for {titles_of(file.families)}, the model is {title_of(family)}", field=str(path))
    names = family_keys(file.shapes, spelling)
    layers = {names[key]: layer for key, layer in file.layers.items()}
    unmatched = [key for key in layers if block_of(key, spelling) is None]
    if not unmatched:
        return replace(file, layers=layers)
    model = "any model" if family is None else f"a {title_of(family)} model"
    message = f"{len(unmatched)} of its keys match no module of {model}: {listing(unmatched)}"
    if len(unmatched) == len(layers):
        raise UserError(message, field=str(path))
    if not allow_unmatched:
        raise UserError(f"{message}; {LEAVE_OUT}", field=str(path))
    note, lost = f"{message}; left out", set(unmatched)
    return replace(file, layers={key: layer for key, layer in layers.items() if key not in lost},
                   notes=(*file.notes, note))  # fmt: skip


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


def check_effect(sums: Iterable[Sum]) -> None:
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
    for key, layer in layers.items():
        for factor in (factor for factor in layer.factors.values() if factor.numel()):
            largest = float(factor.abs().max())
            if not largest < float("inf"):
                raise UserError(f"{key} would have numbers that are too large; lower the ratio", field="ratios")
            if dtype is not None and largest > torch.finfo(dtype).max:
                raise UserError(f"{key} has numbers that do not fit; save in bf16 or float", field="save_precision")


def rounded(layers: Sequence[LoraLayer], precision: str, field: str = "precision") -> list[LoraLayer]:
    """Layers in a precision.

    Args:
        field: the option that asks for it.

    Raises:
        UserError: numbers do not fit into it.
    """
    if precision == "float":
        return list(layers)
    dtype = DTYPES[precision]
    found = [LoraLayer(layer.down.to(dtype), layer.up.to(dtype), layer.alpha) for layer in layers]
    if not all(bool(torch.isfinite(factor).all()) for layer in found for factor in layer.factors.values()):
        raise UserError(f"{precision} is too small for these numbers; take bf16 or float", field=field)
    return found
