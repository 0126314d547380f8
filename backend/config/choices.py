"""Choices that several commands share."""

from typing import Literal

NetworkModule = Literal["networks.lora", "networks.dylora", "networks.loha"]
# The documents write them in several ways.
NETWORK_SPELLINGS = tuple(
    (f"{prefix}{name}", f"networks.{name}") for name in ("lora", "dylora", "loha") for prefix in ("network.", "")
)

Sampler = Literal[
    "ddim", "pndm", "lms", "euler", "euler_a", "heun", "dpm_2", "dpm_2_a", "dpmsolver", "dpmsolver++", "dpmsingle"
]
# The documents' other names of some.
SAMPLER_SPELLINGS = tuple((f"k_{name}", name) for name in ("lms", "euler", "euler_a", "dpm_2", "dpm_2_a"))

# How pictures are resized for training.
Interpolation = Literal["lanczos", "nearest", "bilinear", "bicubic", "area", "box"]
INTERPOLATION_SPELLINGS = (("lanczos4", "lanczos"), ("linear", "bilinear"), ("cubic", "bicubic"))
