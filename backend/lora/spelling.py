"""The ways in which programs spell the names of LoRA tensors, and what each means. Knows no torch."""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from backend.tables.layout import unet_table
from backend.tables.names import TEXT_ENCODER_KEY_PREFIX, UNET_KEY_PREFIX, UNET_SHAPES, text_encoder_key, unet_key

ALPHA = ".alpha"
# No module of any model has a longer name.
LONGEST = 512
DOWN, UP = ".lora_down.weight", ".lora_up.weight"

# What a name ends in -> which factor of its layer the tensor is. Kinds of layers have factors of different names.
_SUFFIXES: tuple[tuple[str, str], ...] = (
    (DOWN, "down"),
    (UP, "up"),
    *((f".hada_{name}", name) for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    # PEFT, with or without the name of the adapter
    (".lora_A.weight", "down"),
    (".lora_B.weight", "up"),
    (".lora_A.default.weight", "down"),
    (".lora_B.default.weight", "up"),
    # Diffusers before PEFT
    (".lora_linear_layer.down.weight", "down"),
    (".lora_linear_layer.up.weight", "up"),
    (".lora.down.weight", "down"),
    (".lora.up.weight", "up"),
    # Diffusers' attention processors: `attn1.processor.to_q_lora`
    ("_lora.down.weight", "down"),
    ("_lora.up.weight", "up"),
    ("_lora.alpha", "alpha"),
    (ALPHA, "alpha"),
)
_UNET = re.compile(r"(?:unet\.)?(?:base_model\.model\.)?((?:down_blocks|mid_block|up_blocks)\..+)")
_TEXT_ENCODER = re.compile(r"(?:text_encoder(_2)?\.)?(?:base_model\.model\.)?(?:text_model\.)?(encoder\.layers\..+)")
_KEY = re.compile(rf"({UNET_KEY_PREFIX}|{TEXT_ENCODER_KEY_PREFIX}|lora_te[12]_)[^.]+")
# What only SDXL has: two text encoders, the original layout's names, more than one transformer block at a place, and
# the width of its captions.
_XL_KEY = re.compile(
    rf"lora_te[12]_|{UNET_KEY_PREFIX}(input_blocks|middle_block|output_blocks)_|"
    rf"{UNET_KEY_PREFIX}.*_transformer_blocks_[1-9]"
)
CAPTION_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
_CAPTION_READERS = ("_attn2_to_k", "_attn2_to_v")


def split_name(name: str) -> tuple[str, str] | None:
    """The key of the module, as kohya's files spell it, and what the tensor is; None for a name that is no LoRA's.

    SDXL's modules that are named as Diffusers does keep that name here, as one name does not tell the family: see
    `family_keys`.

    >>> split_name("unet.mid_block.attentions.0.proj_in.lora_A.weight")
    ('lora_unet_mid_block_attentions_0_proj_in', 'down')
    """
    if len(name) > LONGEST:
        return None
    for suffix, role in _SUFFIXES:
        if name.endswith(suffix):
            key = module_key(name.removesuffix(suffix))
            return (key, role) if key else None
    return None


def module_key(path: str) -> str | None:
    """The key, as kohya's files spell it, of a module given in any spelling; None if it is in none."""
    if _KEY.fullmatch(path):
        return path
    match = _UNET.fullmatch(path)
    if match:
        inner = match[1].replace(".processor.", ".")
        return unet_key(f"{inner}.0" if inner.endswith(".to_out") else inner)
    match = _TEXT_ENCODER.fullmatch(path)
    if match:
        inner = re.sub(r"\.self_attn\.to_(q|k|v|out)$", r".self_attn.\1_proj", match[2])
        return text_encoder_key(inner, 2 if match[1] else None)
    return None


def family_of(shapes: Mapping[str, tuple[int, int]]) -> str | None:
    """The family that keys and the shapes of their weights (outputs, inputs) tell; None where they leave it open."""
    if any(_XL_KEY.match(key) for key in shapes):
        return "sdxl"
    widths = {shape[1] for key, shape in shapes.items() if key.endswith(_CAPTION_READERS)}
    widths |= {shape[1] for key, shape in shapes.items() if key.endswith("self_attn_q_proj")}
    found = {CAPTION_WIDTHS[width] for width in widths if width in CAPTION_WIDTHS}
    return found.pop() if len(found) == 1 else None


def family_keys(keys: Iterable[str], family: str | None) -> dict[str, str]:
    """Key -> the same key as files of the family spell it: for SDXL the original layout's names, `lora_te1_`."""
    if family != "sdxl":
        return {key: key for key in keys}
    return {key: _xl_key(key) for key in keys}


def _xl_key(key: str) -> str:
    if key.startswith(TEXT_ENCODER_KEY_PREFIX):
        return f"lora_te1_{key.removeprefix(TEXT_ENCODER_KEY_PREFIX)}"
    pieces = key.removeprefix(UNET_KEY_PREFIX).split("_")
    for length in range(len(pieces), 0, -1):
        head = _xl_table().get("_".join(pieces[:length]))
        if head is not None:
            return UNET_KEY_PREFIX + "_".join([head, *pieces[length:]])
    return key


@lru_cache(maxsize=1)
def _xl_table() -> dict[str, str]:
    table = unet_table(UNET_SHAPES["sdxl"].layout)
    return {ours.replace(".", "_"): theirs.replace(".", "_") for ours, theirs in table.items()}
