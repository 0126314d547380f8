"""What a file of tensors is, by its names: a checkpoint of a known family, or something else that can be named."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from backend.errors import UserError
from backend.families.relatives import channels_words
from backend.tables import layout
from backend.tables.identity import IDENTITIES

Shapes = Mapping[str, tuple[int, ...]]

_LORA_ENDINGS = (
    ".lora_down.weight",
    ".lora_up.weight",
    ".lora_A.weight",
    ".lora_B.weight",
    ".lora.down.weight",
    ".lora.up.weight",
    ".hada_w1_a",
    ".lokr_w1",
    ".lokr_w1_a",
    ".lokr_w2",
    ".lora_magnitude_vector",
    ".dora_scale",
    ".oft_blocks",
    ".oft_diag",
    ".boft_blocks",
    ".on_input",
)
_PLACE = r"((?:input|middle|output)_blocks?\.\d{1,4}(?:\.1)?)"
_TRANSFORMER = re.compile(re.escape(layout.UNET_PREFIX) + _PLACE + r"\.transformer_blocks\.(\d{1,4})\.")
_EMBEDDING = frozenset({"emb_params", "clip_l", "clip_g", "string_to_param", "*"})
_DOWNSAMPLER = re.compile(re.escape(layout.UNET_PREFIX) + r"input_blocks\.(\d{1,4})\.0\.op\.weight")
_MOST_ROWS = 64
_CROSS_ATTENTION = layout.UNET_PREFIX + "middle_block.1.transformer_blocks.0.attn2.to_k.weight"


@dataclass(frozen=True)
class Kind:
    """A kind of file: a key, words for a message, and how its names show."""

    name: str
    words: str
    matches: Callable[[Shapes], bool]


def _starts(*prefixes: str) -> Callable[[Shapes], bool]:
    return lambda shapes: any(name.startswith(prefixes) for name in shapes)


def _ends(*endings: str) -> Callable[[Shapes], bool]:
    return lambda shapes: any(name.endswith(endings) for name in shapes)


def _cross_width(shapes: Shapes) -> int:
    shape = shapes.get(_CROSS_ATTENTION, ())
    return shape[1] if len(shape) == 2 else 0


def unet_layout(shapes: Shapes) -> layout.UNetLayout | None:
    """The numbering of an original-layout U-Net, or None where there is none."""
    inputs = layout.UNET_PREFIX + "input_blocks."
    matches = (_DOWNSAMPLER.fullmatch(name) for name in shapes)
    ops = sorted(int(match[1]) for match in matches if match)
    if not ops or not 1 < ops[0] <= _MOST_ROWS or len(ops) > _MOST_ROWS:
        return None
    rows = ops[0]
    first = [1 + level * rows for level in range(len(ops) + 1)]
    return layout.UNetLayout(tuple(f"{inputs}{row}.1.proj_in.weight" in shapes for row in first), rows - 1)


def _has(*pieces: str) -> Callable[[Shapes], bool]:
    return lambda shapes: any(piece in f".{name}" for name in shapes for piece in pieces)


def _both(first: Callable[[Shapes], bool], second: Callable[[Shapes], bool]) -> Callable[[Shapes], bool]:
    return lambda shapes: first(shapes) and second(shapes)


def _channels(shapes: Shapes) -> int:
    """Channels that the U-Net takes; 0 where there is none."""
    shape = shapes.get(layout.UNET_PREFIX + "input_blocks.0.0.weight", ())
    return shape[1] if len(shape) == 4 else 0


def _depths(shapes: Shapes) -> dict[str, int]:
    """How many transformer blocks each attention of the U-Net has."""
    found: dict[str, int] = {}
    for name in shapes:
        match = _TRANSFORMER.match(name)
        if match:
            found[match[1]] = max(found.get(match[1], 0), int(match[2]) + 1)
    return found


def _distilled(shapes: Shapes) -> bool:
    """Whether layers of Stable Diffusion XL's U-Net were taken out: SSD-1B, Segmind Vega and their like.

    Elsewhere the attentions of a level are equally deep, the middle is as deep as the last level, and the way up
    mirrors the way down.
    """
    found = unet_layout(shapes)
    if found is None:
        return False
    depths, rows = _depths(shapes), found.layers + 1
    deepest = 0
    for level, attention in enumerate(found.attention):
        up = (len(found.attention) - 1 - level) * rows
        places = [f"input_blocks.{1 + level * rows + layer}.1" for layer in range(found.layers)]
        places += [f"output_blocks.{up + layer}.1" for layer in range(rows)]
        own = {depths.get(place, 0) for place in places if attention}
        if len(own) > 1:
            return True
        deepest = max(own, default=deepest)
    return depths.get("middle_block.1", 0) != deepest


# First match wins. What adapts a model comes before the models, as its names have parts of theirs.
KINDS = (
    Kind("lora", "a LoRA file, not a checkpoint", _ends(*_LORA_ENDINGS)),
    Kind("controlnet", "a ControlNet, not a checkpoint", _starts("control_model.", "controlnet_", "lllite_")),
    Kind("adapter", "an IP-Adapter, not a checkpoint", _starts("ip_adapter.", "image_proj.")),
    Kind("adapter", "a T2I-Adapter, not a checkpoint", _starts("adapter.body.", "body.0.block1.")),
    Kind("motion", "an AnimateDiff motion module or model", _has(".motion_modules.", ".temporal_transformer.")),
    Kind("hypernetwork", "a hypernetwork, not a checkpoint", _has(".hypernet")),
    Kind(
        "embedding",
        "a textual inversion embedding, not a checkpoint",
        lambda shapes: len(shapes) <= 4 and not _EMBEDDING.isdisjoint(shapes),
    ),
    Kind("flux", "a FLUX model", _has(".double_blocks.", ".single_transformer_blocks.")),
    Kind("sd3", "a Stable Diffusion 3 model", _has(".joint_blocks.")),
    Kind("z", "a Z-Image or Lumina model", _has(".cap_embedder.", ".context_refiner.", ".noise_refiner.")),
    Kind("aura", "an AuraFlow model", _has(".double_layers.")),
    Kind("cascade", "a Stable Cascade model", _has(".clip_txt_mapper.", ".clip_txt_pooled_mapper.")),
    Kind("t5", "a T5 text encoder, not a checkpoint", _starts("encoder.block.0.layer.")),
    Kind("video", "a video model (such as Stable Video Diffusion)", _has(".time_stack.", ".time_mix_blocks.")),
    Kind("unclip", "an unCLIP model", _starts("embedder.model.visual.", "noise_augmentor.")),
    Kind(
        "unclip",
        "a model with class embeddings (such as unCLIP)",
        _both(_starts(layout.UNET_PREFIX + "label_emb."), _starts("cond_stage_model.")),
    ),
    Kind("depth", "a depth-to-image model", _starts("depth_model.")),
    Kind("upscaler", "an upscaler", _starts("low_scale_model.")),
    Kind(
        "lcm",
        "a latent consistency model (LCM), which is told the guidance",
        _starts(layout.UNET_PREFIX + "time_embed.cond_proj."),
    ),
    Kind(
        "hid",
        "a model with a projection of what its text encoder says (such as Kolors)",
        _starts(layout.UNET_PREFIX + "encoder_hid_proj.", "encoder_hid_proj."),
    ),
    *(
        Kind("channels", channels_words(count), lambda shapes, count=count: _channels(shapes) == count)
        for count in (3, 5, 7, 8, 9)
    ),
    Kind("refiner", "a Stable Diffusion XL refiner", _starts("conditioner.embedders.0.model.")),
    Kind(
        "distilled",
        "a distilled Stable Diffusion XL with other blocks (such as SSD-1B)",
        _both(_starts("conditioner.embedders.", layout.UNET_PREFIX + "label_emb."), _distilled),
    ),
    Kind(
        "sdxl",
        "a Stable Diffusion XL model",
        _starts("conditioner.embedders.", layout.UNET_PREFIX + "label_emb."),
    ),
    Kind(
        "sd2",
        "a Stable Diffusion 2 model",
        lambda shapes: _starts("cond_stage_model.model.")(shapes) or _cross_width(shapes) == 1024,
    ),
    Kind("sd1", "a Stable Diffusion 1 model", lambda shapes: unet_layout(shapes) == layout.SD1_UNET),
    Kind(
        "reshaped",
        "a diffusion model with other blocks than Stable Diffusion has",
        lambda shapes: unet_layout(shapes) is not None or _starts(layout.UNET_PREFIX)(shapes),
    ),
    Kind("unet", "a U-Net alone, in Diffusers' names, not a whole checkpoint", _starts("down_blocks.", "mid_block.")),
    Kind("transformer", "a transformer, in Diffusers' names", _starts("transformer_blocks.")),
    Kind("vae", "a VAE, not a whole checkpoint", _starts("encoder.", "decoder.", layout.VAE_PREFIX)),
    Kind("text_encoder", "a text encoder, not a whole checkpoint", _starts("text_model.", "cond_stage_model.")),
)


def recognize(shapes: Shapes) -> Kind | None:
    """The kind of a file, from its tensors' names and shapes; None when it is nothing known."""
    return next((kind for kind in KINDS if kind.matches(shapes)), None)


def family_in(shapes: Shapes, source: str) -> str:
    """The name of the family whose checkpoint these tensors are.

    Raises:
        UserError: they are something else; the message says what.
    """
    kind = recognize(shapes)
    if kind is not None and kind.name in IDENTITIES:
        return kind.name
    names = ", ".join(ascii(name[:80])[1:-1] for name in sorted(shapes)[:3]) or "no tensors at all"
    found = f"no model that is known here (it has {names})" if kind is None else f"this is {kind.words}"
    raise UserError(f"{found}; a {supported()} model is needed", field=source)


def supported() -> str:
    """The families by title, for a message: `Stable Diffusion 1, Stable Diffusion 2 or Stable Diffusion XL`."""
    *first, last = (identity.title for identity in IDENTITIES.values())
    return f"{', '.join(first)} or {last}"
