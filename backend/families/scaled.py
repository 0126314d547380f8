"""Checkpoints in 8 bits whose numbers are kept beside a scale: read as what they mean, or refused by name."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from backend.errors import UserError
from backend.families.storage import read_tensors

# Of a layer, beside its `weight`: the number, or one for each row, that the weight is to be multiplied by.
_SCALES = (".scale_weight", ".weight_scale")
# What only a program that computes in 8 bits has a use for.
_UNUSED = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")
# Marks of other ways to keep weights in few bits.
_QUANTISED = (".absmax", ".quant_map", ".SCB", ".qweight", ".qzeros", ".weight_format", ".weight_scale_2")
_QUANTISED_PART = ".quant_state.bitsandbytes"
_EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A model file's tensors with their scales worked in, and its metadata; see `storage.read_tensors`.

    Raises:
        UserError: also where weights are kept in a way that is not known here.
    """
    tensors, metadata = read_tensors(path)
    return unscaled(tensors, str(path)), metadata


def unscaled(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Weights times their scales in float32, exact to its rounding; what has no scale stays as it is.

    Raises:
        UserError: a scale does not fit its weight, or the weights are kept in another way.
    """
    foreign = next((name for name in tensors if name.endswith(_QUANTISED) or _QUANTISED_PART in name), None)
    if foreign is not None:
        message = f"its weights are quantised ({foreign[:120]}), which is not supported; use one in fp16, bf16 or fp8"
        raise UserError(message, field=source)
    scales = {name: scale for name, scale in tensors.items() if name.endswith(_SCALES)}
    if not scales and not any(name.endswith(_UNUSED) for name in tensors):
        return dict(tensors)
    found = {name: tensor for name, tensor in tensors.items() if name not in scales and not name.endswith(_UNUSED)}
    for name, scale in scales.items():
        weight = f"{name.rpartition('.')[0]}.weight"
        if weight in found:
            found[weight] = _times(found[weight], scale, name, source)
    return found


def _times(weight: Tensor, scale: Tensor, name: str, source: str) -> Tensor:
    rows = weight.shape[0] if weight.dim() else 1
    if weight.dtype not in _EIGHT_BITS or not scale.is_floating_point() or scale.numel() not in (1, rows):
        message = f"{name[:120]} is no scale of a weight in fp8, or one of blocks, which is not supported"
        raise UserError(f"{message}; use a checkpoint without scales", field=source)
    return weight.float() * scale.float().reshape(-1, *[1] * max(0, weight.dim() - 1))
