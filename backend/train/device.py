"""Where and in which precision a run computes: the accelerator, and the frozen model on it."""

import ctypes
import gc
import os

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor, nn

from backend.config.train import TrainNetwork
from backend.config.training.speed import Speed
from backend.errors import UserError
from backend.families.model import Model
from backend.generate.attention import set_attention
from backend.generate.device import device_line
from backend.generate.pipeline import place
from backend.terminal import say, warn
from backend.train.checkpointing import start_checkpointing
from backend.train.eight_bits import inner_modules, store_in_eight_bits

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


# What the model computes outside these parts is little, and much of it depends on it: times, sizes, the edges.
UNET_BLOCKS, TEXT_BLOCKS = ("down_blocks", "mid_block", "up_blocks"), ("layers",)


class HalfScaler(torch.amp.GradScaler):
    """A loss scaler that unscales gradients in fp16 too, which those of fp16 weights are (`full_fp16`).

    The scale is a power of two, so dividing by it loses nothing but numbers too small for fp16.
    """

    def _unscale_grads_(
        self, optimizer: torch.optim.Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
    ) -> dict[torch.device, Tensor]:
        return super()._unscale_grads_(optimizer, inv_scale, found_inf, True)


def make_accelerator(speed: Speed) -> tuple[Accelerator, torch.dtype]:
    """Accelerate's handle on device and precision, and the dtype of the frozen model.

    Raises:
        UserError: the device cannot compute in this precision.
    """
    mixed_precision = speed.mixed_precision
    try:
        # The plugin, as the plain argument would give way to an environment variable that our step does not follow.
        accelerator = Accelerator(
            mixed_precision=mixed_precision, gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1)
        )
    except ValueError as error:
        raise UserError(f"{error}; choose another or no", field="mixed_precision") from None
    if line := device_line(accelerator.device):
        say(line)
    if mixed_precision == "fp16" and not accelerator.native_amp:
        warn("mixed_precision fp16 needs a GPU; there is none here, so float32 is used")
        return accelerator, torch.float32
    if speed.full_fp16:
        accelerator.scaler = HalfScaler(accelerator.device.type)
    return accelerator, DTYPES[mixed_precision]


def network_dtype(speed: Speed, dtype: torch.dtype) -> torch.dtype:
    """The type of the network's weights: float32, or the frozen model's `dtype` with full_fp16 and full_bf16."""
    return dtype if speed.full_fp16 or speed.full_bf16 else torch.float32


def place_model(model: Model, config: TrainNetwork, device: torch.device, dtype: torch.dtype) -> None:
    """Bring all of the frozen model but the U-Net (`bring_unet`) into the precision of the run and to the device; set
    attention and checkpointing.

    The VAE stays in float32: it is not trained, and in half precision it can overflow and give NaN latents.

    Raises:
        UserError: the U-Net is to be compiled and cannot be.
    """
    speed = config.speed
    check_compiler(speed, device)
    place(model.vae, torch.device("cpu"), torch.float32)
    # What is merged into the U-Net is added in the run's precision. Otherwise it stays as the file has it for now: it
    # would take its memory while pictures and captions are encoded.
    if config.network.base_weights:
        nn.Module.to(model.unet, dtype=dtype)
    model.unet.requires_grad_(False)
    for module in model.text_encoders:
        place(module, device, dtype)
    message = set_attention(model.unet, speed.xformers, speed.sdpa, device)
    if message:
        warn(message)
    if speed.mem_eff_attn:
        model.unet.set_attention_slice("auto")
    if speed.gradient_checkpointing:
        start_checkpointing(model, config)
        if speed.cpu_offload_checkpointing and device.type == "cpu":
            warn("cpu_offload_checkpointing has nothing to do, as everything is in the CPU's memory here")


def bring_unet(model: Model, speed: Speed, device: torch.device, dtype: torch.dtype) -> None:
    """Bring the U-Net to the device and into the precision of the run and make it what the steps run, once pictures and
    captions are encoded.
    """
    place(model.unet, device, dtype)
    shrink_model(model, speed)
    if speed.torch_compile:
        model.unet.compile(backend=speed.dynamo_backend)


def give_memory_back() -> None:
    """Return to the system what loading has left in the C library's hands, where that can (glibc)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def shrink_model(model: Model, speed: Speed) -> None:
    """Keep the frozen weights in 8 bits where that is wanted, once nothing is to be merged into them any more."""
    if not (speed.fp8_base or speed.fp8_base_unet):
        return
    if model.unet.dtype == torch.float32:
        warn("fp8_base saves memory but no time without half precision")
    count = store_in_eight_bits(inner_modules(model.unet, UNET_BLOCKS))
    for encoder in () if speed.fp8_base_unet else model.text_encoders:
        count += store_in_eight_bits(inner_modules(encoder, TEXT_BLOCKS))
    say(f"Keeping {count} frozen layers in 8 bits")


def check_compiler(speed: Speed, device: torch.device) -> None:
    """See that the U-Net can be compiled, where that is wanted.

    Raises:
        UserError: the backend cannot compile anything here.
    """
    if not speed.torch_compile:
        return
    try:
        torch.compile(torch.nn.functional.relu, backend=speed.dynamo_backend)(torch.ones(2, device=device))
    except (RuntimeError, ImportError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        message = (
            f"{speed.dynamo_backend} cannot compile here ({reason}); leave it out, or set dynamo_backend aot_eager"
        )
        raise UserError(message, field="torch_compile") from None
