"""LoRAs of any ranks into one of a given rank, the best there is; with one file, a reduction of its rank.

Run it with `python -m backend svd_merge_lora --save_to FILE --models FILE ... --ratios X ... --new_rank N`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from backend.config.lora_tools import Svd, SvdMergeLora
from backend.lora.algebra import Spectrum, cut, decompose, distance, side_by_side
from backend.lora.layer import LoraLayer
from backend.lora.provenance import merged
from backend.terminal import ended_by_signals, track
from backend.tools.files import (
    DTYPES,
    OVERHEAD,
    Sum,
    by_block,
    check_effect,
    check_target,
    keep_config,
    read_files,
    rounded,
    save,
)
from backend.tools.parallel import choose_device, each
from backend.tools.report import Bars, Curve, Report, percent, tell

# Points of the curve of errors by rank.
POINTS = 24


@dataclass(frozen=True)
class Reduced:
    """One module's result.

    Attributes:
        layer: of the new rank.
        values: all singular values, float64 on the CPU, falling.
        kept: share of the squared norm that the layer holds.
        width: outputs and inputs of the weight together, the numbers that one rank costs.
    """

    layer: LoraLayer
    values: torch.Tensor
    kept: float
    width: int


def run(config: SvdMergeLora) -> None:
    """The command `svd_merge_lora`.

    Raises:
        UserError: a file is broken, made for another model, or the result would change nothing.
    """
    with ended_by_signals():
        svd, result = config.svd, config.result
        check_target(result.save_to, result)
        device = choose_device(svd.device)
        inputs = read_files(config.mixture)
        sums = inputs.sums()
        check_effect(sums.values())
        found = reduce_all(sums, svd, device)
        layers = {key: reduced.layer for key, reduced in found.items()}
        title = result.save_to.stem
        metadata = merged(inputs.sources, layers, inputs.family, title)
        made = save(result.save_to, result, layers, metadata, DTYPES[svd.saved])
        keep_config(config, result)
    start = Report(f"Merged {len(inputs.files)} LoRA(s) into {title}", result.dry_run, (made,))
    tell(report_of(found, inputs.family, svd.saved, start))


def reduce_all(sums: Mapping[str, Sum], svd: Svd, device: torch.device) -> dict[str, Reduced]:
    """Every module's best approximation of its sum, by key."""
    reduced = each(lambda key: reduce_one(*sums[key], svd, device), sums, device)
    return dict(zip(sums, track(reduced, "decomposing", len(sums)), strict=True))


def reduce_one(layers: Sequence[LoraLayer], ratios: Sequence[float], svd: Svd, device: torch.device) -> Reduced:
    """One module's best approximation of sum_k ratio_k * delta_k.

    Raises:
        UserError: numbers do not fit into the precision.
    """
    left, right = (factor.to(device) for factor in side_by_side(rounded(layers, svd.precision), ratios))
    spectrum = decompose(left, right)
    rank = rank_of(spectrum, layers, svd)
    layer = cut(spectrum, rank, layers, svd.clamp_quantile)
    layer = LoraLayer(layer.down.cpu(), layer.up.cpu(), layer.alpha)
    kept = spectrum.energy(rank)
    saved = svd.saved
    if {svd.precision, saved} != {"float"} or svd.clamp_quantile is not None:
        # Singular values say nothing of what rounding and clamping cost.
        error, size = distance(rounded([layer], saved, "save_precision")[0], layers, ratios)
        kept = 1 - (error / size) ** 2 if size else 1.0
    return Reduced(layer, spectrum.values.double().cpu(), kept, left.shape[0] + right.shape[1])


def rank_of(spectrum: Spectrum, layers: Sequence[LoraLayer], svd: Svd) -> int:
    """The rank that a module gets."""
    wide = any(layer.down[:1, :1].numel() > 1 for layer in layers)
    most = (svd.new_conv_rank or svd.rank) if wide else svd.rank
    most = min(most or len(spectrum.values), len(spectrum.values))
    return most if svd.energy is None else min(most, spectrum.rank_for(svd.energy))


def report_of(found: Mapping[str, Reduced], family: str | None, precision: str, start: Report) -> Report:
    """What the user reads: energy kept by block and by module, and what other ranks would keep."""
    blocks = {name: [found[key] for key in keys] for name, keys in by_block(found, family).items()}
    everything = list(found.values())
    kept = _kept(everything)
    facts = (
        ("modules", str(len(found))),
        ("energy kept", percent(kept)),
        ("error", percent(max(0.0, 1 - kept) ** 0.5)),
    )
    return replace(
        start,
        facts=facts,
        columns=("block", "modules", "rank", "energy kept", "least"),
        rows=tuple(_row(name, ones) for name, ones in blocks.items()),
        modules=tuple((key, str(one.layer.rank), percent(one.kept)) for key, one in found.items()),
        bars=Bars("Energy kept by block, %", tuple(blocks), tuple(100 * _kept(ones) for ones in blocks.values())),
        curve=curve_of(everything, DTYPES[precision].itemsize),
    )


def _row(name: str, ones: Sequence[Reduced]) -> tuple[str, ...]:
    ranks = sorted({reduced.layer.rank for reduced in ones})
    spread = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"
    return name, str(len(ones)), spread, percent(_kept(ones)), percent(min(reduced.kept for reduced in ones))


def _kept(ones: Sequence[Reduced]) -> float:
    total = sum(float(reduced.values.square().sum()) for reduced in ones)
    return sum(float(reduced.values.square().sum()) * reduced.kept for reduced in ones) / total if total else 1.0


def curve_of(ones: Sequence[Reduced], itemsize: int) -> Curve:
    """Error and size of the file for ranks up to the sum's own, the same for all modules.

    Args:
        itemsize: bytes of a saved number.
    """
    most = max(len(reduced.values) for reduced in ones)
    chosen = {reduced.layer.rank for reduced in ones}
    ranks = sorted({1, *chosen, *(round(most ** (point / POINTS)) for point in range(POINTS + 1))})
    squares = torch.zeros(len(ones), most, dtype=torch.float64)
    for row, reduced in enumerate(ones):
        squares[row, : len(reduced.values)] = reduced.values.square()
    total = float(squares.sum()) or 1.0
    held = squares.cumsum(1).sum(0)
    errors = tuple(max(0.0, 1 - float(held[rank - 1]) / total) ** 0.5 for rank in ranks)
    sizes = tuple(
        sum(OVERHEAD + itemsize * reduced.width * min(rank, len(reduced.values)) for reduced in ones) for rank in ranks
    )
    return Curve(tuple(ranks), errors, sizes)
