"""What a Diffusers folder's configurations say that it is: a model of a family, a relative of one, or nonsense."""

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from backend.bounded import read_json
from backend.errors import UserError

# Real models are far below; what lies beyond is a broken or hostile file, and would take for ever to build.
_MOST = 1 << 20
_MOST_LAYERS = 128
_MOST_LEVELS = 8
_LAYERS = ("num_hidden_layers", "layers_per_block", "transformer_layers_per_block")

# Settings of a U-Net that set its relatives apart: the values that the families here have, and what another one makes
# of the model.
_FEATURES: Mapping[str, tuple[tuple[Any, ...], str]] = MappingProxyType(
    {
        "time_cond_proj_dim": ((None,), "a latent consistency model (LCM), which is told the guidance"),
        "class_embed_type": ((None,), "a model with class embeddings (such as unCLIP)"),
        "num_class_embeds": ((None,), "a model with class embeddings (such as an upscaler)"),
        "class_embeddings_concat": ((None, False), "a model with class embeddings"),
        "encoder_hid_dim": ((None,), "a model with a projection of what its text encoder says (such as Kolors)"),
        "encoder_hid_dim_type": ((None,), "a model with a projection of what its text encoder says (such as Kolors)"),
        "mid_block_type": (("UNetMidBlock2DCrossAttn",), "a model with another middle block (such as SSD-1B)"),
        "reverse_transformer_layers_per_block": ((None,), "a distilled Stable Diffusion XL (such as SSD-1B)"),
        "attention_type": (("default", None), "a model that is told places (GLIGEN)"),
        "dual_cross_attention": ((None, False), "a model with dual cross-attention (Versatile Diffusion)"),
        "only_cross_attention": ((None, False), "a model without self-attention"),
        "mid_block_only_cross_attention": ((None, False), "a model without self-attention"),
        "resnet_time_scale_shift": (("default", None), "a pixel model (such as DeepFloyd IF)"),
        "resnet_skip_time_act": ((None, False), "a pixel model (such as DeepFloyd IF)"),
        "cross_attention_norm": ((None,), "a pixel model (such as DeepFloyd IF)"),
        "time_embedding_type": (("positional", None), "a model with another embedding of time"),
        "timestep_post_act": ((None,), "a model with another embedding of time"),
        "conv_in_kernel": ((3, None), "a model with another first layer (such as an upscaler)"),
        "conv_out_kernel": ((3, None), "a model with another last layer (such as an upscaler)"),
        "out_channels": ((4,), "a model with other latents"),
    }
)
_CHANNELS = {
    3: "a model that draws pixels (3 channels)",
    5: "a depth-to-image model (5 channels)",
    7: "an upscaler (7 channels)",
    8: "an editing model such as InstructPix2Pix (8 channels)",
    9: "an inpainting model (9 channels)",
}
_CLASSES = {
    "UNetMotionModel": "an AnimateDiff model",
    "MotionAdapter": "an AnimateDiff motion adapter",
    "UNetSpatioTemporalConditionModel": "Stable Video Diffusion",
    "UNet3DConditionModel": "a video model",
    "ControlNetModel": "a ControlNet",
    "ControlNetUnionModel": "a ControlNet",
    "T2IAdapter": "a T2I-Adapter",
    "Kandinsky3UNet": "Kandinsky 3",
    "StableCascadeUNet": "Stable Cascade",
    "SD3Transformer2DModel": "Stable Diffusion 3",
    "SD3ControlNetModel": "a ControlNet",
    "FluxControlNetModel": "a ControlNet",
    "FluxTransformer2DModel": "FLUX",
    "Flux2Transformer2DModel": "FLUX.2",
    "ZImageTransformer2DModel": "Z-Image",
    "QwenImageTransformer2DModel": "Qwen-Image",
    "PixArtTransformer2DModel": "PixArt",
    "AuraFlowTransformer2DModel": "AuraFlow",
    "HunyuanDiT2DModel": "Hunyuan-DiT",
    "AutoencoderKL": "a VAE alone",
    "AutoencoderTiny": "a tiny autoencoder (TAESD)",
    "UNet2DModel": "a model without captions",
    "UNet2DConditionModel": "a U-Net alone",
}


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: missing, unreadable or no object.
    """
    content = read_json(path, None)
    if not isinstance(content, dict):
        raise UserError("holds no JSON object", field=str(path))
    return content


def channels_words(channels: object) -> str:
    """What a U-Net that takes other than 4 channels is."""
    return _CHANNELS.get(channels, f"a model of another kind ({channels} channels)") if isinstance(channels, int) else (
        "a model of another kind"
    )


def class_words(config: Mapping[str, Any]) -> str | None:
    """What a part is by the name of its class; None where there is none."""
    name = config.get("_class_name")
    if not isinstance(name, str):
        architectures = config.get("architectures")
        name = architectures[0] if isinstance(architectures, list) and architectures else None
    return _CLASSES.get(name, f"a {name}") if isinstance(name, str) and name.isidentifier() else None


def folder_words(folder: Path) -> str:
    """What a folder is that is no model of a family: as near as its files tell.

    Raises:
        UserError: one of its files is broken.
    """
    if (folder / "transformer" / "config.json").exists():
        words = class_words(read_object(folder / "transformer" / "config.json"))
        return f"{words or 'a transformer model'} (a transformer in place of a U-Net)"
    if (folder / "transformer").is_dir():
        return "a transformer model (SD3, FLUX or newer)"
    for part, words in (("prior", "a prior (Kandinsky, Stable Cascade)"), ("decoder", "Stable Cascade")):
        if (folder / part / "config.json").exists():
            return words
    if (folder / "config.json").exists():
        words = class_words(read_object(folder / "config.json"))
        return f"the folder of one part, {words}, not of a whole model" if words else "no Diffusers folder"
    if not any(folder.iterdir()):
        return "an empty folder"
    single = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in (".safetensors", ".ckpt"))
    hint = f"; it holds {single[0]}, so name that file" if single else ""
    return f"no Diffusers folder (no unet/config.json){hint}"


def relative_words(unet: Mapping[str, Any]) -> str | None:
    """What sets a U-Net apart from those of the families here, by its configuration; None where nothing does."""
    name = unet.get("_class_name", "UNet2DConditionModel")
    if name != "UNet2DConditionModel":
        return class_words(unet) or "no U-Net that is known here"
    kind = unet.get("addition_embed_type")
    if kind not in (None, "text_time"):
        return f"a model with {str(kind)[:40]} conditioning"
    if unet.get("in_channels", 4) != 4:
        return channels_words(unet["in_channels"])
    for key, (usual, words) in _FEATURES.items():
        if key in unet and not any(unet[key] is one or unet[key] == one for one in usual):
            return f"{words}; {key} is {str(unet[key])[:40]}"
    return None


def checked(config: Mapping[str, Any], usual: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A configuration whose values are of the types that the family's own has; null is as if it were left out.

    Raises:
        UserError: naming the file and the entry.
    """
    found = {key: value for key, value in config.items() if value is not None or usual.get(key) is None}
    for key, value in found.items():
        example = usual.get(key)
        if key.startswith("_") or key in ("architectures", "model_type"):
            continue
        wrong = _wrong(key, value, example)
        if wrong:
            raise UserError(f"{path} has {key} = {str(value)[:60]!r}; {wrong}", field=None)
    return dict(usual) | found


def _wrong(key: str, value: Any, example: Any) -> str | None:
    """What a value ought to be, if it is not that."""
    items = value if isinstance(value, list) else [value]
    if isinstance(value, list) and not 0 < len(value) <= _MOST_LEVELS and key != "trained_betas":
        return f"1 to {_MOST_LEVELS} values are expected"
    numbers = [item for item in items if isinstance(item, int | float) and not isinstance(item, bool)]
    if not all(math.isfinite(number) and abs(number) <= _MOST for number in numbers if key != "trained_betas"):
        return "that is no such number"
    if key in _LAYERS and not all(isinstance(item, int) and 0 < item <= _MOST_LAYERS for item in items):
        return f"whole numbers up to {_MOST_LAYERS} are expected"
    if example is None:
        return None
    like = example[0] if isinstance(example, list) else example
    per_level = key in ("attention_head_dim", "layers_per_block", "transformer_layers_per_block")
    if isinstance(value, list) != isinstance(example, list) and not per_level:
        return "a list is expected" if isinstance(example, list) else "one value is expected"
    if isinstance(like, bool):
        return None if all(isinstance(item, bool) for item in items) else "true or false is expected"
    if isinstance(like, int):
        whole = all(isinstance(item, int) and not isinstance(item, bool) for item in items)
        return None if whole and all(item >= 0 for item in items) else "whole numbers are expected"
    if isinstance(like, float):
        return None if len(numbers) == len(items) else "a number is expected"
    return None if all(isinstance(item, str) for item in items) else "text is expected"
