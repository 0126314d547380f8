"""What the figures were taken on."""

import datetime
import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate")


def processor() -> str:
    """The CPU's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def machine(device: str) -> str:
    """Device, processor, memory and the libraries' versions, in a line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    words = [f"{processor()}, {cores} cores, {memory:.0f} GB"]
    if device == "cuda":
        found = torch.cuda.get_device_properties(0)
        words.insert(0, f"{found.name}, {found.total_memory / 2**30:.0f} GB")
    return "; ".join([*words, ", ".join(f"{name} {version(name)}" for name in LIBRARIES)])


def today() -> str:
    """The date, as in a document."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def has_gpu() -> bool:
    """Whether PyTorch can use a GPU here."""
    return torch.cuda.is_available()
