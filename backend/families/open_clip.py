"""OpenCLIP's text encoder, as single files of Stable Diffusion 2 and XL have it, <-> CLIP's in transformers.

OpenCLIP stacks the query, key and value projections of a layer in one tensor, and keeps its text projection the other
way round, as the right-hand side of a product.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from backend.tables import layout

_STACKED = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")
_APART = re.compile(r"encoder\.layers\.(\d+)\.self_attn\.[qkv]_proj\.(weight|bias)")
_LAYER = re.compile(r"encoder\.layers\.(\d{1,4})\.")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
# Beside the encoder in some files, and of no use for encoding captions.
_EXTRAS = ("logit_scale", "attn_mask", "visual.", "transformer.text_model.embeddings.position_ids")
# Files that hold the whole encoder of Stable Diffusion 2 have this many layers, and it was made without the last one.
SD2_LAYERS = 24


def from_open_clip(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under OpenCLIP's names -> under transformers' names (views where that is possible), and unknown names."""
    found: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in tensors.items():
        stacked = _STACKED.fullmatch(name)
        if name.startswith(_EXTRAS):
            continue
        if stacked and (not tensor.dim() or len(tensor) % len(_PROJECTIONS) or not len(tensor)):
            unknown.append(name)
        elif stacked:
            layer, kind = stacked.groups()
            for projection, piece in zip(_PROJECTIONS, tensor.chunk(3), strict=True):
                found[f"encoder.layers.{layer}.self_attn.{projection}.{kind}"] = piece
        elif name == layout.TEXT_PROJECTION:  # some programs save it as transformers has it
            found[name] = tensor
        elif name == "text_projection":
            found[layout.TEXT_PROJECTION] = tensor.T.contiguous() if tensor.dim() == 2 else tensor
        else:
            try:
                found[layout.open_clip_to_diffusers(name)] = tensor
            except ValueError:
                unknown.append(name)
    return found, unknown


def to_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back of `from_open_clip`."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        apart = _APART.fullmatch(name)
        if apart:
            layer, kind = apart.groups()
            pieces = [tensors[f"encoder.layers.{layer}.self_attn.{projection}.{kind}"] for projection in _PROJECTIONS]
            found[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat(pieces)
        elif name == layout.TEXT_PROJECTION:
            found["text_projection"] = tensor.T
        else:
            found[layout.open_clip_to_original(name)] = tensor
    return found


def without_spare_layer(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An encoder of Stable Diffusion 2 as it is used: up to its last layer but one, without the projection.

    A file has the layer that is not used where it has the whole of OpenCLIP, so with `text_projection`, or all of the
    24 layers; a file that was written from a Diffusers folder may lack both.
    """
    numbers = (_LAYER.match(name) for name in tensors)
    layers = 1 + max((int(number[1]) for number in numbers if number), default=-1)
    whole = layout.TEXT_PROJECTION in tensors or layers == SD2_LAYERS
    spare = f"encoder.layers.{layers - 1}." if whole else layout.TEXT_PROJECTION
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name != layout.TEXT_PROJECTION and not name.startswith(spare)
    }


def with_spare_layer(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stand-ins for what Stable Diffusion 2 does not use and other programs expect in its files.

    They build the whole encoder and take the output of its last layer but one; what fills the last is all the same.
    """
    layers = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.layers."))
    last = f"encoder.layers.{layers - 1}."
    copies = {
        name.replace(last, f"encoder.layers.{layers}.", 1): tensor
        for name, tensor in tensors.items()
        if name.startswith(last)
    }
    norm = tensors["final_layer_norm.weight"]
    return dict(tensors) | copies | {layout.TEXT_PROJECTION: torch.eye(norm.shape[0], dtype=norm.dtype)}
