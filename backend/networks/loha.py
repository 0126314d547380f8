"""LoHa (FedPara, Hyeon-Woo et al. 2021, arXiv 2108.06098): a Hadamard product of two low-rank matrices.

The files are LyCORIS's. With rank r the change of weight can have rank r squared, for twice a LoRA's parameters.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from backend.lora.layer import Layer
from backend.lora.loha import LohaLayer
from backend.networks.adapter import Adapter
from backend.networks.build import Kind, library_face

FACTORS = ("w1_a", "w1_b", "w2_a", "w2_b")


class LohaModule(Adapter):
    """The adapter of one module: out + module(x, weight=delta) * multiplier.

    One of the four factors starts at zero; the spread of the others is LyCORIS's.
    """

    def make(self, org_module: nn.Module, generator: torch.Generator | None) -> None:
        """See `Adapter.make`."""
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
        """See `Adapter.forward`."""
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


KIND = Kind("networks.loha", LohaModule, LohaLayer, takes_dropout=False)
create_network, create_network_from_weights = library_face(KIND)
