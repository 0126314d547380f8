"""The demo model's autoencoder: 64 px pictures to 8x8 latents of 4 channels, trained from scratch.

Besides plain monsters it sees ornamented ones that no caption names and the U-Net never sees, as the autoencoder of any
Stable Diffusion can show more than its U-Net was asked to draw: a LoRA can teach nothing that the decoder cannot show.
"""

import math
from collections.abc import Callable

import torch
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
    peak: float = 2e-3,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Trains in place: L1 + L2 reconstruction of a posterior sample with a small KL term, AdamW, one-cycle schedule.

    Args:
        vae: on the device to train on.
        pictures: uint8 [N, 64, 64, 3] on the same device.
        steps: optimizer steps.
        seed: every draw is a function of it and the step.
        batch_size: pictures a step.
        peak: highest learning rate.
        report: called with step and loss now and then.
    """
    device = pictures.device
    optimizer = torch.optim.AdamW(vae.parameters(), lr=peak, weight_decay=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = one_cycle(step, steps, peak)
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
    """The learning rate: up linearly over the first 5 % of the steps, down with a cosine to 1 % of the peak."""
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
def fold_scale(vae: AutoencoderKL, latents: torch.Tensor, deviation: float = 1 / LATENT_SCALE) -> None:
    """Shifts and scales the latent channels, in place: zero mean and a standard deviation of `deviation` each.

    Args:
        vae: its quant convolutions take the change; what it reconstructs stays the same.
        latents: unscaled latents [N, 4, 8, 8] of many pictures.
        deviation: the default makes 0.18215 * latent of unit variance, as SD1's U-Net expects.
    """
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3)) / deviation
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
