"""How much faster all cores make a folder of pictures smaller than one core does.

    python -m benchmarks.resize [--pictures 48] [--pairs 5] [--png] [--sizes 512x512,384x384,256x256]

Makes JPEGs of 2000x1500 in a temporary folder, then runs the tool with one process and with one per core in turns, so
that both see the same machine, and prints the throughput of every pair and the median of their ratios. Beside it stands
the ratio of decoding alone, without a pool or any file written: what this machine's cores give at most.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from backend.config.tools import Resizing
from backend.data.decode import cpu_count
from backend.tools.resize import resize
from backend.tools.resize_picture import read

SIZE = (2000, 1500)


def make_pictures(folder: Path, count: int) -> None:
    """JPEGs with broad shapes and grain, of about a megabyte each."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        shapes = cv2.resize(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8), SIZE, interpolation=cv2.INTER_CUBIC)
        grain = rng.normal(0, 6, shapes.shape)
        pixels = (shapes + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04}.jpg", quality=92)


def seconds(folder: Path, workers: int, options: argparse.Namespace) -> float:
    """How long the whole tool takes, start of its processes included."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as target:
        sizes = {"max_resolution": options.sizes, "save_as_png": options.png}
        section = Resizing(src=folder, dst=Path(target) / "made", **sizes)
        begun = time.perf_counter()
        resize(section, workers)
        return time.perf_counter() - begun


def decode_all(paths: list[Path]) -> None:
    """Decode and forget."""
    for path in paths:
        read(path, keep_alpha=False)


def decode_seconds(folder: Path, workers: int) -> float:
    """How long decoding takes in processes that share nothing, their start left out."""
    paths = sorted(folder.iterdir())
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(decode_all, [paths[:1]] * workers * 4, chunksize=1)
        begun = time.perf_counter()
        pool.map(decode_all, [paths[number::workers] for number in range(workers)], chunksize=1)
        return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--png", action="store_true")
    parser.add_argument("--sizes", default="512x512,384x384,256x256")
    options = parser.parse_args()
    cores = cpu_count()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "pictures"
        make_pictures(folder, options.pictures)
        ratios, limits = [], []
        for _ in range(options.pairs):
            one, all_cores = seconds(folder, 1, options), seconds(folder, cores, options)
            ratios.append(one / all_cores)
            limits.append(decode_seconds(folder, 1) / decode_seconds(folder, cores))
            speeds = f"{options.pictures / one:.1f} and {options.pictures / all_cores:.1f} pictures/s"
            print(f"1 and {cores} processes: {speeds}, x{ratios[-1]:.2f}; decoding alone x{limits[-1]:.2f}", flush=True)
    print(f"median x{statistics.median(ratios):.2f}; decoding alone x{statistics.median(limits):.2f}")


if __name__ == "__main__":
    main()
