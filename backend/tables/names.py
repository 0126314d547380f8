"""Where a LoRA can sit: module path <-> key in a LoRA file <-> tensor in a checkpoint, in the order of the files.

The names are built here from the shape of the U-Net and the number of text encoder layers and from nothing else, so
that they do not change with the libraries: the format of LoRA files stays, module paths in transformers come and go.
SD1 and SD2 name U-Net modules as Diffusers does, SDXL as its original layout does and in that layout's order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from backend.tables.blocks import Blocks, Part, block_index, xl_block_index
from backend.tables.layout import (
    CLIP_PREFIX,
    OPEN_CLIP_PREFIX,
    SDXL_CLIP_PREFIX,
    SDXL_OPEN_CLIP_PREFIX,
    UNET_PREFIX,
    UNetLayout,
    clip_to_original,
    open_clip_to_original,
    unet_to_original,
)

Kind = Literal["linear", "conv1x1", "conv3x3"]

UNET_KEY_PREFIX = "lora_unet_"
TEXT_ENCODER_KEY_PREFIX = "lora_te_"
UNKNOWN_FAMILY = "{} is no model family with a table of names; known: {}"

_ATTENTION: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
_TRANSFORMER_BLOCK: tuple[str, ...] = (
    *(f"attn1.{name}" for name in _ATTENTION),
    "ff.net.0.proj",
    "ff.net.2",
    *(f"attn2.{name}" for name in _ATTENTION),
)
_TEXT_LAYER: tuple[str, ...] = (
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.q_proj",
    "self_attn.out_proj",
    "mlp.fc1",
    "mlp.fc2",
)
_RESNET: tuple[tuple[str, Kind], ...] = (
    ("conv1", "conv3x3"),
    ("time_emb_proj", "linear"),
    ("conv2", "conv3x3"),
    ("conv_shortcut", "conv1x1"),
)


@dataclass(frozen=True)
class Target:
    """A module that a LoRA can be put on.

    Attributes:
        path: below the U-Net, or below CLIP's text transformer (`encoder.layers.0.mlp.fc1`).
        key: its name in a LoRA file.
        checkpoint_key: its weight in a single-file checkpoint of the original layout.
        third: it is the first, second or third third of that weight's rows (0, 1, 2), where query, key and value are
            one matrix there; None where it is the whole.
        transposed: the checkpoint has inputs in rows.
        kind: of the module in the original layout. Some libraries load a 1x1 convolution as a linear layer.
        block: number of the U-Net block (see blocks.py); None for a text encoder.
        conv_only: it carries a LoRA only in a network that also trains 3x3 convolutions (LoRA-C3Lier).
        optional: whether the model has it depends on its widths.
    """

    path: str
    key: str
    checkpoint_key: str
    kind: Kind
    block: int | None = None
    conv_only: bool = False
    optional: bool = False
    third: int | None = None
    transposed: bool = False


@dataclass(frozen=True)
class UNetShape:
    """What the names of a U-Net depend on.

    Attributes:
        depths: transformer blocks per attention for each level on the way down; 0 where there is no attention. The way
            up mirrors it.
        middle: transformer blocks of the middle's attention.
        layers: residual blocks per level on the way down (the way up has one more).
        xl: it is SDXL's, with that family's names, order and numbering of blocks.
    """

    depths: tuple[int, ...] = (1, 1, 1, 0)
    middle: int = 1
    layers: int = 2
    xl: bool = False

    @property
    def blocks(self) -> Blocks:
        """How its blocks are counted."""
        rows = len(self.depths) * (self.layers + 1)
        return Blocks(rows, 3 if self.xl else 1, rows, ends=1 if self.xl else 0)

    @property
    def layout(self) -> UNetLayout:
        """The same shape as the table of checkpoint names wants it."""
        return UNetLayout(attention=tuple(depth > 0 for depth in self.depths), layers=self.layers)


UNET_SHAPES: dict[str, UNetShape] = {
    "sd1": UNetShape(),
    "sd2": UNetShape(),
    "sdxl": UNetShape((0, 2, 10), 10, xl=True),
}
TEXT_ENCODERS = {"sd1": 1, "sd2": 1, "sdxl": 2}
# Where text encoders lie in a single file; SD2's and SDXL's second are OpenCLIP's, which stacks three projections.
_CLIP_PREFIXES = {("sd1", 0): CLIP_PREFIX, ("sdxl", 0): SDXL_CLIP_PREFIX}
_OPEN_CLIP_PREFIXES = {("sd2", 0): OPEN_CLIP_PREFIX, ("sdxl", 1): SDXL_OPEN_CLIP_PREFIX}
_STACKED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
# Linear layers and convolutions outside the blocks, which no network here trains, but which files may hold: whether
# only SDXL has them, and whether they come after all blocks.
_ENDS: tuple[tuple[str, Kind, bool, bool], ...] = (
    ("conv_in", "conv3x3", False, False),
    ("time_embedding.linear_1", "linear", False, False),
    ("time_embedding.linear_2", "linear", False, False),
    ("add_embedding.linear_1", "linear", True, False),
    ("add_embedding.linear_2", "linear", True, False),
    ("conv_out", "conv3x3", False, True),
)
PROJECTION = "text_projection"
PROJECTION_KEY = f"{TEXT_ENCODER_KEY_PREFIX[:-1]}2_{PROJECTION}"


def unet_key(path: str, shape: UNetShape | None = None) -> str:
    """The name in a LoRA file of a U-Net module given by its Diffusers path."""
    name = unet_to_original(path, shape.layout) if shape is not None and shape.xl else path
    return UNET_KEY_PREFIX + name.replace(".", "_")


def text_encoder_key(path: str, number: int | None = None) -> str:
    """The name in a LoRA file of a module given by its path in CLIP's text transformer.

    Args:
        path: below the text transformer.
        number: 1 or 2 where the family has two text encoders.
    """
    prefix = TEXT_ENCODER_KEY_PREFIX if number is None else f"{TEXT_ENCODER_KEY_PREFIX[:-1]}{number}_"
    return prefix + clip_to_original(path).replace(".", "_")


def unet_targets(family: str | UNetShape) -> tuple[Target, ...]:
    """Every module of the U-Net that a LoRA can be put on, in the order in which files have them.

    Args:
        family: "sd1", "sd2" or "sdxl", or the shape of a U-Net that is built like theirs with other numbers of blocks.

    Raises:
        ValueError: the family has no table.
    """
    if isinstance(family, str):
        _check_family(family)
        return _unet_targets(UNET_SHAPES[family])
    return _unet_targets(family)


@lru_cache(maxsize=32)
def further_unet_targets(shape: UNetShape) -> tuple[Target, ...]:
    """Modules of the U-Net that no network here trains, but that files of other programs may hold.

    They count as of the first and the last block.
    """
    last = shape.blocks.count - 1
    return tuple(
        Target(path, unet_key(path, shape), _checkpoint_key(shape, path), kind, last if after else 0, conv_only=True)
        for path, kind, only_xl, after in _ENDS
        if shape.xl or not only_xl
    )


def further_text_targets(family: str, index: int = 0) -> tuple[Target, ...]:
    """The same of a text encoder; its path is below the whole encoder: SDXL's second has a projection."""
    if (family, index) != ("sdxl", 1):
        return ()
    weight = SDXL_OPEN_CLIP_PREFIX + PROJECTION
    return (Target(PROJECTION, PROJECTION_KEY, weight, "linear", transposed=True),)


@lru_cache(maxsize=128)
def text_encoder_targets(family: str, layers: int, index: int = 0) -> tuple[Target, ...]:
    """Every module of a text encoder that a LoRA can be put on, in the order in which files have them.

    Args:
        family: "sd1", "sd2" or "sdxl".
        layers: transformer layers of the encoder; 12 in SD1, 23 in SD2, 12 and 32 in SDXL.
        index: which of the family's text encoders; SDXL has two.

    Raises:
        ValueError: the family has no table, or no such text encoder.
    """
    _check_family(family)
    count = TEXT_ENCODERS[family]
    if not 0 <= index < count:
        raise ValueError(f"{family} has {count} text encoder(s), number {index + 1} was asked for")
    number = index + 1 if count > 1 else None
    found = []
    for layer in range(layers):
        for name in _TEXT_LAYER:
            path = f"encoder.layers.{layer}.{name}"
            weight, third = _text_weight(family, index, layer, name)
            found.append(Target(path, text_encoder_key(path, number), weight, "linear", third=third))
    return tuple(found)


def _text_weight(family: str, index: int, layer: int, name: str) -> tuple[str, int | None]:
    """A text encoder's weight in the original layout, and which third of it."""
    path = f"encoder.layers.{layer}.{name}"
    if (family, index) in _CLIP_PREFIXES:
        return f"{_CLIP_PREFIXES[family, index]}{clip_to_original(path)}.weight", None
    prefix = _OPEN_CLIP_PREFIXES[family, index]
    if name in _STACKED:
        return f"{prefix}transformer.resblocks.{layer}.attn.in_proj_weight", _STACKED.index(name)
    return f"{prefix}{open_clip_to_original(path)}.weight", None


def _check_family(family: str) -> None:
    if family not in UNET_SHAPES:
        raise ValueError(UNKNOWN_FAMILY.format(family, ", ".join(UNET_SHAPES)))


@lru_cache(maxsize=32)
def _unet_targets(shape: UNetShape) -> tuple[Target, ...]:
    return tuple(_xl_targets(shape) if shape.xl else _sd_targets(shape))


def _sd_targets(shape: UNetShape) -> Iterator[Target]:
    """In the order of Diffusers' U-Net: the ways down and up, then the middle; in each block attentions first."""
    for part, depths in (("down", shape.depths), ("up", tuple(reversed(shape.depths)))):
        for level, depth in enumerate(depths):
            yield from _level(shape, part, level, depth, shape.layers + (part == "up"))
            yield from _sampler(shape, part, level)
    middle = _block(shape, "mid", 0)
    yield from _attention(shape, "mid_block.attentions.0", shape.middle, middle)
    for layer in range(2):
        yield from _resnet(shape, f"mid_block.resnets.{layer}", middle, shortcut="absent")


def _xl_targets(shape: UNetShape) -> Iterator[Target]:
    """In the order of the original U-Net: row by row, in each row the residual block first."""
    yield from _rows(shape, "down", shape.depths)
    yield from _resnet(shape, "mid_block.resnets.0", _block(shape, "mid", 0), shortcut="absent")
    yield from _attention(shape, "mid_block.attentions.0", shape.middle, _block(shape, "mid", 1))
    yield from _resnet(shape, "mid_block.resnets.1", _block(shape, "mid", 2), shortcut="absent")
    yield from _rows(shape, "up", tuple(reversed(shape.depths)))


def _rows(shape: UNetShape, part: Part, depths: tuple[int, ...]) -> Iterator[Target]:
    for level, depth in enumerate(depths):
        for layer in range(shape.layers + (part == "up")):
            block = _block(shape, part, level * (shape.layers + 1) + layer)
            yield from _resnet(shape, f"{part}_blocks.{level}.resnets.{layer}", block, _shortcut(part, level, layer))
            if depth:
                yield from _attention(shape, f"{part}_blocks.{level}.attentions.{layer}", depth, block)
        yield from _sampler(shape, part, level)


def _sampler(shape: UNetShape, part: Part, level: int) -> Iterator[Target]:
    """The downsampler or upsampler at the end of a level; the last level has none."""
    if level < len(shape.depths) - 1:
        row = level * (shape.layers + 1) + shape.layers
        path = f"{part}_blocks.{level}.{part}samplers.0.conv"
        yield _conv_target(shape, path, "conv3x3", _block(shape, part, row))


def _level(shape: UNetShape, part: Part, level: int, depth: int, layers: int) -> Iterator[Target]:
    """One level of the way down or up, without its sampler: all attentions, then all residual blocks."""
    first = level * (shape.layers + 1)
    if depth:
        for layer in range(layers):
            path = f"{part}_blocks.{level}.attentions.{layer}"
            yield from _attention(shape, path, depth, _block(shape, part, first + layer))
    for layer in range(layers):
        path = f"{part}_blocks.{level}.resnets.{layer}"
        yield from _resnet(shape, path, _block(shape, part, first + layer), _shortcut(part, level, layer))


def _shortcut(part: Part, level: int, layer: int) -> Literal["present", "optional", "absent"]:
    """Whether a residual block has a 1x1 convolution beside it.

    On the way up the skip connection widens every input. On the way down only a level's first block can change the
    width, and it does where the level is wider than the one before: SD1's last level is not.
    """
    if part == "up":
        return "present"
    return "optional" if layer == 0 and level > 0 else "absent"


def _attention(shape: UNetShape, path: str, depth: int, block: int) -> Iterator[Target]:
    # SD2's are linear layers in some programs, convolutions in others; SDXL's are always linear.
    kind: Kind = "linear" if shape.xl else "conv1x1"
    yield _target(shape, f"{path}.proj_in", kind, block)
    for index in range(depth):
        for name in _TRANSFORMER_BLOCK:
            yield _target(shape, f"{path}.transformer_blocks.{index}.{name}", "linear", block)
    yield _target(shape, f"{path}.proj_out", kind, block)


def _resnet(
    shape: UNetShape, path: str, block: int, shortcut: Literal["present", "optional", "absent"]
) -> Iterator[Target]:
    for name, kind in _RESNET:
        if name != "conv_shortcut":
            yield _conv_target(shape, f"{path}.{name}", kind, block)
        elif shortcut != "absent":
            yield _conv_target(shape, f"{path}.{name}", kind, block, optional=shortcut == "optional")


def _block(shape: UNetShape, part: Part, row: int) -> int:
    count = xl_block_index if shape.xl else block_index
    return count(part, row, len(shape.depths), shape.layers + 1)


def _checkpoint_key(shape: UNetShape, path: str) -> str:
    return f"{UNET_PREFIX}{unet_to_original(path, shape.layout)}.weight"


def _target(shape: UNetShape, path: str, kind: Kind, block: int) -> Target:
    return Target(path, unet_key(path, shape), _checkpoint_key(shape, path), kind, block)


def _conv_target(shape: UNetShape, path: str, kind: Kind, block: int, optional: bool = False) -> Target:
    """A module outside the attentions, which only LoRA-C3Lier reaches."""
    return Target(
        path, unet_key(path, shape), _checkpoint_key(shape, path), kind, block, conv_only=True, optional=optional
    )
