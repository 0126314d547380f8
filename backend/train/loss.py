"""The loss of a training step."""

import torch
from torch import Tensor


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample in float32: [B, ...] -> [B]."""
    return (predicted.float() - target.float()).square().flatten(1).mean(1)


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
