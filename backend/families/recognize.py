"""What a file of tensors is, by its names: a checkpoint of a known family, or something else that can be named."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from backend.errors import UserError
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
)
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
    ops = sorted(
        int(name.removeprefix(inputs).split(".")[0])
        for name in shapes
        if name.startswith(inputs) and name.endswith(".0.op.weight")
    )
    if not ops:
        return None
    rows = ops[0]
    first = [1 + level * rows for level in range(len(ops) + 1)]
    return layout.UNetLayout(tuple(f"{inputs}{row}.1.proj_in.weight" in shapes for row in first), rows - 1)


# First match wins.
KINDS = (
    Kind("lora", "a LoRA file, not a checkpoint", _ends(*_LORA_ENDINGS)),
    Kind("controlnet", "a ControlNet, not a checkpoint", _starts("control_model.", "controlnet_")),
    Kind(
        "embedding",
        "a textual inversion embedding, not a checkpoint",
        lambda shapes: len(shapes) <= 4 and bool({"emb_params", "clip_l", "clip_g", "string_to_param"} & set(shapes)),
    ),
    Kind(
        "flux",
        "a FLUX model",
        lambda shapes: any(".double_blocks." in f".{name}" for name in shapes),
    ),
    Kind("sd3", "a Stable Diffusion 3 model", lambda shapes: any(".joint_blocks." in f".{name}" for name in shapes)),
    Kind("refiner", "a Stable Diffusion XL refiner", _starts("conditioner.embedders.0.model.")),
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
        lambda shapes: unet_layout(shapes) is not None,
    ),
    Kind("unet", "a U-Net alone, in Diffusers' names, not a whole checkpoint", _starts("down_blocks.", "mid_block.")),
    Kind("vae", "a VAE, not a whole checkpoint", _starts("encoder.down", "decoder.up", layout.VAE_PREFIX)),
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
    names = ", ".join(sorted(shapes)[:3]) or "no tensors at all"
    found = f"no model that is known here (it has {names})" if kind is None else f"this is {kind.words}"
    raise UserError(f"{found}; a {supported()} model is needed", field=source)


def supported() -> str:
    """The families by title, for a message: `Stable Diffusion 1, Stable Diffusion 2 or Stable Diffusion XL`."""
    *first, last = (identity.title for identity in IDENTITIES.values())
    return f"{', '.join(first)} or {last}"
