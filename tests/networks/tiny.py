"""Tiny models in SD1's shape, with random weights."""

import copy
from dataclasses import dataclass
from functools import cache

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

CROSS_DIM = 64


@dataclass
class TinyModel:
    """A U-Net and a text encoder, and one input for them."""

    unet: UNet2DConditionModel
    text_encoder: nn.Module

    def encode(self) -> Tensor:
        """[2, 9, 64]"""
        return self.text_encoder(torch.arange(18).reshape(2, 9)).last_hidden_state

    def predict(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[2, 4, 8, 8], depending on both parts."""
        latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7)).to(dtype)
        return self.unet(latents, torch.tensor([10, 900]), self.encode()).sample

    def tensors(self) -> dict[str, Tensor]:
        """Copies of all weights of both."""
        parts = {"unet": self.unet, "te": self.text_encoder}
        return {
            f"{part}.{name}": t.clone() for part, module in parts.items() for name, t in module.state_dict().items()
        }


def make_model() -> TinyModel:
    """Each time a new copy of the same model."""
    return copy.deepcopy(_built())


def make_sd2() -> TinyModel:
    """As `make_model`, in SD2's shape: linear layers around the attentions, and heads of one width."""
    return copy.deepcopy(_built(use_linear_projection=True, attention_head_dim=(1, 2, 3, 4)))


@cache
def _built(**changes: object) -> TinyModel:
    torch.manual_seed(0)
    options = {"attention_head_dim": 8} | changes
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64, 96, 128), cross_attention_dim=CROSS_DIM, **options
    )
    config = CLIPTextConfig(
        vocab_size=20,
        hidden_size=CROSS_DIM,
        intermediate_size=4 * CROSS_DIM,
        num_hidden_layers=2,
        num_attention_heads=1,
        bos_token_id=18,
        eos_token_id=19,
    )
    return TinyModel(unet.eval(), CLIPTextModel(config).eval())


@dataclass
class TinyXL:
    """A U-Net and two text encoders in SDXL's shape, and one input for them."""

    unet: UNet2DConditionModel
    text_encoders: list[nn.Module]

    def encode(self) -> tuple[Tensor, Tensor]:
        """[2, 9, 96], [2, 32]"""
        ids = torch.arange(18).reshape(2, 9)
        first, second = (encoder(ids, output_hidden_states=True) for encoder in self.text_encoders)
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second.text_embeds

    def predict(self) -> Tensor:
        """[2, 4, 8, 8], depending on all parts."""
        latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))
        hidden, pooled = self.encode()
        added = {"text_embeds": pooled, "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)}
        return self.unet(latents, torch.tensor([10, 900]), hidden, added_cond_kwargs=added).sample


def make_xl() -> TinyXL:
    """Each time a new copy of the same model."""
    return copy.deepcopy(_built_xl())


@cache
def _built_xl() -> TinyXL:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 4, 6),
        cross_attention_dim=96,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
    )
    config = {
        "vocab_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "bos_token_id": 18,
        "eos_token_id": 19,
    }
    first = CLIPTextModel(CLIPTextConfig(hidden_size=64, intermediate_size=128, **config))
    second = CLIPTextModelWithProjection(
        CLIPTextConfig(hidden_size=32, intermediate_size=64, projection_dim=32, **config)
    )
    return TinyXL(unet.eval(), [first.eval(), second.eval()])
