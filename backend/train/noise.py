"""Noise, time steps and targets of denoising diffusion (DDPM, arXiv 2006.11239).

Draws are made on the CPU, each sample's from its own key (seed, purpose, step, index of the sample in the step's global
batch): the same on every device, for every way of splitting the batch, and after every resume.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from backend.config.training.noise import Noise
from backend.draws import draw_key, rng
from backend.errors import UserError


def draw_noise(seed: int, step: int, indices: Sequence[int], shape: Sequence[int], purpose: str = "noise") -> Tensor:
    """Unit normal noise [B, *shape] for the samples `indices` of step `step`; another purpose is another draw."""
    return torch.stack([torch.randn(*shape, generator=_generator(seed, purpose, step, index)) for index in indices])


def draw_timesteps(seed: int, step: int, indices: Sequence[int], count: int, first: int = 0) -> Tensor:
    """Time steps [B], uniform over first ... count - 1, for the samples `indices` of step `step`."""
    drawn = [torch.randint(first, count, (), generator=_generator(seed, "timestep", step, index)) for index in indices]
    return torch.stack(drawn)


def draw_strength(seed: int, step: int, indices: Sequence[int], purpose: str) -> Tensor:
    """Numbers [B, 1, 1, 1], uniform over 0 ... 1, for the samples `indices` of step `step`."""
    return torch.tensor([rng(seed, purpose, step, index).random() for index in indices]).view(-1, 1, 1, 1)


def training_noise(options: Noise, seed: int, step: int, indices: Sequence[int], latents: Tensor) -> Tensor:
    """The noise of a step's samples as the options want it, on the latents' device: [B, C, h, w].

    Everything is drawn for each sample by itself, so that it does not depend on who else is in the batch.
    """
    noise = draw_noise(seed, step, indices, latents.shape[1:])
    if options.multires_noise_iterations:
        pyramids = [(rng(seed, "pyramid", step, index), _generator(seed, "coarse", step, index)) for index in indices]
        noise = torch.stack(
            [
                pyramid_noise(one, options.multires_noise_iterations, options.multires_noise_discount, *pyramid)
                for one, pyramid in zip(noise, pyramids, strict=True)
            ]
        )
    noise = noise.to(latents.device)
    if options.noise_offset is not None:
        channels = draw_noise(seed, step, indices, (latents.shape[1], 1, 1), "offset").to(latents.device)
        strength = torch.full((len(indices), 1, 1, 1), options.noise_offset)
        if options.noise_offset_random_strength:
            strength = strength * draw_strength(seed, step, indices, "offset strength")
        strength = strength.to(latents.device)
        if options.adaptive_noise_scale is not None:
            strength = adaptive_strength(strength, latents, options.adaptive_noise_scale)
        noise = noise + strength * channels
    return noise


def disturbed(options: Noise, seed: int, step: int, indices: Sequence[int], noise: Tensor) -> Tensor:
    """The noise [B, C, h, w] that the model sees, where that differs from the one it should find (`ip_noise_gamma`)."""
    if not options.ip_noise_gamma:
        return noise
    strength = torch.full((len(indices), 1, 1, 1), options.ip_noise_gamma)
    if options.ip_noise_gamma_random_strength:
        strength = strength * draw_strength(seed, step, indices, "perturbation strength")
    return noise + (strength * draw_noise(seed, step, indices, noise.shape[1:], "perturbation")).to(noise)


def adaptive_strength(offset: Tensor, latents: Tensor, scale: float) -> Tensor:
    """offset + scale |mean of the latent channel|, not below 0: [B, 1, 1, 1] and [B, C, h, w] -> [B, C, 1, 1]."""
    return (offset + scale * latents.mean(dim=(2, 3), keepdim=True).abs()).clamp(min=0)


def pyramid_noise(
    noise: Tensor, iterations: int, discount: float, ratios: random.Random, generator: torch.Generator
) -> Tensor:
    """Noise with coarser noise added, scaled to a standard deviation of 1 (multi-resolution noise, J. Whitaker 2023).

    Level i is unit noise on a grid r_i^i times coarser, r_i uniform over 2 ... 4, enlarged bilinearly, and counts
    `discount`^i; level 0 is as fine as the noise itself. The levels end early where a side has become one pixel.

    Args:
        noise: unit noise of one sample, [C, h, w].
        iterations: number of levels.
        discount: from 0 to 1.
        ratios: draws of r_i.
        generator: draws of the levels' noise.
    """
    channels, height, width = noise.shape
    total = noise
    for level in range(iterations):
        ratio = (2 + 2 * ratios.random()) ** level
        size = (max(1, int(height / ratio)), max(1, int(width / ratio)))
        coarse = torch.randn(1, channels, *size, generator=generator)
        total = total + discount**level * interpolate(coarse, (height, width), mode="bilinear")[0]
        if min(size) == 1:
            break
    return total / total.std()


def _generator(seed: int, purpose: str, *index: int) -> torch.Generator:
    return torch.Generator().manual_seed(draw_key(seed, purpose, *index))


@dataclass(frozen=True)
class Diffusion:
    """The noising process that a base model was trained on.

    Attributes:
        alphas_cumprod: share of the signal's variance left at each time step, [T], float32 on the CPU.
        prediction_type: what the model predicts, `epsilon` (the noise) or `v_prediction`.
    """

    alphas_cumprod: Tensor
    prediction_type: str

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio a_t / (1 - a_t) at each time step, [T], float64; 0 where no signal is left."""
        kept = self.alphas_cumprod.double()
        return kept / (1 - kept)

    def noisy(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """sqrt(a_t) x + sqrt(1 - a_t) noise: [B, C, h, w] with timesteps [B], these on the CPU as they are drawn."""
        signal, spread = self._factors(timesteps, latents)
        return signal * latents + spread * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the model should predict: the noise, or v = sqrt(a_t) noise - sqrt(1 - a_t) x (arXiv 2202.00512)."""
        if self.prediction_type == "epsilon":
            return noise
        signal, spread = self._factors(timesteps, latents)
        return signal * noise - spread * latents

    def _factors(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        kept = self.alphas_cumprod[timesteps].to(like).view(-1, *[1] * (like.dim() - 1))
        return kept.sqrt(), (1 - kept).sqrt()


def diffusion_of(scheduler: Mapping[str, object]) -> Diffusion:
    """The noising process that a model's scheduler config describes.

    Raises:
        UserError: the config names a schedule or a prediction type that is not known.
    """
    count = int(scheduler["num_train_timesteps"])
    schedule = scheduler.get("beta_schedule", "linear")
    prediction_type = str(scheduler.get("prediction_type", "epsilon"))
    if prediction_type not in ("epsilon", "v_prediction"):
        raise UserError(f"{prediction_type!r} in the model's scheduler config is neither epsilon nor v_prediction")
    if scheduler.get("trained_betas") is not None:
        betas = torch.tensor(scheduler["trained_betas"], dtype=torch.float64)
    elif schedule == "scaled_linear":
        start, end = float(scheduler["beta_start"]) ** 0.5, float(scheduler["beta_end"]) ** 0.5
        betas = torch.linspace(start, end, count, dtype=torch.float64).square()
    elif schedule == "linear":
        betas = torch.linspace(scheduler["beta_start"], scheduler["beta_end"], count, dtype=torch.float64)
    else:
        raise UserError(f"{schedule!r} in the model's scheduler config is neither linear nor scaled_linear")
    kept = (1 - betas).cumprod(0)
    if scheduler.get("rescale_betas_zero_snr"):
        kept = zero_terminal_snr(kept)
    return Diffusion(kept.float(), prediction_type)


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """The schedule stretched so that nothing of the signal is left at its end (arXiv 2305.08891, algorithm 1)."""
    roots = alphas_cumprod.sqrt()
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])).square()
