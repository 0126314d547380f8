"""The weights of a model that LoRAs sit on, by their keys in a LoRA file: read from its files, without building it.

All names are those of the original single-file layout; a Diffusers folder is renamed to it. Importing this imports
neither diffusers nor transformers; opening a folder or a model of the hub does.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from backend.errors import UserError
from backend.families import prediction
from backend.families.open_clip import SD2_LAYERS
from backend.families.recognize import family_in, unet_layout
from backend.families.scaled import read_weights
from backend.tables import layout
from backend.tables.names import (
    TEXT_ENCODERS,
    UNET_SHAPES,
    Target,
    UNetShape,
    further_text_targets,
    further_unet_targets,
    text_encoder_targets,
    unet_targets,
)

_TRANSFORMER = re.compile(r"\.transformer_blocks\.(\d+)\.")
_TEXT_LAYER = re.compile(r"(?:(?:text_model\.)?encoder\.layers|transformer\.resblocks)\.(\d+)\.")
_TEXT_PREFIXES = {
    "sd1": (layout.CLIP_PREFIX,),
    "sd2": (layout.OPEN_CLIP_PREFIX,),
    "sdxl": (layout.SDXL_CLIP_PREFIX, layout.SDXL_OPEN_CLIP_PREFIX),
}


@dataclass(frozen=True)
class Slot:
    """Where a LoRA's layer goes.

    Attributes:
        name: of the tensor.
        target: what the tables say of the module.
        encoder: number of the text encoder, from 0; None for the U-Net.
    """

    name: str
    target: Target
    encoder: int | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """The slot's own rows of the tensor, as a view."""
        if self.target.transposed:
            return tensor.T
        return tensor if self.target.third is None else tensor.chunk(3)[self.target.third]


@dataclass(frozen=True)
class ModelWeights:
    """A model's tensors.

    Attributes:
        source: as it was named.
        family: "sd1", "sd2" or "sdxl".
        tensors: by name, mapped from the file where its format allows that.
        metadata: of the file.
        slots: by key in a LoRA file, in the order of LoRA files.
        predicts_v: as the files say; None where they leave it open.
        further: slots that no network here is trained on, but that files of other programs may hold layers for.
    """

    source: str
    family: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    slots: Mapping[str, Slot]
    predicts_v: bool | None
    further: Mapping[str, Slot] = field(default_factory=dict)

    def slot(self, key: str) -> Slot:
        """Where a LoRA's layer goes, also one that is not trained here."""
        return self.slots[key] if key in self.slots else self.further[key]

    def weight(self, key: str) -> Tensor:
        """The weight that a LoRA's layer is added to, as a view."""
        slot = self.slot(key)
        return slot.of(self.tensors[slot.name])

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs (times the kernel's size) of every weight, by key."""
        found = {key: self.weight(key) for key in (*self.slots, *self.further)}
        return {key: (weight.shape[0], weight[0].numel()) for key, weight in found.items()}


def open_weights(source: str | Path) -> ModelWeights:
    """Open a model: a single file, a Diffusers folder, or either on the hub.

    Raises:
        UserError: nothing there, damaged, of no supported family, or weights are missing.
    """
    path = Path(source)
    if not _is_file(path):
        return _located(source)
    tensors, metadata = read_weights(path)
    return weights_of(tensors, metadata, str(source))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no name that a file can have; the search says so
        return False


def _located(source: str | Path) -> ModelWeights:
    # These import diffusers and transformers.
    from backend.families.base import FAMILIES, empty_modules, locate, read_checkpoint

    path = locate(source)
    if path.is_file():
        return replace(open_weights(path), source=str(source))
    checkpoint = read_checkpoint(source, needs_vae=False)
    empty_modules(checkpoint)
    found = weights_of(*FAMILIES[checkpoint.family].write_original(checkpoint), str(source))
    return replace(found, predicts_v=checkpoint.scheduler["prediction_type"] == prediction.V)


def weights_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], source: str) -> ModelWeights:
    """The weights among a single file's tensors.

    Raises:
        UserError: they are of no supported family, or some are missing.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    family = family_in(shapes, source)
    for index, prefix in enumerate(_TEXT_PREFIXES[family]):
        if not any(name.startswith(prefix) for name in shapes):
            which = f" {index + 1}" if len(_TEXT_PREFIXES[family]) > 1 else ""
            message = f"the text encoder{which} is missing (no tensor starts with {prefix}); use a full checkpoint"
            raise UserError(message, field=source)
    said = prediction.stated(tensors.keys(), metadata, family)
    slots, missing = {}, []
    for target, encoder in _targets(shapes, family):
        name = _present(target.checkpoint_key, shapes)
        if name is not None:
            slots[target.key] = Slot(name, target, encoder)
        elif not target.optional:
            missing.append(target.checkpoint_key)
    if missing:
        message = f"{len(missing)} of its weights are missing: {', '.join(missing[:4])}; use a full checkpoint"
        raise UserError(message, field=source)
    for slot in slots.values():
        shape = shapes[slot.name]
        thirds = 1 if slot.target.third is None else 3
        if len(shape) < 2 or not all(shape) or shape[0] % thirds or not tensors[slot.name].is_floating_point():
            message = f"{slot.name} is no weight: {tensors[slot.name].dtype} of the shape {list(shape)}"
            raise UserError(message, field=source)
    predicts_v = None if said is None else said == prediction.V
    return ModelWeights(source, family, tensors, metadata, slots, predicts_v, _further(shapes, family))


def _further(shapes: Mapping[str, tuple[int, ...]], family: str) -> dict[str, Slot]:
    """Slots of places that are not trained here, by key; those that the model has."""
    unet = further_unet_targets(UNET_SHAPES[family])
    found = [(target, None) for target in unet]
    for index in range(TEXT_ENCODERS[family]):
        found += [(target, index) for target in further_text_targets(family, index)]
    return {
        target.key: Slot(target.checkpoint_key, target, encoder)
        for target, encoder in found
        if len(shapes.get(target.checkpoint_key, ())) > 1
    }


def _targets(shapes: Mapping[str, tuple[int, ...]], family: str) -> Iterator[tuple[Target, int | None]]:
    for index in range(TEXT_ENCODERS[family]):
        prefix = _TEXT_PREFIXES[family][index]
        layers = _count(_TEXT_LAYER, prefix, shapes)
        # The last layer of OpenCLIP's encoder is not used by Stable Diffusion 2; see open_clip.py.
        if family == "sd2" and (layers == SD2_LAYERS or f"{prefix}text_projection" in shapes):
            layers -= 1
        yield from ((target, index) for target in text_encoder_targets(family, layers, index))
    found = unet_layout(shapes) or layout.SD1_UNET
    first = [1 + level * (found.layers + 1) for level in range(len(found.attention))]
    depths = tuple(_count(_TRANSFORMER, f"{layout.UNET_PREFIX}input_blocks.{row}.1.", shapes) for row in first)
    middle = _count(_TRANSFORMER, f"{layout.UNET_PREFIX}middle_block.1.", shapes)
    shape = UNetShape(depths, middle, found.layers, xl=family == "sdxl")
    yield from ((target, None) for target in unet_targets(shape))


def _count(pattern: re.Pattern[str], prefix: str, names: Mapping[str, object]) -> int:
    """One more than the highest number in the names with this prefix."""
    # The pattern may begin with the dot that the prefix ends in.
    found = (pattern.search(name, len(prefix) - 1) for name in names if name.startswith(prefix))
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _present(name: str, names: Mapping[str, object]) -> str | None:
    """The name, or as some programs shorten it, if it is there."""
    short = name.replace(f".{layout.CLIP_ROOT}", ".", 1)
    return next((spelling for spelling in (name, short) if spelling in names), None)
