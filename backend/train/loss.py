"""The loss of a training step: how an error counts, and how much each sample, time and place does."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.config.training.noise import Noise
from backend.errors import UserError
from backend.train.noise import Diffusion

# Weights that grow with the signal-to-noise ratio end here, as it has no limit at the first times.
LARGEST_SNR = 1000.0


def element_error(predicted: Tensor, target: Tensor, loss_type: str = "l2", border: Tensor | None = None) -> Tensor:
    """The error of every element in float32: [B, ...] -> [B, ...].

    Args:
        predicted, target: of one shape.
        loss_type: "l2" d^2, "l1" |d|, "huber" 2 c (sqrt(d^2 + c^2) - c) or "smooth_l1" 2 (sqrt(d^2 + c^2) - c), with
            d the difference: both of the latter are d^2 for small errors, up to a factor (pseudo-Huber,
            arXiv 2403.16728).
        border: c for each sample, [B]; only for the latter two.
    """
    difference = predicted.float() - target.float()
    if loss_type == "l2":
        return difference.square()
    if loss_type == "l1":
        return difference.abs()
    c = border.to(difference).view(-1, *[1] * (difference.dim() - 1))
    error = 2 * ((difference.square() + c.square()).sqrt() - c)
    return error * c if loss_type == "huber" else error


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample in float32: [B, ...] -> [B]."""
    return element_error(predicted, target).flatten(1).mean(1)


@dataclass(frozen=True)
class Objective:
    """What a run minimises, settled for every time step of its model.

    Attributes:
        diffusion: the noising process.
        times: the time steps that are trained on.
        weights: how much the loss counts at each time step, [T].
        loss_type: see `element_error`.
        borders: border of the Huber losses at each time step, [T].
    """

    diffusion: Diffusion
    times: slice
    weights: Tensor
    loss_type: str
    borders: Tensor

    def errors(self, predicted: Tensor, target: Tensor, timesteps: Tensor) -> Tensor:
        """The error of every element: [B, ...] -> [B, ...], with timesteps [B], these on the CPU as they are drawn."""
        return element_error(predicted, target, self.loss_type, self.borders[timesteps])


def make_objective(options: Noise, diffusion: Diffusion) -> Objective:
    """What the options ask for, of a model with this noising process.

    Raises:
        UserError: an option does not fit the model.
    """
    times = time_range(options, diffusion)
    weights, borders = time_weights(options, diffusion), huber_borders(options, diffusion)
    return Objective(diffusion, times, weights, options.loss_type, borders)


def masked(per_element: Tensor, masks: Tensor | None) -> Tensor:
    """The loss of each element, counted as much as the mask at its place says: [B, C, h, w], [B, 1, h, w] -> same.

    Nothing makes up for the area that is masked: the mean is over the whole picture all the same, as in the reference
    trainer, so a picture that is masked half learns half as fast.
    """
    return per_element if masks is None else per_element * masks.to(per_element)


def per_sample(per_element: Tensor) -> Tensor:
    """The mean over each sample: [B, ...] -> [B]."""
    return per_element.flatten(1).mean(1)


def weighted_share(per_sample: Tensor, weights: Tensor, samples_in_step: int) -> Tensor:
    """What one micro-batch adds to the loss of its step, the mean over all samples of the step: [B], [B] -> scalar.

    Dividing by the samples of the whole step, not of the micro-batch, makes the gradients accumulated over the
    micro-batches equal to those of one large batch, also where a micro-batch is short.

    Args:
        per_sample: loss of each sample.
        weights: weight of each sample, such as `prior_loss_weight` for regularisation pictures.
        samples_in_step: number of samples in all micro-batches of the optimizer step.
    """
    return (per_sample * weights.to(per_sample)).sum() / samples_in_step


def sample_weights(is_reg: list[bool], prior_loss_weight: float) -> Tensor:
    """Loss weights [B]: `prior_loss_weight` for regularisation pictures, 1 for the others."""
    return torch.tensor([prior_loss_weight if reg else 1.0 for reg in is_reg])


def time_weights(options: Noise, diffusion: Diffusion) -> Tensor:
    """How much the loss counts at each time step: [T], float32 on the CPU.

    Raises:
        UserError: an option is not for models that predict what this one does, or weighs a time without an end.
    """
    predicts_v = diffusion.prediction_type == "v_prediction"
    if options.scale_v_pred_loss_like_noise_pred and not predicts_v:
        message = "is for models that predict v, which this one does not; leave it out"
        raise UserError(message, field="scale_v_pred_loss_like_noise_pred")
    if options.v_pred_like_loss and predicts_v:
        raise UserError("is for models that predict the noise, not v as this one; leave it out", "v_pred_like_loss")
    snr = diffusion.snr
    weights = torch.ones_like(snr)
    if options.min_snr_gamma is not None:
        weights = weights * min_snr_weight(snr, options.min_snr_gamma, predicts_v)
    if options.scale_v_pred_loss_like_noise_pred:
        weights = weights * noise_like_weight(snr)
    if options.v_pred_like_loss:
        weights = weights * (1 + options.v_pred_like_loss / noise_like_weight(snr))
    if options.debiased_estimation_loss:
        weights = weights * debiased_weight(snr, predicts_v)
    if not bool(weights[time_range(options, diffusion)].isfinite().all()):
        name = "debiased_estimation_loss" if options.debiased_estimation_loss else "v_pred_like_loss"
        message = f"weighs the last time step without an end where the schedule ends in pure noise; leave {name} out"
        raise UserError(f"{message}, or set max_timestep to {len(snr) - 1}", field=name)
    return weights.float()


def time_range(options: Noise, diffusion: Diffusion) -> slice:
    """The time steps that are trained on.

    Raises:
        UserError: they are not the model's.
    """
    count = len(diffusion.alphas_cumprod)
    last = count if options.max_timestep is None else options.max_timestep
    if last > count:
        raise UserError(f"{last} is more than the model's {count} times", field="max_timestep")
    if options.min_timestep >= last:
        raise UserError(f"{options.min_timestep} is none of the model's times, 0 to {last - 1}", field="min_timestep")
    return slice(options.min_timestep, last)


def min_snr_weight(snr: Tensor, gamma: float, predicts_v: bool) -> Tensor:
    """min(SNR, gamma) / SNR for noise, / (SNR + 1) for v (arXiv 2303.09556, section 3.4); 1 for noise at SNR 0."""
    if predicts_v:
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)


def noise_like_weight(snr: Tensor) -> Tensor:
    """SNR / (SNR + 1): the loss of v times this is the loss of the noise (from the definition of v,
    arXiv 2202.00512)."""
    capped = snr.clamp(max=LARGEST_SNR)
    return capped / (capped + 1)


def debiased_weight(snr: Tensor, predicts_v: bool) -> Tensor:
    """1 / sqrt(SNR) for noise, 1 / (SNR + 1) for v (debiased estimation, arXiv 2310.08442)."""
    capped = snr.clamp(max=LARGEST_SNR)
    return 1 / (capped + 1) if predicts_v else capped.rsqrt()


def huber_borders(options: Noise, diffusion: Diffusion) -> Tensor:
    """c of the Huber losses at each time step: [T], float32 on the CPU (arXiv 2403.16728, section 4).

    With sigma_t = sqrt((1 - a_t) / a_t): "snr" (1 - c) / (1 + sigma_t)^2 + c, "exponential" c^(t / T), "constant" c;
    each times `huber_scale`.
    """
    c, count = options.huber_c, len(diffusion.alphas_cumprod)
    if options.huber_schedule == "exponential":
        borders = torch.exp(math.log(c) / count * torch.arange(count, dtype=torch.float64))
    elif options.huber_schedule == "snr":
        sigma = diffusion.snr.rsqrt()
        borders = (1 - c) / (1 + sigma).square() + c
    else:
        borders = torch.full((count,), c, dtype=torch.float64)
    return (borders * options.huber_scale).float()
