"""One LoRA layer as a value, and the one formula that everything else composes.

    delta = (up.flatten(1) @ down.flatten(1)) * alpha / rank

for linear layers, 1x1 and 3x3 convolutions alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor


class Layer(Protocol):
    """What a file of any kind holds for one module: a change of its weight.

    Attributes:
        KIND: what such a file is called.
        SUFFIXES: by the name of a factor, what its tensor's name ends in.
        NEEDED: the factors that cannot be missing.
        alpha: as a Python number.
    """

    KIND: ClassVar[str]
    SUFFIXES: ClassVar[Mapping[str, str]]
    NEEDED: ClassVar[tuple[str, ...]]
    alpha: float

    @classmethod
    def of(cls, factors: Mapping[str, Tensor], alpha: float | None) -> Self:
        """A layer from its factors by name; alpha None is the rank.

        Raises:
            ValueError: shapes that do not fit each other.
        """

    @property
    def factors(self) -> dict[str, Tensor]:
        """The factors by name, in the order of the files."""

    @property
    def rank(self) -> int: ...

    @property
    def shape(self) -> tuple[int, int]:
        """The weight's, flattened: outputs, and inputs times the kernel's size."""

    def delta(self) -> Tensor:
        """The change of the weight at multiplier 1, of the weight's shape or flattened."""

    def norm(self) -> Tensor:
        """Frobenius norm of `delta`."""


@dataclass(frozen=True)
class LoraLayer:
    """A low-rank change of one weight.

    Attributes:
        down: [rank, in] or [rank, in, kernel, kernel].
        up: [out, rank] or [out, rank, 1, 1].
        alpha: the change is scaled by alpha / rank.
    """

    KIND: ClassVar[str] = "LoRA"
    SUFFIXES: ClassVar[Mapping[str, str]] = {"down": ".lora_down.weight", "up": ".lora_up.weight"}
    NEEDED: ClassVar[tuple[str, ...]] = ("down", "up")

    down: Tensor
    up: Tensor
    alpha: float

    @classmethod
    def of(cls, factors: Mapping[str, Tensor], alpha: float | None) -> Self:
        """See `Layer`."""
        down = factors["down"]
        return cls(down, factors["up"], float(max(down.shape[:1], default=0)) if alpha is None else alpha)

    @property
    def factors(self) -> dict[str, Tensor]:
        """See `Layer`."""
        return {"down": self.down, "up": self.up}

    @property
    def shape(self) -> tuple[int, int]:
        """See `Layer`."""
        return self.up.shape[0], self.down[0].numel()

    def __post_init__(self) -> None:
        if self.down.ndim not in (2, 4) or self.up.ndim not in (2, 4):
            raise ValueError(f"down {tuple(self.down.shape)} and up {tuple(self.up.shape)} must have 2 or 4 dimensions")
        if self.up.shape[1] != self.down.shape[0] or self.up[:1, :1].numel() != 1:
            raise ValueError(f"down {tuple(self.down.shape)} and up {tuple(self.up.shape)} do not fit each other")

    @property
    def rank(self) -> int:
        """Number of rows of `down`."""
        return self.down.shape[0]

    def delta(self) -> Tensor:
        """The change of the weight: [out, in], or [out, in, kernel, kernel] where `down` has four dimensions.

        Computed in float32, or in float64 if the factors are. A 1x1 convolution's may need a reshape to its weight.
        """
        dtype = torch.promote_types(torch.promote_types(self.down.dtype, self.up.dtype), torch.float32)
        product = self.up.to(dtype).flatten(1) @ self.down.to(dtype).flatten(1)
        return (product * (self.alpha / self.rank)).reshape(self.up.shape[0], *self.down.shape[1:])

    def norm(self) -> Tensor:
        """Frobenius norm of `delta`: |UD|^2 = tr(U'U DD'), with matrices of the rank's size alone."""
        dtype = torch.promote_types(torch.promote_types(self.down.dtype, self.up.dtype), torch.float32)
        down, up = self.down.flatten(1).to(dtype), self.up.flatten(1).to(dtype)
        return ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt() * abs(self.alpha / self.rank)

    def truncated(self, rank: int) -> "LoraLayer":
        """The first `rank` rows with alpha unchanged: of a DyLoRA, the network that was trained at that rank.

        Raises:
            ValueError: there are fewer rows.
        """
        if not 0 < rank <= self.rank:
            raise ValueError(f"rank {rank} is not between 1 and {self.rank}")
        return LoraLayer(self.down[:rank], self.up[:, :rank], self.alpha)


def without_core(factors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
    """A LoRA's factors without the core that LoCon with CP decomposition has between them.

    up [out, p, 1, 1], mid [p, q, kernel, kernel] and down [q, in, 1, 1] make the same change as up and
    sum_q mid[p, q] * down[q], which is computed in float32 or wider.

    Returns:
        The factors, and what alpha has to be multiplied by so that alpha / rank stays what it is.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    if "mid" not in factors or not {"up", "down"} <= factors.keys():
        return dict(factors), 1.0
    mid, down = factors["mid"], factors["down"]
    fits = mid.ndim == 4 and down.ndim in (2, 4) and down.numel() and mid.shape[1] == down.shape[0]
    if not fits or down.flatten(1).shape != down.shape[:2]:
        raise ValueError(f"mid {tuple(mid.shape)} and down {tuple(down.shape)} do not fit each other")
    dtype = torch.promote_types(torch.promote_types(mid.dtype, down.dtype), torch.float32)
    joined = torch.einsum("pqkl,qi->pikl", mid.to(dtype), down.flatten(1).to(dtype))
    rest = {role: factor for role, factor in factors.items() if role not in ("mid", "down")}
    return {"down": joined, **rest}, mid.shape[0] / down.shape[0]


def factorize(matrix: Tensor, rank: int) -> LoraLayer:
    """The best approximation of a change of weight by one of a rank (Eckart and Young 1936), with alpha = rank.

    Args:
        matrix: [out, in] or [out, in, kernel, kernel].
        rank: cut to what the matrix can have.

    Returns:
        A layer whose `delta()` approximates the matrix; the singular values are in `up`.
    """
    flat = matrix.flatten(1)
    left, values, right = torch.linalg.svd(flat.to(torch.promote_types(flat.dtype, torch.float32)), full_matrices=False)
    rank = min(rank, len(values))
    up, down = left[:, :rank] * values[:rank], right[:rank]
    if matrix.ndim == 4:
        up, down = up[:, :, None, None], down.reshape(rank, *matrix.shape[1:])
    return LoraLayer(down, up, float(rank))
