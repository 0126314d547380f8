"""Noise, time steps and targets of denoising diffusion (DDPM, arXiv 2006.11239).

Draws are made on the CPU, each sample's from its own key (seed, purpose, step, index of the sample in the step's global
batch): the same on every device, for every way of splitting the batch, and after every resume.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.draws import draw_key
from backend.errors import UserError


def draw_noise(seed: int, step: int, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Unit normal noise [B, *shape] for the samples `indices` of step `step`."""
    return torch.stack([torch.randn(*shape, generator=_generator(seed, "noise", step, index)) for index in indices])


def draw_timesteps(seed: int, step: int, indices: Sequence[int], count: int) -> Tensor:
    """Time steps [B], uniform over 0 ... count - 1, for the samples `indices` of step `step`."""
    drawn = [torch.randint(count, (), generator=_generator(seed, "timestep", step, index)) for index in indices]
    return torch.stack(drawn)


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
