"""Where a LoRA can sit: module path <-> key in a LoRA file <-> tensor in a checkpoint, in the order of the files.

The names are built here from the shape of the U-Net and the number of text encoder layers and from nothing else, so
that they do not change with the libraries: the format of LoRA files stays, module paths in transformers come and go.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from backend.tables.blocks import Part, block_index
from backend.tables.layout import CLIP_PREFIX, UNET_PREFIX, UNetLayout, clip_to_original, unet_to_original

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


@dataclass(frozen=True)
class UNetShape:
    """What the names of a U-Net depend on.

    Attributes:
        depths: transformer blocks per attention for each level on the way down; 0 where there is no attention. The way
            up mirrors it.
        middle: transformer blocks of the middle's attention.
        layers: residual blocks per level on the way down (the way up has one more).
    """

    depths: tuple[int, ...] = (1, 1, 1, 0)
    middle: int = 1
    layers: int = 2

    @property
    def layout(self) -> UNetLayout:
        """The same shape as the table of checkpoint names wants it."""
        return UNetLayout(attention=tuple(depth > 0 for depth in self.depths), layers=self.layers)


UNET_SHAPES: dict[str, UNetShape] = {"sd1": UNetShape()}


def unet_key(path: str) -> str:
    """The name in a LoRA file of a U-Net module given by its Diffusers path."""
    return UNET_KEY_PREFIX + path.replace(".", "_")


def text_encoder_key(path: str) -> str:
    """The name in a LoRA file of a module given by its path in CLIP's text transformer."""
    return TEXT_ENCODER_KEY_PREFIX + clip_to_original(path).replace(".", "_")


def unet_targets(family: str | UNetShape) -> tuple[Target, ...]:
    """Every module of the U-Net that a LoRA can be put on, in the order in which files have them.

    Args:
        family: "sd1", or the shape of a U-Net that is built like the families' but has other numbers of blocks.

    Raises:
        ValueError: the family has no table.
    """
    if isinstance(family, str):
        _check_family(family)
        return _unet_targets(UNET_SHAPES[family])
    return _unet_targets(family)


@lru_cache(maxsize=128)
def text_encoder_targets(family: str, layers: int, index: int = 0) -> tuple[Target, ...]:
    """Every module of a text encoder that a LoRA can be put on, in the order in which files have them.

    Args:
        family: "sd1".
        layers: transformer layers of the encoder; 12 in SD1.
        index: which of the family's text encoders; SD1 has the one.

    Raises:
        ValueError: the family has no table, or no such text encoder.
    """
    _check_family(family)
    if index != 0:
        raise ValueError(f"{family} has one text encoder, number {index + 1} was asked for")
    paths = [f"encoder.layers.{layer}.{name}" for layer in range(layers) for name in _TEXT_LAYER]
    return tuple(
        Target(path, text_encoder_key(path), f"{CLIP_PREFIX}{clip_to_original(path)}.weight", "linear")
        for path in paths
    )


def _check_family(family: str) -> None:
    if family not in UNET_SHAPES:
        raise ValueError(UNKNOWN_FAMILY.format(family, ", ".join(UNET_SHAPES)))


@lru_cache(maxsize=32)
def _unet_targets(shape: UNetShape) -> tuple[Target, ...]:
    levels, rows, up_depths = len(shape.depths), shape.layers + 1, tuple(reversed(shape.depths))
    targets: list[Target] = []
    for level, depth in enumerate(shape.depths):
        targets += _level(shape, "down", level, depth, shape.layers)
        if level < levels - 1:
            path = f"down_blocks.{level}.downsamplers.0.conv"
            targets.append(_conv_target(shape, path, "conv3x3", _block(shape, "down", level * rows + shape.layers)))
    for level, depth in enumerate(up_depths):
        targets += _level(shape, "up", level, depth, rows)
        if level < levels - 1:
            path = f"up_blocks.{level}.upsamplers.0.conv"
            targets.append(_conv_target(shape, path, "conv3x3", _block(shape, "up", level * rows + shape.layers)))
    middle = _block(shape, "mid", 0)
    targets += _attention(shape, "mid_block.attentions.0", shape.middle, middle)
    for layer in range(2):
        targets += _resnet(shape, f"mid_block.resnets.{layer}", middle, shortcut="absent")
    return tuple(targets)


def _level(shape: UNetShape, part: Part, level: int, depth: int, layers: int) -> Iterator[Target]:
    """One level of the way down or up, without its sampler: all attentions, then all residual blocks."""
    first = level * (shape.layers + 1)
    if depth:
        for layer in range(layers):
            path = f"{part}_blocks.{level}.attentions.{layer}"
            yield from _attention(shape, path, depth, _block(shape, part, first + layer))
    for layer in range(layers):
        # On the way up the skip connection widens every input. On the way down only a level's first block can change
        # the width, and it does where the level is wider than the one before: SD1's last level is not.
        if part == "up":
            shortcut = "present"
        else:
            shortcut = "optional" if layer == 0 and level > 0 else "absent"
        yield from _resnet(
            shape, f"{part}_blocks.{level}.resnets.{layer}", _block(shape, part, first + layer), shortcut
        )


def _attention(shape: UNetShape, path: str, depth: int, block: int) -> Iterator[Target]:
    yield _target(shape, f"{path}.proj_in", "conv1x1", block)
    for index in range(depth):
        for name in _TRANSFORMER_BLOCK:
            yield _target(shape, f"{path}.transformer_blocks.{index}.{name}", "linear", block)
    yield _target(shape, f"{path}.proj_out", "conv1x1", block)


def _resnet(
    shape: UNetShape, path: str, block: int, shortcut: Literal["present", "optional", "absent"]
) -> Iterator[Target]:
    for name, kind in _RESNET:
        if name != "conv_shortcut":
            yield _conv_target(shape, f"{path}.{name}", kind, block)
        elif shortcut != "absent":
            yield _conv_target(shape, f"{path}.{name}", kind, block, optional=shortcut == "optional")


def _block(shape: UNetShape, part: Part, row: int) -> int:
    return block_index(part, row, len(shape.depths), shape.layers + 1)


def _checkpoint_key(shape: UNetShape, path: str) -> str:
    return f"{UNET_PREFIX}{unet_to_original(path, shape.layout)}.weight"


def _target(shape: UNetShape, path: str, kind: Kind, block: int) -> Target:
    return Target(path, unet_key(path), _checkpoint_key(shape, path), kind, block)


def _conv_target(shape: UNetShape, path: str, kind: Kind, block: int, optional: bool = False) -> Target:
    """A module outside the attentions, which only LoRA-C3Lier reaches."""
    return Target(path, unet_key(path), _checkpoint_key(shape, path), kind, block, conv_only=True, optional=optional)
