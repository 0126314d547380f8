"""Stable Diffusion XL: two text encoders, and a U-Net that is told of sizes and of the caption as a whole."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection

from backend.families import sd
from backend.families.clip_text import in_chunks, joined, token_ids
from backend.families.emphasis import Weighted
from backend.families.model import Conditioning, Model, Sizes
from backend.families.original import SingleFile, TextLayout, read_original, write_original
from backend.families.tokenizer import clip_tokenizer
from backend.families.widths import family_config
from backend.tables import layout
from backend.tables.identity import IDENTITIES, title_of

SIZES = "time_ids"  # Diffusers' name for the six numbers
PENULTIMATE = -2


def build(name: str, config: Mapping[str, Any]) -> nn.Module:
    """The module of a part (`unet`, `vae`, `text_encoder`, `text_encoder_2`) from its configuration."""
    if name == "text_encoder_2":
        return CLIPTextModelWithProjection(sd.text_config(config))
    return sd.build(name, config)


def tokenize(model: Model, captions: Sequence[str | Weighted]) -> Tensor:
    """Captions -> ids [B, 2, 77 * chunks], one row for each encoder: they pad differently."""
    ids = [token_ids(tokenizer, captions, model.max_token_length) for tokenizer in model.tokenizers]
    return torch.stack(ids, dim=1)


def encode(model: Model, ids: Tensor) -> Conditioning:
    """Ids [B, 2, 77 * chunks] -> both encoders' states side by side, and the second's projected vector.

    The states are those of the last layer but one, without the final norm. Of several chunks the vector is the first's.
    """
    batch = len(ids)
    first, second = model.text_encoders
    one = first(in_chunks(ids[:, 0], first), output_hidden_states=True)
    two = second(in_chunks(ids[:, 1], second), output_hidden_states=True)
    states = [joined(found.hidden_states[PENULTIMATE], batch) for found in (one, two)]
    pooled = two.text_embeds.reshape(batch, -1, two.text_embeds.shape[-1])[:, 0]
    return Conditioning(torch.cat(states, dim=-1), pooled)


def with_sizes(conditioning: Conditioning, sizes: Sequence[Sizes]) -> Conditioning:
    """The conditioning with the sizes [B, 6] added; float32, as half precision would round those above 2048."""
    numbers = torch.tensor([list(row) for row in sizes], dtype=torch.float32, device=conditioning.hidden.device)
    return replace(conditioning, extra={**conditioning.extra, SIZES: numbers})


def predict(model: Model, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """The U-Net's output for noisy latents [B, 4, H, W] at timesteps [B]: the noise or v, by the model's kind."""
    added = {"text_embeds": conditioning.pooled, SIZES: conditioning.extra[SIZES]}
    return model.unet(noisy, timesteps, encoder_hidden_states=conditioning.hidden, added_cond_kwargs=added).sample


SDXL_FILE = SingleFile(
    family="sdxl",
    title=title_of("sdxl"),
    unet=layout.SDXL_UNET,
    text=MappingProxyType(
        {
            "text_encoder": TextLayout(layout.SDXL_CLIP_PREFIX),
            "text_encoder_2": TextLayout(layout.SDXL_OPEN_CLIP_PREFIX, open_clip=True),
        }
    ),
    architectures=IDENTITIES["sdxl"].architectures,
)
SDXL = replace(
    sd.SD1,
    name="sdxl",
    **vars(IDENTITIES["sdxl"]),
    resolution=1024,
    parts=MappingProxyType(dict(sd.PARTS) | {"text_encoder_2": ("transformers", "CLIPTextModelWithProjection")}),
    pipeline="StableDiffusionXLPipeline",
    config=partial(family_config, "sdxl"),
    tokenize=tokenize,
    encode=encode,
    with_sizes=with_sizes,
    predict=predict,
    read_original=partial(read_original, SDXL_FILE),
    write_original=partial(write_original, SDXL_FILE),
    build=build,
    tokenizers=lambda: [clip_tokenizer(), clip_tokenizer("!")],
    clip_skips=(1, 2),
)
