"""Choices that several commands share."""

from typing import Literal, get_args

NetworkModule = Literal["networks.lora"]
NETWORK_SPELLINGS = (("network.lora", "networks.lora"), ("lora", "networks.lora"))

Sampler = Literal[
    "ddim", "pndm", "lms", "euler", "euler_a", "heun", "dpm_2", "dpm_2_a", "dpmsolver", "dpmsolver++", "dpmsingle"
]


def sampler_spellings() -> tuple[tuple[str, str], ...]:
    """The samplers' other names in the documents: `k_euler` for `euler`, and so on."""
    return tuple((f"k_{name}", name) for name in get_args(Sampler))
