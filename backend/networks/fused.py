"""A matrix and the LoRA on it in as few operations as there can be, all of them PyTorch's own.

A network has hundreds of them, most so small that a step's time is what calling takes, not what computing takes.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def is_matrix(module: nn.Module, plain: Callable[..., Tensor]) -> bool:
    """Whether what a module computes by itself is a product with its weight, and nothing else."""
    own = getattr(plain, "__func__", None)
    if own is nn.Linear.forward:
        return True
    single = own is nn.Conv2d.forward and module.kernel_size == (1, 1) and module.stride == (1, 1)
    return single and not any(module.padding)


def adapted_linear(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """x W^T + bias + scale * (x D^T) U^T, computed in the dtype of x, whatever that of the LoRA.

    Args:
        x: [..., in].
        weight: [out, in], in the dtype of x.
        bias: [out].
        down, up: [rank, in] and [out, rank]; their gradients come in their own dtype.
        scale: of the LoRA.
    """
    shape = x.shape
    rows = x if len(shape) == 2 else x.reshape(-1, shape[-1])
    if down.dtype != x.dtype:
        down, up = down.to(x.dtype), up.to(x.dtype)
    output = torch.mm(rows, weight.t()) if bias is None else torch.addmm(bias, rows, weight.t())
    # Where the matrix has written: no gradient needs what stood there.
    output.addmm_(torch.mm(rows, down.t()), up.t(), alpha=scale)
    return output if len(shape) == 2 else output.view(*shape[:-1], len(weight))
