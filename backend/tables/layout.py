"""Names of modules and tensors in the two layouts of a checkpoint: the original single file and Diffusers.

One table per part (U-Net, VAE, OpenCLIP) lists each module path in both spellings; both directions read the same table,
so they cannot disagree. Names are given without the part's prefix in a single file (`UNET_PREFIX` and its like) and
may be module paths (`down_blocks.0.resnets.0.conv1`) or tensor names (`down_blocks.0.resnets.0.conv1.weight`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_PREFIX = "cond_stage_model.transformer."
OPEN_CLIP_PREFIX = "cond_stage_model.model."  # Stable Diffusion 2
SDXL_CLIP_PREFIX = "conditioner.embedders.0.transformer."
SDXL_OPEN_CLIP_PREFIX = "conditioner.embedders.1.model."
CLIP_ROOT = "text_model."
POSITION_IDS = "embeddings.position_ids"
TEXT_PROJECTION = "text_projection.weight"

_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "encoder.layers": "transformer.resblocks",
    "final_layer_norm": "ln_final",
    TEXT_PROJECTION: "text_projection",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_OPEN_CLIP_INVERSE = {original: path for path, original in _OPEN_CLIP.items()}
_OPEN_CLIP_LAYER_INVERSE = {original: path for path, original in _OPEN_CLIP_LAYER.items()}
# What Diffusers called the VAE's attention before version 0.17; old folders and some merged files still do.
_VAE_ATTENTION_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class UNetLayout:
    """What the numbering of the original U-Net depends on.

    Args:
        attention: for each down block, whether it has attention; the up blocks mirror it.
        layers: residual blocks per down block.
    """

    attention: tuple[bool, ...] = (True, True, True, False)
    layers: int = 2


SD1_UNET = UNetLayout()  # Stable Diffusion 2 has the same
SDXL_UNET = UNetLayout(attention=(False, True, True))


def _resnet(table: dict[str, str], path: str, original: str, inner: Mapping[str, str]) -> None:
    table[path] = original
    table.update({f"{path}.{ours}": f"{original}.{theirs}" for ours, theirs in inner.items()})


@lru_cache(maxsize=16)
def unet_table(layout: UNetLayout = SD1_UNET) -> Mapping[str, str]:
    """Module paths of the U-Net: Diffusers -> original. Blocks, and each module inside that has another name there."""
    table = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",  # Stable Diffusion XL only
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.attentions.0": "middle_block.1",
    }
    _resnet(table, "mid_block.resnets.0", "middle_block.0", _UNET_RESNET)
    _resnet(table, "mid_block.resnets.1", "middle_block.2", _UNET_RESNET)
    levels, rows = len(layout.attention), layout.layers + 1
    for level, attention in enumerate(layout.attention):
        first = 1 + level * rows
        for layer in range(layout.layers):
            _resnet(table, f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{first + layer}.0", _UNET_RESNET)
            if attention:
                table[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{first + layer}.1"
        if level < levels - 1:
            table[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{first + layout.layers}.0.op"
    for level, attention in enumerate(reversed(layout.attention)):
        first = level * rows
        for layer in range(rows):
            _resnet(table, f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{first + layer}.0", _UNET_RESNET)
            if attention:
                table[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{first + layer}.1"
        if level < levels - 1:
            # The upsampler is the last module of its row: after the attention where there is one.
            table[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{first + rows - 1}.{1 + attention}.conv"
    return MappingProxyType(table)


@lru_cache(maxsize=16)
def vae_table(levels: int = 4, layers: int = 2) -> Mapping[str, str]:
    """Module paths of the VAE: Diffusers -> original.

    Args:
        levels: resolutions, so that the pictures are 2 ** (levels - 1) times as large as the latents.
        layers: residual blocks per level of the encoder (the decoder has one more).
    """
    same = (
        "encoder.conv_in",
        "encoder.conv_out",
        "decoder.conv_in",
        "decoder.conv_out",
        "quant_conv",
        "post_quant_conv",
    )
    table = {path: path for path in same}
    for part in ("encoder", "decoder"):
        table[f"{part}.conv_norm_out"] = f"{part}.norm_out"
        _resnet(table, f"{part}.mid_block.resnets.0", f"{part}.mid.block_1", _VAE_RESNET)
        _resnet(table, f"{part}.mid_block.attentions.0", f"{part}.mid.attn_1", _VAE_ATTENTION)
        _resnet(table, f"{part}.mid_block.resnets.1", f"{part}.mid.block_2", _VAE_RESNET)
    for level in range(levels):
        for layer in range(layers):
            path, original = f"encoder.down_blocks.{level}.resnets.{layer}", f"encoder.down.{level}.block.{layer}"
            _resnet(table, path, original, _VAE_RESNET)
        # The original numbers the decoder's levels by resolution, Diffusers in the order of use.
        theirs = levels - 1 - level
        for layer in range(layers + 1):
            path, original = f"decoder.up_blocks.{level}.resnets.{layer}", f"decoder.up.{theirs}.block.{layer}"
            _resnet(table, path, original, _VAE_RESNET)
        if level < levels - 1:
            table[f"encoder.down_blocks.{level}.downsamplers.0.conv"] = f"encoder.down.{level}.downsample.conv"
            table[f"decoder.up_blocks.{level}.upsamplers.0.conv"] = f"decoder.up.{theirs}.upsample.conv"
    return MappingProxyType(table)


@lru_cache(maxsize=32)
def _inverse(part: str, layout: UNetLayout | tuple[int, int]) -> Mapping[str, str]:
    table = unet_table(layout) if isinstance(layout, UNetLayout) else vae_table(*layout)
    inverse = {original: path for path, original in table.items()}
    if len(inverse) != len(table):
        raise AssertionError(f"the {part} table names a module twice")
    return MappingProxyType(inverse)


def _translate(name: str, table: Mapping[str, str], part: str) -> str:
    """Replace the longest leading part of the dotted name that the table knows."""
    pieces = name.split(".")
    for length in range(len(pieces), 0, -1):
        head = table.get(".".join(pieces[:length]))
        if head is not None:
            return ".".join([head, *pieces[length:]])
    raise ValueError(f"{name} is no module of a Stable Diffusion {part}")


def unet_to_original(path: str, layout: UNetLayout = SD1_UNET) -> str:
    """Diffusers path or tensor name -> the original: `mid_block.resnets.1.conv1` -> `middle_block.2.in_layers.2`.

    Raises:
        ValueError: the path is no module of this U-Net.
    """
    return _translate(path, unet_table(layout), "U-Net")


def unet_to_diffusers(name: str, layout: UNetLayout = SD1_UNET) -> str:
    """The way back of `unet_to_original`."""
    return _translate(name, _inverse("U-Net", layout), "U-Net")


def vae_to_original(path: str, levels: int = 4, layers: int = 2) -> str:
    """Diffusers path or tensor name of the VAE -> the original's.

    Raises:
        ValueError: the path is no module of this VAE.
    """
    return _translate(path, vae_table(levels, layers), "VAE")


def vae_to_diffusers(name: str, levels: int = 4, layers: int = 2) -> str:
    """The way back of `vae_to_original`; Diffusers' own names for the attention, old or new, are accepted as well."""
    path = _translate(name, _inverse("VAE", (levels, layers)), "VAE")
    return vae_modern(path)


def vae_modern(path: str) -> str:
    """A Diffusers VAE name with the attention's present names (`query` -> `to_q` and so on)."""
    head, mark, tail = path.partition(".mid_block.attentions.0.")
    if not mark:
        return path
    first, dot, rest = tail.partition(".")
    return head + mark + _VAE_ATTENTION_OLD.get(first, first) + dot + rest


def clip_to_original(path: str) -> str:
    """Path in CLIP's text transformer (`encoder.layers.0.mlp.fc1`) -> the original's; one with `text_model.` stays.

    The projection of the pooled vector lies beside the transformer, not in it, and stays as well.
    """
    return path if path.startswith((CLIP_ROOT, TEXT_PROJECTION)) else CLIP_ROOT + path


def clip_to_diffusers(name: str) -> str:
    """The way back of `clip_to_original`; names of old files, which lack `text_model.`, are accepted as well."""
    return name.removeprefix(CLIP_ROOT)


def _open_clip_translate(name: str, outer: Mapping[str, str], layer: Mapping[str, str]) -> str:
    """Replace a name of the encoder: `outer` knows what lies outside of its layers, `layer` what is in one."""
    found = re.fullmatch(r"(encoder\.layers|transformer\.resblocks)\.(\d+)\.(.+)", name)
    if found is None:
        return _translate(name, outer, "OpenCLIP encoder")
    layers, number, inner = found.groups()
    return f"{_translate(layers, outer, 'OpenCLIP encoder')}.{number}.{_translate(inner, layer, 'OpenCLIP encoder')}"


def open_clip_to_original(path: str) -> str:
    """Path or tensor name in CLIP's text transformer -> OpenCLIP's: `encoder.layers.0.mlp.fc1` ->
    `transformer.resblocks.0.mlp.c_fc`.

    Raises:
        ValueError: it is no module of the encoder, or one of `q_proj`, `k_proj`, `v_proj`: OpenCLIP has these three
            stacked in one tensor, `attn.in_proj_weight`, in this order.
    """
    return _open_clip_translate(path, _OPEN_CLIP, _OPEN_CLIP_LAYER)


def open_clip_to_diffusers(name: str) -> str:
    """The way back of `open_clip_to_original`."""
    return _open_clip_translate(name, _OPEN_CLIP_INVERSE, _OPEN_CLIP_LAYER_INVERSE)
