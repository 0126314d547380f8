"""W += ratio * delta, tensor by tensor from one checkpoint to another; no model is built.

Every tensor that no LoRA touches is carried over bit for bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.config.lora_tools import MergeLora
from backend.errors import UserError
from backend.families.storage import PICKLE_SUFFIXES, write_safetensors, write_tensors
from backend.families.weights import ModelWeights, open_weights
from backend.lora.algebra import sum_norm
from backend.lora.fit import fitted
from backend.lora.layer import Layer, LoraLayer
from backend.lora.provenance import checkpoint_with
from backend.terminal import track, warn
from backend.tools.files import DTYPES, Inputs, by_block, read_files
from backend.tools.merge import check_v2
from backend.tools.parallel import one_core_free
from backend.tools.report import Bars, Made, Report

# Rough size of a checkpoint's header, per tensor.
HEADER = 150

# Numbers of a block: in float32 half of what the C library keeps for the next one.
BLOCK = 1 << 22
Blocks = Callable[[str], Iterator[Tensor]]
# What is added to a tensor: the slot's key, the layer and its ratio.
Change = tuple[str, Layer, float]


def merge_into_checkpoint(config: MergeLora) -> Report:
    """The command `merge_lora` with `--sd_model`; says what was made.

    Raises:
        UserError: the model or a LoRA is broken, they do not fit each other, or nothing would change.
    """
    result = config.result
    weights = open_weights(config.base.sd_model)
    check_v2(config, weights.family)
    inputs = read_files(config.mixture, weights.family)
    changes = changes_of(inputs, weights, config.mixture.allow_unmatched)
    save_as = None if config.sum.save_precision is None else DTYPES[config.sum.save_precision]
    compute = DTYPES[config.sum.precision]

    def blocks_of(name: str) -> Iterator[Tensor]:
        return merged_blocks(weights, changes, compute, save_as, name)

    check_effect_on(weights, changes, blocks_of)
    metadata = checkpoint_with(weights.metadata, inputs.sources, result.save_to.stem)
    shapes = {name: (type_of(tensor, save_as), tuple(tensor.shape)) for name, tensor in weights.tensors.items()}
    if result.dry_run:
        for name in track(changes, "checking", len(changes)):
            for _ in blocks_of(name):  # refuses numbers that do not fit
                pass
        size = sum(kind.itemsize * torch.Size(shape).numel() for kind, shape in shapes.values())
        made = Made(str(result.save_to), size + HEADER * len(shapes))
    else:
        write(config, shapes, blocks_of, metadata)
        made = Made(str(result.save_to), result.save_to.stat().st_size)
    title = f"Merged {len(inputs.files)} LoRA(s) into a copy of {config.base.sd_model}"
    return report_of(weights, changes, Report(title, result.dry_run, (made,)))


def changes_of(inputs: Inputs, weights: ModelWeights, allow_unmatched: bool) -> dict[str, list[Change]]:
    """What is added to each tensor, by its name.

    Raises:
        UserError: a LoRA is made for another model, or has keys that match nothing.
    """
    shapes = weights.shapes
    changes: dict[str, list[Change]] = {}
    for path, file, ratio in zip(inputs.paths, inputs.files, inputs.ratios, strict=True):
        layers, notes = fitted(file, shapes, str(path), weights.family, allow_unmatched)
        for note in notes:
            warn(f"{path}: {note}")
        for key, layer in layers.items():
            changes.setdefault(weights.slot(key).name, []).append((key, layer, ratio))
    return changes


def check_effect_on(weights: ModelWeights, changes: Mapping[str, list[Change]], blocks_of: Blocks) -> None:
    """Refuse a merge after which every number is what it was; mostly the first tensor tells.

    Raises:
        UserError: so it is.
    """
    for name in changes:
        first, tensor = 0, weights.tensors[name]
        for block in blocks_of(name):
            if not torch.equal(block, tensor[first : first + len(block)].to(block.dtype)):
                return
            first += len(block)
    message = "would change nothing: the layers are zero, cancel each other out, or are too small for the weights"
    raise UserError(message, field="models")


def write(
    config: MergeLora,
    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    blocks_of: Blocks,
    metadata: Mapping[str, str],
) -> None:
    """Write the checkpoint, block by block where its format allows that."""
    result = config.result
    progress = track(range(len(shapes)), "merging", len(shapes))

    def told(name: str) -> Iterator[Tensor]:
        next(progress, None)
        return blocks_of(name)

    if result.save_to.suffix.lower() in PICKLE_SUFFIXES:
        # A pickle is one object, so all of it has to be in memory.
        tensors = {name: joined(list(told(name))) for name in shapes}
        write_tensors(result.save_to, tensors, None, {})
    else:
        with one_core_free():
            write_safetensors(result.save_to, shapes, told, {"format": "pt"} if result.no_metadata else metadata)
    next(progress, None)


def joined(blocks: Sequence[Tensor]) -> Tensor:
    """A tensor from its blocks."""
    return blocks[0] if len(blocks) == 1 else torch.cat(list(blocks))


@torch.no_grad()
def merged_blocks(
    weights: ModelWeights,
    changes: Mapping[str, list[Change]],
    compute: torch.dtype,
    save_as: torch.dtype | None,
    name: str,
) -> Iterator[Tensor]:
    """A tensor with its changes added, in its own type or in `save_as`, a few rows at a time.

    Blocks of this size come out of memory that the ones before have given back, where whole tensors would be taken
    from the system anew each time, which costs more than the sum itself.

    Args:
        compute: what the sum is computed in.

    Raises:
        UserError: a number does not fit into the type, or is none.
    """
    tensor = weights.tensors[name]
    kind = type_of(tensor, save_as)
    if name not in changes:
        if kind != tensor.dtype:
            check_fits(name, tensor, kind)
        yield tensor.to(kind)
        return
    parts = [Part.of(weights, *change) for change in changes[name]]
    rows = max(1, BLOCK // tensor[0].numel())
    for first in range(0, len(tensor), rows):
        total = tensor[first : first + rows].to(compute, copy=True)
        for part in parts:
            part.add_to(total, first)
        check_fits(name, total, kind)
        yield total.to(kind)


@dataclass(frozen=True)
class Part:
    """What one layer adds to a tensor: scale * up @ down, to some of its rows.

    Attributes:
        start: the first of the rows.
        up: [rows, rank].
        down: [rank, inputs]; None where `up` is the change itself.
        scale: of the change.
    """

    start: int
    up: Tensor
    down: Tensor | None
    scale: float

    @classmethod
    def of(cls, weights: ModelWeights, key: str, layer: Layer, ratio: float) -> "Part":
        """What a layer adds.

        Raises:
            UserError: the scale is too large for float32.
        """
        target = weights.slot(key).target
        third = target.third
        start = (third or 0) * len(weights.weight(key))
        if not isinstance(layer, LoraLayer):
            delta = layer.delta().flatten(1)
            return cls(start, delta.T.contiguous() if target.transposed else delta, None, ratio)
        scale = ratio * layer.alpha / layer.rank
        if not abs(scale) <= torch.finfo(torch.float32).max:
            raise UserError(f"a layer's alpha of {layer.alpha:g} is too large", field="models")
        up, down = layer.up.flatten(1).float(), layer.down.flatten(1).float()
        return cls(start, down.T, up.T, scale) if target.transposed else cls(start, up, down, scale)

    def add_to(self, rows: Tensor, first: int) -> None:
        """Add to rows of the tensor, in place.

        Args:
            rows: contiguous.
            first: number of the first of them.
        """
        begin, end = max(first, self.start), min(first + len(rows), self.start + len(self.up))
        if begin >= end:
            return
        here, up = rows[begin - first : end - first], self.up[begin - self.start : end - self.start]
        flat = here.view(len(here), -1)
        if self.down is not None and flat.dtype == torch.float32:
            flat.addmm_(up, self.down, alpha=self.scale)
        else:
            change = up if self.down is None else up @ self.down
            flat += (change * self.scale).to(flat.dtype)


def check_fits(name: str, tensor: Tensor, kind: torch.dtype) -> None:
    """Refuse numbers that would become infinite, or are none.

    Raises:
        UserError: naming the tensor.
    """
    if not tensor.numel():
        return
    # Torch looks for no ends of 8 bits.
    wide = tensor.float() if tensor.dtype.itemsize == 1 else tensor
    least, most = (float(end) for end in torch.aminmax(wide))
    if least != least or most != most:
        raise UserError(f"{name} has numbers that are none (NaN); the model is of no use", field="sd_model")
    if max(-least, most) > torch.finfo(kind).max:
        message = f"{name} has numbers up to {max(-least, most):.3g}, too large for {kind}".replace("torch.", "")
        raise UserError(f"{message}; lower the ratio, or set another save_precision", field="save_precision")


def type_of(tensor: Tensor, save_as: torch.dtype | None) -> torch.dtype:
    """The type that a tensor is saved in."""
    return save_as if save_as is not None and tensor.is_floating_point() else tensor.dtype


def norm_of(layers: Sequence[Layer], ratios: Sequence[float]) -> float:
    """Frobenius norm of a module's whole change."""
    if len(layers) == 1:
        return abs(ratios[0]) * float(layers[0].norm())
    if all(isinstance(layer, LoraLayer) for layer in layers):
        return sum_norm(layers, ratios)
    return float(sum(ratio * layer.delta().flatten(1) for layer, ratio in zip(layers, ratios, strict=True)).norm())


def report_of(weights: ModelWeights, changes: Mapping[str, list[Change]], start: Report) -> Report:
    """What the user reads: how much was changed where."""
    sums: dict[str, tuple[list[Layer], list[float]]] = {}
    for key, layer, ratio in (change for own in changes.values() for change in own):
        layers, ratios = sums.setdefault(key, ([], []))
        layers.append(layer)
        ratios.append(ratio)
    norms = {key: norm_of(*one) for key, one in sums.items()}
    blocks = by_block(norms, weights.family)
    sizes = tuple(sum(norms[key] ** 2 for key in keys) ** 0.5 for keys in blocks.values())
    rows = tuple((name, str(len(keys)), f"{size:.4g}") for (name, keys), size in zip(blocks.items(), sizes))
    facts = (("tensors changed", f"{len(changes)} of {len(weights.tensors)}"), ("modules", str(len(norms))))
    bars = Bars("Size of the change by block (Frobenius norm)", tuple(blocks), sizes)
    return Report(
        start.title, start.dry_run, start.files, facts, columns=("block", "modules", "norm"), rows=rows, bars=bars
    )
