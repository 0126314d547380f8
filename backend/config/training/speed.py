"""Options of train_network: precision, memory and speed."""

from typing import Annotated, Literal

from backend.config.declare import Option, Section

ADVANCED = Option(advanced=True)


class Speed(Section):
    """Precision, memory, speed."""

    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Compute in half precision; saves memory and time on a GPU."""

    xformers: bool = False
    """Memory-efficient attention from xformers, where a GPU can run it."""

    sdpa: Annotated[bool, ADVANCED] = False
    """PyTorch's own scaled dot product attention."""

    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: slower, with much less memory."""
