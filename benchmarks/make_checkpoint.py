"""Write a full-size checkpoint with random weights in the original single-file layout.

    python -m benchmarks.make_checkpoint /tmp/sd15.safetensors
    python -m benchmarks.make_checkpoint /tmp/sdxl.safetensors --family sdxl

In half precision the file of Stable Diffusion 1.5 is 2.1 GB, that of 2.1 is 2.6 GB and that of XL is 6.9 GB. It is
written one tensor at a time, in little memory. It has the names, shapes and types of the real one, so it shows what
loading, converting and training cost; its pictures are noise.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from backend.families.base import FAMILIES
from backend.families.build import empty_checkpoint, random_tensor
from backend.families.storage import write_safetensors


def write(
    path: Path, seed: int = 0, small: bool = False, dtype: torch.dtype = torch.float16, family: str = "sd1"
) -> None:
    """Write the file; the same bytes for the same seed.

    Args:
        small: tiny sizes instead of the real model's.
    """
    checkpoint = empty_checkpoint(small, family)
    tensors, metadata = FAMILIES[family].write_original(checkpoint)
    shapes = {
        name: (dtype if value.is_floating_point() else value.dtype, tuple(value.shape))
        for name, value in tensors.items()
    }
    generator = torch.Generator().manual_seed(seed)

    def value_of(name: str) -> Tensor:
        stored = tensors[name]
        value = random_tensor(name, stored.shape, generator) if stored.is_meta else stored
        return value.to(shapes[name][0])

    write_safetensors(path, shapes, value_of, metadata)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="file to write, .safetensors")
    parser.add_argument("--family", choices=list(FAMILIES), default="sd1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="tiny sizes instead of the real ones")
    arguments = parser.parse_args()
    write(arguments.path, arguments.seed, arguments.small, family=arguments.family)
    print(f"{arguments.path}: {arguments.path.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
