"""The ways in which programs spell the names of LoRA tensors, and what each means. Knows no torch."""

import re
from typing import Literal

from backend.tables.names import TEXT_ENCODER_KEY_PREFIX, UNET_KEY_PREFIX, text_encoder_key, unet_key

Role = Literal["down", "up", "alpha"]

DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"

_SUFFIXES: tuple[tuple[str, Role], ...] = (
    (DOWN, "down"),
    (UP, "up"),
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
_TEXT_ENCODER = re.compile(r"(?:text_encoder\.)?(?:base_model\.model\.)?(?:text_model\.)?(encoder\.layers\..+)")


def split_name(name: str) -> tuple[str, Role] | None:
    """The key of the module, as kohya's files spell it, and what the tensor is; None for a name that is no LoRA's.

    >>> split_name("unet.mid_block.attentions.0.proj_in.lora_A.weight")
    ('lora_unet_mid_block_attentions_0_proj_in', 'down')
    """
    for suffix, role in _SUFFIXES:
        if name.endswith(suffix):
            key = module_key(name.removesuffix(suffix))
            return (key, role) if key else None
    return None


def module_key(path: str) -> str | None:
    """The key, as kohya's files spell it, of a module given in any spelling; None if it is in none."""
    if path.startswith((UNET_KEY_PREFIX, TEXT_ENCODER_KEY_PREFIX)) and "." not in path:
        return path
    match = _UNET.fullmatch(path)
    if match:
        inner = match[1].replace(".processor.", ".")
        return unet_key(f"{inner}.0" if inner.endswith(".to_out") else inner)
    match = _TEXT_ENCODER.fullmatch(path)
    if match:
        return text_encoder_key(re.sub(r"\.self_attn\.to_(q|k|v|out)$", r".self_attn.\1_proj", match[1]))
    return None
