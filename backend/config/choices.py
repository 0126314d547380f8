"""Choices that several commands share."""

from typing import Literal

NetworkModule = Literal["networks.lora"]
NETWORK_SPELLINGS = (("network.lora", "networks.lora"), ("lora", "networks.lora"))

Sampler = Literal[
    "ddim", "pndm", "lms", "euler", "euler_a", "heun", "dpm_2", "dpm_2_a", "dpmsolver", "dpmsolver++", "dpmsingle"
]
# The documents' other names of some.
SAMPLER_SPELLINGS = tuple((f"k_{name}", name) for name in ("lms", "euler", "euler_a", "dpm_2", "dpm_2_a"))
