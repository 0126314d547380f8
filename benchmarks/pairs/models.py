"""The models that the benchmarks train: the demo model, or random weights of full size on the disk or the device."""

import tempfile
from pathlib import Path

import torch
from torch import nn

from backend.families.base import FAMILIES, Model, write_folder
from backend.families.build import model_configs, random_checkpoint
from backend.workspace import PROJECT
from benchmarks.pairs.settings import FAMILY_OF

DEMO = PROJECT / "backend" / "demo" / "model"


def checkpoint_folder(model: str, path: Path | None) -> Path:
    """The Diffusers folder of a model in half precision; one with random weights is written where there is none yet.

    Args:
        model: demo, sd15 or sdxl.
        path: where it is kept; None takes the temporary folder.
    """
    if model == "demo":
        return DEMO
    path = path or Path(tempfile.gettempdir()) / f"lora-loom-random-{model}"
    if not (path / "model_index.json").is_file():
        family = FAMILY_OF[model]
        write_folder(random_checkpoint(0, small=False, dtype=torch.float16, family=family), path)
    return path


def random_modules(family: str, device: torch.device | str, dtype: torch.dtype) -> dict[str, nn.Module]:
    """The parts of a full-size model by name, with PyTorch's own random start, made on the device in this precision.

    The same weights in every process on the same device.
    """
    kind, configs = FAMILIES[family], model_configs(family, small=False)
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            modules = {name: kind.build(name, configs[name]) for name in kind.parts}
    finally:
        torch.set_default_dtype(before)
    return {name: module.to(device, dtype).requires_grad_(False).eval() for name, module in modules.items()}


def random_model(family: str, device: torch.device | str, dtype: torch.dtype) -> Model:
    """These parts as one of our models."""
    kind, modules = FAMILIES[family], random_modules(family, device, dtype)
    encoders = [module for name, module in modules.items() if name.startswith("text_encoder")]
    scheduler = model_configs(family, small=False)["scheduler"]
    return Model(kind, modules["unet"], encoders, kind.tokenizers(), modules["vae"], scheduler, str(DEMO))
