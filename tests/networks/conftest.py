"""A tiny model in SD1's shape, and networks that are not at zero."""

from collections.abc import Callable

import pytest
import torch

from backend.networks.base import Network
from backend.networks.lora import create_network
from tests.networks.tiny import TinyModel, make_model


@pytest.fixture
def model() -> TinyModel:
    return make_model()


@pytest.fixture
def trained() -> Callable[..., Network]:
    """A network of given options whose `up` weights are not zero, as after training."""

    def make(model: TinyModel, seed: int = 1, dim: int = 4, alpha: float = 2.0, **network_args: object) -> Network:
        generator = torch.Generator().manual_seed(seed)
        network = create_network(
            1.0, dim, alpha, None, model.text_encoder, model.unet, generator=generator, **network_args
        )
        with torch.no_grad():
            for adapter in network.adapters():
                adapter.lora_up.weight.normal_(std=0.1, generator=generator)
        return network

    return make
