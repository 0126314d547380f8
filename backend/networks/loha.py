"""LoHa (FedPara, Hyeon-Woo et al. 2021, arXiv 2108.06098): a Hadamard product of two low-rank matrices.

The files are LyCORIS's. With rank r the change of weight can have rank r squared, for twice a LoRA's parameters.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from backend.lora.layer import Layer
from backend.lora.loha import LohaLayer
from backend.networks.base import Network, Place
from backend.networks.build import DEFAULT_DIM, Kind, build_network, load_alpha, network_from_file, save_alpha
from backend.networks.dropout import Dropout
from backend.networks.modules import TextEncoders

FACTORS = ("w1_a", "w1_b", "w2_a", "w2_b")


class LohaModule(nn.Module):
    """The adapter of one module: out + module(x, weight=delta) * multiplier.

    One of the four factors starts at zero, so a new adapter changes nothing; the spread of the others is LyCORIS's.

    Args:
        lora_name: its key in a file.
        org_module: a linear layer or convolution, for its shapes; not kept.
        multiplier: how strongly it acts.
        lora_dim: the rank of either matrix.
        alpha: the scale is alpha / rank; 0 or None means the rank.
        generator: what the factors are drawn with; None draws from torch's own state.
        place: where in a model it sits.
    """

    def __init__(
        self,
        lora_name: str,
        org_module: nn.Module,
        multiplier: float = 1.0,
        lora_dim: int = DEFAULT_DIM,
        alpha: float | None = None,
        generator: torch.Generator | None = None,
        place: Place = Place(),  # noqa: B008  (frozen)
    ) -> None:
        super().__init__()
        self.lora_name = lora_name
        self.lora_dim = int(lora_dim)
        self.alpha = float(alpha or self.lora_dim)
        self.multiplier = float(multiplier)
        self.place = place
        self.dropout: Dropout | None = None
        self._shape = org_module.weight.shape
        is_conv = isinstance(org_module, nn.Conv2d)
        self._conv = (org_module.stride, org_module.padding, org_module.dilation) if is_conv else None
        outputs, inputs = self._shape[0], math.prod(self._shape[1:])
        for name, spread in (("w1_a", 0.1), ("w1_b", 1.0), ("w2_a", 0.0), ("w2_b", 1.0)):
            size = (outputs, self.lora_dim) if name.endswith("a") else (self.lora_dim, inputs)
            factor = torch.zeros(size)
            if spread and not factor.is_meta:
                factor.normal_(std=spread, generator=generator)
            self.register_parameter(f"hada_{name}", nn.Parameter(factor))

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """The module's output with the adapter's contribution added; in the output's dtype."""
        first = self.hada_w1_b
        if self.training and self.dropout is not None:
            # The weight is shared by the batch, so its ranks are drawn once, as for the first sample, and those of one
            # of the two matrices alone: the mean of the change stays what it is.
            first = self.dropout.apply(first.T[None], self.place.number, -1)[0].T
        delta = (self.hada_w1_a @ first) * (self.hada_w2_a @ self.hada_w2_b)
        delta = delta * (self.alpha / self.lora_dim * self.multiplier)
        weight = delta.reshape(self._shape)
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(weight.dtype)
        if self._conv is None:
            change = functional.linear(x, weight)
        else:
            change = functional.conv2d(x, weight, None, *self._conv)
        return (output + change).to(output.dtype)

    def layer(self) -> LohaLayer:
        """Its weights as a value; the tensors are its own."""
        factors = {name: getattr(self, f"hada_{name}") for name in FACTORS}
        return LohaLayer(**factors, alpha=self.alpha)

    def delta(self) -> Tensor:
        """The change of the module's weight at multiplier 1."""
        return self.layer().delta()

    def fitted(self, layer: Layer) -> dict[str, Tensor]:
        """A layer of a file as this adapter's tensors.

        Raises:
            ValueError: it is of another kind, rank or shape, or has Tucker's cores, which are not trained here.
        """
        if not isinstance(layer, LohaLayer):
            raise ValueError(f"is a {layer.KIND}, not a LoHa")
        if layer.t1 is not None:
            raise ValueError("has Tucker's cores, which can be used but not trained here")
        own = {name: getattr(self, f"hada_{name}").shape for name in FACTORS}
        theirs = {name: factor.shape for name, factor in layer.factors.items()}
        if own != theirs:
            raise ValueError(f"has factors {list(theirs.values())}, where the network has {list(own.values())}")
        alpha = torch.tensor(layer.alpha, dtype=torch.float32)
        return {f".hada_{name}": factor for name, factor in layer.factors.items()} | {".alpha": alpha}

    def fast_parameters(self) -> list[nn.Parameter]:
        """LoRA+ is defined for LoRA alone."""
        return []

    def norm(self) -> Tensor:
        """Frobenius norm of `delta`."""
        return self.delta().norm()

    def scale_by(self, factor: Tensor) -> None:
        """Make `delta` so many times as large; the four factors share it."""
        for name in FACTORS:
            getattr(self, f"hada_{name}").mul_(factor**0.25)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        save_alpha(self, destination, prefix)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, _metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, _metadata, strict, *lists)
        load_alpha(self, state_dict, prefix, unexpected=lists[1])


KIND = Kind("networks.loha", LohaModule, LohaLayer, takes_dropout=False)


def create_network(
    multiplier: float,
    network_dim: int | None,
    network_alpha: float | None,
    vae: Any,
    text_encoder: TextEncoders,
    unet: nn.Module | None,
    *,
    generator: torch.Generator | None = None,
    dropout: float | None = None,
    **network_args: Any,
) -> Network:
    """A new LoHa for a model; see `lora.create_network`. `network_args`: see `config.network.LohaArgs`."""
    return build_network(
        KIND, multiplier, (network_dim, network_alpha), (text_encoder, unet), generator, dropout, network_args
    )


def create_network_from_weights(
    multiplier: float,
    file: str | Path | None,
    vae: Any,
    text_encoder: TextEncoders,
    unet: nn.Module | None,
    weights_sd: Mapping[str, Tensor] | None = None,
    *,
    dropout: float | None = None,
    **network_args: Any,
) -> tuple[Network, dict[str, Tensor]]:
    """The LoHa that is in a file, with its weights loaded; see `lora.create_network_from_weights`."""
    return network_from_file(KIND, multiplier, (file, weights_sd), (text_encoder, unet), dropout, network_args)
