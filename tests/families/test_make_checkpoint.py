"""The benchmark's random checkpoints load like any other, and the full-size ones have the real models' sizes."""

import math
from pathlib import Path

import pytest
import torch

from backend.families.base import FAMILIES, load_model
from backend.families.build import empty_checkpoint
from benchmarks.make_checkpoint import write

# Parameters of the real models by part, as their authors and diffusers count them.
SIZES = {
    "sd1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_small_one_loads_and_follows_its_seed(family: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        write(path, seed, small=True, family=family)
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()
    model = load_model(paths[0], dtype=None)
    assert model.family.name == family and model.dtype == torch.float16


@pytest.mark.parametrize("family", list(FAMILIES))
def test_full_sizes_are_those_of_the_real_models(family: str) -> None:
    parts = empty_checkpoint(small=False, family=family).parts
    counts = {name: sum(math.prod(tensor.shape) for tensor in part.tensors.values()) for name, part in parts.items()}
    assert counts == SIZES[family]
