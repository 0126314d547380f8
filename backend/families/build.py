"""Models with random weights: for tests and benchmarks, and as the start of a model trained from nothing."""

import math
from typing import Any

import torch
from torch import Tensor

from backend.families.base import FAMILIES, assemble
from backend.families.model import Checkpoint, Model, Part
from backend.families.original import sd1_config

SMALL = {
    "unet": {"block_out_channels": [32, 64, 96, 128], "cross_attention_dim": 64, "sample_size": 8},
    "vae": {"block_out_channels": [32, 64, 64, 64], "sample_size": 64},
    "text_encoder": {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_attention_heads": 1,
        "num_hidden_layers": 2,
        "projection_dim": 64,
    },
}


def sd1_configs(small: bool = True) -> dict[str, dict[str, Any]]:
    """Configurations by part: the demo model's sizes, or Stable Diffusion 1.5's."""
    config = sd1_config()
    return {name: value | (SMALL.get(name, {}) if small else {}) for name, value in config.items()}


def random_tensor(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """A weight of a size that keeps activations near one, float32; the name may be of either layout.

    Matrices and convolutions are scaled by their fan-in; vectors are a norm's weight (1) or a bias (0).
    """
    if len(shape) < 2:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    if name.endswith("embedding.weight"):
        return torch.randn(shape, generator=generator) * 0.02
    return torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))


def empty_checkpoint(small: bool = True) -> Checkpoint:
    """A Stable Diffusion 1 checkpoint of shapes alone: its tensors are on the meta device."""
    family, config = FAMILIES["sd1"], sd1_configs(small)
    with torch.device("meta"):
        parts = {name: Part(config[name], family.build(name, config[name]).state_dict()) for name in family.parts}
    return Checkpoint(family.name, parts, config["scheduler"], "random")


def random_checkpoint(seed: int = 0, small: bool = True, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """A Stable Diffusion 1 checkpoint with random weights; the same for the same seed, whatever the type."""
    checkpoint = empty_checkpoint(small)
    generator = torch.Generator().manual_seed(seed)
    for part in checkpoint.parts.values():
        part.tensors = {
            name: random_tensor(name, value.shape, generator).to(dtype) for name, value in part.tensors.items()
        }
    return checkpoint


def random_model(seed: int = 0, small: bool = True, dtype: torch.dtype = torch.float32) -> Model:
    """A Stable Diffusion 1 model with random weights on the CPU, frozen and in evaluation mode.

    Args:
        seed: same seed, same weights.
        small: the demo model's sizes (12 million parameters, pictures of 64 px) instead of SD1.5's.
    """
    return assemble(random_checkpoint(seed, small, dtype), dtype)
