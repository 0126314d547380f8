"""A tiny random model, and LoRA files for it."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backend.families.base import Model, load_model, save_diffusers
from backend.families.build import random_model
from backend.generate.pipeline import GenerationModel
from backend.lora.file import write_lora
from backend.networks.lora import create_network


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A Stable Diffusion 1 model of the demo model's sizes with random weights."""
    folder = tmp_path_factory.mktemp("model")
    save_diffusers(random_model(0), folder)
    return folder


@pytest.fixture(scope="session")
def model(model_folder) -> Model:
    """That model in memory; never changed."""
    return load_model(model_folder, dtype=None)


def copy_of(model: Model) -> Model:
    """A model with modules of its own."""
    own = {name: copy.deepcopy(getattr(model, name)) for name in ("unet", "text_encoders", "vae")}
    return replace(model, **own)


@pytest.fixture
def another(model) -> Callable[..., GenerationModel]:
    """another(dtype=...): one more pipeline on a copy of the model."""
    return lambda **options: GenerationModel(copy_of(model), **options)


@pytest.fixture
def pipeline(model) -> GenerationModel:
    """A pipeline of its own, in float32 on the CPU."""
    return GenerationModel(copy_of(model))


@pytest.fixture(scope="session")
def lora_file(model, tmp_path_factory) -> Callable[..., Path]:
    """lora_file(seed=0, dim=4, **network_args): a LoRA file with random factors strong enough to be seen."""
    folder = tmp_path_factory.mktemp("loras")

    def make(seed: int = 0, dim: int = 4, name: str | None = None, **network_args: object) -> Path:
        network = create_network(1.0, dim, dim / 2, None, model.text_encoders, model.unet, **network_args)
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            key: value if key.endswith("alpha") else torch.randn(value.shape, generator=generator) * 0.1
            for key, value in network.state_dict().items()
        }
        path = folder / f"{name or f'lora{seed}_{dim}'}.safetensors"
        write_lora(path, tensors, {})
        return path

    return make
