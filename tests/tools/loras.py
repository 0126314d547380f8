"""Small models and LoRA files for the tests of the tools."""

from pathlib import Path

import torch
from torch import Tensor

from backend.families.base import Model, save_diffusers, save_single_file
from backend.families.build import random_model
from backend.lora.file import read_lora
from backend.networks import dylora, lora
from backend.networks.base import Network

FAMILIES = ("sd1", "sd2", "sdxl")


class Files:
    """A folder with a model of each family and LoRAs for it, made when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._models: dict[str, Model] = {}

    def model(self, family: str) -> Model:
        """A small model with random weights."""
        if family not in self._models:
            self._models[family] = random_model(1, family=family)
        return self._models[family]

    def checkpoint(self, family: str = "sd1", suffix: str = ".safetensors", dtype: torch.dtype = torch.float16) -> Path:
        """It as a single file, or with the suffix "" as a Diffusers folder."""
        path = self.folder / f"{family}_{str(dtype).removeprefix('torch.')}{suffix}"
        if not path.exists():
            (save_single_file if suffix else save_diffusers)(self.model(family), path, dtype)
        return path

    def lora(self, name: str, family: str = "sd1", rank: int = 4, alpha: float = 2.0, **arguments: object) -> Path:
        """A LoRA with random weights; `suffix`, `dtype`, `metadata` are about the file, the rest is the network's."""
        suffix, dtype = arguments.pop("suffix", ".safetensors"), arguments.pop("dtype", torch.float32)
        metadata = {"ss_network_module": "networks.lora", **arguments.pop("metadata", {})}
        path = self.folder / f"{family}_{name}{suffix}"
        if not path.exists():
            model = self.model(family)
            network = lora.create_network(1.0, rank, alpha, None, model.text_encoders, model.unet, **arguments)
            fill(network, name).save_weights(path, dtype, metadata)
        return path

    def dylora(self, name: str, rank: int = 8, unit: int = 2, **arguments: object) -> Path:
        """A DyLoRA with random weights for Stable Diffusion 1."""
        metadata = {"ss_network_module": "networks.dylora", "ss_network_args": f'{{"unit": "{unit}"}}'}
        metadata |= arguments.pop("metadata", {})
        path = self.folder / f"{name}{arguments.pop('suffix', '.safetensors')}"
        model = self.model("sd1")
        network = dylora.create_network(1.0, rank, 4.0, None, model.text_encoders, model.unet, unit=unit, **arguments)
        fill(network, name).save_weights(path, None, metadata)
        return path


def fill(network: Network, name: str) -> Network:
    """Random weights that hang on the name alone."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.1, generator=generator)
    return network


def deltas(path: Path) -> dict[str, Tensor]:
    """The change of every weight, in float64 and flattened."""
    return {key: layer.delta().double().flatten(1) for key, layer in read_lora(path).layers.items()}
