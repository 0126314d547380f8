"""Reading and writing LoRA files: every spelling in, kohya's spelling out.

In memory a file is `{key: layer}`, with keys as in tables/names.py. On disk each key has the layer's factors, such as
`<key>.lora_down.weight` and `<key>.lora_up.weight`, and `<key>.alpha`. A further kind of layer is a row of LAYERS.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from backend.errors import UserError
from backend.header import METADATA_KEY, pack_header, read_header
from backend.lora.layer import Layer, LoraLayer
from backend.lora.loha import LohaLayer
from backend.lora.metadata import MODEL_HASH, MODEL_SPEC, MODEL_SPEC_HASH, hashes
from backend.lora.pickled import load_pickled, save_pickled
from backend.lora.spelling import ALPHA, family_keys, family_of, module_key, split_name
from backend.lora.stream import bytes_of, entries_of, pour
from backend.replacing import replacing

SAFETENSORS = (".safetensors",)
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
# Where Diffusers keeps the settings of PEFT's adapters, alpha among them.
PEFT_SETTINGS = "lora_adapter_metadata"
LISTED = 8
LONGEST = 160
LAYERS: tuple[type[Layer], ...] = (LoraLayer, LohaLayer)


@dataclass(frozen=True)
class LoraFile:
    """What stands in a LoRA file.

    Attributes:
        layers: by key, in the order of the file.
        metadata: the file's text fields; empty for `.ckpt` and `.pt`.
    """

    layers: dict[str, Layer]
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def family(self) -> str | None:
        """The family of models that the file is for; None where its keys and shapes leave it open."""
        return family_of({key: layer.shape for key, layer in self.layers.items()})


def listing(names: Iterable[str]) -> str:
    """Names for an error message: all of them, or the first few and how many more there are."""
    names = [printable(name) for name in names]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def printable(name: str) -> str:
    """A name out of a file as it can stand in a message: on one line, without control characters, not too long."""
    text = name if name.isprintable() else name.encode("unicode_escape").decode("ascii")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def read_lora(path: str | Path) -> LoraFile:
    """Read a LoRA file in any known spelling.

    Args:
        path: `.safetensors`, or `.ckpt`, `.pt`, `.pth`, `.bin`, of which nothing but tensors is loaded.

    Raises:
        UserError: the file is missing, broken, no LoRA, or has numbers that are not finite.
    """
    tensors, metadata = read_tensors(path)
    return LoraFile(layers_of(tensors, metadata, str(path)), metadata)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a LoRA file under the names that they have there, and its metadata.

    Raises:
        UserError: the file is missing or broken.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SAFETENSORS + PICKLES:
        raise UserError(f"a LoRA file ends in {', '.join(SAFETENSORS + PICKLES)}", field=str(path))
    try:
        if suffix in PICKLES:
            return _pickled_tensors(path), {}
        # The library gives the metadata in no fixed order, the header has it as it was written.
        return safetensors.torch.load_file(path), read_header(path).metadata
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", field=str(path)) from error
    except SafetensorError as error:
        message = "is no safetensors file, or is cut off; download or save it again"
        raise UserError(message, field=str(path)) from error


def _pickled_tensors(path: Path) -> dict[str, Tensor]:
    loaded = load_pickled(path)
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise UserError("holds no table of tensors and so is no LoRA", field=str(path))
    return loaded


def layers_of(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, field: str = "weights_sd"
) -> dict[str, Layer]:
    """The layers that tensors in any known spelling make up, by key.

    A missing alpha is the rank, or what PEFT's settings in the metadata say.

    Args:
        tensors: by name.
        metadata: of the file they come from.
        field: the name under which errors are reported.

    Raises:
        UserError: a name is no LoRA's, half of a pair is missing, shapes do not fit, or a number is not finite.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, tensor in tensors.items():
        found = split_name(name)
        if found is None or found[1] in parts.get(found[0], {}):
            unknown.append(name)
        else:
            parts.setdefault(found[0], {})[found[1]] = _plain(name, tensor, field)
    if unknown:
        raise UserError(f"these names are no LoRA's, or stand there twice: {listing(unknown)}", field=field)
    if not parts:
        raise UserError("holds no LoRA layers", field=field)
    try:
        settings = _peft_settings(metadata or {})
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        message = f"has settings of PEFT in {PEFT_SETTINGS} that cannot be read; save it again"
        raise UserError(message, field=field) from error
    layers = {key: _layer(key, found, settings, field) for key, found in parts.items()}
    names = family_keys(layers, family_of({key: layer.shape for key, layer in layers.items()}))
    twice = [key for key, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise UserError(f"these names stand there twice, in different spellings: {listing(twice)}", field=field)
    return {names[key]: layer for key, layer in layers.items()}


def _plain(name: str, tensor: Tensor, field: str) -> Tensor:
    """The tensor in a type that can be computed with.

    Raises:
        UserError: it is sparse or complex.
    """
    if tensor.layout is not torch.strided or tensor.is_complex():
        raise UserError(f"{printable(name)} is a sparse or complex tensor, which no LoRA has", field=field)
    eight_bits = tensor.is_floating_point() and tensor.dtype.itemsize == 1
    return tensor.float() if eight_bits else tensor


def _layer(key: str, parts: Mapping[str, Tensor], settings: "_PeftSettings", field: str) -> Layer:
    factors = {role: tensor for role, tensor in parts.items() if role != "alpha"}
    kind = next((kind for kind in LAYERS if factors and factors.keys() <= kind.SUFFIXES.keys()), None)
    if kind is None:
        raise UserError(f"{key} mixes factors of different kinds, or has none: {', '.join(parts)}", field=field)
    missing = [role for role in kind.NEEDED if role not in parts]
    if missing:
        raise UserError(f"{key} lacks its {' and '.join(missing)} weight", field=field)
    if not all(tensor.is_meta or bool(torch.isfinite(tensor).all()) for tensor in parts.values()):
        raise UserError(f"{key} has numbers that are not finite (NaN); the file is of no use", field=field)
    if "alpha" in parts and parts["alpha"].numel() != 1:
        raise UserError(f"{key} has an alpha that is no single number", field=field)
    try:
        layer = kind.of(factors, float(parts["alpha"].item()) if "alpha" in parts else None)
        layer = layer if "alpha" in parts else replace(layer, alpha=settings.alpha(key, layer.rank))
        if not math.isfinite(layer.alpha):
            raise ValueError("its alpha is no finite number")
        return layer
    except ValueError as error:
        raise UserError(f"{key}: {error}", field=field) from error


@dataclass(frozen=True)
class _PeftSettings:
    """What PEFT's settings say about alpha: per part of the model, a number and exceptions by module."""

    alphas: dict[str, float]
    patterns: dict[str, float]
    rank_stabilised: frozenset[str]

    def alpha(self, key: str, rank: int) -> float:
        part = key.split("_")[1]
        matches = (value for name, value in self.patterns.items() if re.search(rf"(^|_){re.escape(name)}$", key))
        alpha = next(matches, self.alphas.get(part, float(rank)))
        # PEFT's rank-stabilised LoRA scales by alpha / sqrt(rank) instead of alpha / rank.
        return alpha * rank**0.5 if part in self.rank_stabilised else alpha


def _peft_settings(metadata: Mapping[str, str]) -> _PeftSettings:
    """Alpha from the settings that Diffusers writes beside PEFT's tensors, which then have no alpha of their own."""
    settings = json.loads(metadata.get(PEFT_SETTINGS, "{}"))
    settings = settings if isinstance(settings, dict) else {}
    alphas, patterns, stabilised = {}, {}, set()
    for prefix, part in (("unet.", "unet"), ("text_encoder.", "te"), ("text_encoder_2.", "te2"), ("", "unet")):
        if isinstance(settings.get(f"{prefix}lora_alpha"), int | float):
            alphas[part] = float(settings[f"{prefix}lora_alpha"])
        if settings.get(f"{prefix}use_rslora"):
            stabilised.add(part)
        for path, alpha in (settings.get(f"{prefix}alpha_pattern") or {}).items():
            patterns[module_key(prefix + path) or path.replace(".", "_")] = float(alpha)
    return _PeftSettings(alphas, patterns, frozenset(stabilised))


def tensors_of(layers: Mapping[str, Layer]) -> dict[str, Tensor]:
    """The tensors of layers under the names of a LoRA file; alpha in float32, since half precision would change it."""
    tensors: dict[str, Tensor] = {}
    for key, layer in layers.items():
        tensors |= {f"{key}{layer.SUFFIXES[name]}": factor for name, factor in layer.factors.items()}
        tensors[f"{key}{ALPHA}"] = torch.tensor(layer.alpha, dtype=torch.float32)
    return tensors


def write_lora(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a LoRA file, whole or not at all.

    Args:
        path: `.safetensors`, with the metadata and the hashes of what is written; or `.ckpt` or `.pt`, tensors alone.
        tensors: under the names of a LoRA file.
        metadata: text fields; hashes in it are replaced.
        dtype: of the weights in the file; None keeps each tensor's own. Alpha stays as it is.

    Raises:
        UserError: the path has another ending.
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    if path.suffix.lower() not in SAFETENSORS + PICKLES:
        raise UserError(f"a LoRA file ends in {', '.join(SAFETENSORS + PICKLES)}", field=str(path))
    ready = {
        name: tensor.detach().to("cpu", None if name.endswith(ALPHA) else dtype) for name, tensor in tensors.items()
    }
    with replacing(path, durable=True) as temporary:
        if path.suffix.lower() in PICKLES:
            # A pickle drags the whole storage of a view into the file.
            save_pickled({name: tensor.clone() for name, tensor in ready.items()}, temporary)
        else:
            _write_safetensors(temporary, ready, metadata or {})


def _write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Hash exactly the bytes that are written after the header that has the hashes.

    The header is written here and not by the library, which shuffles the metadata: equal input gives equal bytes.
    """
    entries = entries_of({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()})
    body = [bytes_of(tensors[name]) for name in entries]
    kept = {name: str(value) for name, value in metadata.items()}
    kept |= hashes(kept, entries, body)
    if MODEL_SPEC in kept:
        kept[MODEL_SPEC_HASH] = f"0x{kept[MODEL_HASH]}"
    with open(path, "wb") as file:
        file.write(pack_header({METADATA_KEY: kept, **entries}))
        pour(file, iter(body))
