"""Sums and reductions of layers: identities, then the dense matrices in float64."""

import pytest
import torch
from torch import Tensor

from backend.lora.algebra import added, by_key, concatenated, cut, decompose, distance, shuffled, side_by_side, vanishes
from backend.lora.layer import LoraLayer

LINEAR, POINT, CONV = ((), ()), ((1, 1), (1, 1)), ((3, 3), (1, 1))
SHAPES = {"linear": LINEAR, "1x1": POINT, "3x3": CONV}
DOUBLE = torch.float64


def layer(rank: int, alpha: float, kind: tuple = LINEAR, seed: int = 0, dtype: torch.dtype = DOUBLE) -> LoraLayer:
    generator = torch.Generator().manual_seed(seed)
    down, up = (torch.randn(*shape, generator=generator, dtype=DOUBLE) for shape in ((rank, 20, *kind[0]), (24, rank)))
    return LoraLayer(down.to(dtype), up.reshape(24, rank, *kind[1]).to(dtype), alpha)


def dense(layers: list[LoraLayer], ratios: list[float]) -> Tensor:
    return sum(ratio * one.delta().double() for one, ratio in zip(layers, ratios, strict=True))


@pytest.mark.parametrize("kind", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("ratios", [[0.5, -1.25], [1.0, 1.0], [-1.0, 0.0]])
def test_concatenation_is_the_sum_to_rounding(kind: tuple, ratios: list[float]) -> None:
    layers = [layer(4, 4.0, kind, 1), layer(3, 0.5, kind, 2)]
    whole = concatenated(layers, ratios)
    assert (whole.rank, whole.alpha) == (7, 7.0)
    torch.testing.assert_close(whole.delta(), dense(layers, ratios), rtol=1e-12, atol=1e-12)
    assert whole.down.shape[1:] == layers[0].down.shape[1:]


def test_one_layer_at_any_ratio_comes_out_at_that_ratio() -> None:
    """sd-scripts squares the ratio."""
    one = layer(4, 2.0)
    for ratio in (0.5, -1.0, 2.0):
        torch.testing.assert_close(concatenated([one], [ratio]).delta(), ratio * one.delta(), rtol=1e-12, atol=1e-12)
        squared = abs(ratio) * ratio * one.delta()
        torch.testing.assert_close(added([one], [ratio]).delta(), squared, rtol=1e-12, atol=1e-12)


def test_negative_and_zero_alphas_are_numbers_like_others() -> None:
    layers = [layer(4, -2.0, seed=1), layer(4, 0.0, seed=2)]
    torch.testing.assert_close(concatenated(layers, [1.0, 1.0]).delta(), layers[0].delta(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", SHAPES.values(), ids=SHAPES.keys())
def test_the_classical_sum_is_that_of_the_factors(kind: tuple) -> None:
    """sd-scripts: each up times |sqrt(alpha_k / alpha_1) * ratio|, each down times the same with its sign."""
    layers, ratios = [layer(4, 4.0, kind, 1), layer(4, 1.0, kind, 2), layer(4, 9.0, kind, 3)], [0.5, -1.5, 1.0]
    whole = added(layers, ratios)
    scales = [0.5, 0.5 * -1.5, 1.5]
    up = sum(one.up * abs(scale) for one, scale in zip(layers, scales, strict=True))
    down = sum(one.down * scale for one, scale in zip(layers, scales, strict=True))
    assert whole.alpha == 4.0 and whole.rank == 4
    torch.testing.assert_close(whole.up, up, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole.down, down, rtol=1e-12, atol=1e-12)
    error, size = distance(whole, layers, ratios)
    assert size == pytest.approx(float(dense(layers, ratios).norm()), rel=1e-9)
    assert error == pytest.approx(float((whole.delta().double() - dense(layers, ratios)).norm()), rel=1e-9)
    with pytest.raises(ValueError, match="has alphas 4, -1, which cannot be added"):
        added([layer(4, 4.0), layer(4, -1.0)], [1.0, 1.0])
    with pytest.raises(ValueError, match="has ranks 3, 4, which cannot be added"):
        added([layer(4, 1.0), layer(3, 1.0)], [1.0, 1.0])


@pytest.mark.parametrize("kind", SHAPES.values(), ids=SHAPES.keys())
def test_the_decomposition_is_that_of_the_dense_matrix(kind: tuple) -> None:
    layers, ratios = [layer(4, 4.0, kind, 1), layer(3, 9.0, kind, 2)], [0.5, -1.0]
    found = decompose(*side_by_side(layers, ratios))
    expected = torch.linalg.svdvals(dense(layers, ratios).flatten(1))[:7]
    torch.testing.assert_close(found.values, expected, rtol=1e-10, atol=1e-10)
    assert found.total == pytest.approx(float(expected.square().sum()))
    assert found.energy(7) == pytest.approx(1) and found.energy(0) == 0


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_cut_leaves_exactly_the_singular_values_that_it_drops(rank: int) -> None:
    layers, ratios = [layer(4, 4.0, CONV, 1), layer(3, 9.0, CONV, 2)], [0.5, -1.0]
    spectrum = decompose(*side_by_side(layers, ratios))
    short = cut(spectrum, rank, layers)
    left = (short.delta() - dense(layers, ratios)).norm()
    assert float(left) == pytest.approx(float(spectrum.values[rank:].norm()), rel=1e-9)
    assert (short.rank, short.alpha, short.up.shape) == (rank, float(rank), (24, rank, 1, 1))
    assert spectrum.energy(rank) == pytest.approx(1 - float(left**2) / spectrum.total)


def test_at_full_rank_a_reduction_is_the_identity() -> None:
    one = layer(5, 3.0)
    whole = cut(decompose(*side_by_side([one], [1.0])), 5, [one])
    torch.testing.assert_close(whole.delta(), one.delta(), rtol=1e-11, atol=1e-11)
    assert cut(decompose(*side_by_side([one], [1.0])), 99, [one]).rank == 5


def test_ranks_above_the_size_of_the_weight_are_fine() -> None:
    wide = LoraLayer(torch.randn(40, 6, dtype=DOUBLE), torch.randn(5, 40, dtype=DOUBLE), 40.0)
    found = decompose(*side_by_side([wide], [1.0]))
    assert len(found.values) == 5
    torch.testing.assert_close(cut(found, 40, [wide]).delta(), wide.delta(), rtol=1e-9, atol=1e-9)


def test_the_rank_for_a_share() -> None:
    up = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=DOUBLE))
    one = LoraLayer(torch.eye(4, dtype=DOUBLE), up, 4.0)
    found = decompose(*side_by_side([one], [1.0]))
    assert [found.rank_for(share) for share in (0.01, 9 / 14, 0.65, 13 / 14, 0.95, 1.0)] == [1, 1, 2, 2, 3, 3]
    nothing = decompose(*side_by_side([one], [0.0]))
    assert (nothing.rank_for(1.0), nothing.energy(1)) == (1, 1.0)


def test_clamping_is_asked_for_and_cuts_the_largest_numbers() -> None:
    one = layer(4, 4.0)
    spectrum = decompose(*side_by_side([one], [1.0]))
    held = cut(spectrum, 4, [one], 0.9)
    everything = torch.cat([(spectrum.left * spectrum.values).flatten(), spectrum.right.flatten()]).abs()
    highest = everything.quantile(0.9, interpolation="nearest")
    assert float(held.up.abs().max()) == pytest.approx(float(highest), rel=0.05)
    assert (everything > held.up.abs().max() * (1 + 1e-9)).sum() == pytest.approx(0.1 * everything.numel(), abs=1)


def test_no_factor_of_a_cut_is_larger_than_the_other() -> None:
    one = LoraLayer(torch.randn(4, 20, dtype=DOUBLE) * 1e-5, torch.randn(24, 4, dtype=DOUBLE) * 1e5, 4.0)
    short = cut(decompose(*side_by_side([one], [1.0])), 4, [one])
    assert float(short.up.norm() / short.down.norm()) == pytest.approx(1, rel=1e-6)


def test_sums_that_are_nothing() -> None:
    one, other = layer(4, 2.0, seed=1), layer(4, 2.0, seed=2)
    assert vanishes([([one, one], [0.7, -0.7])]) and vanishes([([layer(4, 0.0)], [1.0])]) and vanishes([])
    assert not vanishes([([one, one], [0.7, -0.7]), ([one, other], [0.7, -0.7])])
    huge = LoraLayer(one.down * 1e200, one.up * 1e200, 2.0)
    assert not vanishes([([huge], [1.0])])


def test_shuffling_changes_no_delta() -> None:
    one = layer(6, 3.0, CONV)
    mixed = shuffled(one, torch.Generator().manual_seed(3))
    assert not torch.equal(mixed.down, one.down)
    torch.testing.assert_close(mixed.delta(), one.delta(), rtol=1e-12, atol=1e-12)


def test_half_precision_is_summed_in_float32() -> None:
    layers = [layer(4, 4.0, dtype=torch.float16, seed=1), layer(4, 1.0, dtype=torch.bfloat16, seed=2)]
    whole = concatenated(layers, [1.0, 1.0])
    assert whole.down.dtype == whole.up.dtype == torch.float32
    torch.testing.assert_close(whole.delta().double(), dense(layers, [1.0, 1.0]), rtol=1e-5, atol=1e-5)


def test_layers_meet_by_key() -> None:
    a, b, c = layer(1, 1.0, seed=1), layer(2, 1.0, seed=2), layer(3, 1.0, seed=3)
    assert by_key([{"x": a, "y": b}, {"y": c}], [0.5, 2.0]) == {"x": ([a], [0.5]), "y": ([b, c], [0.5, 2.0])}
