"""The original single-file layout of Stable Diffusion: tensors of one file <-> parts in Diffusers' names."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from backend.errors import UserError
from backend.families import prediction
from backend.families.model import Checkpoint, Part
from backend.families.open_clip import from_open_clip, to_open_clip, with_spare_layer, without_spare_layer
from backend.families.relatives import channels_words
from backend.families.widths import configs_from, count_levels, family_config, vae_widths
from backend.tables import layout

# Of a checkpoint's own numbers, those that the single-file layout has no place for: they must be the family's.
_UNSTORED = {
    "unet": ("act_fn", "attention_head_dim", "flip_sin_to_cos", "freq_shift", "norm_eps", "norm_num_groups"),
    "vae": ("act_fn", "norm_num_groups", "scaling_factor", "shift_factor"),
    "text_encoder": ("hidden_act", "layer_norm_eps", "num_attention_heads"),
    "text_encoder_2": ("hidden_act", "layer_norm_eps", "num_attention_heads"),
    "scheduler": ("beta_end", "beta_schedule", "beta_start", "num_train_timesteps"),
}
_EDGE_DIGITS = 5
# Beside the text transformer in some files, and of no use to Stable Diffusion.
_CLIP_EXTRAS = ("text_projection", "logit_scale", "vision_model.", "visual_projection")

# What a VAE is made of; a discriminator, losses and averages lie beside it in files of its training.
VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_VAE_RENAMED = re.compile(r"^(?:encoder\.(?=quant_conv\.)|decoder\.(?=post_quant_conv\.))")

Renamed = tuple[dict[str, Tensor], list[str]]


@dataclass(frozen=True)
class TextLayout:
    """Where and how a text encoder lies in a single file.

    Attributes:
        prefix: of its tensors.
        open_clip: OpenCLIP's names instead of CLIP's.
        spare_layer: its last layer is there without being used (Stable Diffusion 2).
    """

    prefix: str
    open_clip: bool = False
    spare_layer: bool = False


@dataclass(frozen=True)
class SingleFile:
    """How the single files of a family are laid out.

    Attributes:
        family, title: the family's.
        unet: numbering of the U-Net.
        text: the text encoders by part name.
        architectures: values of `modelspec.architecture` for epsilon and for v-prediction.
    """

    family: str
    title: str
    unet: layout.UNetLayout
    text: Mapping[str, TextLayout]
    architectures: tuple[str, str]

    @property
    def prefixes(self) -> dict[str, str]:
        """What the tensors of each part start with."""
        texts = {name: text.prefix for name, text in self.text.items()}
        return {"unet": layout.UNET_PREFIX, "vae": layout.VAE_PREFIX} | texts


def sd1_config() -> dict[str, dict[str, Any]]:
    """Stable Diffusion 1.5's own configurations by part, a fresh copy."""
    return family_config("sd1")


def to_matrix(name: str, tensor: Tensor) -> Tensor:
    """A VAE attention weight as the matrix that Diffusers has; the original has 1x1 convolutions."""
    if ".mid_block.attentions.0.to_" in name and tensor.dim() > 2 and tensor[0, 0].numel() == 1:
        return tensor.reshape(tensor.shape[:2])
    if name in ("quant_conv.weight", "post_quant_conv.weight") and tensor.dim() == 2:
        return tensor[..., None, None]
    return tensor


def part_words(part: str) -> str:
    """A part's name in a message: `text encoder 2`."""
    return {"unet": "U-Net", "vae": "VAE"}.get(part, part.replace("_", " "))


def few(what: str, names: list[str]) -> str:
    """`3 <what>: a, b, c` with at most four of the names."""
    # Names out of a file may be anything.
    shown = ", ".join(name[:160] if name.isprintable() else ascii(name[:160])[1:-1] for name in sorted(names)[:4])
    return f"{len(names)} {what}: {shown}{', ...' if len(names) > 4 else ''}"


def _renamed(tensors: Mapping[str, Tensor], rename: Callable[[str], str]) -> Renamed:
    found, unknown = {}, []
    for name, tensor in tensors.items():
        try:
            found[rename(name)] = tensor
        except ValueError:
            unknown.append(name)
    return found, unknown


def vae_from_original(tensors: Mapping[str, Tensor]) -> Renamed:
    """A VAE's tensors, named without a prefix, in Diffusers' names and shapes; and the names that are unknown."""
    kept = {_VAE_RENAMED.sub("", name): tensor for name, tensor in tensors.items() if name.startswith(VAE_PARTS)}
    if any(name.startswith("encoder.down_blocks.") for name in kept):
        found, unknown = {layout.vae_modern(name): tensor for name, tensor in kept.items()}, []
    else:
        size = {"levels": count_levels(kept, "encoder.down."), "layers": count_levels(kept, "encoder.down.0.block.")}
        found, unknown = _renamed(kept, partial(layout.vae_to_diffusers, **size))
    return {name: to_matrix(name, tensor) for name, tensor in found.items()}, unknown


def _clip_from_original(tensors: Mapping[str, Tensor]) -> Renamed:
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(_CLIP_EXTRAS) and not name.endswith(layout.POSITION_IDS)
    }
    return _renamed(kept, layout.clip_to_diffusers)


def _text_from_original(text: TextLayout, tensors: Mapping[str, Tensor]) -> Renamed:
    if not text.open_clip:
        return _clip_from_original(tensors)
    found, unknown = from_open_clip(tensors)
    return (without_spare_layer(found) if text.spare_layer else found), unknown


def _parts_of(
    file: SingleFile, tensors: Mapping[str, Tensor], source: str, own_vae: bool
) -> dict[str, dict[str, Tensor]]:
    """The file's tensors by part, renamed; averages, schedules and training state are left out.

    A VAE that is not there, or of which only leftovers are, is no part.
    """
    readers: dict[str, Callable[[Mapping[str, Tensor]], Renamed]] = {
        "unet": lambda found: _renamed(found, lambda name: layout.unet_to_diffusers(name, file.unet)),
        "vae": vae_from_original,
    }
    readers |= {name: partial(_text_from_original, text) for name, text in file.text.items()}
    parts: dict[str, dict[str, Tensor]] = {}
    strange = []
    for part, prefix in file.prefixes.items():
        inner = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        parts[part], unknown = readers[part](inner)
        if part == "vae" and not (parts[part] and _has_widths(parts[part], source)):
            if parts.pop(part) and own_vae:
                raise UserError("its VAE is incomplete; use a full checkpoint, or name a VAE with --vae", field=source)
            continue
        strange += [prefix + name for name in unknown if part != "vae" or own_vae]
        if not parts[part]:
            message = f"the {part_words(part)} is missing (no tensor starts with {prefix}); use a full checkpoint"
            raise UserError(message, field=source)
    if strange:
        raise UserError(few(f"tensors that {file.title} does not have", strange), field=source)
    return parts


def _has_widths(vae: Mapping[str, Tensor], source: str) -> bool:
    try:
        return bool(vae_widths(vae, source)["block_out_channels"])
    except UserError:
        return False


def set_edge(config: dict[str, dict[str, Any]], edge: int) -> None:
    """Write into configurations by part what size of pictures, in pixels, the model was made for."""
    config["vae"]["sample_size"] = edge
    config["unet"]["sample_size"] = edge // 2 ** (len(config["vae"]["block_out_channels"]) - 1)


def read_original(
    file: SingleFile, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], source: str, own_vae: bool = True
) -> Checkpoint:
    """A single file's tensors as a checkpoint; one without a VAE has no such part.

    Args:
        metadata: the file's; it may tell the size of pictures and what the model predicts.
        source: for messages.
        own_vae: its VAE is used; else it only tells what another has to be like, and may be broken.

    Raises:
        UserError: a part is missing or has tensors that the family does not.
    """
    parts = _parts_of(file, tensors, source, own_vae)
    config = configs_from(file.family, file.unet, parts, source)
    if config["unet"]["in_channels"] != 4:
        words = channels_words(config["unet"]["in_channels"])
        raise UserError(f"this is {words}; use a text-to-image model", field=source)
    scheduler = config.pop("scheduler")
    said = prediction.stated(tensors.keys(), metadata, file.family)
    scheduler["prediction_type"] = said or prediction.EPSILON
    if prediction.ZERO_SNR_KEY in tensors:
        scheduler["rescale_betas_zero_snr"] = True
    edge = metadata.get("modelspec.resolution", "").split("x")[0]
    if edge.isdecimal() and len(edge) <= _EDGE_DIGITS and int(edge) >= 8:
        set_edge(config, int(edge))
    elif file.family == "sd2" and said == prediction.V:
        set_edge(config, prediction.V_EDGE)
    loaded = {name: Part(config[name], found) for name, found in parts.items()}
    return Checkpoint(file.family, loaded, scheduler, source, said is not None)


def _check_representable(file: SingleFile, checkpoint: Checkpoint) -> None:
    """A single file cannot say what differs from its family; refuse rather than write a model that runs differently."""
    tensors = {name: part.tensors for name, part in checkpoint.parts.items()}
    implied = configs_from(file.family, file.unet, tensors, checkpoint.source)
    actual = {name: part.config for name, part in checkpoint.parts.items()} | {"scheduler": checkpoint.scheduler}
    for part, keys in _UNSTORED.items():
        for key in keys if part in implied and part in actual else ():
            ours, theirs = actual[part].get(key, implied[part].get(key)), implied[part].get(key)
            if ours != theirs and ours != [theirs] * 4:
                message = f"the {part} has {key} = {ours}, which a single file cannot hold (there it is {theirs})"
                raise UserError(f"{message}; keep the Diffusers folder", field=checkpoint.source)


def _text_to_original(text: TextLayout, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if text.open_clip:
        named = to_open_clip(with_spare_layer(tensors) if text.spare_layer else tensors)
        scale = {"logit_scale": torch.tensor(4.6052, dtype=named["ln_final.weight"].dtype)} if text.spare_layer else {}
        return named | scale
    named = {layout.clip_to_original(name): tensor for name, tensor in tensors.items()}
    positions = tensors["embeddings.position_embedding.weight"].shape[0]
    ids = torch.arange(positions, dtype=torch.int64)[None]
    return named | {layout.clip_to_original(layout.POSITION_IDS): ids}


def _vae_to_original(vae: Part) -> dict[str, Tensor]:
    size = {"levels": len(vae.config["block_out_channels"]), "layers": vae.config["layers_per_block"]}
    found = {}
    for name, tensor in vae.tensors.items():
        as_conv = ".mid_block.attentions.0.to_" in name and tensor.dim() == 2
        found[layout.VAE_PREFIX + layout.vae_to_original(name, **size)] = tensor[..., None, None] if as_conv else tensor
    return found


def write_original(file: SingleFile, checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of the single file that holds this checkpoint; tensors are views where that is possible.

    Raises:
        UserError: the checkpoint has a setting that the layout cannot hold.
    """
    _check_representable(file, checkpoint)
    tensors = {}
    for name, tensor in checkpoint.parts["unet"].tensors.items():
        tensors[layout.UNET_PREFIX + layout.unet_to_original(name, file.unet)] = tensor
    vae = checkpoint.parts.get("vae")
    if vae is not None:
        tensors |= _vae_to_original(vae)
    for part, text in file.text.items():
        named = _text_to_original(text, checkpoint.parts[part].tensors)
        tensors |= {text.prefix + name: tensor for name, tensor in named.items()}
    levels = 4 if vae is None else len(vae.config["block_out_channels"])
    edge = checkpoint.parts["unet"].config["sample_size"] * 2 ** (levels - 1)
    predicts_v = checkpoint.scheduler["prediction_type"] == prediction.V
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": file.architectures[predicts_v],
        "modelspec.resolution": f"{edge}x{edge}",
    }
    if predicts_v or file.family != "sd1":
        metadata["modelspec.prediction_type"] = "v" if predicts_v else "epsilon"
    # The marks also reach a .ckpt, which has no metadata.
    if predicts_v:
        tensors[prediction.V_KEY] = torch.empty(0)
    if checkpoint.scheduler.get("rescale_betas_zero_snr"):
        tensors[prediction.ZERO_SNR_KEY] = torch.empty(0)
    return tensors, metadata
