"""The ways in which programs spell the names of LoRA tensors, and what each means. Knows no torch.

A name has three parts: which model of a pipeline (`unet.`, `lora_te1_`, `clip_g.` ...), which module of it, with dots
or underscores between the words, and what the tensor is there (`lora_down.weight`, `lora_A.weight` ...). Any beginning
goes with any middle and any end, as programs mix them.
"""

import re
from dataclasses import dataclass

from backend.tables.names import PROJECTION, PROJECTION_KEY, TEXT_ENCODER_KEY_PREFIX, UNET_KEY_PREFIX

ALPHA = ".alpha"
# No module of any model has a longer name.
LONGEST = 512
DOWN, UP = ".lora_down.weight", ".lora_up.weight"

_ROLES = {"A": "down", "B": "up"}
_LAST = r"(?:\.(?P<adapter>(?!bias\Z)[^.]+))?(?:\.weight)?"
# What a name ends in, and which factor of its layer the tensor is; kinds of layers have factors of different names.
_ENDS: tuple[re.Pattern[str], ...] = tuple(
    re.compile(pattern + r"\Z")
    for pattern in (
        r"\.lora_(?P<role>down|up|mid)\.weight",
        rf"\.hada_(?P<role>w1_a|w1_b|w2_a|w2_b|t1|t2){_LAST}",
        # PEFT, with or without the name of the adapter
        rf"\.lora_(?P<role>[AB]){_LAST}",
        # Diffusers before PEFT
        r"\.lora_linear_layer\.(?P<role>down|up)\.weight",
        r"\.lora\.(?P<role>down|up)\.weight",
        # Diffusers' attention processors: `attn1.processor.to_q_lora`
        r"_lora\.(?P<role>down|up)\.weight",
        r"(?:_lora|\.lora|\.lora_linear_layer)?\.(?P<role>alpha)",
    )
)
# What programs put around a whole model.
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "base_model.model.", "lycoris_")
# Beginnings, each of which may stand behind a wrapper, and the part of a model that they mean; longer ones first.
_BEGINNINGS: tuple[tuple[str, str], ...] = tuple(
    sorted(
        {
            "unet.": "unet",
            "model.diffusion_model.": "unet",
            "diffusion_model.": "unet",
            "lora_unet_": "unet",
            "lora_unet.": "unet",
            "text_encoder.": "te",
            "text_encoder_1.": "te1",
            "text_encoder_2.": "te2",
            "te.": "te",
            "te1.": "te1",
            "te2.": "te2",
            "clip_l.": "te",
            "clip_h.": "te",
            "clip_g.": "te2",
            "text_encoders.clip_l.": "te",
            "text_encoders.clip_h.": "te",
            "text_encoders.clip_g.": "te2",
            "lora_te_": "te",
            "lora_te.": "te",
            "lora_te1_": "te1",
            "lora_te1.": "te1",
            "lora_te2_": "te2",
            "lora_te2.": "te2",
            "cond_stage_model.": "te",
            "conditioner.embedders.0.": "te1",
            "conditioner.embedders.1.": "te2",
        }.items(),
        key=lambda item: -len(item[0]),
    )
)
# Names without any beginning, as PEFT and LyCORIS have them of a model by itself.
_BARE_UNET = re.compile(
    r"(?:(?:down|up)_blocks|mid_block|(?:input|output)_blocks|middle_block|time_embedding|add_embedding|time_embed"
    r"|label_emb)[._]|(?:conv_in|conv_out|out)\."
)
_BARE_UNET_WHOLE = re.compile(r"conv_in|conv_out|out_2")
_BARE_TEXT = re.compile(rf"(?:text_model[._])?encoder[._]layers[._]|(?:text_model\.)?{PROJECTION}\Z")
_TEXT_ROOTS = ("transformer_", "model_", "text_model_")
_OPEN_CLIP = re.compile(r"resblocks_(\d+)_(mlp_c_fc|mlp_c_proj|attn_out_proj)")
_OPEN_CLIP_NAMES = {"mlp_c_fc": "mlp_fc1", "mlp_c_proj": "mlp_fc2", "attn_out_proj": "self_attn_out_proj"}


@dataclass(frozen=True)
class Named:
    """What the name of a tensor says.

    Attributes:
        key: of the module, as kohya's files spell it; see `family.family_keys` for what the family decides.
        role: which factor of the layer it is, or "alpha".
        part: "unet", "te", "te1" or "te2", as it is spelled.
        path: of the module as PEFT knows it, below its model.
        inner: the same without the beginning that names the part.
        adapter: the name of PEFT's adapter where it is spelled out.
    """

    key: str
    role: str
    part: str
    path: str
    inner: str
    adapter: str | None = None


def split_name(name: str) -> tuple[str, str] | None:
    """The key of the module, as kohya's files spell it, and what the tensor is; None for a name that is no LoRA's.

    >>> split_name("unet.mid_block.attentions.0.proj_in.lora_A.weight")
    ('lora_unet_mid_block_attentions_0_proj_in', 'down')
    """
    named = read_name(name)
    return named and (named.key, named.role)


def read_name(name: str) -> Named | None:
    """What the name of a tensor says; None for one that is no LoRA's."""
    if len(name) > LONGEST:
        return None
    for pattern in _ENDS:
        match = pattern.search(name)
        if match:
            module = name[: match.start()]
            found = _module(module)
            if found is None:
                return None
            adapter = match.groupdict().get("adapter")
            if adapter == "weight":
                adapter = None
            key, part, inner = found
            role = _ROLES.get(match["role"], match["role"])
            return Named(key, role, part, _unwrapped(module), inner, adapter)
    return None


def module_key(path: str) -> str | None:
    """The key, as kohya's files spell it, of a module given in any spelling; None if it is in none."""
    found = _module(path)
    return found and found[0]


def _unwrapped(path: str) -> str:
    """A module's path without what stands around the whole model."""
    while True:
        wrapper = next((wrapper for wrapper in _WRAPPERS if path.startswith(wrapper)), None)
        if wrapper is None:
            return path
        path = path.removeprefix(wrapper)


def _module(path: str) -> tuple[str, str, str] | None:
    """Key, part and path below the part of a module."""
    path = _unwrapped(path)
    beginning, part = next(((start, part) for start, part in _BEGINNINGS if path.startswith(start)), ("", None))
    inner = _unwrapped(path.removeprefix(beginning))
    if part is None and (_BARE_UNET.match(path) or _BARE_UNET_WHOLE.fullmatch(path)):
        part = "unet"
    if part is None and _BARE_TEXT.match(path):
        part = "te"
    if part is None or not inner:
        return None
    return (_unet_name(inner) if part == "unet" else _text_name(inner, part)), part, inner


def _unet_name(inner: str) -> str:
    name = inner.replace(".processor.", ".").replace(".", "_")
    return f"{UNET_KEY_PREFIX}{name}_0" if name.endswith("_to_out") else UNET_KEY_PREFIX + name


def _text_name(inner: str, part: str) -> str:
    name = inner.replace(".", "_")
    while (root := next((root for root in _TEXT_ROOTS if name.startswith(root)), None)) is not None:
        name = name.removeprefix(root)
    if name == PROJECTION:
        return PROJECTION_KEY if part == "te2" else f"lora_{part}_{PROJECTION}"
    theirs = _OPEN_CLIP.fullmatch(name)
    if theirs:
        name = f"encoder_layers_{theirs[1]}_{_OPEN_CLIP_NAMES[theirs[2]]}"
    name = re.sub(r"_self_attn_to_(q|k|v|out)\Z", r"_self_attn_\1_proj", name)
    prefix = TEXT_ENCODER_KEY_PREFIX if part == "te" else f"lora_{part}_"
    return f"{prefix}text_model_{name}"
