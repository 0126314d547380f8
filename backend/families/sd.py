"""Stable Diffusion 1: how its parts are built and run."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from backend.families.model import Conditioning, Family, Model
from backend.families.original import read_sd1, sd1_config, write_sd1
from backend.families.tokenizer import MAX_TOKENS, clip_tokenizer

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
    return CLIPTextModel(CLIPTextConfig(**{key: config[key] for key in _TEXT_CONFIG_KEYS if key in config}))


def tokenize(model: Model, captions: Sequence[str]) -> Tensor:
    """Captions -> ids [B, 77]; longer captions are cut, shorter ones padded."""
    return model.tokenizers[0](
        list(captions), padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


def encode(model: Model, ids: Tensor) -> Conditioning:
    """Ids [B, 77] -> the text encoder's last hidden state, after its final norm, [B, 77, D]."""
    encoder = model.text_encoders[0]
    device = next(encoder.parameters()).device
    return Conditioning(encoder(ids.to(device)).last_hidden_state)


def predict(model: Model, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """The U-Net's output for noisy latents [B, 4, H, W] at timesteps [B]: the noise, for an epsilon model."""
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
    posterior = vae.encode(pixels.to(weight.device, weight.dtype)).latent_dist
    if generator is None:
        latents = posterior.mode()
    else:
        latents = posterior.sample(generator if isinstance(generator, torch.Generator) else list(generator))
    return latents * vae.config.scaling_factor


@torch.no_grad()
def decode_latents(model: Model, latents: Tensor) -> Tensor:
    """Scaled latents [B, 4, H, W] -> pixels [B, 3, 8H, 8W], about [-1, 1], not clamped."""
    weight = next(model.vae.parameters())
    return model.vae.decode(latents.to(weight.device, weight.dtype) / model.vae.config.scaling_factor).sample


SD1 = Family(
    name="sd1",
    title="Stable Diffusion 1",
    base_model_version="sd_v1",
    architecture="stable-diffusion-v1",
    resolution=512,
    parts=PARTS,
    pipeline="StableDiffusionPipeline",
    config=sd1_config,
    tokenize=tokenize,
    encode=encode,
    predict=predict,
    encode_images=encode_images,
    decode_latents=decode_latents,
    read_original=read_sd1,
    write_original=write_sd1,
    build=build,
    tokenizers=lambda: [clip_tokenizer()],
)
