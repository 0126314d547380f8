"""Encoding and decoding pictures where the GPU's memory is too small for all of them, or for one as a whole.

What fits hangs on the sizes of the pictures and on who else uses the GPU, so it is found out and not foretold. Tiles
overlap by a quarter and fade into each other (diffusers' AutoencoderKL). The VAE's group norms see a tile in place of
the whole picture, so the result is near the other one where tiles have statistics like the whole, and not the same.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from backend.terminal import warn

# Sides of a tile in pixels. The first is what the VAE of Stable Diffusion 1 was trained with.
LARGEST, SMALLEST = 512, 128
OVERLAP = 0.25


def with_room(vae: nn.Module, inputs: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """What `compute` makes of inputs [B, C, H, W]; where the memory is too small, of one at a time, then in tiles.

    Args:
        vae: diffusers' AutoencoderKL, which computes in tiles from then on what is larger than one.
        inputs: pixels or latents.
        compute: encodes or decodes a batch; called again when it could not be done.

    Raises:
        torch.OutOfMemoryError: the memory is too small for the smallest tile.
    """
    try:
        return compute(inputs)
    except torch.OutOfMemoryError:
        if len(inputs) == 1 and not next_size(vae):
            raise
    # Out of the handler, which holds what the failed attempt has computed.
    give_back()
    if len(inputs) > 1:
        return torch.cat([with_room(vae, one, compute) for one in inputs.split(1)])
    start_tiling(vae, next_size(vae))
    return with_room(vae, inputs, compute)


def next_size(vae: nn.Module) -> int:
    """The side of the tiles to be tried next, 0 where there is none."""
    if not hasattr(vae, "enable_tiling"):
        return 0
    size = vae.tile_sample_min_size // 2 if vae.use_tiling else LARGEST
    return size if size >= SMALLEST else 0


def start_tiling(vae: nn.Module, size: int) -> None:
    """Let a VAE compute in tiles of so many pixels what is larger, from here on; the first time it is told."""
    if not vae.use_tiling:
        warn(
            "the GPU's memory is too small to encode or decode a picture as a whole, so from here on larger ones are "
            "done in tiles: slower, and nearly the same"
        )
    vae.enable_tiling()
    vae.tile_sample_min_size = size
    vae.tile_latent_min_size = size // 2 ** (len(vae.config.block_out_channels) - 1)
    vae.tile_overlap_factor = OVERLAP


def give_back() -> None:
    """Return to the GPU what PyTorch holds and does not use."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
