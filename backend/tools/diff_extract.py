"""The difference of two models as a LoRA: tensor pairs are streamed, and each is cut to a rank by its largest parts.

Run it with `python -m backend extract_lora_from_models --model_org FILE --model_tuned FILE --save_to FILE --dim N`.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NoReturn

import torch
from torch import Tensor

from backend.config.lora_tools import Difference, ExtractLora
from backend.errors import UserError
from backend.families.weights import ModelWeights, open_weights
from backend.lora.algebra import cut
from backend.lora.layer import LoraLayer
from backend.lora.low_rank import leading
from backend.lora.provenance import family_facts, network_facts
from backend.tables.identity import title_of
from backend.terminal import ended_by_signals, track
from backend.tools.files import DTYPES, OVERHEAD, by_block, check_target, keep_config, rounded, save
from backend.tools.parallel import choose_device, each
from backend.tools.report import Bars, Curve, Report, percent, tell

# What a LoRA cannot carry, by the ends of names, for people.
_UNCARRIED = (
    ("norms", re.compile(r"(norm\w*|ln_\w+|layer_norm\d?|\.in_layers\.0|\.out_layers\.0|\.out\.0)\.(weight|bias)$")),
    ("biases", re.compile(r"bias$")),
    ("embeddings", re.compile(r"embedding")),
    ("the VAE", re.compile(r"^first_stage_model\.")),
)
# Types that models are saved in, coarsest first.
_GRAINS = (torch.bfloat16, torch.float16)


# A preview shows at least the ranks up to this, where the modules have them.
PREVIEW_RANK = 64


@dataclass(frozen=True)
class Extracted:
    """One module's result.

    Attributes:
        layer: None where the two weights are equal.
        largest: absolute difference.
        total: squared norm of the difference.
        held: how much of that the layer holds, as it is saved.
        trained: a number differs by more than the rounding of its type.
        values: the leading singular values, as many as the rank; more for a preview.
    """

    layer: LoraLayer | None
    largest: float
    total: float = 0.0
    held: float = 0.0
    trained: bool = False
    values: tuple[float, ...] = ()


def run(config: ExtractLora) -> None:
    """The command `extract_lora_from_models`.

    Raises:
        UserError: a model is broken, they are of different families or shapes, or they are identical.
    """
    with ended_by_signals():
        check_target(config.result.save_to, config.result)
        device = choose_device(config.difference.device)
        original, tuned = (open_weights(source) for source in (config.models.model_org, config.models.model_tuned))
        check_models(config, original, tuned)
        ranks = ranks_of(config.difference, original)
        shown = PREVIEW_RANK if config.result.dry_run else 0
        found = extract_all(original, tuned, ranks, config.difference, device, shown)
        notes = decide(found, original, config.difference.min_diff)
        layers = {key: one.layer for key, one in found.items() if one.layer is not None}
        notes += left_behind(original, tuned, ranks)
        if not layers:
            check_identical(found, notes, config)
        metadata = describe(config, original, tuned, layers)
        precision = config.difference.save_precision
        made = save(config.result.save_to, config.result, layers, metadata, DTYPES[precision])
        keep_config(config, config.result)
    title = f"Extracted {config.models.model_tuned} - {config.models.model_org}"
    start = Report(title, config.result.dry_run, (made,), notes=tuple(notes))
    tell(report_of({key: found[key] for key in layers}, original.family, precision, start))


def check_identical(found: Mapping[str, Extracted], notes: Sequence[str], config: ExtractLora) -> NoReturn:
    """Say why nothing was extracted.

    Raises:
        UserError: always.
    """
    pair = f"{config.models.model_tuned} and {config.models.model_org}"
    if any(one.largest for one in found.values()):
        limit = "by less than min_diff; lower min_diff"
        if config.difference.min_diff is None:
            limit = "by rounding alone; give min_diff 0 to keep that"
        message = f"{pair} differ in text encoders alone, {limit}"
    elif any("not in the LoRA" in note for note in notes):
        message = f"{pair} are identical in what this LoRA can carry ({notes[-1]})"
    else:
        message = f"{pair} are identical; choose a model that was tuned"
    raise UserError(message, field="model_tuned")


def check_models(config: ExtractLora, original: ModelWeights, tuned: ModelWeights) -> None:
    """See that the two can be subtracted, and that the flags are true.

    Raises:
        UserError: they cannot, or are not.
    """
    ours, theirs = title_of(tuned.family), title_of(original.family)
    if ours != theirs:
        raise UserError(f"is {ours}, but {original.source} is {theirs}", field="model_tuned")
    for flag, family in (("v2", "sd2"), ("sdxl", "sdxl")):
        if getattr(config.models, flag) and original.family != family:
            raise UserError(f"is set, but the models are {theirs}; leave it out", field=flag)
    if config.models.v_parameterization and False in (original.predicts_v, tuned.predicts_v):
        raise UserError("is set, but a model says that it predicts epsilon; leave it out", field="v_parameterization")
    for key in original.slots:
        shapes = [tuple(one.weight(key).shape) if key in one.slots else None for one in (original, tuned)]
        if shapes[1] is None or shapes[0][:1] != shapes[1][:1] or _numbers(shapes[0]) != _numbers(shapes[1]):
            message = f"{key} is {shapes[1] or 'missing'}, in {original.source} it is {shapes[0]}"
            raise UserError(f"{message}; choose a model tuned from it", field="model_tuned")


def _numbers(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def ranks_of(options: Difference, weights: ModelWeights) -> dict[str, int]:
    """The rank of every module that a layer is extracted for, by key."""
    ranks = {}
    for key, slot in weights.slots.items():
        if slot.target.kind == "conv3x3":
            rank = options.conv_dim
        else:
            rank = options.dim if options.conv_dim is not None or not slot.target.conv_only else None
        if rank is not None:
            ranks[key] = rank
    return ranks


def extract_all(
    original: ModelWeights,
    tuned: ModelWeights,
    ranks: Mapping[str, int],
    options: Difference,
    device: torch.device,
    shown: int = 0,
) -> dict[str, Extracted]:
    """Every module's result by key; `shown` as `extract_one` takes it."""

    def work(key: str) -> Extracted:
        return extract_one(original.weight(key), tuned.weight(key), ranks[key], options, device, shown)

    results = track(each(work, ranks, device, ahead=1), "extracting", len(ranks))
    return dict(zip(ranks, results, strict=True))


@torch.no_grad()
def extract_one(
    original: Tensor, tuned: Tensor, rank: int, options: Difference, device: torch.device, shown: int = 0
) -> Extracted:
    """One module's difference, cut to a rank.

    Args:
        original, tuned: the weights.
        rank: of the layer.
        options: how it is computed and saved.
        device: where.
        shown: singular values beyond the rank are given too, up to so many.

    Raises:
        UserError: numbers that are not finite.
    """
    asked = None if options.load_precision is None else DTYPES[options.load_precision]
    # In two dimensions, as one model may have a matrix where the other has a 1x1 convolution.
    first, second = (weight.to(device, asked).flatten(1) for weight in (original, tuned))
    if equal_but_for_rounding(first, second):
        return Extracted(None, 0.0)
    difference = second.float() - first.float()
    largest = float(difference.abs().max())
    if not largest < float("inf"):
        field = "model_org" if not bool(torch.isfinite(first.float()).all()) else "model_tuned"
        raise UserError("has numbers that are not finite (NaN); the model is of no use", field=field)
    spectrum = leading(difference, max(rank, shown))
    like = LoraLayer(torch.empty(1, *original.shape[1:]), torch.empty(1, 1, *[1] * (original.ndim - 2)), 1.0)
    layer = cut(spectrum, rank, [like], options.clamp_quantile)
    layer = LoraLayer(layer.down.cpu(), layer.up.cpu(), layer.alpha)
    held = spectrum.energy(rank) * spectrum.total
    if options.save_precision != "float" or options.clamp_quantile is not None:
        # Singular values say nothing of what rounding and clamping cost.
        saved = rounded([layer], options.save_precision, "save_precision")[0]
        error = difference - saved.delta().to(device).flatten(1)
        held = spectrum.total - float(torch.linalg.vector_norm(error).double() ** 2)
    trained = exceeds_rounding(first, second)
    return Extracted(layer, largest, spectrum.total, held, trained, tuple(spectrum.values.tolist()))


def equal_but_for_rounding(first: Tensor, second: Tensor) -> bool:
    """Whether two weights are the same, or the one is the other saved in a smaller precision, now or before."""
    if first.shape != second.shape:
        return False
    if not (first.is_floating_point() and second.is_floating_point()):
        return torch.equal(first, second.to(first.dtype))
    if first.dtype == second.dtype and torch.equal(first, second):
        return True
    coarse = max((_grain(first), _grain(second)), key=lambda dtype: torch.finfo(dtype).eps)
    return torch.equal(first.to(coarse).float(), second.to(coarse).float())


def _grain(weight: Tensor) -> torch.dtype:
    """The coarsest type that holds all numbers of a weight: that of the file it once was in."""
    wide = weight.float()
    types = [kind for kind in _GRAINS if torch.finfo(kind).eps > torch.finfo(weight.dtype).eps]
    return next((kind for kind in types if torch.equal(wide.to(kind).float(), wide)), weight.dtype)


def exceeds_rounding(first: Tensor, second: Tensor) -> bool:
    """Whether a number differs by more than a step of its type: 2 ** -10 of itself in fp16, 2 ** -7 in bf16."""
    coarse = max((_grain(first), _grain(second)), key=lambda dtype: torch.finfo(dtype).eps)
    ours, theirs = first.float(), second.float()
    step = torch.maximum(ours.abs(), theirs.abs()) * torch.finfo(coarse).eps
    return bool(((ours - theirs).abs() > step + torch.finfo(coarse).smallest_normal * torch.finfo(coarse).eps).any())


def decide(found: dict[str, Extracted], weights: ModelWeights, min_diff: float | None) -> list[str]:
    """Leave out text encoders that were not trained, each on its own evidence; returns notes.

    Args:
        min_diff: those that differ by less count as such; None are those that differ by rounding alone.
    """
    notes = []
    numbers = sorted({weights.slots[key].encoder for key in found} - {None})
    for number in numbers:
        name = "text encoder" if len(numbers) == 1 else f"text encoder {number + 1}"
        keys = [key for key in found if weights.slots[key].encoder == number]
        largest = max(found[key].largest for key in keys)
        limit = "by rounding alone" if min_diff is None else f"min_diff {min_diff:g}"
        if any(found[key].trained for key in keys) if min_diff is None else largest > min_diff:
            told = "" if min_diff is None else f" ({limit})"
            notes.append(f"{name}: kept, its numbers differ by up to {largest:.3g}{told}")
            continue
        notes.append(f"{name}: left out, its numbers differ by at most {largest:.3g} ({limit})")
        for key in keys:
            found[key] = replace(found[key], layer=None)
    equal = sum(not one.largest for one in found.values())
    if equal:
        notes.append(f"{equal} of {len(found)} modules are equal in both models and are not in the file")
    return notes


def left_behind(original: ModelWeights, tuned: ModelWeights, ranks: Mapping[str, int]) -> list[str]:
    """What differs and cannot be carried by this LoRA: how many tensors of which sort."""
    carried = {original.slots[key].name for key in ranks}
    wide = {slot.name for slot in original.slots.values()} - carried
    counts: Counter[str] = Counter()
    for name, theirs in _pairs(original, tuned, carried):
        if not equal_but_for_rounding(original.tensors[name], theirs):
            sort = next((words for words, pattern in _UNCARRIED if pattern.search(name)), "other weights")
            counts["convolutions (give conv_dim)" if name in wide else sort] += 1
    notes = []
    if counts:
        told = ", ".join(f"{count} of {sort}" for sort, count in counts.most_common())
        notes.append(f"differ too, and are not in the LoRA: {told}")
    only = len(original.tensors.keys() ^ tuned.tensors.keys())
    if only:
        notes.append(f"{only} tensors are in one of the two files only")
    return notes


def _pairs(original: ModelWeights, tuned: ModelWeights, without: set[str]) -> Iterator[tuple[str, Tensor]]:
    for name, theirs in tuned.tensors.items():
        ours = original.tensors.get(name)
        if name not in without and ours is not None and ours.shape == theirs.shape:
            yield name, theirs


def describe(
    config: ExtractLora, original: ModelWeights, tuned: ModelWeights, layers: Mapping[str, LoraLayer]
) -> dict[str, str]:
    """The metadata of the result."""
    said = tuned.predicts_v if tuned.predicts_v is not None else original.predicts_v
    predicts_v = config.models.v_parameterization if said is None else said
    title = config.result.save_to.stem
    return {
        **family_facts(original.family, predicts_v),
        **network_facts(layers),
        "ss_training_comment": f"extracted from {_name(tuned)} - {_name(original)}",
        "modelspec.title": title,
        "modelspec.date": datetime.now(UTC).replace(tzinfo=None, microsecond=0).isoformat(),
    }


def _name(weights: ModelWeights) -> str:
    return re.split(r"[/\\]", weights.source.rstrip("/\\"))[-1]


def report_of(found: Mapping[str, Extracted], family: str, precision: str, start: Report) -> Report:
    """What the user reads: energy kept by block and by module, and what lower ranks would keep."""
    blocks = {name: [found[key] for key in keys] for name, keys in by_block(found, family).items()}
    everything = list(found.values())
    kept = _kept(everything)
    return replace(
        start,
        facts=(
            ("modules", str(len(found))),
            ("energy kept", percent(kept)),
            ("error", percent(max(0.0, 1 - kept) ** 0.5)),
        ),
        columns=("block", "modules", "energy kept", "largest difference"),
        rows=tuple(
            (name, str(len(ones)), percent(_kept(ones)), f"{max(one.largest for one in ones):.3g}")
            for name, ones in blocks.items()
        ),
        modules=tuple((key, str(one.layer.rank), percent(_kept([one]))) for key, one in found.items() if one.layer),
        bars=Bars("Energy kept by block, %", tuple(blocks), tuple(100 * _kept(ones) for ones in blocks.values())),
        curve=curve_of(everything, DTYPES[precision].itemsize),
    )


def _kept(ones: Sequence[Extracted]) -> float:
    total = sum(one.total for one in ones)
    return min(1.0, sum(one.held for one in ones) / total) if total else 1.0


def curve_of(ones: Sequence[Extracted], itemsize: int) -> Curve:
    """Error and size of the file for every rank up to the one that was asked for, the same for all modules.

    Of a preview, which is to show what a larger rank would keep, the ranks go up to PREVIEW_RANK.

    Args:
        itemsize: bytes of a saved number.
    """
    most = max(len(one.values) for one in ones)
    total = sum(one.total for one in ones) or 1.0
    ranks = tuple(range(1, most + 1))
    held = [sum(value**2 for one in ones for value in one.values[:rank]) for rank in ranks]
    widths = [(one.layer.up.shape[0] + one.layer.down[0].numel(), len(one.values)) for one in ones if one.layer]
    sizes = tuple(sum(OVERHEAD + itemsize * width * min(rank, own) for width, own in widths) for rank in ranks)
    return Curve(ranks, tuple(max(0.0, 1 - energy / total) ** 0.5 for energy in held), sizes)
