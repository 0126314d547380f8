"""W += ratio * delta, tensor by tensor from one checkpoint to another; no model is built.

Every tensor that no LoRA touches is carried over bit for bit.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from backend.config.lora_tools import MergeLora
from backend.errors import UserError
from backend.families.storage import PICKLE_SUFFIXES, write_safetensors, write_tensors
from backend.families.weights import ModelWeights, open_weights
from backend.lora.file import LoraFile, listing
from backend.lora.fit import check_fit
from backend.lora.layer import Layer, LoraLayer
from backend.lora.provenance import checkpoint_with
from backend.tables.identity import title_of
from backend.terminal import track, warn
from backend.tools.files import DTYPES, by_block, check_effect, common_family, sources_of
from backend.tools.merge import check_v2
from backend.tools.report import Bars, Made, Report, tell

# Rough size of a checkpoint's header and of a pickle's index, per tensor.
OVERHEAD = 150

# What is added to a tensor: the slot's key, the layer and its ratio.
Change = tuple[str, Layer, float]


def merge_into_checkpoint(config: MergeLora, files: Sequence[LoraFile]) -> None:
    """The command `merge_lora` with `--sd_model`.

    Raises:
        UserError: the model or a LoRA is broken, they do not fit each other, or nothing would change.
    """
    mixture, result = config.mixture, config.result
    weights = open_weights(config.base.sd_model)
    check_v2(config, weights.family)
    common_family(mixture.models, files)
    changes = changes_of(config, files, weights)
    dtype = None if config.sum.save_precision is None else DTYPES[config.sum.save_precision]
    title = result.save_to.stem
    metadata = checkpoint_with(weights.metadata, sources_of(mixture.models, files, mixture.weights), title)
    norms: Counter[str] = Counter()
    shapes = {name: (_type(tensor, dtype), tuple(tensor.shape)) for name, tensor in weights.tensors.items()}
    if result.dry_run:
        size = sum(kind.itemsize * torch.Size(shape).numel() for kind, shape in shapes.values())
        made = Made(str(result.save_to), size + OVERHEAD * len(shapes))
        _add_norms(norms, weights, changes)
    else:
        compute = DTYPES[config.sum.precision]
        value_of = partial(merged_tensor, weights, changes, compute, dtype, norms)
        progress = iter(track(range(len(shapes)), "merging", len(shapes)))

        def next_tensor(name: str) -> Tensor:
            next(progress)
            return value_of(name)

        if result.save_to.suffix.lower() in PICKLE_SUFFIXES:
            # A pickle is one object, so all of it has to be in memory.
            write_tensors(result.save_to, {name: next_tensor(name) for name in shapes}, None, {})
        else:
            kept = {"format": "pt"} if result.no_metadata else metadata
            write_safetensors(result.save_to, shapes, next_tensor, kept)
        next(progress, None)
        made = Made(str(result.save_to), result.save_to.stat().st_size)
    tell(report_of(weights, changes, norms, Report(_title(config), result.dry_run, (made,))))


def changes_of(config: MergeLora, files: Sequence[LoraFile], weights: ModelWeights) -> dict[str, list[Change]]:
    """What is added to each tensor, by its name.

    Raises:
        UserError: a LoRA is made for another model, has keys that match nothing, or nothing would change.
    """
    mixture, shapes = config.mixture, weights.shapes
    changes: dict[str, list[Change]] = {}
    for path, file, ratio in zip(mixture.models, files, mixture.weights, strict=True):
        if file.family not in (None, weights.family):
            theirs, ours = title_of(file.family), title_of(weights.family)
            raise UserError(f"is made for {theirs}, the model is {ours}", field=str(path))
        layers = dict(file.layers)
        unmatched = [key for key in layers if key not in shapes]
        if unmatched and mixture.allow_unmatched and len(unmatched) < len(layers):
            warn(f"{path}: {len(unmatched)} of its keys match nothing in the model: {listing(unmatched)}; left out")
            layers = {key: layer for key, layer in layers.items() if key in shapes}
        check_fit(layers, shapes, str(path))
        for key, layer in layers.items():
            if ratio:
                changes.setdefault(weights.slots[key].name, []).append((key, layer, ratio))
    check_changes(changes)
    return changes


def check_changes(changes: Mapping[str, list[Change]]) -> None:
    """Refuse changes that come to nothing; of kinds other than LoRA it is only seen whether they are zero."""
    sums: dict[str, tuple[list[LoraLayer], list[float]]] = {}
    for key, layer, ratio in (change for own in changes.values() for change in own):
        if not isinstance(layer, LoraLayer):
            if float(layer.norm()):
                return
            continue
        layers, ratios = sums.setdefault(key, ([], []))
        layers.append(layer)
        ratios.append(ratio)
    check_effect(sums.values())


@torch.no_grad()
def merged_tensor(
    weights: ModelWeights,
    changes: Mapping[str, list[Change]],
    compute: torch.dtype,
    save_as: torch.dtype | None,
    norms: Counter[str],
    name: str,
) -> Tensor:
    """A tensor with its changes added, in its own type or in `save_as`.

    Args:
        compute: what the sum is computed in.
        norms: the squared norm of each key's change is noted here.
    """
    tensor = weights.tensors[name]
    if name in changes:
        total = tensor.to(compute, copy=True)
        for key, layer, ratio in changes[name]:
            norms[key] += ratio**2 * add_delta(weights.slots[key].of(total), layer, ratio)
        return total.to(_type(tensor, save_as))
    return tensor.to(_type(tensor, save_as))


def add_delta(weight: Tensor, layer: Layer, ratio: float) -> float:
    """weight += ratio * delta, in place; returns the squared norm of delta.

    A LoRA's product goes straight into a float32 weight, without a matrix of its own.
    """
    if isinstance(layer, LoraLayer) and weight.dtype == torch.float32 and weight.is_contiguous():
        up, down = layer.up.flatten(1).float(), layer.down.flatten(1).float()
        weight.view(weight.shape[0], -1).addmm_(up, down, alpha=ratio * layer.alpha / layer.rank)
    else:
        weight += (ratio * layer.delta()).to(weight.dtype).view_as(weight)
    return float(layer.norm()) ** 2


def _type(tensor: Tensor, save_as: torch.dtype | None) -> torch.dtype:
    return save_as if save_as is not None and tensor.is_floating_point() else tensor.dtype


def _add_norms(norms: Counter[str], weights: ModelWeights, changes: Mapping[str, list[Change]]) -> None:
    for own in changes.values():
        for key, layer, ratio in own:
            norms[key] += (ratio * float(layer.norm())) ** 2


def _title(config: MergeLora) -> str:
    count = len(config.mixture.models)
    return f"Merged {count} LoRA(s) into a copy of {config.base.sd_model}"


def report_of(
    weights: ModelWeights, changes: Mapping[str, list[Change]], norms: Mapping[str, float], start: Report
) -> Report:
    """What the user reads: how much was changed where."""
    blocks = by_block(norms, weights.family)
    sizes = tuple(sum(norms[key] for key in keys) ** 0.5 for keys in blocks.values())
    rows = tuple((name, str(len(keys)), f"{size:.4g}") for (name, keys), size in zip(blocks.items(), sizes))
    facts = (
        ("tensors changed", f"{len(changes)} of {len(weights.tensors)}"),
        ("modules", str(len(norms))),
    )
    bars = Bars("Size of the change by block (Frobenius norm)", tuple(blocks), sizes)
    return Report(start.title, start.dry_run, start.files, facts, ("block", "modules", "norm"), rows, bars)
