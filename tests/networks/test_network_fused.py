"""A frozen matrix and its LoRA in one: the values and gradients of the formula, in every case that takes that way."""

import pytest
import torch
from torch import Tensor, nn

from backend.networks.adapter import attach, set_plain
from backend.networks.fused import adapted_linear, is_matrix
from backend.networks.lora import LoRAModule


def factors(shape: tuple[int, ...], bias: bool, dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(size, generator=generator, dtype=dtype) for size in ((*shape, 6), (5, 6), (5,), (3, 6), (5, 3))]
    return draw[0], draw[1], draw[2] if bias else None, draw[3], draw[4]


@pytest.mark.parametrize("shape", [(4,), (2, 4), (2, 3, 4)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [1.0, -0.7])
def test_values_and_gradients_are_those_of_the_formula(shape, bias, scale) -> None:
    x, weight, shift, down, up = factors(shape, bias, torch.float64)
    given = [tensor.requires_grad_() for tensor in (x, down, up)]
    found = adapted_linear(x, weight, shift, down, up, scale)
    expected = nn.functional.linear(x, weight + scale * up @ down, shift)
    torch.testing.assert_close(found, expected)
    seen = torch.randn(found.shape, dtype=torch.float64)
    for one, other in zip(torch.autograd.grad(found, given, seen), torch.autograd.grad(expected, given, seen)):
        torch.testing.assert_close(one, other)


def test_gradients_pass_autograds_own_check() -> None:
    x, weight, shift, down, up = factors((2, 4), True, torch.float64)
    given = [tensor.requires_grad_() for tensor in (x, down, up)]
    assert torch.autograd.gradcheck(lambda x, down, up: adapted_linear(x, weight, shift, down, up, 0.5), given)


def test_an_input_that_needs_no_gradient_gets_none_and_costs_none() -> None:
    x, weight, _, down, up = factors((2, 4), False, torch.float32)
    adapted_linear(x, weight, None, down.requires_grad_(), up.requires_grad_(), 1.0).sum().backward()
    assert x.grad is None and down.grad is not None and up.grad is not None


def filled(module: nn.Module, rank: int = 3) -> LoRAModule:
    adapter = LoRAModule("one", module, 0.5, rank, 2 * rank, torch.Generator().manual_seed(1))
    nn.init.normal_(adapter.lora_up.weight, generator=torch.Generator().manual_seed(2))
    return adapter


MODULES = {
    "linear": lambda: nn.Linear(6, 5),
    "linear without bias": lambda: nn.Linear(6, 5, bias=False),
    "1x1": lambda: nn.Conv2d(6, 5, 1),
    "3x3": lambda: nn.Conv2d(6, 5, 3, padding=1),
    "1x1 with stride": lambda: nn.Conv2d(6, 5, 1, stride=2),
}


def input_of(module: nn.Module, channels_last: bool = False) -> Tensor:
    shape = (2, 4, 6) if isinstance(module, nn.Linear) else (2, 6, 4, 4)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    return x.to(memory_format=torch.channels_last) if channels_last else x


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("rows", [None, 2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_module_with_a_lora_gives_what_both_give_apart(kind, rows, channels_last) -> None:
    module = MODULES[kind]().requires_grad_(False)
    channels_last = channels_last and isinstance(module, nn.Conv2d)
    x = input_of(module, channels_last).requires_grad_()
    plain, adapter = module.forward, filled(module)
    adapter.rows = rows
    given = [x, *adapter.parameters()]
    expected = adapter(x, plain(x))
    handle = attach(adapter, module)
    assert is_matrix(module, plain) == (kind not in ("3x3", "1x1 with stride"))
    found = module(x)
    torch.testing.assert_close(found, expected)
    seen = torch.randn(found.shape)
    for one, other in zip(torch.autograd.grad(found, given, seen), torch.autograd.grad(expected, given, seen)):
        torch.testing.assert_close(one, other)
    handle.remove()
    assert "forward" not in vars(module)


def test_a_module_that_is_trained_itself_keeps_its_gradients() -> None:
    module = nn.Linear(6, 5)
    attach(filled(module), module)
    module(input_of(module)).sum().backward()
    assert module.weight.grad is not None and module.bias.grad is not None


def test_under_autocast_the_product_is_in_half_precision_and_gradients_in_that_of_the_lora() -> None:
    module = nn.Linear(6, 5).requires_grad_(False)
    module.bfloat16()
    adapter = filled(module)
    attach(adapter, module)
    x = input_of(module).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = module(x)
    found.float().sum().backward()
    assert found.dtype == torch.bfloat16
    assert {x.grad.dtype, *(one.grad.dtype for one in adapter.parameters())} == {torch.float32}
    exact = nn.functional.linear(x.detach(), module.weight.float() + 0.5 * adapter.delta(), module.bias.float())
    torch.testing.assert_close(found.float(), exact, rtol=5e-2, atol=5e-2)


def test_what_a_module_computes_can_be_replaced_below_its_adapters() -> None:
    module = nn.Linear(6, 5).requires_grad_(False)
    first, second = filled(module), filled(module)
    handles = [attach(first, module), attach(second, module)]
    set_plain(module, lambda x: x.new_zeros(*x.shape[:-1], 5))
    x = input_of(module)
    torch.testing.assert_close(module(x), 2 * 0.5 * x @ first.delta().t())
    handles[0].remove()
    torch.testing.assert_close(module(x), 0.5 * x @ first.delta().t())
    handles[1].remove()
    assert not module(x).any(), "what was set stays"
