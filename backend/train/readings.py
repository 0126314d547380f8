"""What can be read off a run beside its loss: the gradient's norm, the size of the network's changes, memory."""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

MEMORY = Path("/proc/self/statm")


def limit_gradients(accelerator: Accelerator, parameters: Sequence[nn.Parameter], largest: float) -> Tensor:
    """Scale the gradients down to a norm of `largest`, unless that is 0; returns their norm before, on the device."""
    if largest:
        return accelerator.clip_grad_norm_(parameters, largest)
    accelerator.unscale_gradients()
    return torch.nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])


@torch.no_grad()
def weight_norms(adapters: Iterable[nn.Module]) -> Tensor:
    """Mean and maximum over the adapters of the Frobenius norm of their change of weight: [2], on the device."""
    norms = torch.stack([adapter.norm().float() for adapter in adapters])
    return torch.stack([norms.mean(), norms.max()])


def memory(device: torch.device) -> dict[str, int]:
    """Bytes in use, as far as the machine tells: `process` (resident), on a GPU `gpu_peak` (most allocated) and `gpu`
    (what it has). Waits for nothing.
    """
    found: dict[str, int] = {}
    with suppress(OSError, ValueError, IndexError):
        found["process"] = int(MEMORY.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if device.type == "cuda":
        found["gpu_peak"] = torch.cuda.max_memory_allocated(device)
        found["gpu"] = torch.cuda.get_device_properties(device).total_memory
    return found
