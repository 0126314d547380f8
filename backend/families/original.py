"""The original single-file layout of Stable Diffusion 1: tensors of one file <-> parts in Diffusers' names."""

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backend.errors import UserError
from backend.families.model import Checkpoint, Part
from backend.tables import layout

CONFIGS = Path(__file__).parent / "configs"
CLIP_HEAD_WIDTH = 64

# Of a checkpoint's own numbers, those that the single-file layout has no place for: they must be SD1's.
_UNSTORED = {
    "unet": ("act_fn", "attention_head_dim", "flip_sin_to_cos", "freq_shift", "norm_eps", "norm_num_groups"),
    "vae": ("act_fn", "norm_num_groups", "scaling_factor", "shift_factor"),
    "text_encoder": ("hidden_act", "layer_norm_eps", "num_attention_heads"),
    "scheduler": ("beta_end", "beta_schedule", "beta_start", "num_train_timesteps", "prediction_type"),
}
# Beside the text transformer in some files, and of no use to Stable Diffusion 1.
_CLIP_EXTRAS = ("text_projection", "logit_scale", "vision_model.", "visual_projection")


def sd1_config() -> dict[str, dict[str, Any]]:
    """Stable Diffusion 1.5's own configurations by part, a fresh copy."""
    return json.loads((CONFIGS / "sd1.json").read_text(encoding="utf-8"))


def to_matrix(name: str, tensor: Tensor) -> Tensor:
    """A VAE attention weight as the matrix that Diffusers has; the original has 1x1 convolutions."""
    if ".mid_block.attentions.0.to_" in name and tensor.dim() > 2:
        return tensor.reshape(tensor.shape[:2])
    return tensor


def _levels(names: Mapping[str, Any], prefix: str) -> int:
    """How many consecutive numbers 0, 1, ... follow the prefix in the names."""
    found = {name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)}
    return next(count for count in range(len(found) + 1) if str(count) not in found)


def _parts_of(tensors: Mapping[str, Tensor], source: str) -> dict[str, dict[str, Tensor]]:
    """The file's tensors by part, renamed; averages, schedules and training state are left out."""
    encoder = f"{layout.VAE_PREFIX}encoder.down."
    vae_size = {"levels": _levels(tensors, encoder), "layers": _levels(tensors, f"{encoder}0.block.")}
    readers: dict[str, tuple[str, Callable[[str], str]]] = {
        "unet": (layout.UNET_PREFIX, layout.unet_to_diffusers),
        "vae": (layout.VAE_PREFIX, partial(layout.vae_to_diffusers, **vae_size)),
        "text_encoder": (layout.CLIP_PREFIX, layout.clip_to_diffusers),
    }
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in readers}
    unknown = []
    for key, tensor in tensors.items():
        for part, (prefix, rename) in readers.items():
            inner = key.removeprefix(prefix)
            if inner == key or inner.startswith("model_ema."):
                continue
            if part == "text_encoder" and (inner.startswith(_CLIP_EXTRAS) or inner.endswith(layout.POSITION_IDS)):
                continue
            try:
                name = rename(inner)
            except ValueError:
                unknown.append(key)
                continue
            parts[part][name] = to_matrix(name, tensor) if part == "vae" else tensor
    if unknown:
        raise UserError(few("tensors that Stable Diffusion 1 does not have", unknown), field=source)
    for part, (prefix, _) in readers.items():
        if not parts[part]:
            raise UserError(f"the {part} is missing (no tensor starts with {prefix}); use a full checkpoint", source)
    return parts


def few(what: str, names: list[str]) -> str:
    """`3 <what>: a, b, c` with at most four of the names."""
    shown = ", ".join(sorted(names)[:4])
    return f"{len(names)} {what}: {shown}{', ...' if len(names) > 4 else ''}"


def _shape(tensors: Mapping[str, Tensor], name: str, prefix: str, source: str) -> tuple[int, ...]:
    tensor = tensors.get(name)
    if tensor is None:
        raise UserError(f"{prefix}{name} is missing; the file is incomplete", field=source)
    return tuple(tensor.shape)


def sd1_configs_from(parts: Mapping[str, Mapping[str, Tensor]], source: str) -> dict[str, dict[str, Any]]:
    """Configurations with the widths and layers read from the tensors; what they do not tell is Stable Diffusion 1.5's.

    Raises:
        UserError: a tensor that tells a width is missing.
    """
    config = sd1_config()

    def unet(name: str, axis: int = 0) -> int:
        return _shape(parts["unet"], name, "unet.", source)[axis]

    def vae(name: str, axis: int = 0) -> int:
        return _shape(parts["vae"], name, "vae.", source)[axis]

    def text(name: str, axis: int = 0) -> int:
        return _shape(parts["text_encoder"], name, "text_encoder.", source)[axis]

    levels = len(layout.SD1_UNET.attention)
    config["unet"] |= {
        "block_out_channels": [unet(f"down_blocks.{level}.resnets.0.conv2.weight") for level in range(levels)],
        "cross_attention_dim": unet("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", 1),
        "in_channels": unet("conv_in.weight", 1),
        "out_channels": unet("conv_out.weight"),
    }
    levels = _levels(parts["vae"], "encoder.down_blocks.")
    config["vae"] |= {
        "block_out_channels": [vae(f"encoder.down_blocks.{level}.resnets.0.conv2.weight") for level in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": vae("encoder.conv_in.weight", 1),
        "latent_channels": vae("post_quant_conv.weight", 1),
        "layers_per_block": _levels(parts["vae"], "encoder.down_blocks.0.resnets."),
        "out_channels": vae("decoder.conv_out.weight"),
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    width = text("embeddings.token_embedding.weight", 1)
    config["text_encoder"] |= {
        "hidden_size": width,
        "intermediate_size": text("encoder.layers.0.mlp.fc1.weight"),
        "max_position_embeddings": text("embeddings.position_embedding.weight"),
        "num_attention_heads": max(1, width // CLIP_HEAD_WIDTH),
        "num_hidden_layers": _levels(parts["text_encoder"], "encoder.layers."),
        "projection_dim": width,
        "vocab_size": text("embeddings.token_embedding.weight"),
    }
    return config


def read_sd1(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], source: str) -> Checkpoint:
    """A single file's tensors as a checkpoint.

    Args:
        metadata: the file's; `modelspec.resolution` tells the size of pictures the model was trained for.
        source: for messages.

    Raises:
        UserError: a part is missing or has tensors that Stable Diffusion 1 does not.
    """
    parts = _parts_of(tensors, source)
    config = sd1_configs_from(parts, source)
    if config["unet"]["in_channels"] != 4:
        channels = config["unet"]["in_channels"]
        message = f"its U-Net takes {channels} channels (an inpainting or editing model); use a text-to-image model"
        raise UserError(message, field=source)
    edge = metadata.get("modelspec.resolution", "").split("x")[0]
    if edge.isdecimal() and int(edge) >= 8:
        config["vae"]["sample_size"] = int(edge)
        config["unet"]["sample_size"] = int(edge) // 2 ** (len(config["vae"]["block_out_channels"]) - 1)
    loaded = {name: Part(config[name], tensors) for name, tensors in parts.items()}
    return Checkpoint("sd1", loaded, config["scheduler"], source)


def _check_representable(checkpoint: Checkpoint) -> None:
    """A single file cannot say what differs from SD1; refuse rather than write a model that runs differently."""
    tensors = {name: part.tensors for name, part in checkpoint.parts.items()}
    implied = sd1_configs_from(tensors, checkpoint.source)
    actual = {name: part.config for name, part in checkpoint.parts.items()} | {"scheduler": checkpoint.scheduler}
    for part, keys in _UNSTORED.items():
        for key in keys:
            ours, theirs = actual[part].get(key, implied[part].get(key)), implied[part].get(key)
            if ours != theirs and ours != [theirs] * 4:
                message = f"the {part} has {key} = {ours}, which a single file cannot hold (there it is {theirs})"
                raise UserError(f"{message}; keep the Diffusers folder", field=checkpoint.source)


def write_sd1(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of the single file that holds this checkpoint; tensors are views, not copies.

    Raises:
        UserError: the checkpoint has a setting that the layout cannot hold.
    """
    _check_representable(checkpoint)
    vae = checkpoint.parts["vae"]
    size = {"levels": len(vae.config["block_out_channels"]), "layers": vae.config["layers_per_block"]}
    tensors = {}
    for name, tensor in checkpoint.parts["unet"].tensors.items():
        tensors[layout.UNET_PREFIX + layout.unet_to_original(name)] = tensor
    for name, tensor in vae.tensors.items():
        as_conv = ".mid_block.attentions.0.to_" in name and tensor.dim() == 2
        tensors[layout.VAE_PREFIX + layout.vae_to_original(name, **size)] = (
            tensor[..., None, None] if as_conv else tensor
        )
    for name, tensor in checkpoint.parts["text_encoder"].tensors.items():
        tensors[layout.CLIP_PREFIX + layout.clip_to_original(name)] = tensor
    positions = checkpoint.parts["text_encoder"].tensors["embeddings.position_embedding.weight"].shape[0]
    ids = torch.arange(positions, dtype=torch.int64)[None]
    tensors[layout.CLIP_PREFIX + layout.clip_to_original(layout.POSITION_IDS)] = ids
    edge = checkpoint.parts["unet"].config["sample_size"] * 2 ** (size["levels"] - 1)
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.resolution": f"{edge}x{edge}",
    }
    return tensors, deepcopy(metadata)
