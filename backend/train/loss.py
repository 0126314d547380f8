"""The loss of a training step."""

import torch
from torch import Tensor


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Squared error of each element in float32: [B, C, h, w] -> [B, C, h, w]."""
    return (predicted.float() - target.float()).square()


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
