"""The spellings of a place of a model in LoRA files, as programs write them."""

from backend.tables.layout import unet_to_original
from backend.tables.names import UNET_SHAPES, Target

# Beginnings, and whether the module's path stands with dots behind them.
UNET_BEGINNINGS = (
    ("unet.", True),
    ("", True),
    ("base_model.model.", True),
    ("base_model.model.unet.", True),
    ("unet.base_model.model.", True),
    ("module.unet.", True),
    ("_orig_mod.unet.", True),
    ("diffusion_model.", True),
    ("model.diffusion_model.", True),
    ("lora_unet_", False),
    ("lora_unet.", True),
    ("lora_unet_", True),
    ("lycoris_", False),
)
TEXT_BEGINNINGS = {
    "te": ("lora_te_", "lora_te1_", "text_encoder.", "clip_l.", "te.", "te1.", "clip_l.transformer.", "lora_te.",
           "text_encoders.clip_l.transformer.", "module.text_encoder.", "base_model.model.", "lycoris_"),
    "te1": ("lora_te1_", "text_encoder.", "clip_l.", "te1.", "text_encoder_1.", "conditioner.embedders.0.transformer."),
    "te2": ("lora_te2_", "text_encoder_2.", "clip_g.", "te2.", "clip_g.transformer.", "conditioner.embedders.1."),
}  # fmt: skip
ENDINGS = (
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora_A.my style.weight", ".lora_B.my style.weight"),
    (".lora_A.weight-1.weight", ".lora_B.weight-1.weight"),
    (".lora_A", ".lora_B"),
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
)


def unet_spellings(target: Target, family: str) -> list[str]:
    """The names of a U-Net's module that programs have for it."""
    original = unet_to_original(target.path, UNET_SHAPES[family].layout)
    found = []
    for path in dict.fromkeys((target.path, original)):
        for beginning, dotted in UNET_BEGINNINGS:
            found.append(beginning + (path if dotted else path.replace(".", "_")))
    return found


def text_spellings(target: Target, part: str) -> list[str]:
    """The names of a text encoder's module that programs have for it."""
    found = []
    for beginning in TEXT_BEGINNINGS[part]:
        for path in (target.path, f"text_model.{target.path}"):
            found += [beginning + path, beginning + path.replace(".", "_")]
    bare = ("base_model.model.",)
    # Without a beginning only dots say what it is.
    return [name for name in found if not name.startswith(bare) or "." in name.removeprefix(bare[0])]
