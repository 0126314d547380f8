"""Gradient checkpointing (arXiv 1604.06174): activations are computed again in the backward pass instead of kept.

It costs a second forward pass, so a run does without until it is asked for, or until the GPU's memory is full.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backend.config.train import TrainNetwork
from backend.families.model import Model
from backend.terminal import warn

T = TypeVar("T")


def start_checkpointing(model: Model, config: TrainNetwork) -> None:
    """From here on keep only what goes into the model's blocks."""
    model.unet.enable_gradient_checkpointing(checkpoint_on_cpu if config.speed.cpu_offload_checkpointing else None)
    # transformers checkpoints in training mode only; CLIP has no dropout that the mode would switch on.
    for encoder in () if config.network.network_train_unet_only else model.text_encoders:
        encoder.activation_checkpointing_enable()
        encoder.train()


def with_room(model: Model, config: TrainNetwork, compute: Callable[[], T], forget: Callable[[], object]) -> T:
    """What `compute` gives; where the GPU's memory is too small for that, once more with checkpointing from here on.

    What fits hangs on the picture sizes of a batch, on the attention and on who else uses the GPU, so it is found out
    and not foretold.

    Args:
        compute: forward and backward passes.
        forget: makes it as if they had not been begun.

    Raises:
        torch.OutOfMemoryError: the memory is too small with checkpointing as well.
    """
    try:
        return compute()
    except torch.OutOfMemoryError:
        if model.unet.is_gradient_checkpointing:
            raise
    # Out of the handler, which holds the activations of the failed attempt.
    forget()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    start_checkpointing(model, config)
    warn(
        "the GPU's memory is too small to keep all activations, so from here on they are computed again in the "
        "backward pass (gradient_checkpointing): slower, and what is learnt is the same"
    )
    return compute()


def checkpoint_on_cpu(module: nn.Module, *inputs: Any) -> Any:
    """As `torch.utils.checkpoint`, with the inputs kept in the CPU's memory from the forward to the backward pass."""
    devices = [value.device if isinstance(value, Tensor) else None for value in inputs]

    def forward(*parked: Any) -> Any:
        return module(*(value.to(device) if device else value for value, device in zip(parked, devices, strict=True)))

    return checkpoint(forward, *(_to_cpu(value) for value in inputs), use_reentrant=False)


def _to_cpu(value: Any) -> Any:
    return value.to("cpu") if isinstance(value, Tensor) else value
