"""Train a few steps on a full-size checkpoint on the CPU, at a small resolution, and say what it took.

    python -m benchmarks.make_checkpoint /tmp/sdxl.safetensors --family sdxl
    python -m benchmarks.train_full_size /tmp/sdxl.safetensors --steps 3 -- --network_train_unet_only

What comes after `--` goes to `train_network` as it is.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint or folder")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--precision", choices=("no", "bf16"), default="bf16")
    parser.add_argument("more", nargs="*", help="further options of train_network")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        pictures.mkdir()
        for index, colour in enumerate(("red", "green")):
            Image.new("RGB", (arguments.resolution,) * 2, colour).save(pictures / f"{index}.png")
            (pictures / f"{index}.txt").write_text(f"a {colour} square", encoding="utf-8")
        data = Path(folder) / "data.toml"
        data.write_text(
            f"[[datasets]]\nresolution = {arguments.resolution}\n[[datasets.subsets]]\nimage_dir = '{pictures}'\n",
            encoding="utf-8",
        )
        options = {
            "pretrained_model_name_or_path": arguments.model,
            "dataset_config": data,
            "output_dir": Path(folder) / "output",
            "max_train_steps": arguments.steps,
            "mixed_precision": arguments.precision,
            "max_data_loader_n_workers": 0,
            "seed": 1,
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        switches = ["--cache_latents", "--gradient_checkpointing"]
        began = time.monotonic()
        command = [sys.executable, "-m", "backend", "train_network", *words, *switches, *arguments.more]
        status = subprocess.run(command, check=False).returncode
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"exit {status}, {time.monotonic() - began:.0f} s in all, {peak:.1f} GB of memory at most")
    sys.exit(status)


if __name__ == "__main__":
    main()
