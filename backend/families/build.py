"""Models with random weights: for tests and benchmarks, and as the start of a model trained from nothing."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from backend.families.base import FAMILIES, assemble
from backend.families.model import Checkpoint, Model, Part
from backend.families.widths import family_config
from backend.tables import layout

_SMALL_VAE = {"block_out_channels": [32, 64, 64, 64], "sample_size": 64}
_SMALL_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_attention_heads": 1,
    "num_hidden_layers": 2,
    "projection_dim": 64,
}
SMALL: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "sd1": {
        "unet": {"block_out_channels": [32, 64, 96, 128], "cross_attention_dim": 64, "sample_size": 8},
        "vae": _SMALL_VAE,
        "text_encoder": _SMALL_TEXT,
    },
    "sd2": {
        "unet": {
            "attention_head_dim": [1, 1, 2, 2],
            "block_out_channels": [32, 64, 128, 128],
            "cross_attention_dim": 64,
            "sample_size": 8,
        },
        "vae": _SMALL_VAE,
        "text_encoder": _SMALL_TEXT | {"num_hidden_layers": 3},
    },
    "sdxl": {
        "unet": {
            "addition_time_embed_dim": 16,
            "attention_head_dim": [1, 1, 2],
            "block_out_channels": [32, 64, 128],
            "cross_attention_dim": 192,
            "projection_class_embeddings_input_dim": 6 * 16 + 128,
            "sample_size": 8,
            "transformer_layers_per_block": [1, 1, 2],
        },
        "vae": _SMALL_VAE,
        "text_encoder": _SMALL_TEXT,
        "text_encoder_2": _SMALL_TEXT
        | {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 3, "projection_dim": 128},
    },
}


def model_configs(family: str = "sd1", small: bool = True) -> dict[str, dict[str, Any]]:
    """A family's configurations by part: tiny ones (of SD1 the demo model's sizes), or those of the real model."""
    config = family_config(family)
    return {name: value | (SMALL[family].get(name, {}) if small else {}) for name, value in config.items()}


def sd1_configs(small: bool = True) -> dict[str, dict[str, Any]]:
    """Configurations by part: the demo model's sizes, or Stable Diffusion 1.5's."""
    return model_configs("sd1", small)


def random_tensor(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """A weight of a size that keeps activations near one, float32; the name may be of either layout.

    Matrices and convolutions are scaled by their fan-in; vectors are a norm's weight (1) or a bias (0).
    """
    if len(shape) < 2:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    if name.endswith("embedding.weight"):
        return torch.randn(shape, generator=generator) * 0.02
    return torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))


def empty_checkpoint(small: bool = True, family: str = "sd1") -> Checkpoint:
    """A checkpoint of shapes alone: its tensors are on the meta device."""
    kind, config = FAMILIES[family], model_configs(family, small)
    parts = {}
    with torch.device("meta"):
        for name in kind.parts:
            state = kind.build(name, config[name]).state_dict()
            parts[name] = Part(config[name], {layout.clip_to_diffusers(key): value for key, value in state.items()})
    return Checkpoint(family, parts, config["scheduler"], "random")


def random_checkpoint(
    seed: int = 0, small: bool = True, dtype: torch.dtype = torch.float32, family: str = "sd1"
) -> Checkpoint:
    """A checkpoint with random weights; the same for the same seed, whatever the type."""
    checkpoint = empty_checkpoint(small, family)
    generator = torch.Generator().manual_seed(seed)
    for part in checkpoint.parts.values():
        part.tensors = {
            name: random_tensor(name, value.shape, generator).to(dtype) for name, value in part.tensors.items()
        }
    return checkpoint


def random_model(
    seed: int = 0,
    small: bool = True,
    dtype: torch.dtype = torch.float32,
    family: str = "sd1",
    prediction_type: str = "epsilon",
) -> Model:
    """A model with random weights on the CPU, frozen and in evaluation mode.

    Args:
        seed: same seed, same weights.
        small: tiny (12 million parameters as SD1, pictures of 64 px) instead of the real model's size.
        family: a name of `FAMILIES`.
        prediction_type: what it says that it predicts, epsilon or v_prediction.
    """
    checkpoint = random_checkpoint(seed, small, dtype, family)
    checkpoint.scheduler["prediction_type"] = prediction_type
    return assemble(checkpoint, dtype)
