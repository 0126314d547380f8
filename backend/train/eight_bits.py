"""Frozen weights in 8 bits: half the memory of half precision, for the parts of the base model that are only read.

Numbers are float8 e4m3 (arXiv 2209.05433) with a scale for each row of the weight. Without scales, weights as small as
a diffusion model's would mostly fall among e4m3's subnormal numbers and lose most of their digits.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from backend.networks.adapter import set_plain

STORED = torch.float8_e4m3fn
LARGEST = torch.finfo(STORED).max


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight [out, ...] as e4m3 numbers of its shape, and the scale [out] that each row is to be multiplied by."""
    rows = weight.detach().float().flatten(1)
    # Not below the smallest normal number: a device that takes smaller ones for 0 would divide by 0.
    scale = (rows.abs().amax(1) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    return (rows / scale[:, None]).to(STORED).view(weight.shape), scale


def unpack(packed: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight that `pack` was given, rounded to four digits in base 2, in `dtype`."""
    return packed.to(dtype) * scale.to(dtype).view(-1, *[1] * (packed.dim() - 1))


class _Layer(torch.autograd.Function):
    """A linear or convolutional layer that keeps its packed weight for the backward pass, not the unpacked one."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, options: dict[str, Any] | None
    ) -> Tensor:
        ctx.save_for_backward(packed, scale)
        ctx.options, ctx.shape, ctx.dtype = options, x.shape, x.dtype
        weight = unpack(packed, scale, x.dtype)
        bias = None if bias is None else bias.to(x.dtype)
        return functional.linear(x, weight, bias) if options is None else functional.conv2d(x, weight, bias, **options)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        weight = unpack(*ctx.saved_tensors, gradient.dtype)
        if ctx.options is None:
            found = gradient @ weight
        else:
            found = torch.nn.grad.conv2d_input(ctx.shape, weight, gradient, **ctx.options)
        return found.to(ctx.dtype), None, None, None, None


def store_in_eight_bits(modules: Iterable[nn.Module]) -> int:
    """Pack the weights of linear layers and convolutions, which compute as before, in the precision of their input.

    Args:
        modules: frozen ones, of which only `nn.Linear` and `nn.Conv2d` are changed.

    Returns:
        How many were.
    """
    count = 0
    for module in modules:
        if isinstance(module, nn.Linear | nn.Conv2d):
            _pack_module(module)
            count += 1
    return count


def _pack_module(module: nn.Linear | nn.Conv2d) -> None:
    packed, scale = pack(module.weight)
    module.weight = nn.Parameter(packed, requires_grad=False)
    module.register_buffer("weight_scale", scale, persistent=False)
    options = None
    if isinstance(module, nn.Conv2d):
        options = {name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups")}

    def forward(x: Tensor) -> Tensor:
        kind = x.device.type
        # What autocast would have computed in; it does not reach into an autograd function.
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        return _Layer.apply(x.to(dtype), module.weight, module.weight_scale, module.bias, options)

    set_plain(module, forward)


def inner_modules(module: nn.Module, parts: tuple[str, ...]) -> list[nn.Module]:
    """The modules within a model's parts of these names, wherever they lie."""
    return [found for name, found in module.named_modules() if set(name.split(".")) & set(parts)]
