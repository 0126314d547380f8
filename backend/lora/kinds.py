"""What files are that hold something else than the LoRA layers that can be read here. Knows no torch.

Names alone tell: every program and method has its own. What cannot be used is called by its name, so that nobody has to
guess why a file is refused.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

EMBEDDING = re.compile(r"bundle_emb\.([^.]+)\.")

# What a tensor's name ends in -> the method that has such tensors, and whether the other tensors of its module are of
# no use without it; what only changes a bias or a norm can be left out by itself.
_METHODS: tuple[tuple[str, str, bool], ...] = (
    (r"\.lokr_(?:w1|w2)(?:_[ab])?(?:\.[^.]+)?|\.lokr_t2(?:\.[^.]+)?", "LoKr", True),
    (r"\.dora_scale|\.(?:lora_)?magnitude(?:_vector)?(?:\.[^.]+)?(?:\.weight)?", "DoRA", True),
    (r"\.on_input|\.ia3_l(?:\.[^.]+)?", "IA3", True),
    (r"\.oft_(?:blocks|diag)|\.oft_[rRsS](?:\.[^.]+)?(?:\.weight)?", "OFT", True),
    (r"\.boft_[RrsS](?:\.[^.]+)?", "BOFT", True),
    (r"\.[ab][12]\.weight", "GLoRA", True),
    (r"\.lora_E(?:\.[^.]+)?|\.ranknum(?:\.[^.]+)?", "AdaLoRA", True),
    (r"\.vera_lambda_[bd](?:\.[^.]+)?|vera_[AB](?:\.[^.]+)?", "VeRA", True),
    (r"\.fourierft_spectrum(?:\.[^.]+)?", "FourierFT", True),
    (r"\.hra_u(?:\.[^.]+)?", "HRA", True),
    (r"\.reft\..+|\.rescale", "network of another method", True),
    (r"\.scalar", "network of LyCORIS with a scalar", True),
    (r"\.lora_embedding_[AB](?:\.[^.]+)?", "LoRA on the embeddings of words", True),
    (r"\.diff(?:_b)?|\.set_weight", "full difference of weights", False),
    (r"\.[wb]_norm", "full difference of norms", False),
    (r"\.lora_(?:B|up|A|down)(?:\.[^.]+)?\.bias|\.lora_bias", "LoRA with a bias", False),
)
_METHOD_ENDS = tuple((re.compile(f"(?:{pattern})\\Z"), title, whole) for pattern, title, whole in _METHODS)

# LoRAs for other models, by a part of a name that only theirs have.
_ARCHITECTURES: tuple[tuple[str, str], ...] = (
    (r"(?:^|[._])(?:single_transformer_blocks|double_blocks|single_blocks)[._]", "Flux or a relative of it"),
    (r"(?:^|[._])joint_blocks[._]|(?:^|[._])text_encoder_3[._]|lora_te3_", "Stable Diffusion 3"),
    (r"(?:^|[._])(?:noise_refiner|context_refiner)[._]", "Lumina or Z-Image"),
    (r"(?:diffusion_model|lora_unet)[._]layers[._]\d+[._](?:attention|feed_forward|adaLN)", "Lumina or Z-Image"),
    (r"(?:^|[._])motion_modules[._]", "AnimateDiff's motion modules"),
    (r"(?:^|[._])transformer_blocks[._]\d+[._](?:attn[._](?:add_|to_)|norm1_context|img_mlp|txt_mlp)", "Stable "
     "Diffusion 3, Flux, Qwen-Image or a relative of them"),
    (r"lora_prior_|(?:^|[._])prior[._]", "Stable Cascade"),
    (r"(?:diffusion_model|transformer|unet|lora_unet)[._]blocks[._]\d+[._](?:self_attn|cross_attn|ffn)", "Wan"),
    (r"(?:^|\.)model\.layers\.\d+\.|language_model", "a language model"),
    (r"(?:^|[._])(?:t5|umt5)", "a model with a T5 text encoder"),
    (r"^(?:lora_)?transformer[._]", "a diffusion transformer"),
    (r"(?:diffusion_model|lora_unet)[._](?:transformer_blocks|blocks|layers|\w+_stream_blocks)[._]\d", "a diffusion "
     "transformer"),
    (r"^(?:base_model\.model\.)?(?:transformer_blocks|blocks|layers)\.\d+\.", "a transformer"),
)  # fmt: skip
_ARCHITECTURE_MARKS = tuple((re.compile(pattern), title) for pattern, title in _ARCHITECTURES)

# Files that are no network at all, by names that only they have.
_FILES: tuple[tuple[str, str], ...] = (
    (r"lllite_", "ControlNet-LLLite"),
    (r"(?:^|\.)lora_controlnet\Z", "ControlNet-LoRA"),
    (r"^control_model\.|(?:^|\.)(?:controlnet_\w+|input_hint_block|zero_convs)\.", "ControlNet"),
    (r"^(?:ip_adapter|image_proj)\.", "IP-Adapter"),
    (r"^adapter\.body\.|^body\.\d+\.", "T2I-Adapter"),
    (r"motion_modules\.", "motion module of AnimateDiff"),
    (r"^model\.diffusion_model\.|^model_ema\.|^cond_stage_model\.|^conditioner\.embedders\.", "whole checkpoint"),
    (r"^(?:first_stage_model\.)?(?:encoder|decoder)\.(?:down|up|mid|conv_in|conv_out|norm_out|down_blocks|up_blocks"
     r"|mid_block)|^(?:post_)?quant_conv\.", "VAE"),
    (r"^(?:down_blocks|up_blocks|mid_block|conv_in|time_embedding)\.", "U-Net of a Diffusers folder"),
    (r"^(?:input_blocks|output_blocks|middle_block)\.", "U-Net"),
    (r"^(?:text_model\.)?(?:encoder\.layers|embeddings)\.|^transformer\.resblocks\.", "text encoder"),
    (r"^(?:double_blocks|single_blocks|transformer_blocks|joint_blocks)\.", "model of another architecture"),
    (r"^(?:string_to_param|string_to_token)|^emb_params\Z|^clip_[lg]\Z|^<[^>]+>\Z", "textual inversion embedding"),
    (r"^(?:unet|text_encoder):\d+:(?:up|down)\Z", "LoRA whose layers have numbers and no names (cloneofsimo's)"),
)  # fmt: skip
_FILE_MARKS = tuple((re.compile(pattern), title) for pattern, title in _FILES)


@dataclass(frozen=True)
class Stranger:
    """A tensor that cannot be used.

    Attributes:
        name: of the tensor.
        module: what stands before the end of its name; "" for what belongs to no module.
        method: that it is of; None where the name tells none.
        whole: whether the other tensors of its module cannot be used without it.
    """

    name: str
    module: str = ""
    method: str | None = None
    whole: bool = True


def stranger(name: str) -> Stranger:
    """What a name says that is no LoRA's."""
    for pattern, title, whole in _METHOD_ENDS:
        match = pattern.search(name)
        if match:
            return Stranger(name, name[: match.start()], title, whole)
    return Stranger(name)


def embedding_of(name: str) -> str | None:
    """The word of a bundled embedding that a tensor is part of."""
    match = EMBEDDING.match(name)
    return match and match[1]


def kind_of_file(names: Iterable[str]) -> str | None:
    """What a file is, by the names of tensors that are no LoRA's here: "a LoKr", "a LoRA for Flux ..."; None: unknown.

    A method comes before an architecture, as it is refused for every one.
    """
    names = list(names)
    for pattern, title, _ in _METHOD_ENDS:
        if any(pattern.search(name) for name in names):
            return _article(title)
    for pattern, title in _FILE_MARKS:
        if any(pattern.search(name) for name in names):
            return _article(title)
    return _article(f"LoRA for {found}") if (found := architecture_of(names)) else None


def architecture_of(names: Iterable[str]) -> str | None:
    """The model that a LoRA is for which is none of Stable Diffusion 1, 2 or XL, by names of tensors or keys."""
    names = list(names)
    for pattern, title in _ARCHITECTURE_MARKS:
        if any(pattern.search(name) for name in names):
            return title
    return None


def methods_of(names: Iterable[str]) -> list[str]:
    """The methods that a file's tensors are of, beside those that can be used."""
    found = {stranger(name).method for name in names}
    return sorted(method for method in found if method)


def _article(title: str) -> str:
    return f"an {title}" if title.startswith(("A", "I", "O")) else f"a {title}"
