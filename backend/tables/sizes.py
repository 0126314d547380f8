"""How large a model's modules are, from the widths of its parts, and so how many parameters a network on them has."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from backend.tables.names import TEXT_ENCODERS, UNET_SHAPES, Kind, Target, UNetShape, text_encoder_targets, unet_targets

# Values of a kernel, by kind of module.
_KERNEL: dict[Kind, int] = {"linear": 1, "conv1x1": 1, "conv3x3": 9}
# The feed-forward layers are so many times as wide as the block, and the first has a gate beside every value.
_FORWARD, _GATED = 4, 2
_TIME = 4


@dataclass(frozen=True)
class UNetWidths:
    """What the sizes of a U-Net's modules depend on.

    Attributes:
        shape: numbers of blocks.
        channels: width of every level on the way down.
        cross: width of the text that the attentions see.
        time: width of the embedded step; None is four times the first level.
    """

    shape: UNetShape
    channels: tuple[int, ...]
    cross: int
    time: int | None = None

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.shape.depths):
            raise ValueError(f"{len(self.channels)} widths for {len(self.shape.depths)} levels")


@dataclass(frozen=True)
class TextWidths:
    """What the sizes of a text encoder's modules depend on: its layers, their width, and the width inside them."""

    layers: int
    hidden: int
    inner: int


@dataclass(frozen=True)
class ModelWidths:
    """The widths of a whole model of a family ("sd1", "sd2", "sdxl")."""

    family: str
    unet: UNetWidths
    texts: tuple[TextWidths, ...]

    def __post_init__(self) -> None:
        if len(self.texts) != TEXT_ENCODERS[self.family]:
            raise ValueError(f"{len(self.texts)} text encoders, {self.family} has {TEXT_ENCODERS[self.family]}")


_CLIP_L = TextWidths(12, 768, 3072)
FULL_SIZE: dict[str, ModelWidths] = {
    "sd1": ModelWidths("sd1", UNetWidths(UNET_SHAPES["sd1"], (320, 640, 1280, 1280), 768), (_CLIP_L,)),
    "sd2": ModelWidths(
        "sd2", UNetWidths(UNET_SHAPES["sd2"], (320, 640, 1280, 1280), 1024), (TextWidths(23, 1024, 4096),)
    ),
    "sdxl": ModelWidths(
        "sdxl", UNetWidths(UNET_SHAPES["sdxl"], (320, 640, 1280), 2048), (_CLIP_L, TextWidths(32, 1280, 5120))
    ),
}


@dataclass(frozen=True)
class SizedTarget:
    """A module that a LoRA can be put on, and how large it is.

    Attributes:
        target: what the table of names says of it.
        inputs: values that one output is made of: channels times the kernel's.
        outputs: channels of its output.
        encoder: number of the text encoder that it is part of, from 0; None for the U-Net.
    """

    target: Target
    inputs: int
    outputs: int
    encoder: int | None = None

    def parameters(self, rank: int) -> int:
        """Parameters of two factors whose product has the module's shape."""
        return rank * (self.inputs + self.outputs)


@lru_cache(maxsize=32)
def sized_targets(widths: ModelWidths) -> tuple[SizedTarget, ...]:
    """Every module of a model that a LoRA can be put on, in the order in which files have them."""
    return (*_text_targets(widths), *_unet_sizes(widths.unet))


def _text_targets(widths: ModelWidths) -> Iterator[SizedTarget]:
    for index, text in enumerate(widths.texts):
        for target in text_encoder_targets(widths.family, text.layers, index):
            inputs = text.inner if target.path.endswith("fc2") else text.hidden
            outputs = text.inner if target.path.endswith("fc1") else text.hidden
            yield SizedTarget(target, inputs, outputs, index)


def _unet_sizes(widths: UNetWidths) -> Iterator[SizedTarget]:
    for target in unet_targets(widths.shape):
        inputs, outputs = _size(widths, target.path)
        if not (target.optional and inputs == outputs):
            yield SizedTarget(target, inputs * _KERNEL[target.kind], outputs)


def _size(widths: UNetWidths, path: str) -> tuple[int, int]:
    """Channels of a module's input and output, by its Diffusers path."""
    block, *rest = path.split(".")
    if block == "mid_block":
        width = incoming = widths.channels[-1]
        kind, inner = rest[0], rest[2:]
    else:
        level, kind, layer, inner = int(rest[0]), rest[1], int(rest[2]), rest[3:]
        width, incoming = _row(widths, block == "up_blocks", level, layer)
    if kind == "attentions":
        return _attention_size(widths.cross, width, ".".join(inner))
    if kind == "resnets":
        time = widths.time or _TIME * widths.channels[0]
        sizes = {"conv1": (incoming, width), "conv_shortcut": (incoming, width), "time_emb_proj": (time, width)}
        return sizes.get(inner[0], (width, width))
    return width, width


def _row(widths: UNetWidths, up: bool, level: int, layer: int) -> tuple[int, int]:
    """Width of a level, and of what one of its residual blocks is given: on the way up with the skip connection."""
    if not up:
        before = widths.channels[max(level - 1, 0)]
        return widths.channels[level], before if layer == 0 else widths.channels[level]
    channels = widths.channels[::-1]
    width = channels[level]
    skip = channels[min(level + 1, len(channels) - 1)] if layer == widths.shape.layers else width
    return width, skip + (channels[max(level - 1, 0)] if layer == 0 else width)


def _attention_size(cross: int, width: int, name: str) -> tuple[int, int]:
    if name.endswith("ff.net.0.proj"):
        return width, _FORWARD * _GATED * width
    if name.endswith("ff.net.2"):
        return _FORWARD * width, width
    return (cross if name.endswith(("attn2.to_k", "attn2.to_v")) else width), width
