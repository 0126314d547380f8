"""Which attention code the U-Net runs."""

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn

NEEDS = "xformers needs an NVIDIA GPU and a build that fits it"


def set_attention(unet: nn.Module, xformers: bool, sdpa: bool, device: torch.device) -> str | None:
    """Choose the U-Net's attention; PyTorch's own (sdpa) is what it has without being asked.

    Args:
        unet: a diffusers U-Net, on its device.
        xformers: xformers' memory-efficient attention where it runs, else sdpa.
        sdpa: PyTorch's scaled dot product attention, also where `xformers` is asked for as well.
        device: where the U-Net is.

    Returns:
        A line for the user where the wish could not be met, else None.
    """
    if not xformers or sdpa:
        unet.set_attn_processor(AttnProcessor2_0())
        return "sdpa is used instead of xformers, as both were asked for" if xformers else None
    problem = "there is none here"
    if device.type == "cuda":
        try:
            unet.enable_xformers_memory_efficient_attention()
        except (ImportError, NotImplementedError, ValueError, RuntimeError, OSError, AttributeError) as error:
            problem = str(error).strip().split("\n")[0].rstrip(":")
        else:
            return None
    unet.set_attn_processor(AttnProcessor2_0())
    return f"{NEEDS} ({problem}); PyTorch's attention is used instead"
