"""A model's configuration: what its tensors tell of widths and layers, and the family's own numbers for the rest."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from backend.errors import UserError
from backend.tables import layout

CONFIGS = Path(__file__).parent / "configs"
HEAD_WIDTH = 64  # of every text encoder, and of the U-Nets of Stable Diffusion 2 and XL
SIZE_IDS = 6

Parts = Mapping[str, Mapping[str, Tensor]]
Config = dict[str, Any]


def family_config(name: str) -> dict[str, Config]:
    """A family's own configurations by part, and `scheduler`; a fresh copy."""
    return json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))


def count_levels(names: Mapping[str, Any], prefix: str) -> int:
    """How many consecutive numbers 0, 1, ... follow the prefix in the names."""
    found = {name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)}
    return next(count for count in range(len(found) + 1) if str(count) not in found)


def _reader(tensors: Mapping[str, Tensor], part: str, source: str) -> Callable[..., int]:
    def length(name: str, axis: int = 0) -> int:
        tensor = tensors.get(name)
        if tensor is None or tensor.dim() <= axis:
            raise UserError(f"{part}.{name} is missing; the file is incomplete", field=source)
        return tensor.shape[axis]

    return length


def configs_from(family: str, unet: layout.UNetLayout, parts: Parts, source: str) -> dict[str, Config]:
    """Configurations by part with the widths and layers read from the tensors.

    Args:
        family: whose configurations say what the tensors do not tell.
        unet: numbering of its U-Net.
        parts: tensors by part; without a VAE its configuration is the family's.
        source: for messages.

    Raises:
        UserError: a tensor that tells a width is missing.
    """
    config = family_config(family)
    config["unet"] |= _unet(unet, parts, config["unet"], source)
    if "vae" in parts:
        config["vae"] |= vae_widths(parts["vae"], source)
    for name in config:
        if name.startswith("text_encoder") and name in parts:
            config[name] |= _text_encoder(name, parts[name], source)
    return config


def _unet(unet: layout.UNetLayout, parts: Parts, family: Config, source: str) -> Config:
    tensors = parts["unet"]
    length = _reader(tensors, "unet", source)
    levels = len(unet.attention)
    widths = [length(f"down_blocks.{level}.resnets.0.conv2.weight") for level in range(levels)]
    found: Config = {
        "block_out_channels": widths,
        "cross_attention_dim": length("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", 1),
        "in_channels": length("conv_in.weight", 1),
        "out_channels": length("conv_out.weight"),
    }
    if isinstance(family["attention_head_dim"], list):
        # Diffusers' name for what is the number of heads.
        found["attention_head_dim"] = [max(1, width // HEAD_WIDTH) for width in widths]
    if "use_linear_projection" in family:
        length("mid_block.attentions.0.proj_in.weight")
        found["use_linear_projection"] = tensors["mid_block.attentions.0.proj_in.weight"].dim() == 2
    if "transformer_layers_per_block" in family:
        depths = [count_levels(tensors, f"down_blocks.{n}.attentions.0.transformer_blocks.") for n in range(levels)]
        found["transformer_layers_per_block"] = [max(1, depth) for depth in depths]
    if "projection_class_embeddings_input_dim" in family:
        width = length("add_embedding.linear_1.weight", 1)
        pooled = _reader(parts["text_encoder_2"], "text_encoder_2", source)(layout.TEXT_PROJECTION)
        found["projection_class_embeddings_input_dim"] = width
        found["addition_time_embed_dim"] = (width - pooled) // SIZE_IDS
    return found


def vae_widths(tensors: Mapping[str, Tensor], source: str) -> Config:
    """What the tensors of a VAE, in Diffusers' names, tell of it."""
    length = _reader(tensors, "vae", source)
    levels = count_levels(tensors, "encoder.down_blocks.")
    # The VAEs of newer models have no quant_conv; their latents have more channels.
    decoded = "post_quant_conv.weight" if "post_quant_conv.weight" in tensors else "decoder.conv_in.weight"
    return {
        "block_out_channels": [
            length(f"encoder.down_blocks.{level}.resnets.0.conv2.weight") for level in range(levels)
        ],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": length("encoder.conv_in.weight", 1),
        "latent_channels": length(decoded, 1),
        "layers_per_block": count_levels(tensors, "encoder.down_blocks.0.resnets."),
        "out_channels": length("decoder.conv_out.weight"),
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def _text_encoder(part: str, tensors: Mapping[str, Tensor], source: str) -> Config:
    length = _reader(tensors, part, source)
    width = length("embeddings.token_embedding.weight", 1)
    return {
        "hidden_size": width,
        "intermediate_size": length("encoder.layers.0.mlp.fc1.weight"),
        "max_position_embeddings": length("embeddings.position_embedding.weight"),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "num_hidden_layers": count_levels(tensors, "encoder.layers."),
        "projection_dim": length(layout.TEXT_PROJECTION) if layout.TEXT_PROJECTION in tensors else width,
        "vocab_size": length("embeddings.token_embedding.weight"),
    }
