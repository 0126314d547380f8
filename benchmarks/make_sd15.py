"""Write a full-size Stable Diffusion 1.5 checkpoint with random weights in the original single-file layout.

    python -m benchmarks.make_sd15 /tmp/sd15.safetensors

The file is 2.1 GB in half precision and is written one tensor at a time, in well under 1 GB of memory. It has the
names, shapes and types of the real one, so it shows what loading, converting and training cost; its pictures are noise.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from backend.families.base import FAMILIES
from backend.families.build import empty_checkpoint, random_tensor
from backend.families.storage import write_safetensors


def write(path: Path, seed: int = 0, small: bool = False, dtype: torch.dtype = torch.float16) -> None:
    """Write the file; the same bytes for the same seed.

    Args:
        small: the demo model's sizes instead of SD1.5's.
    """
    checkpoint = empty_checkpoint(small)
    tensors, metadata = FAMILIES[checkpoint.family].write_original(checkpoint)
    shapes = {
        name: (dtype if value.is_floating_point() else value.dtype, tuple(value.shape))
        for name, value in tensors.items()
    }
    generator = torch.Generator().manual_seed(seed)

    def value_of(name: str) -> Tensor:
        stored = tensors[name]
        return random_tensor(name, stored.shape, generator).to(dtype) if stored.is_meta else stored

    write_safetensors(path, shapes, value_of, metadata)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="file to write, .safetensors")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write(arguments.path, arguments.seed)
    print(f"{arguments.path}: {arguments.path.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
