"""Convolutions of frozen weights on a CPU as matrix products, where that is several times faster.

The library's convolution brings the weight into a layout of its own at every call. Where a picture has few positions
left, deep in a U-Net, reading the weight is nearly all there is to do, and that copy takes most of the step.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

# Measured on two cores: below, the library's own is as fast or faster (benchmarks/convolution.py).
LEAST_WEIGHT, MOST_POSITIONS = 2**23, 256


def as_matrix_products(model: nn.Module) -> int:
    """Have a model's large convolutions computed as matrix products where that is faster; returns how many may be.

    The weights must lie in `torch.channels_last`, be frozen, and float32 on a CPU; otherwise all stays as it is.
    """
    found = [module for module in model.modules() if isinstance(module, nn.Conv2d) and _fits(module)]
    for module in found:
        module._conv_forward = _Convolution(module)
    return len(found)


def _fits(module: nn.Conv2d) -> bool:
    weight = module.weight
    square = len({*module.kernel_size}) == len({*module.stride}) == 1
    plain = module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
    return square and plain and not isinstance(module.padding, str) and weight.numel() >= LEAST_WEIGHT


class _Convolution:
    """In the place of `nn.Conv2d._conv_forward`."""

    def __init__(self, module: nn.Conv2d) -> None:
        self.stride, self.padding = module.stride[0], module.padding[0]

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        stride, padding, kernel = self.stride, self.padding, weight.shape[-1]
        positions = len(x)
        for size in x.shape[2:]:
            positions *= (size + 2 * padding - kernel) // stride + 1
        frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
        exact = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
        dense = weight.is_contiguous(memory_format=torch.channels_last)
        if positions > MOST_POSITIONS or not (frozen and exact and dense) or torch.is_autocast_enabled("cpu"):
            return functional.conv2d(x, weight, bias, stride, padding)
        return matrix_convolution(x, weight, bias, stride, padding)


def matrix_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """As `functional.conv2d`, with no gradient for weight and bias.

    Args:
        x: [B, in, H, W].
        weight: [out, in, k, k]; in `torch.channels_last` it is read where it lies.
        bias: [out].
        stride, padding: of both directions.

    Returns:
        [B, out, H', W'] in `torch.channels_last`.
    """
    return _MatrixConvolution.apply(x, weight, bias, stride, padding)


class _MatrixConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.stride, ctx.padding = x.shape, stride, padding
        kernel = weight.shape[-1]
        seen = windows(
            functional.pad(x.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding)), kernel, stride
        )
        matrix = weight.permute(0, 2, 3, 1).flatten(1)
        output = functional.linear(seen.reshape(-1, matrix.shape[1]), matrix, bias)
        return output.view(*seen.shape[:3], -1).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,), padding = ctx.saved_tensors, ctx.padding
        kernel = weight.shape[-1]
        count, channels, height, width = ctx.shape
        gradient = gradient.permute(0, 2, 3, 1)
        seen = gradient.reshape(-1, gradient.shape[-1]) @ weight.permute(0, 2, 3, 1).flatten(1)
        seen = seen.view(*gradient.shape[:3], kernel, kernel, channels)
        padded = gradient.new_zeros(count, height + 2 * padding, width + 2 * padding, channels)
        # Windows overlap, so they are added one offset at a time.
        into = windows(padded, kernel, ctx.stride)
        for row in range(kernel):
            for column in range(kernel):
                into[:, :, :, row, column] += seen[:, :, :, row, column]
        inner = padded[:, padding : padding + height, padding : padding + width]
        return inner.permute(0, 3, 1, 2), None, None, None, None


def windows(x: Tensor, kernel: int, stride: int) -> Tensor:
    """What each position of a convolution sees: [B, H, W, C] -> a view [B, H', W', kernel, kernel, C]."""
    return x.unfold(1, kernel, stride).unfold(2, kernel, stride).permute(0, 1, 2, 4, 5, 3)
