"""Which part of a model a key of a LoRA file belongs to. Knows no torch."""

import re
from functools import lru_cache

from backend.tables.names import PROJECTION_KEY, UNET_SHAPES, further_unet_targets, unet_targets

_TEXT_KEY = re.compile(
    r"lora_(te\d?)_text_model_encoder_layers_(\d{1,2})_(?:self_attn_(?:q|k|v|out)_proj|mlp_fc[12])",
)

# Layers of the text encoders, by the beginning of their keys; with the one that Stable Diffusion 2 leaves out.
LAYERS = {"te": 24, "te1": 12, "te2": 32}


def block_of(key: str, family: str | None) -> str | None:
    """The part of a model that a key belongs to: "te", "te1", "te2", or "unet" and its block's number; None if to none.

    Args:
        family: None where it is not known; the two that have one text encoder have the same keys.
    """
    if key == PROJECTION_KEY:
        return "te2" if family == "sdxl" else None
    encoder = _TEXT_KEY.fullmatch(key)
    if encoder:
        return encoder[1] if int(encoder[2]) < LAYERS.get(encoder[1], 0) else None
    block = _unet_blocks("sdxl" if family == "sdxl" else "sd1").get(key)
    return None if block is None else f"unet {block}"


def order_of_blocks(name: str) -> tuple[bool, int, str]:
    """Sorts parts: text encoders, then the U-Net's blocks by number, then anything else."""
    number = re.search(r" (\d+)$", name)
    return not re.match(r"te\d?$|unet \d+$", name), int(number[1]) if number else -1, name


@lru_cache(maxsize=4)
def _unet_blocks(family: str) -> dict[str, int]:
    shape = UNET_SHAPES[family]
    return {target.key: target.block for target in (*unet_targets(shape), *further_unet_targets(shape))}
