"""Sums and reductions of LoRA layers, as functions from values to values.

A weighted sum of changes of weight, sum_k ratio_k * delta_k, is itself a low-rank matrix: with the factors of all
layers side by side, left [out, R] and right [R, in], it is left @ right, where R is the sum of the ranks. Everything
here works on those two and never makes the dense matrix.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.lora.layer import LoraLayer

# Share of the squared norm that sums in float32 leave of nothing.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Spectrum:
    """The singular value decomposition of a change of weight: left @ diag(values) @ right.

    Attributes:
        left: [out, R], orthonormal columns.
        values: [R], falling.
        right: [R, in * kernel], orthonormal rows.
        total: sum of the squares of all singular values, those that are not here too.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    total: float

    def energy(self, rank: int) -> float:
        """Share of the squared Frobenius norm that the first `rank` singular values hold; 1 of nothing."""
        held = float(self.values[:rank].double().square().sum())
        return min(held / self.total, 1.0) if self.total else 1.0

    def rank_for(self, energy: float) -> int:
        """The smallest rank, from 1, that holds this share."""
        if not self.total:
            return 1
        shares = self.values.double().square().cumsum(0) / self.total
        # A rounding error must not ask for a rank more than there is.
        enough = (shares >= min(energy, float(shares[-1]))).nonzero()
        return int(enough[0]) + 1


def side_by_side(layers: Sequence[LoraLayer], ratios: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The factors of sum_k ratio_k * delta_k, in float32 or wider.

    Each pair is scaled by the square root of |ratio * alpha / rank|, so that neither factor grows out of a half
    precision's range; a negative sign goes to the left.

    Returns:
        left [out, R] and right [R, in * kernel].
    """
    lefts, rights = [], []
    for layer, ratio in zip(layers, ratios, strict=True):
        dtype = torch.promote_types(torch.promote_types(layer.down.dtype, layer.up.dtype), torch.float32)
        weight = ratio * layer.alpha / layer.rank
        root = abs(weight) ** 0.5
        lefts.append(layer.up.flatten(1).to(dtype) * (root if weight >= 0 else -root))
        rights.append(layer.down.flatten(1).to(dtype) * root)
    wide = max((left.dtype for left in lefts), key=lambda dtype: dtype.itemsize)
    return torch.cat([left.to(wide) for left in lefts], 1), torch.cat([right.to(wide) for right in rights], 0)


def concatenated(layers: Sequence[LoraLayer], ratios: Sequence[float]) -> LoraLayer:
    """sum_k ratio_k * delta_k, exactly, as one layer whose rank is the sum of the ranks, with alpha = rank."""
    left, right = side_by_side(layers, ratios)
    return shaped(left, right, layers)


def added(layers: Sequence[LoraLayer], ratios: Sequence[float]) -> LoraLayer:
    """The sum of ups and the sum of downs, as sd-scripts' merge_lora.py makes it without --concat.

    With s_k = sqrt(alpha_k / alpha) * ratio_k, where alpha is the first layer's and the result's:
    up = sum_k |s_k| * up_k and down = sum_k s_k * down_k. So their product has every ratio squared, with its sign, and
    terms of each up with each other down.

    Raises:
        ValueError: the ranks differ, or an alpha has no root.
    """
    ranks = sorted({layer.rank for layer in layers})
    if len(ranks) > 1:
        raise ValueError(f"has ranks {', '.join(map(str, ranks))}, which cannot be added")
    alpha = layers[0].alpha
    if len(layers) > 1 and not all(layer.alpha / alpha >= 0 if alpha else False for layer in layers):
        raise ValueError(f"has alphas {', '.join(f'{layer.alpha:g}' for layer in layers)}, which cannot be added")
    ups, downs = [], []
    for layer, ratio in zip(layers, ratios, strict=True):
        scale = math.sqrt(layer.alpha / alpha if alpha else 1.0) * ratio
        dtype = torch.promote_types(torch.promote_types(layer.down.dtype, layer.up.dtype), torch.float32)
        ups.append(layer.up.flatten(1).to(dtype) * abs(scale))
        downs.append(layer.down.flatten(1).to(dtype) * scale)
    whole = shaped(sum(ups), sum(downs), layers)
    return LoraLayer(whole.down, whole.up, alpha)


def distance(layer: LoraLayer, layers: Sequence[LoraLayer], ratios: Sequence[float]) -> tuple[float, float]:
    """How far a layer is from sum_k ratio_k * delta_k: Frobenius norms of the difference and of the sum, in float64."""
    difference = side_by_side([layer, *layers], [-1.0, *ratios])
    wanted = side_by_side(layers, ratios)
    return _product_norm(*difference), _product_norm(*wanted)


def vanishes(sums: Iterable[tuple[Sequence[LoraLayer], Sequence[float]]]) -> bool:
    """Whether sums of layers are nothing but rounding: every layer is zero, or they cancel each other out."""
    for layers, ratios in sums:
        parts = sum((ratio * float(layer.norm())) ** 2 for layer, ratio in zip(layers, ratios, strict=True))
        # Numbers too large to be squared are not nothing.
        if not sum_norm(layers, ratios) ** 2 <= ROUNDING * parts or not math.isfinite(parts):
            return False
    return True


def sum_norm(layers: Sequence[LoraLayer], ratios: Sequence[float]) -> float:
    """Frobenius norm of sum_k ratio_k * delta_k."""
    return _product_norm(*side_by_side(layers, ratios))


def _product_norm(left: Tensor, right: Tensor) -> float:
    left, right = left.double(), right.double()
    return float(((left.T @ left) * (right @ right.T)).sum().clamp(min=0).sqrt())


def decompose(left: Tensor, right: Tensor) -> Spectrum:
    """Singular values of left @ right without making the product: a QR of either factor, then an SVD of the small core.

    Exact to rounding (Golub and Van Loan, Matrix Computations, 5.4.6).

    Args:
        left: [out, R].
        right: [R, in * kernel].
    """
    left_basis, left_core = torch.linalg.qr(left)
    right_basis, right_core = torch.linalg.qr(right.T)
    u, values, v = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    return Spectrum(left_basis @ u, values, v @ right_basis.T, float(values.double().square().sum()))


def cut(spectrum: Spectrum, rank: int, like: Sequence[LoraLayer], clamp_quantile: float | None = None) -> LoraLayer:
    """The best approximation of a rank (Eckart and Young 1936), with alpha = rank.

    Args:
        rank: cut to what there is.
        like: layers of the same module, for the number of dimensions.
        clamp_quantile: cut off the largest numbers of both factors at this quantile of their magnitudes. Then the
            singular values are all in `up`, as in the programs that do this.
    """
    rank = min(rank, len(spectrum.values))
    left, values, right = spectrum.left[:, :rank], spectrum.values[:rank], spectrum.right[:rank]
    # Shared out, so that neither factor leaves the range of a half precision.
    up, down = left * values.sqrt(), right * values.sqrt()[:, None]
    if clamp_quantile is not None:
        up, down = left * values, right
        highest = _quantile(torch.cat([up.flatten(), down.flatten()]).abs(), clamp_quantile)
        up, down = up.clamp(-highest, highest), down.clamp(-highest, highest)
    return shaped(up, down, like)


def _quantile(values: Tensor, share: float) -> float:
    """As torch.quantile with "nearest", which refuses large tensors."""
    return float(values.kthvalue(max(1, round(share * values.numel()))).values)


def shaped(left: Tensor, right: Tensor, like: Sequence[LoraLayer]) -> LoraLayer:
    """left @ right as a layer with alpha = rank, in the dimensions of the first of `like` that is a convolution's."""
    rank = right.shape[0]
    model = next((layer for layer in like if layer.down.ndim == 4), like[0])
    down = right.reshape(rank, *model.down.shape[1:])
    up = left[:, :, None, None] if model.up.ndim == 4 else left
    return LoraLayer(down.contiguous(), up.contiguous(), float(rank))


def shuffled(layer: LoraLayer, generator: torch.Generator) -> LoraLayer:
    """The same change with its ranks in another order."""
    order = torch.randperm(layer.rank, generator=generator)
    return LoraLayer(layer.down[order], layer.up[:, order], layer.alpha)


def by_key(files: Sequence[Mapping[str, LoraLayer]], ratios: Sequence[float]) -> dict[str, tuple[list, list]]:
    """Which layers of several files are to be summed under each key, and their ratios; in the order of the files."""
    found: dict[str, tuple[list, list]] = {}
    for layers, ratio in zip(files, ratios, strict=True):
        for key, layer in layers.items():
            ones, weights = found.setdefault(key, ([], []))
            ones.append(layer)
            weights.append(ratio)
    return found
