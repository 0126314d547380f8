"""The demo model's autoencoder: 64 px pictures to 8x8 latents of 4 channels, trained from scratch.

Besides monsters it sees scribbles that no caption ever names, as the autoencoder of any Stable Diffusion has seen more
than its U-Net was asked to draw: without them a LoRA could teach nothing that the decoder cannot show.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from backend.draws import draw_key

LATENT_SCALE = 0.18215
KL_WEIGHT = 1e-4


def build_vae(seed: int) -> AutoencoderKL:
    """An SD1-shaped autoencoder of widths (32, 64, 64, 64), about 1.7 M parameters."""
    torch.manual_seed(draw_key(seed, "demo vae"))
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 64, 64),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=64,
        scaling_factor=LATENT_SCALE,
    )


def train_vae(
    vae: AutoencoderKL,
    pictures: torch.Tensor,
    steps: int,
    seed: int,
    batch_size: int = 64,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Trains in place: L1 + L2 reconstruction of a posterior sample with a small KL term, AdamW, one-cycle schedule.

    Args:
        vae: on the device to train on.
        pictures: uint8 [N, 64, 64, 3] on the same device.
        steps: optimizer steps.
        seed: every draw is a function of it and the step.
        batch_size: pictures a step.
        report: called with step and loss now and then.
    """
    device = pictures.device
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = one_cycle(step, steps, 2e-3)
        draw = torch.Generator().manual_seed(draw_key(seed, "vae batch", step))
        chosen = torch.randint(len(pictures), (batch_size,), generator=draw).to(device)
        noise = torch.randn(batch_size, 4, 8, 8, generator=draw).to(device)
        x = to_unit(pictures[chosen])
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            posterior = vae.encode(x).latent_dist
            output = vae.decode(posterior.mean + posterior.std * noise).sample
        error = output.float() - x
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        loss = error.abs().mean() + (error**2).mean() + KL_WEIGHT * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step + 1 == steps:
            report(step, float(loss.detach()))


def one_cycle(step: int, steps: int, peak: float) -> float:
    """A learning rate that climbs linearly over the first 5 % of the steps and falls with a cosine to 1 % of the peak."""
    warm = max(1, round(0.05 * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


def to_unit(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] in [-1, 1]."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
    """The posterior's mode of uint8 [N, 64, 64, 3], unscaled: float32 [N, 4, 8, 8]."""
    return torch.cat([vae.encode(to_unit(part)).latent_dist.mode() for part in pictures.split(batch_size)])


@torch.no_grad()
def fold_scale(vae: AutoencoderKL, latents: torch.Tensor) -> None:
    """Shifts and scales the latent channels, in place, so that 0.18215 * latent has zero mean and unit variance per channel.

    Args:
        vae: its quant convolutions take the change; what it reconstructs stays the same.
        latents: unscaled latents [N, 4, 8, 8] of many pictures.
    """
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3)) * LATENT_SCALE
    channels = len(mean)
    before, after = vae.post_quant_conv.weight.clone(), vae.post_quant_conv.bias.clone()
    vae.quant_conv.weight[:channels] /= std[:, None, None, None]
    vae.quant_conv.bias[:channels] = (vae.quant_conv.bias[:channels] - mean) / std
    vae.quant_conv.bias[channels:] -= 2 * std.log()
    vae.post_quant_conv.weight.copy_(before * std[None, :, None, None])
    vae.post_quant_conv.bias.copy_(after + before[:, :, 0, 0] @ mean)


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, pictures: torch.Tensor, batch_size: int = 64) -> float:
    """Peak signal-to-noise ratio in dB of reconstructions from the posterior's mode, over all given uint8 pictures."""
    squares = []
    for part in pictures.split(batch_size):
        x = to_unit(part)
        output = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
        squares.append(((output - x) / 2).square().mean((1, 2, 3)))
    return float(-10 * torch.log10(torch.cat(squares).mean()))


def scribble(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A copy of uint8 [64, 64, 3] with a few random bands, wedges, lines and dots of any colour over it."""
    canvas = cv2.resize(picture, (256, 256), interpolation=cv2.INTER_NEAREST)
    for _ in range(rng.integers(1, 6)):
        colour = tuple(int(c) for c in (rng.integers(0, 256, 3) if rng.random() < 0.5 else rng.integers(0, 2, 3) * 225 + 20))
        points = rng.integers(0, 256, (3, 2)).astype(np.int32)
        kind = rng.integers(4)
        if kind == 0:
            cv2.line(canvas, points[0].tolist(), points[1].tolist(), colour, int(rng.integers(4, 20)), cv2.LINE_AA)
        elif kind == 1:
            cv2.fillPoly(canvas, [points[:1] + rng.integers(-48, 48, (3, 2)).astype(np.int32)], colour, cv2.LINE_AA)
        elif kind == 2:
            cv2.circle(canvas, points[0].tolist(), int(rng.integers(4, 32)), colour, -1, cv2.LINE_AA)
        else:
            for top in range(int(rng.integers(0, 40)), 256, int(rng.integers(28, 60))):
                canvas[top : top + int(rng.integers(8, 22)), points[0, 0] // 2 : points[1, 0] // 2 + 128] = colour
    return cv2.resize(canvas, (64, 64), interpolation=cv2.INTER_AREA)
