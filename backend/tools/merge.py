"""LoRAs into a checkpoint, tensor by tensor from one file to another; or LoRAs into one LoRA.

Run it with `python -m backend merge_lora [--sd_model FILE] --save_to FILE --models FILE ... --ratios X ...`.
"""

from collections.abc import Mapping, Sequence

import torch

from backend.config.lora_tools import MergeLora
from backend.config.lora_tools import Svd as SvdOptions
from backend.errors import UserError
from backend.lora.algebra import added, by_key, concatenated, distance, shuffled
from backend.lora.file import LoraFile
from backend.lora.layer import LoraLayer
from backend.lora.places import block_of, order_of_blocks
from backend.lora.provenance import merged
from backend.terminal import track
from backend.tools.files import (
    DTYPES,
    check_effect,
    check_target,
    common_family,
    only_loras,
    read_files,
    save,
    sources_of,
)
from backend.tools.report import Bars, Report, tell

SHUFFLE_SEED = 0


def run(config: MergeLora) -> None:
    """The command `merge_lora`.

    Raises:
        UserError: a file is broken or made for another model, ranks cannot be added, or nothing would change.
    """
    check_target(config.result)
    files = read_files(config.mixture.models, config.mixture.allow_unmatched)
    if config.base.sd_model is not None:
        from backend.tools.merge_checkpoint import merge_into_checkpoint

        merge_into_checkpoint(config, files)
    else:
        merge_loras(config, files)


def merge_loras(config: MergeLora, files: Sequence[LoraFile]) -> None:
    """LoRAs into one LoRA."""
    mixture, result = config.mixture, config.result
    family = common_family(mixture.models, files)
    check_v2(config, family)
    # A file at ratio 0 would add ranks and nothing else.
    used = [number for number, ratio in enumerate(mixture.weights) if ratio]
    kept, ratios = [files[number] for number in used], [mixture.weights[number] for number in used]
    sums = by_key(only_loras([mixture.models[number] for number in used], kept), ratios)
    if config.sum.new_rank is not None:
        report_reduced(config, files, sums, family)
        return
    layers, errors = {}, {}
    for key, (ones, weights) in track(sums.items(), "merging", len(sums)):
        layers[key], errors[key] = combine(key, ones, weights, config)
    if config.sum.shuffle:
        generator = torch.Generator().manual_seed(SHUFFLE_SEED)
        layers = {key: shuffled(layer, generator) for key, layer in layers.items()}
    check_effect(layers)
    metadata = merged(sources_of(mixture.models, files, mixture.weights), layers, family, result.save_to.stem)
    made = save(result.save_to, result, layers, metadata, DTYPES[config.sum.save_precision or config.sum.precision])
    start = Report(f"Merged {len(files)} LoRA(s) into {result.save_to.stem}", result.dry_run, (made,))
    tell(report_of(layers, errors, family, start))


def combine(
    key: str, layers: Sequence[LoraLayer], ratios: Sequence[float], config: MergeLora
) -> tuple[LoraLayer, tuple[float, float]]:
    """One module's sum, and the norms of its error and of the exact sum.

    Raises:
        UserError: the method needs equal ranks.
    """
    rounded = DTYPES[config.sum.precision]
    if config.sum.precision != "float":
        layers = [LoraLayer(one.down.to(rounded), one.up.to(rounded), one.alpha) for one in layers]
    try:
        whole = added(layers, ratios) if config.sum.method == "add" else concatenated(layers, ratios)
    except ValueError as error:
        message = f"add needs equal ranks, but {key} {error}; use exact, or svd_merge_lora for one rank"
        raise UserError(message, field="method") from None
    return whole, distance(whole, layers, ratios)


def check_v2(config: MergeLora, family: str | None) -> None:
    """Hold the flag against the files.

    Raises:
        UserError: they are for another family.
    """
    if config.base.v2 and family not in (None, "sd2"):
        from backend.tables.identity import title_of

        raise UserError(f"is set, but the files are for {title_of(family)}; leave it out", field="v2")


def report_reduced(
    config: MergeLora, files: Sequence[LoraFile], sums: Mapping[str, tuple[list, list]], family: str | None
) -> None:
    """The sum, reduced to a rank; see svd_merge.py."""
    from backend.tools.parallel import each
    from backend.tools.svd_merge import reduce_one
    from backend.tools.svd_merge import report_of as report_of_svd

    options, result = config.sum, config.result
    svd = SvdOptions(new_rank=options.new_rank, new_conv_rank=options.new_conv_rank, precision=options.precision)
    cpu = torch.device("cpu")
    work = each(lambda key: reduce_one(*sums[key], svd=svd, device=cpu), sums, cpu)
    found = dict(zip(sums, track(work, "decomposing", len(sums)), strict=True))
    layers = {key: reduced.layer for key, reduced in found.items()}
    if options.shuffle:
        generator = torch.Generator().manual_seed(SHUFFLE_SEED)
        layers = {key: shuffled(layer, generator) for key, layer in layers.items()}
    check_effect(layers)
    sources = sources_of(config.mixture.models, files, config.mixture.weights)
    metadata = merged(sources, layers, family, result.save_to.stem)
    made = save(result.save_to, result, layers, metadata, DTYPES[options.save_precision or options.precision])
    title = f"Merged {len(files)} LoRA(s) into {result.save_to.stem}"
    tell(report_of_svd(found, family, Report(title, result.dry_run, (made,))))


def report_of(
    layers: Mapping[str, LoraLayer], errors: Mapping[str, tuple[float, float]], family: str | None, start: Report
) -> Report:
    """What the user reads: ranks and sizes by block, and how far the result is from the exact sum."""
    blocks: dict[str, list[str]] = {}
    for key in layers:
        blocks.setdefault(block_of(key, family) or "other", []).append(key)
    names = sorted(blocks, key=order_of_blocks)
    rows = tuple(_row(name, blocks[name], layers, errors) for name in names)
    facts = (
        ("modules", str(len(layers))),
        ("ranks", _spread([layer.rank for layer in layers.values()])),
        ("error against the exact sum", f"{100 * _error(errors.values()):.3g} %"),
    )
    sizes = tuple(sum(errors[key][1] ** 2 for key in blocks[name]) ** 0.5 for name in names)
    bars = Bars("Size of the change by block (Frobenius norm)", tuple(names), sizes)
    columns = ("block", "modules", "rank", "norm", "error")
    return Report(start.title, start.dry_run, start.files, facts, columns, rows, bars, notes=start.notes)


def _row(
    name: str, keys: Sequence[str], layers: Mapping[str, LoraLayer], errors: Mapping[str, tuple[float, float]]
) -> tuple[str, ...]:
    own = [errors[key] for key in keys]
    norm = sum(size**2 for _, size in own) ** 0.5
    ranks = _spread([layers[key].rank for key in keys])
    return name, str(len(keys)), ranks, f"{norm:.4g}", f"{100 * _error(own):.3g} %"


def _error(pairs: Sequence[tuple[float, float]]) -> float:
    pairs = list(pairs)
    size = sum(size**2 for _, size in pairs)
    return (sum(error**2 for error, _ in pairs) / size) ** 0.5 if size else 0.0


def _spread(ranks: Sequence[int]) -> str:
    return str(min(ranks)) if min(ranks) == max(ranks) else f"{min(ranks)}-{max(ranks)}"
