"""LoRAs into a checkpoint, tensor by tensor from one file to another; or LoRAs into one LoRA.

Run it with `python -m backend merge_lora [--sd_model FILE] --save_to FILE --models FILE ... --ratios X ...`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from backend.config.lora_tools import MergeLora, Svd
from backend.errors import UserError
from backend.lora.algebra import added, concatenated, distance, shuffled
from backend.lora.layer import LoraLayer
from backend.lora.provenance import merged
from backend.tables.identity import title_of
from backend.terminal import ended_by_signals, track
from backend.tools import svd_merge
from backend.tools.files import (
    DTYPES,
    Sum,
    by_block,
    check_effect,
    check_target,
    keep_config,
    read_files,
    rounded,
    save,
)
from backend.tools.report import Bars, Report, tell
from backend.tools.svd_merge import reduce_all

SHUFFLE_SEED = 0


def run(config: MergeLora) -> None:
    """The command `merge_lora`.

    Raises:
        UserError: a file is broken or made for another model, ranks cannot be added, or nothing would change.
    """
    with ended_by_signals():
        check_target(config.result.save_to, config.result)
        if config.base.sd_model is None:
            report = merge_loras(config)
        else:
            from backend.tools.merge_checkpoint import merge_into_checkpoint

            report = merge_into_checkpoint(config)
        keep_config(config, config.result)
    tell(report)


def merge_loras(config: MergeLora) -> Report:
    """LoRAs into one LoRA."""
    options, result = config.sum, config.result
    inputs = read_files(config.mixture)
    check_v2(config, inputs.family)
    sums = inputs.sums()
    check_effect(sums.values())
    if options.new_rank is None:
        layers, report = summed(sums, config, inputs.family)
    else:
        layers, report = reduced(sums, config, inputs.family)
    if options.shuffle:
        generator = torch.Generator().manual_seed(SHUFFLE_SEED)
        layers = {key: shuffled(layer, generator) for key, layer in layers.items()}
    metadata = merged(inputs.sources, layers, inputs.family, result.save_to.stem)
    made = save(result.save_to, result, layers, metadata, DTYPES[saved_as(config)])
    title = f"Merged {len(inputs.files)} LoRA(s) into {result.save_to.stem}"
    return replace(report, title=title, dry_run=result.dry_run, files=(made,))


def saved_as(config: MergeLora) -> str:
    """The precision of a LoRA's saved numbers."""
    return config.sum.save_precision or config.sum.precision


def summed(sums: Mapping[str, Sum], config: MergeLora, family: str | None) -> tuple[dict[str, LoraLayer], Report]:
    """Every module's sum, and a report of its errors."""
    layers, errors = {}, {}
    for key, (ones, ratios) in track(sums.items(), "merging", len(sums)):
        layers[key], errors[key] = combine(key, ones, ratios, config)
    return layers, report_of(layers, errors, family)


def reduced(sums: Mapping[str, Sum], config: MergeLora, family: str | None) -> tuple[dict[str, LoraLayer], Report]:
    """Every module's sum, reduced to a rank, and a report of what that keeps; see svd_merge.py."""
    options = config.sum
    svd = Svd(
        new_rank=options.new_rank,
        new_conv_rank=options.new_conv_rank,
        precision=options.precision,
        save_precision=saved_as(config),
    )
    found = reduce_all(sums, svd, torch.device("cpu"))
    report = svd_merge.report_of(found, family, saved_as(config), Report(""))
    return {key: one.layer for key, one in found.items()}, report


def combine(
    key: str, layers: Sequence[LoraLayer], ratios: Sequence[float], config: MergeLora
) -> tuple[LoraLayer, tuple[float, float]]:
    """One module's sum, and the norms of its error and of the exact sum.

    Raises:
        UserError: the method needs equal ranks.
    """
    added_up = rounded(layers, config.sum.precision)
    try:
        whole = added(added_up, ratios) if config.sum.method == "add" else concatenated(added_up, ratios)
    except ValueError as error:
        message = f"add needs equal ranks and alphas of one sign, but {key} {error}"
        message += "; use exact, or svd_merge_lora for one rank"
        raise UserError(message, field="method") from None
    return whole, distance(rounded([whole], saved_as(config), "save_precision")[0], layers, ratios)


def check_v2(config: MergeLora, family: str | None) -> None:
    """Hold the flag against the files.

    Raises:
        UserError: they are for another family.
    """
    if config.base.v2 and family not in (None, "sd2"):
        raise UserError(f"is set, but the files are for {title_of(family)}; leave it out", field="v2")


def report_of(layers: Mapping[str, LoraLayer], errors: Mapping[str, tuple[float, float]], family: str | None) -> Report:
    """What the user reads: ranks and sizes by block, and how far the result is from the exact sum."""
    blocks = by_block(layers, family)
    rows = tuple(_row(name, keys, layers, errors) for name, keys in blocks.items())
    facts = (
        ("modules", str(len(layers))),
        ("ranks", _spread([layer.rank for layer in layers.values()])),
        ("error against the exact sum", f"{100 * _error(list(errors.values())):.3g} %"),
    )
    sizes = tuple(sum(errors[key][1] ** 2 for key in keys) ** 0.5 for keys in blocks.values())
    bars = Bars("Size of the change by block (Frobenius norm)", tuple(blocks), sizes)
    return Report("", facts=facts, columns=("block", "modules", "rank", "norm", "error"), rows=rows, bars=bars)


def _row(
    name: str, keys: Sequence[str], layers: Mapping[str, LoraLayer], errors: Mapping[str, tuple[float, float]]
) -> tuple[str, ...]:
    own = [errors[key] for key in keys]
    norm = sum(size**2 for _, size in own) ** 0.5
    ranks = _spread([layers[key].rank for key in keys])
    return name, str(len(keys)), ranks, f"{norm:.4g}", f"{100 * _error(own):.3g} %"


def _error(pairs: Sequence[tuple[float, float]]) -> float:
    size = sum(size**2 for _, size in pairs)
    return (sum(error**2 for error, _ in pairs) / size) ** 0.5 if size else 0.0


def _spread(ranks: Sequence[int]) -> str:
    return str(min(ranks)) if min(ranks) == max(ranks) else f"{min(ranks)}-{max(ranks)}"
