"""LoRAs of any ranks into one of a given rank, the best there is; with one file, a reduction of its rank.

Run it with `python -m backend svd_merge_lora --save_to FILE --models FILE ... --ratios X ... --new_rank N`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from backend.config.lora_tools import Svd, SvdMergeLora
from backend.lora.algebra import Spectrum, by_key, cut, decompose, side_by_side
from backend.lora.layer import LoraLayer
from backend.lora.provenance import merged
from backend.terminal import track
from backend.tools.files import (
    DTYPES,
    by_block,
    check_effect,
    check_target,
    common_family,
    only_loras,
    read_files,
    save,
    sources_of,
)
from backend.tools.parallel import choose_device, each
from backend.tools.report import Bars, Curve, Report, tell

# Points of the curve of errors by rank.
POINTS = 24
Sum = tuple[Sequence[LoraLayer], Sequence[float]]
# Bytes of a file beside its numbers, per module: names, shapes and alpha.
OVERHEAD = 320


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
    mixture, svd, result = config.mixture, config.svd, config.result
    check_target(result)
    device = choose_device(svd.device)
    files = read_files(mixture.models, mixture.allow_unmatched)
    family = common_family(mixture.models, files)
    sums = by_key(only_loras(mixture.models, files), mixture.weights)
    check_effect(sums.values())
    found = reduce_all(sums, svd, device)
    layers = {key: reduced.layer for key, reduced in found.items()}
    title = result.save_to.stem
    metadata = merged(sources_of(mixture.models, files, mixture.weights), layers, family, title)
    made = save(result.save_to, result, layers, metadata, DTYPES[svd.save_precision or "float"])
    tell(report_of(found, family, Report(f"Merged {len(files)} LoRA(s) into {title}", result.dry_run, (made,))))


def reduce_all(sums: Mapping[str, Sum], svd: Svd, device: torch.device) -> dict[str, Reduced]:
    """Every module's best approximation of its sum, by key."""
    reduced = each(lambda key: reduce_one(*sums[key], svd, device), sums, device)
    return dict(zip(sums, track(reduced, "decomposing", len(sums)), strict=True))


def reduce_one(layers: Sequence[LoraLayer], ratios: Sequence[float], svd: Svd, device: torch.device) -> Reduced:
    """One module's best approximation of sum_k ratio_k * delta_k."""
    left, right = (factor.to(device) for factor in side_by_side(layers, ratios))
    if svd.precision != "float":
        rounded = DTYPES[svd.precision]
        left, right = left.to(rounded).to(left.dtype), right.to(rounded).to(right.dtype)
    spectrum = decompose(left, right)
    rank = rank_of(spectrum, layers, svd)
    layer = cut(spectrum, rank, layers, svd.clamp_quantile)
    layer = LoraLayer(layer.down.cpu(), layer.up.cpu(), layer.alpha)
    return Reduced(layer, spectrum.values.double().cpu(), spectrum.energy(rank), left.shape[0] + right.shape[1])


def rank_of(spectrum: Spectrum, layers: Sequence[LoraLayer], svd: Svd) -> int:
    """The rank that a module gets."""
    wide = any(layer.down[:1, :1].numel() > 1 for layer in layers)
    most = min((svd.new_conv_rank or svd.new_rank) if wide else svd.new_rank, len(spectrum.values))
    return most if svd.energy is None else min(most, spectrum.rank_for(svd.energy))


def report_of(found: Mapping[str, Reduced], family: str | None, start: Report) -> Report:
    """What the user reads: energy kept by block and by module, and what other ranks would keep."""
    blocks = {name: [found[key] for key in keys] for name, keys in by_block(found, family).items()}
    rows = tuple(_row(name, ones) for name, ones in blocks.items())
    total = sum(float(reduced.values.square().sum()) for reduced in found.values())
    lost = sum(float(reduced.values.square().sum()) * (1 - reduced.kept) for reduced in found.values())
    worst = min(found, key=lambda key: found[key].kept)
    facts = (
        ("modules", str(len(found))),
        ("energy kept", _percent(1 - lost / total if total else 1.0)),
        ("error", _percent((lost / total) ** 0.5 if total else 0.0)),
        ("least kept", f"{_percent(found[worst].kept)} in {worst}"),
    )
    kept = tuple(100 * _kept(ones) for ones in blocks.values())
    columns = ("block", "modules", "rank", "energy kept", "least")
    bars = Bars("Energy kept by block, %", tuple(blocks), kept)
    return Report(
        start.title, start.dry_run, start.files, facts, columns, rows, bars, curve_of(list(found.values())), start.notes
    )


def _row(name: str, ones: Sequence[Reduced]) -> tuple[str, ...]:
    ranks = sorted({reduced.layer.rank for reduced in ones})
    spread = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"
    return name, str(len(ones)), spread, _percent(_kept(ones)), _percent(min(reduced.kept for reduced in ones))


def _kept(ones: Sequence[Reduced]) -> float:
    total = sum(float(reduced.values.square().sum()) for reduced in ones)
    return sum(float(reduced.values.square().sum()) * reduced.kept for reduced in ones) / total if total else 1.0


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def curve_of(ones: Sequence[Reduced]) -> Curve:
    """Error and size of the file for ranks up to the sum's own, in float32 and with one rank for all modules."""
    most = max(len(reduced.values) for reduced in ones)
    ranks = sorted({1, *(round(most ** (point / POINTS)) for point in range(POINTS + 1))})
    squares = torch.zeros(len(ones), most, dtype=torch.float64)
    for row, reduced in enumerate(ones):
        squares[row, : len(reduced.values)] = reduced.values.square()
    total = float(squares.sum()) or 1.0
    held = squares.cumsum(1).sum(0)
    errors = tuple(max(0.0, 1 - float(held[rank - 1]) / total) ** 0.5 for rank in ranks)
    sizes = tuple(
        sum(OVERHEAD + 4 * reduced.width * min(rank, len(reduced.values)) for reduced in ones) for rank in ranks
    )
    return Curve(tuple(ranks), errors, sizes)
