"""The widths of a model on this machine: from a Diffusers folder's configs or a safetensors file's header."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from backend.bounded import read_json
from backend.errors import UserError
from backend.header import read_header
from backend.tables.identity import title_of
from backend.tables.layout import UNET_PREFIX
from backend.tables.names import TEXT_ENCODERS, UNET_SHAPES, UNetShape
from backend.tables.sizes import FULL_SIZE, ModelWidths, TextWidths, UNetWidths
from backend.workspace import PROJECT

Shapes = Mapping[str, tuple[int, ...]]

# Real models are far below; what lies beyond is a broken or hostile file.
_MOST = 1 << 20
_MOST_LAYERS = 128
_MOST_LEVELS = 8
_CONFIG_BYTES = 1 << 20
_ATTENTION = "CrossAttnDownBlock2D"
_MIDDLE_TEXT = UNET_PREFIX + "middle_block.1.transformer_blocks.0.attn2.to_k.weight"


@dataclass(frozen=True)
class Found:
    """The widths of a model, in words where they are from, and whether they are its own or usual ones."""

    widths: ModelWidths
    source: str
    is_own: bool = True


def find_widths(model: str) -> Found:
    """The widths of a model given as `pretrained_model_name_or_path`; a model that cannot be read gets usual ones.

    Args:
        model: a Diffusers folder, a single file or a name on the hub; relative paths count from the project.
    """
    try:
        path = PROJECT / Path(model).expanduser()
        if path.is_dir():
            return Found(_of_folder(path, _stamp(path / "unet" / "config.json")), "read from the model's folder")
        if path.is_file() and path.suffix.lower() == ".safetensors":
            return Found(_of_file(path, _stamp(path)), "read from the model's file")
        present = path.exists()
    except (OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError, RecursionError, UserError):
        present = True
    family = _family_by_name(model)
    why = "the model's own could not be read" if present else "the model is not on this machine"
    return Found(FULL_SIZE[family], f"usual ones of {title_of(family)}, as {why}", is_own=False)


def _stamp(path: Path) -> tuple[int, int]:
    """Changes when a file does."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=16)
def _of_folder(path: Path, _: tuple[int, int]) -> ModelWidths:
    return widths_of_configs(
        _read_config(path / "unet"),
        [_read_config(folder) for name in ("text_encoder", "text_encoder_2") if (folder := path / name).is_dir()],
    )


@lru_cache(maxsize=16)
def _of_file(path: Path, _: tuple[int, int]) -> ModelWidths:
    return widths_of_shapes({name: info.shape for name, info in read_header(path).tensors.items()})


def _read_config(folder: Path) -> dict[str, Any]:
    return dict(read_json(folder / "config.json", None, _CONFIG_BYTES))


def widths_of_configs(unet: Mapping[str, Any], texts: list[Mapping[str, Any]]) -> ModelWidths:
    """The widths that Diffusers' configs of the parts say; what they leave out is as Diffusers has it.

    Raises:
        ValueError, TypeError, KeyError: they are no configs of a known family.
    """
    types = unet.get("down_block_types", (_ATTENTION,) * 3 + ("DownBlock2D",))
    channels = tuple(_count(width) for width in unet.get("block_out_channels", (320, 640, 1280, 1280)))
    given = unet.get("transformer_layers_per_block", 1)
    depths = tuple(_layers(depth) for depth in ([given] * len(types) if isinstance(given, int) else given))
    _count(len(types), _MOST_LEVELS)
    cross = _count(unet.get("cross_attention_dim", 1280))
    xl = unet.get("addition_embed_type") == "text_time"
    shape = UNetShape(
        tuple(depth if kind == _ATTENTION else 0 for kind, depth in zip(types, depths, strict=True)),
        depths[-1],
        _count(unet.get("layers_per_block", 2), _MOST_LEVELS),
        xl,
    )
    family = "sdxl" if xl else "sd2" if cross == FULL_SIZE["sd2"].unet.cross else "sd1"
    time = unet.get("time_embedding_dim")
    return ModelWidths(
        family,
        UNetWidths(shape, channels, cross, None if time is None else _count(time)),
        tuple(
            TextWidths(_layers(one["num_hidden_layers"]), _count(one["hidden_size"]), _count(one["intermediate_size"]))
            for one in texts
        ),
    )


def widths_of_shapes(shapes: Shapes) -> ModelWidths:
    """The widths of a single file in the original layout, from the shapes of its tensors.

    Raises:
        ValueError, KeyError: it is no checkpoint of a known family.
    """
    if any(name.startswith(("conditioner.embedders.", UNET_PREFIX + "label_emb.")) for name in shapes):
        family = "sdxl"
    else:
        family = "sd2" if any(name.startswith("cond_stage_model.model.") for name in shapes) else "sd1"
    shape = UNET_SHAPES[family]
    rows = shape.layers + 1
    last = UNET_PREFIX + "input_blocks.{}.0.out_layers.3.weight"
    channels = tuple(_count(shapes[last.format(1 + level * rows)][0]) for level in range(len(shape.depths)))
    roots = ["cond_stage_model."]
    if TEXT_ENCODERS[family] > 1:
        roots = [f"conditioner.embedders.{index}." for index in range(TEXT_ENCODERS[family])]
    texts = tuple(_text(shapes, root, family == "sd2") for root in roots)
    return ModelWidths(family, UNetWidths(shape, channels, _count(shapes[_MIDDLE_TEXT][1])), texts)


def _text(shapes: Shapes, root: str, all_but_last: bool) -> TextWidths:
    """A text encoder's widths; Stable Diffusion 2 does not use the last layer that its files have."""
    first = [shape for name, shape in shapes.items() if name.startswith(root) and _is_first(name)]
    if not first:
        raise ValueError(f"no tensor of a text encoder starts with {root}")
    inner, hidden = first[0]
    return TextWidths(_layers(len(first) - all_but_last), _count(hidden), _count(inner))


def _is_first(name: str) -> bool:
    """Whether a tensor is the first matrix of a layer's feed-forward part."""
    return name.endswith((".mlp.fc1.weight", ".mlp.c_fc.weight"))


def _count(value: Any, most: int = _MOST) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ValueError(f"{value!r} is no width")
    return value


def _layers(value: Any) -> int:
    return _count(value, _MOST_LAYERS)


def _family_by_name(model: str) -> str:
    name = model.lower()
    if re.search(r"xl(?![a-z])", name):
        return "sdxl"
    return "sd2" if re.search(r"(stable-diffusion-|sd[-_ ]?v?)2(?!\d)", name) else "sd1"
