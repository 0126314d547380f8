"""LoRA Loom's engine: networks, training, tools and generation, usable from a shell and from the web process."""

import logging
import warnings

# Whoever imports diffusers is told at length when xformers' extensions were built for another torch. Whether they
# can be used is asked, and answered in one line, where somebody wants them.
logging.getLogger("xformers").setLevel(logging.ERROR)
# bitsandbytes looks for a kernel on the hub when it is imported on some CPUs, and complains that it may not: it is for
# 4-bit layers, of which there are none here.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda one: "gemm_4bit_forward" not in one.getMessage())

# Whoever asks torch for a GPU is told at length that the driver is too old. Each run says it in a line of its own, with
# the remedy (generate/device.py).
warnings.filterwarnings("ignore", message="CUDA initialization", category=UserWarning)
