"""The formula of a LoRA layer against what two layers compute, in float64."""

import pytest
import torch
from torch.nn import functional

from backend.lora.layer import LoraLayer, factorize


def random_layer(down: tuple[int, ...], up: tuple[int, ...], alpha: float, seed: int = 0) -> LoraLayer:
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    return LoraLayer(torch.randn(down, **draw), torch.randn(up, **draw), alpha)


def test_delta_of_a_linear_layer_is_what_its_two_layers_compute() -> None:
    layer = random_layer((3, 10), (7, 3), alpha=2.0)
    x = torch.randn(5, 10, dtype=torch.float64)
    two_layers = functional.linear(functional.linear(x, layer.down), layer.up) * 2.0 / 3
    torch.testing.assert_close(functional.linear(x, layer.delta()), two_layers)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_delta_of_a_convolution_is_what_its_two_layers_compute(kernel: int, stride: int) -> None:
    layer = random_layer((3, 4, kernel, kernel), (6, 3, 1, 1), alpha=0.5)
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    where = {"stride": stride, "padding": kernel // 2}
    two_layers = functional.conv2d(functional.conv2d(x, layer.down, **where), layer.up) * 0.5 / 3
    torch.testing.assert_close(functional.conv2d(x, layer.delta(), **where), two_layers)


def test_delta_of_half_precision_factors_is_computed_in_float32() -> None:
    layer = random_layer((8, 64), (64, 8), alpha=8.0)
    half = LoraLayer(layer.down.half(), layer.up.half(), 8.0)
    assert half.delta().dtype == torch.float32
    exact = half.up.double() @ half.down.double()
    torch.testing.assert_close(half.delta().double(), exact, rtol=1e-5, atol=1e-5)


def test_truncated_keeps_the_first_rows_and_alpha() -> None:
    layer = random_layer((4, 10), (7, 4), alpha=2.0)
    expected = (layer.up[:, :3] @ layer.down[:3]) * 2.0 / 3
    torch.testing.assert_close(layer.truncated(3).delta(), expected)
    torch.testing.assert_close(layer.truncated(4).delta(), layer.delta())
    for rank in (0, 5):
        with pytest.raises(ValueError, match=f"rank {rank}"):
            layer.truncated(rank)


@pytest.mark.parametrize(
    ("down", "up"), [((4, 10), (7, 3)), ((4,), (7, 4)), ((4, 10, 3, 3), (7, 4, 3, 3)), ((0, 10), (7, 0))]
)
def test_factors_that_do_not_fit_are_refused(down: tuple[int, ...], up: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="down"):
        LoraLayer(torch.zeros(down), torch.zeros(up), 1.0)


@pytest.mark.parametrize("shape", [(12, 20), (12, 20, 3, 3), (12, 20, 1, 1)])
def test_factorize_reaches_the_bound_of_eckart_and_young(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tail = torch.linalg.svdvals(matrix.flatten(1))[5:].square().sum().sqrt()
    error = torch.linalg.vector_norm(matrix - factorize(matrix, 5).delta())
    torch.testing.assert_close(error, tail)
    assert factorize(matrix, 5).delta().shape == matrix.shape


def test_factorize_with_all_ranks_is_exact_and_never_asks_for_more() -> None:
    matrix = torch.randn(6, 9, dtype=torch.float64)
    layer = factorize(matrix, 100)
    assert layer.rank == 6
    torch.testing.assert_close(layer.delta(), matrix)
