"""Where and in which precision a run computes: the accelerator, and the frozen model on it."""

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

from backend.config.train import TrainNetwork
from backend.errors import UserError
from backend.families.model import Model
from backend.generate.attention import set_attention
from backend.generate.pipeline import place
from backend.terminal import warn

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def make_accelerator(mixed_precision: str) -> tuple[Accelerator, torch.dtype]:
    """Accelerate's handle on device and precision, and the dtype of the frozen model.

    Raises:
        UserError: the device cannot compute in this precision, or several processes were launched.
    """
    try:
        # The plugin, as the plain argument would give way to an environment variable that our step does not follow.
        accelerator = Accelerator(
            mixed_precision=mixed_precision, gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1)
        )
    except ValueError as error:
        raise UserError(f"{error}; choose another or no", field="mixed_precision") from None
    if accelerator.num_processes > 1:
        raise UserError(
            f"training runs in one process, but {accelerator.num_processes} were launched; launch one, such as with "
            "`accelerate launch --num_processes 1`"
        )
    if mixed_precision == "fp16" and not accelerator.native_amp:
        warn("mixed_precision fp16 needs a GPU; there is none here, so float32 is used")
        return accelerator, torch.float32
    return accelerator, DTYPES[mixed_precision]


def place_model(model: Model, config: TrainNetwork, device: torch.device, dtype: torch.dtype) -> None:
    """Move the frozen model to the device in the precision of the run; set attention and checkpointing.

    The VAE stays in float32: it is not trained, and in half precision it can overflow and give NaN latents.
    """
    trains_text = not config.network.network_train_unet_only
    place(model.vae, torch.device("cpu"), torch.float32)
    for module in (model.unet, *model.text_encoders):
        place(module, device, dtype)
    message = set_attention(model.unet, config.speed.xformers, config.speed.sdpa, device)
    if message:
        warn(message)
    if config.speed.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
        # transformers checkpoints in training mode only; CLIP has no dropout that the mode would switch on.
        for encoder in model.text_encoders if trains_text else ():
            encoder.activation_checkpointing_enable()
            encoder.train()
