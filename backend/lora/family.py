"""Which family of models keys and shapes are of, and how files of a family spell a key. Knows no torch.

Shapes decide: the same names stand in files for Stable Diffusion 1, 2 and XL alike, as programs choose them. Where no
shape tells, because the model is smaller than the real ones, names that only one family has do.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from backend.tables.identity import title_of
from backend.tables.layout import unet_table
from backend.tables.names import (
    PROJECTION,
    PROJECTION_KEY,
    TEXT_ENCODERS,
    UNET_KEY_PREFIX,
    UNET_SHAPES,
    further_text_targets,
    further_unet_targets,
)
from backend.tables.sizes import FULL_SIZE, sized_targets

Shapes = Mapping[str, tuple[int, int]]

FAMILIES = tuple(FULL_SIZE)
_ORIGINAL = re.compile(rf"{UNET_KEY_PREFIX}(?:input_blocks|middle_block|output_blocks|time_embed|label_emb|out)_")
_TEXT = re.compile(r"lora_te([12]?)_(.+)")
_LAYER = re.compile(r"text_model_encoder_layers_(\d{1,3})_")
# Layers of SDXL's first text encoder; its second has more.
_FIRST_LAYERS = FULL_SIZE["sdxl"].texts[0].layers
_CAPTION_WIDTHS = {sizes.unet.cross: family for family, sizes in FULL_SIZE.items()}
_CAPTION_READERS = ("_attn2_to_k", "_attn2_to_v")
_SECOND_WIDTH = FULL_SIZE["sdxl"].texts[1].hidden


def family_of(shapes: Shapes) -> str | None:
    """The family that keys and the shapes of their weights (outputs, inputs) tell; None where they leave it open."""
    found = families_of(shapes)
    return next(iter(found)) if len(found) == 1 else None


def families_of(shapes: Shapes) -> frozenset[str]:
    """The families that keys and the shapes of their weights can be of; none for names that no family has."""
    fitting, named = {}, {}
    for family in FAMILIES:
        sizes, names = _sizes(family), family_keys(shapes, family)
        fitting[family] = sum(sizes.get(names[key]) == shape for key, shape in shapes.items())
        known = _names(family)
        named[family] = sum(names[key] in known for key in shapes)
    # Half of the shapes, so that a few that agree by chance count less than all names.
    best = fitting if 2 * max(fitting.values(), default=0) >= max(named.values(), default=0) > 0 else named
    most = max(best.values(), default=0)
    found = frozenset(family for family, count in best.items() if most and count == most)
    # A smaller model still reads captions of its family's width; SDXL's first text encoder has that of SD1's.
    readers = _CAPTION_READERS if "sdxl" in found else (*_CAPTION_READERS, "self_attn_q_proj")
    widths = {shape[1] for key, shape in shapes.items() if key.endswith(readers)}
    read = frozenset(_CAPTION_WIDTHS[width] for width in widths if width in _CAPTION_WIDTHS)
    return found & read or found


def spelled_for(shapes: Shapes) -> str:
    """The family whose spelling keys have to have: the one that they tell, else the one that they are spelled for."""
    found = families_of(shapes)
    if "sdxl" in found and (len(found) == 1 or any(is_xl_spelling(key) for key in shapes)):
        return "sdxl"
    return "sdxl" if not found and any(is_xl_spelling(key) for key in shapes) else "sd1"


def is_xl_spelling(key: str) -> bool:
    """Whether a key is spelled as in files for SDXL."""
    return key.startswith(("lora_te1_", "lora_te2_")) or _ORIGINAL.match(key) is not None


def titles_of(families: Iterable[str]) -> str:
    """What people call families: "Stable Diffusion 1 or Stable Diffusion 2"."""
    return " or ".join(title_of(family) for family in FAMILIES if family in families)


def family_keys(keys: Iterable[str] | Shapes, family: str | None) -> dict[str, str]:
    """Key -> the same key as files of the family spell it: for SDXL the original layout's names, `lora_te1_`.

    Args:
        keys: as `spelling.split_name` gives them; with shapes, these tell SDXL's text encoders apart where the key does
            not say which.
        family: None keeps the spelling.
    """
    if family is None:
        return {key: key for key in keys}
    shapes = keys if isinstance(keys, Mapping) else {}
    if family != "sdxl":
        return {key: _sd_key(key) for key in keys}
    second = _second_encoder(keys, shapes)
    return {key: _xl_key(key, second) for key in keys}


def _second_encoder(keys: Iterable[str], shapes: Shapes) -> bool:
    """Whether keys of a text encoder without a number are of SDXL's second, which is deeper and wider."""
    for key in keys:
        if key.startswith("lora_te_"):
            layer = _LAYER.match(key, len("lora_te_"))
            wide = _SECOND_WIDTH in shapes.get(key, ()) or PROJECTION in key
            if wide or (layer and int(layer[1]) >= _FIRST_LAYERS):
                return True
    return False


def _sd_key(key: str) -> str:
    text = _TEXT.fullmatch(key)
    if text:
        return f"lora_te_{text[2]}" if text[1] == "1" else key
    return _translated(key, _to_diffusers())


def _xl_key(key: str, second: bool) -> str:
    text = _TEXT.fullmatch(key)
    if text:
        number = text[1] or ("2" if second else "1")
        return PROJECTION_KEY if text[2] == PROJECTION and number == "2" else f"lora_te{number}_{text[2]}"
    return _translated(key, _to_original())


def _translated(key: str, table: Mapping[str, str]) -> str:
    """A U-Net's key with the longest leading part that the table knows replaced."""
    if not key.startswith(UNET_KEY_PREFIX):
        return key
    pieces = key.removeprefix(UNET_KEY_PREFIX).split("_")
    for length in range(len(pieces), 0, -1):
        head = table.get("_".join(pieces[:length]))
        if head is not None:
            return UNET_KEY_PREFIX + "_".join([head, *pieces[length:]])
    return key


@lru_cache(maxsize=1)
def _to_original() -> Mapping[str, str]:
    """Diffusers' names of SDXL's U-Net -> the original layout's."""
    table = unet_table(UNET_SHAPES["sdxl"].layout)
    return {ours.replace(".", "_"): theirs.replace(".", "_") for ours, theirs in table.items()}


@lru_cache(maxsize=1)
def _to_diffusers() -> Mapping[str, str]:
    """The original layout's names of SD1's and SD2's U-Net -> Diffusers'."""
    table = unet_table(UNET_SHAPES["sd1"].layout)
    return {theirs.replace(".", "_"): ours.replace(".", "_") for ours, theirs in table.items()}


@lru_cache(maxsize=8)
def _sizes(family: str) -> Mapping[str, tuple[int, int]]:
    """Outputs and inputs of every place of a full-size model that networks are trained on, by key."""
    return {one.target.key: (one.outputs, one.inputs) for one in sized_targets(FULL_SIZE[family])}


@lru_cache(maxsize=8)
def _names(family: str) -> frozenset[str]:
    """Keys of every place of a full-size model."""
    further = list(further_unet_targets(UNET_SHAPES[family]))
    for index in range(TEXT_ENCODERS[family]):
        further += further_text_targets(family, index)
    return frozenset(_sizes(family)) | {target.key for target in further}
