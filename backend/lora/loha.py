"""One LoHa layer as a value: a Hadamard product of two low-rank matrices (FedPara, arXiv 2108.06098), as in LyCORIS.

delta = ((w1_a @ w1_b) * (w2_a @ w2_b)) * alpha / rank
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class LohaLayer:
    """A change of one weight whose rank can be as large as the product of its two factors' ranks.

    Attributes:
        w1_a, w2_a: [out, rank]; [rank, out] with cores.
        w1_b, w2_b: [rank, in * kernel]; [rank, in] with cores.
        alpha: the change is scaled by alpha / rank.
        t1, t2: cores of Tucker's decomposition of a convolution, [rank, rank, kernel, kernel], both or neither.
    """

    KIND: ClassVar[str] = "LoHa"
    SUFFIXES: ClassVar[Mapping[str, str]] = {
        name: f".hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")
    }
    NEEDED: ClassVar[tuple[str, ...]] = ("w1_a", "w1_b", "w2_a", "w2_b")

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    alpha: float
    t1: Tensor | None = None
    t2: Tensor | None = None

    def __post_init__(self) -> None:
        matrices = (self.w1_a, self.w1_b, self.w2_a, self.w2_b)
        if any(matrix.ndim != 2 or not matrix.numel() for matrix in matrices) or (self.t1 is None) != (self.t2 is None):
            raise ValueError(f"factors {[tuple(matrix.shape) for matrix in matrices]} are not those of a LoHa")
        ranks = {self.w1_b.shape[0], self.w2_b.shape[0]}
        axis = 1 if self.t1 is None else 0
        ranks |= {self.w1_a.shape[axis], self.w2_a.shape[axis]}
        cores = [core.shape for core in (self.t1, self.t2) if core is not None]
        ranks |= {size for core in cores for size in core[:2]}
        same = self.w1_a.shape == self.w2_a.shape and self.w1_b.shape == self.w2_b.shape and len(set(cores)) < 2
        if len(ranks) != 1 or not same or any(len(core) != 4 for core in cores):
            raise ValueError(f"factors {[tuple(matrix.shape) for matrix in matrices]} do not fit each other")

    @classmethod
    def of(cls, factors: Mapping[str, Tensor], alpha: float | None) -> Self:
        """See `layer.Layer`."""
        rank = max(factors["w1_b"].shape[:1], default=0)
        return cls(**factors, alpha=float(rank) if alpha is None else alpha)

    @property
    def factors(self) -> dict[str, Tensor]:
        """See `layer.Layer`."""
        found = {name: getattr(self, name) for name in self.SUFFIXES}
        return {name: factor for name, factor in found.items() if factor is not None}

    @property
    def rank(self) -> int:
        """Rank of either of the two matrices."""
        return self.w1_b.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """See `layer.Layer`."""
        if self.t1 is None:
            return self.w1_a.shape[0], self.w1_b.shape[1]
        return self.w1_a.shape[1], self.w1_b.shape[1] * self.t1[0, 0].numel()

    def delta(self) -> Tensor:
        """The change of the weight: [out, in * kernel], with cores [out, in, kernel, kernel]; at least float32."""
        first, second = (
            _product(a, b, core) for a, b, core in ((self.w1_a, self.w1_b, self.t1), (self.w2_a, self.w2_b, self.t2))
        )
        return first * second * (self.alpha / self.rank)

    def norm(self) -> Tensor:
        """Frobenius norm of `delta`."""
        return self.delta().norm()


def _product(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    if core is None:
        return a.to(dtype) @ b.to(dtype)
    return torch.einsum("ijkl,jr,ip->prkl", core.to(dtype), b.to(dtype), a.to(dtype))
