"""Leading singular values against all of them."""

import math

import pytest
import torch
from torch import Tensor

from backend.lora import low_rank
from backend.lora.low_rank import leading


def matrix(height: int, width: int, decay: float, noise: float, rank: int = 64) -> Tensor:
    """A change that falls off, and noise on all directions."""
    generator = torch.Generator().manual_seed(height + width)
    left, right = (torch.linalg.qr(torch.randn(n, rank, generator=generator)).Q for n in (height, width))
    values = decay ** torch.arange(rank)
    flat = torch.randn(height, width, generator=generator) * noise / (height * width) ** 0.5
    return (left * values) @ right.T + flat


@pytest.mark.parametrize("shape", [(300, 900), (900, 300), (320, 320)])
@pytest.mark.parametrize(("decay", "noise"), [(0.95, 0.01), (0.99, 1.0), (0.8, 1e-4), (1.0, 0.0), (0.5, 0.0)])
@pytest.mark.parametrize("rank", [4, 32])
def test_what_is_cut_off_is_within_half_a_percent_of_the_least(
    shape: tuple[int, int], decay: float, noise: float, rank: int
) -> None:
    whole = matrix(*shape, decay, noise)
    values = torch.linalg.svdvals(whole.double())
    found = leading(whole, rank)
    assert found.left.shape == (shape[0], rank) and found.right.shape == (rank, shape[1])
    error = (whole.double() - (found.left.double() * found.values.double()) @ found.right.double()).norm()
    least = values[rank:].norm()
    assert float(error) <= 1.005 * float(least) + 2e-6 * float(values.norm())
    assert found.total == pytest.approx(float(values.square().sum()), rel=1e-5)
    lost = float(least**2 / values.square().sum())
    assert 1 - found.energy(rank) == pytest.approx(lost, rel=0.011, abs=1e-5)


def test_it_goes_on_where_one_round_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above would not see a loop that never runs if the first round were always good."""
    whole = matrix(600, 600, 0.99, 1.0)
    least = torch.linalg.svdvals(whole)[32:].norm()
    monkeypatch.setattr(low_rank, "SLACK", math.inf)
    hasty = leading(whole, 32)
    error = (whole - (hasty.left * hasty.values) @ hasty.right).norm()
    assert error > 1.005 * least


def test_it_repeats_and_small_or_empty_matrices_are_done_whole() -> None:
    whole = matrix(300, 200, 0.9, 0.1)
    assert torch.equal(leading(whole, 8).left, leading(whole, 8).left)
    small = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(leading(small, 9).values, torch.linalg.svdvals(small))
    nothing = leading(torch.zeros(50, 40), 3)
    assert nothing.total == 0 and not nothing.values.any() and nothing.left.shape == (50, 3)
