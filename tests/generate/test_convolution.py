"""Convolutions as matrix products: the same values and gradients, and the library's own where those are faster."""

import pytest
import torch
from torch import nn

from backend.generate import convolution
from backend.generate.convolution import as_matrix_products, matrix_convolution


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (3, 1, 0), (1, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 3)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_values_and_gradients_are_the_librarys(kernel, stride, padding, size, layout) -> None:
    if min(size) + 2 * padding < kernel:
        size = (kernel, kernel)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, *size, generator=draw, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    weight = torch.randn(6, 4, kernel, kernel, generator=draw, dtype=torch.float64).to(memory_format=layout)
    bias = torch.randn(6, generator=draw, dtype=torch.float64)
    found = matrix_convolution(x, weight, bias, stride, padding)
    expected = nn.functional.conv2d(x, weight, bias, stride, padding)
    torch.testing.assert_close(found, expected)
    seen = torch.randn(found.shape, generator=draw, dtype=torch.float64)
    one, other = (torch.autograd.grad(output, x, seen)[0] for output in (found, expected))
    torch.testing.assert_close(one, other)


@pytest.fixture
def calls(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes that were computed as matrix products."""
    found, own = [], matrix_convolution

    def spy(x: torch.Tensor, *rest: object) -> torch.Tensor:
        found.append(tuple(x.shape))
        return own(x, *rest)

    monkeypatch.setattr(convolution, "matrix_convolution", spy)
    monkeypatch.setattr(convolution, "LEAST_WEIGHT", 100)
    return found


def prepared(module: nn.Module) -> nn.Module:
    module.to(memory_format=torch.channels_last).requires_grad_(False)
    as_matrix_products(module)
    return module


def test_only_few_positions_are_computed_so(calls) -> None:
    module = prepared(nn.Conv2d(8, 8, 3, padding=1))
    for count, edge in ((1, 16), (1, 17), (4, 8), (5, 8)):
        x = torch.randn(count, 8, edge, edge)
        torch.testing.assert_close(module(x), nn.functional.conv2d(x, module.weight, module.bias, padding=1))
    assert calls == [(1, 8, 16, 16), (4, 8, 8, 8)]


def test_weights_that_are_trained_or_of_another_precision_are_left_to_the_library(calls) -> None:
    x = torch.randn(1, 8, 4, 4)
    trained = prepared(nn.Conv2d(8, 8, 3)).requires_grad_()
    trained(x).sum().backward()
    assert trained.weight.grad is not None
    prepared(nn.Conv2d(8, 8, 3)).bfloat16()(x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert prepared(nn.Conv2d(8, 8, 3))(x).dtype == torch.bfloat16
    assert not calls


def test_small_grouped_and_dilated_ones_are_left_alone() -> None:
    modules = [nn.Conv2d(8, 8, 3), nn.Conv2d(1024, 1024, 3, groups=2), nn.Conv2d(1024, 1024, 3, dilation=2)]
    with torch.device("meta"):
        modules += [nn.Conv2d(1024, 1024, 3, padding="same"), nn.Conv2d(1024, 1024, (3, 5)), nn.Linear(4096, 4096)]
    assert as_matrix_products(nn.ModuleList(modules)) == 0
    with torch.device("meta"):
        assert as_matrix_products(nn.Conv2d(1024, 1024, 3)) == 1
