"""Stable Diffusion 1 and 2: how their parts are built and run."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from backend.families.clip_text import in_chunks, joined, text_transformer, token_ids
from backend.families.emphasis import Weighted
from backend.families.model import Conditioning, Family, Model, Sizes
from backend.families.original import SingleFile, TextLayout, read_original, write_original
from backend.families.tiles import with_room
from backend.families.tokenizer import clip_tokenizer
from backend.families.widths import family_config
from backend.tables import layout
from backend.tables.identity import IDENTITIES, title_of

PARTS = MappingProxyType(
    {
        "unet": ("diffusers", "UNet2DConditionModel"),
        "vae": ("diffusers", "AutoencoderKL"),
        "text_encoder": ("transformers", "CLIPTextModel"),
    }
)
_TEXT_CONFIG_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "projection_dim",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)


def build(name: str, config: Mapping[str, Any]) -> nn.Module:
    """The module of a part (`unet`, `vae`, `text_encoder`) from its configuration."""
    if name == "unet":
        return UNet2DConditionModel.from_config(dict(config))
    if name == "vae":
        return AutoencoderKL.from_config(dict(config))
    return CLIPTextModel(text_config(config))


def text_config(config: Mapping[str, Any]) -> CLIPTextConfig:
    """A text encoder's configuration, from those of its entries that say how it computes."""
    return CLIPTextConfig(**{key: config[key] for key in _TEXT_CONFIG_KEYS if key in config})


def tokenize(model: Model, captions: Sequence[str | Weighted]) -> Tensor:
    """Captions -> ids [B, 77 * chunks]; longer captions are cut, shorter ones padded."""
    return token_ids(model.tokenizers[0], captions, model.max_token_length)


def encode(model: Model, ids: Tensor) -> Conditioning:
    """Ids [B, 77 * chunks] -> the text encoder's states after its final norm, [B, 75 * chunks + 2, D].

    They are of the last layer, or with `clip_skip` n of the n-th from the end. Stable Diffusion 2 was made with the
    last layer but one of OpenCLIP; it is the last of the encoder as it is loaded.
    """
    encoder = model.text_encoders[0]
    chunks = in_chunks(ids, encoder)
    if (model.clip_skip or 1) == 1:
        states = encoder(chunks).last_hidden_state
    else:
        states = encoder(chunks, output_hidden_states=True).hidden_states[-model.clip_skip]
        states = text_transformer(encoder).final_layer_norm(states)
    return Conditioning(joined(states, len(ids)))


def without_sizes(conditioning: Conditioning, sizes: Sequence[Sizes]) -> Conditioning:
    """The conditioning as it is: the model is told nothing of sizes."""
    return conditioning


def predict(model: Model, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """The U-Net's output for noisy latents [B, 4, H, W] at timesteps [B]: the noise or v, by the model's kind."""
    return model.unet(noisy, timesteps, encoder_hidden_states=conditioning.hidden).sample


@torch.no_grad()
def encode_images(
    model: Model, pixels: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None = None
) -> Tensor:
    """Pixels [B, 3, H, W] in [-1, 1] -> latents [B, 4, H/8, W/8], scaled to about unit variance.

    Args:
        generator: None takes the posterior's mode; one generator, or one per picture, draws a sample. With one per
            picture a latent does not depend on which pictures share its batch.
    """
    vae = model.vae
    weight = next(vae.parameters())

    def moments(batch: Tensor) -> Tensor:
        return vae.encode(batch.to(weight.device, weight.dtype)).latent_dist.parameters

    posterior = DiagonalGaussianDistribution(with_room(vae, pixels, moments))
    if generator is None:
        latents = posterior.mode()
    else:
        latents = posterior.sample(generator if isinstance(generator, torch.Generator) else list(generator))
    return latents * vae.config.scaling_factor


@torch.no_grad()
def decode_latents(model: Model, latents: Tensor) -> Tensor:
    """Scaled latents [B, 4, H, W] -> pixels [B, 3, 8H, 8W], about [-1, 1], not clamped."""
    vae = model.vae
    weight = next(vae.parameters())

    def pixels(batch: Tensor) -> Tensor:
        return vae.decode(batch.to(weight.device, weight.dtype) / vae.config.scaling_factor).sample

    return with_room(vae, latents, pixels)


SD1_FILE = SingleFile(
    family="sd1",
    title=title_of("sd1"),
    unet=layout.SD1_UNET,
    text=MappingProxyType({"text_encoder": TextLayout(layout.CLIP_PREFIX)}),
    architectures=IDENTITIES["sd1"].architectures,
)
SD2_FILE = SingleFile(
    family="sd2",
    title=title_of("sd2"),
    unet=layout.SD1_UNET,
    text=MappingProxyType({"text_encoder": TextLayout(layout.OPEN_CLIP_PREFIX, open_clip=True, spare_layer=True)}),
    architectures=IDENTITIES["sd2"].architectures,
)
SD1 = Family(
    name="sd1",
    **vars(IDENTITIES["sd1"]),
    resolution=512,
    parts=PARTS,
    pipeline="StableDiffusionPipeline",
    config=partial(family_config, "sd1"),
    tokenize=tokenize,
    encode=encode,
    with_sizes=without_sizes,
    predict=predict,
    encode_images=encode_images,
    decode_latents=decode_latents,
    read_original=partial(read_original, SD1_FILE),
    write_original=partial(write_original, SD1_FILE),
    build=build,
    tokenizers=lambda: [clip_tokenizer()],
)
SD2 = replace(
    SD1,
    name="sd2",
    **vars(IDENTITIES["sd2"]),
    config=partial(family_config, "sd2"),
    read_original=partial(read_original, SD2_FILE),
    write_original=partial(write_original, SD2_FILE),
    tokenizers=lambda: [clip_tokenizer("!")],
)
