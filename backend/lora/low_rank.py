"""The leading singular values of a dense change of weight, to a stated accuracy and in little time."""

import math

import torch
from torch import Tensor

from backend.lora.algebra import Spectrum

# More directions than are asked for make each round gain more.
OVERSAMPLING = 8
ROUNDS = 24
# Share of the squared error that further rounds may still win. The error itself is then within half of that of the
# least there is (Eckart and Young 1936).
SLACK = 1e-3
# Where less than this share of the matrix is left, a difference of sums of squares in float32 does not tell how much.
FINE = 1e-4
# Below this share what is left is rounding.
ROUNDING = 1e-12


def leading(matrix: Tensor, rank: int, seed: int = 0) -> Spectrum:
    """The first singular values and vectors of a matrix, such that cutting it there is as good as the best.

    Randomised subspace iteration with Rayleigh-Ritz values (Halko, Martinsson and Tropp 2011, algorithm 4.4), which
    goes on until the energy that it holds has stopped growing: so it takes few rounds of a matrix that falls off fast
    and more of one that does not. Where that would be no faster than all of them, all are computed.

    Args:
        matrix: [out, in], float32 or wider.
        rank: how many; cut to what the matrix can have.
        seed: of the random start.
    """
    total = _square(matrix)
    width = rank + OVERSAMPLING
    if 2 * width >= min(matrix.shape) or not total:
        return _all(matrix, rank, total)
    if matrix.shape[0] < matrix.shape[1]:
        turned = leading(matrix.T, rank, seed)
        return Spectrum(turned.right.T, turned.values, turned.left.T, turned.total)
    generator = torch.Generator(matrix.device).manual_seed(seed)
    start = torch.randn(matrix.shape[1], width, dtype=matrix.dtype, device=matrix.device, generator=generator)
    ahead, gains = matrix @ start, []
    for _ in range(ROUNDS):
        left = torch.linalg.qr(ahead).Q
        basis, core = torch.linalg.qr(matrix.T @ left)  # matrix ~ left @ core.T @ basis.T
        u, values, v = torch.linalg.svd(core.T, full_matrices=False)
        left, right = left @ u, basis @ v.T
        ahead = matrix @ right
        # What the next half of a round would add to the energy: it is orthogonal to what is there.
        gains.append(_square(ahead[:, :rank] - left[:, :rank] * values[:rank]))
        found = Spectrum(left[:, :rank], values[:rank], right[:, :rank].T, total)
        rest = total - _square(values[:rank])
        if rest <= FINE * total:
            rest = _square(matrix - (found.left * found.values) @ found.right)
        if rest <= ROUNDING * total or _still_to_win(gains) <= SLACK * rest:
            return found
    return _all(matrix, rank, total)


def _still_to_win(gains: list[float]) -> float:
    """What further rounds would add: gains fall off like a geometric series, so it follows from the last two."""
    if len(gains) < 2:
        return math.inf
    ratio = min(gains[-1] / gains[-2], 0.95) if gains[-2] else 0.0
    return gains[-1] / (1 - ratio)


def _square(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor).double() ** 2)


def _all(matrix: Tensor, rank: int, total: float) -> Spectrum:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return Spectrum(left[:, :rank], values[:rank], right[:rank], total)
