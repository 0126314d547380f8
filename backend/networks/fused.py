"""A frozen matrix and the LoRA on it in one step of the graph.

Apart they are six nodes, each with a pass over the activations of its own; together the LoRA is added where the matrix
has written, forwards and backwards.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable


def is_matrix(module: nn.Module, plain: Callable[..., Tensor]) -> bool:
    """Whether what a module computes by itself is a product with its frozen weight, and nothing else."""
    own = getattr(plain, "__func__", None)
    if own is nn.Linear.forward:
        fits = True
    elif own is nn.Conv2d.forward:
        fits = module.kernel_size == (1, 1) and module.stride == (1, 1) and not any(module.padding)
    else:
        return False
    bias = module.bias
    return fits and not module.weight.requires_grad and (bias is None or not bias.requires_grad)


def adapted_linear(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """x W^T + bias + scale * (x D^T) U^T, computed in the dtype of x, whatever that of the LoRA.

    Args:
        x: [..., in].
        weight: [out, in], frozen, in the dtype of x.
        bias: [out], frozen.
        down, up: [rank, in] and [out, rank]; their gradients come in their own dtype.
        scale: of the LoRA.
    """
    return _AdaptedLinear.apply(x, weight, bias, down, up, scale)


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        shape = x.shape
        # Detached, as PyTorch otherwise looks at each operation for what it would have to remember.
        x, own_down, own_up = x.detach(), down.detach(), up.detach()
        rows = x if len(shape) == 2 else x.reshape(-1, shape[-1])
        if own_down.dtype != x.dtype:
            own_down, own_up = own_down.to(x.dtype), own_up.to(x.dtype)
        inner = rows @ own_down.t()
        if scale != 1:
            inner *= scale
        # Written through a flat view of it, as autograd takes long over a result that is itself a view.
        output = x.new_empty((*shape[:-1], len(weight)))
        flat = output.view(-1, len(weight))
        if bias is None:
            torch.mm(rows, weight.t(), out=flat)
        else:
            torch.addmm(bias, rows, weight.t(), out=flat)
        flat.addmm_(inner, own_up.t())
        ctx.save_for_backward(rows, inner, weight, own_down, own_up)
        ctx.scale, ctx.shape = scale, shape
        ctx.dtypes = down.dtype, up.dtype
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, weight, down, up = ctx.saved_tensors
        gradient = gradient.reshape(-1, gradient.shape[-1])
        inwards = gradient @ up
        if ctx.scale != 1:
            inwards *= ctx.scale
        of_x = of_down = of_up = None
        if ctx.needs_input_grad[3]:
            of_down = (inwards.t() @ rows).to(ctx.dtypes[0])
        if ctx.needs_input_grad[4]:
            of_up = (gradient.t() @ inner).to(ctx.dtypes[1])
        if ctx.needs_input_grad[0]:
            of_x = (gradient @ weight).addmm_(inwards, down).view(ctx.shape)
        return of_x, None, None, of_down, of_up, None
