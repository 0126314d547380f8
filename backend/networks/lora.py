"""LoRA (Hu et al. 2021): LoRA-LierLa on linear layers and 1x1 convolutions, LoRA-C3Lier on 3x3 convolutions too."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from backend.errors import UserError
from backend.lora.layer import Layer, LoraLayer
from backend.networks.adapter import Adapted, Adapter
from backend.networks.build import Kind, library_face
from backend.networks.fused import adapted_linear


class LoRAModule(Adapter):
    """The adapter of one module: out + up(down(x)) * alpha / rank * multiplier. `up` starts at zero.

    Attributes:
        rows: use the first so many ranks alone, with scale alpha / rows; None uses all. See dylora.py.
    """

    def make(self, org_module: nn.Module, generator: torch.Generator | None) -> None:
        """See `Adapter.make`."""
        self.rows: int | None = None
        self.lora_down, self.lora_up = _factors(org_module, self.lora_dim)
        self._channels = 1 if isinstance(org_module, nn.Conv2d) else -1
        if not self.lora_down.weight.is_meta:
            nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5), generator=generator)
            nn.init.zeros_(self.lora_up.weight)

    @property
    def scale(self) -> float:
        """alpha / rank, of the ranks that are in use."""
        return self.alpha / (self.rows or self.lora_dim)

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """See `Adapter.forward`."""
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.lora_down.weight.dtype)
        inner = (
            self.lora_down(x) if self.rows is None else _apply(self.lora_down, self.lora_down.weight[: self.rows], x)
        )
        if self.training and self.dropout is not None:
            inner = self.dropout.apply(inner, self.place.number, self._channels)
        if self.rows is None:
            change = self.lora_up(inner)
        else:
            change = _apply(self.lora_up, self.lora_up.weight[:, : self.rows], inner)
        return torch.add(output, change, alpha=self.scale * self.multiplier).to(output.dtype)

    def through(self, adapted: Adapted, x: Tensor) -> Tensor:
        """See `Adapter.through`; on a frozen linear layer or 1x1 convolution it is added where the product stands."""
        if not adapted.is_matrix or (self.training and self.dropout is not None):
            return self(x, adapted.plain(x))
        # Called for hundreds of small matrices in a step, so modules are not asked for their parts by `__getattr__`,
        # and nothing is asked of PyTorch that changes nothing.
        module, own = adapted.module._parameters, self._modules
        weight, bias = module.get("weight"), module.get("bias")
        down, up = own["lora_down"]._parameters["weight"], own["lora_up"]._parameters["weight"]
        kind = x.device.type
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else down.dtype
        if weight is None or weight.dtype != dtype or (x.dtype != dtype and not autocast) or weight.requires_grad:
            return self(x, adapted.plain(x))
        if self.rows is not None:
            down, up = down[: self.rows], up[:, : self.rows]
        scale = self.scale * self.multiplier
        if x.dtype != dtype:
            x = x.to(dtype)
        if weight.dim() == 2:
            return adapted_linear(x, weight, bias, down, up, scale)
        flat = weight.flatten(1), bias, down.flatten(1), up.flatten(1)
        return adapted_linear(x.permute(0, 2, 3, 1), *flat, scale).permute(0, 3, 1, 2)

    def layer(self) -> LoraLayer:
        """Its weights as a value, whatever rows are in use; the tensors are its own."""
        return LoraLayer(self.lora_down.weight, self.lora_up.weight, self.alpha)

    def delta(self) -> Tensor:
        """The change of the module's weight at multiplier 1, of the rows in use."""
        layer = self.layer()
        return (layer if self.rows is None else layer.truncated(self.rows)).delta()

    def fitted(self, layer: Layer) -> dict[str, Tensor]:
        """A layer of a file in this adapter's shapes: a 1x1 convolution's factors may have two or four dimensions.

        Raises:
            ValueError: it is of another kind, rank or shape.
        """
        if not isinstance(layer, LoraLayer):
            raise ValueError(f"is a {layer.KIND}, not a LoRA")
        down, up = self.lora_down.weight, self.lora_up.weight
        if layer.down.numel() != down.numel() or layer.up.numel() != up.numel() or layer.rank != self.lora_dim:
            raise ValueError(
                f"has down {tuple(layer.down.shape)} and up {tuple(layer.up.shape)}, "
                f"where the network has {tuple(down.shape)} and {tuple(up.shape)}"
            )
        return {
            ".lora_down.weight": layer.down.reshape(down.shape),
            ".lora_up.weight": layer.up.reshape(up.shape),
            ".alpha": torch.tensor(layer.alpha, dtype=torch.float32),
        }

    def fast_parameters(self) -> list[nn.Parameter]:
        """LoRA+ (arXiv 2402.12354) trains `up` at a higher rate."""
        return [self.lora_up.weight]


def _apply(layer: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """What the layer makes of x with another weight."""
    if isinstance(layer, nn.Conv2d):
        return functional.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation)
    return functional.linear(x, weight)


def _factors(module: nn.Module, rank: int) -> tuple[nn.Module, nn.Module]:
    """The two layers whose product has the module's shape, not initialised."""
    if isinstance(module, nn.Conv2d):
        if module.groups != 1 or module.padding_mode != "zeros":
            raise UserError("a LoRA on a grouped convolution or one with circular padding is not supported")
        inner = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
        down = _empty(nn.Conv2d, module.in_channels, rank, module.kernel_size, **inner)
        return down, _empty(nn.Conv2d, rank, module.out_channels, 1)
    if isinstance(module, nn.Linear):
        return _empty(nn.Linear, module.in_features, rank), _empty(nn.Linear, rank, module.out_features)
    raise UserError(f"a LoRA on a module of type {type(module).__name__} is not supported")


def _empty(kind: type[nn.Module], *sizes: Any, **options: Any) -> nn.Module:
    """A layer without bias and with undefined weights: its own initialisation would use up torch's random state."""
    layer = kind(*sizes, bias=False, device="meta", **options)
    layer.weight = nn.Parameter(torch.empty(layer.weight.shape))
    return layer


KIND = Kind("networks.lora", LoRAModule, LoraLayer)
create_network, create_network_from_weights = library_face(KIND)
