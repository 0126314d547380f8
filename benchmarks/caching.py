"""How fast a run gets its pictures ready: the first start, which encodes them, and the second, which finds them.

    python -m benchmarks.caching [--pictures 1000] [--resolution 128] [--vae_batch_size 1] [--model backend/demo/model]

Draws PNGs and JPEGs of 512 to 1024 pixels in a temporary folder, then runs scan and caching (cache_latents_to_disk)
twice, each start as a process of its own. Prints for each start pictures per second, CPU time by wall time (2 where two
cores are busy), and the process's own memory (RssAnon) when a quarter and when all of the pictures are done.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from backend.data.decode import cpu_count

SIDES = (512, 640, 768, 896, 1024)
DATASET = """
[general]
resolution = {resolution}
enable_bucket = true
min_bucket_reso = {least}
max_bucket_reso = {most}
[[datasets]]
  [[datasets.subsets]]
  image_dir = "{folder}"
"""


def draw(path: Path, number: int) -> None:
    """Broad shapes with some grain."""
    rng = np.random.default_rng(number)
    size = (SIDES[number % 5], SIDES[number // 5 % 5])
    shapes = cv2.resize(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8), size, interpolation=cv2.INTER_CUBIC)
    grain = rng.integers(0, 8, shapes.shape, dtype=np.uint8)
    Image.fromarray(cv2.add(shapes, grain)).save(path, **({"quality": 92} if path.suffix == ".jpg" else {}))


def make_pictures(folder: Path, count: int) -> None:
    """Half of them PNG, half JPEG, with captions."""
    folder.mkdir()
    paths = [folder / f"{number:05}.{('png', 'jpg')[number % 2]}" for number in range(count)]
    with ThreadPoolExecutor(cpu_count()) as pool:
        list(pool.map(draw, paths, range(count)))
    for path in paths:
        path.with_suffix(".txt").write_text("shapes", encoding="utf-8")


def own_memory() -> float:
    """RssAnon of this process in MB; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0.0)


def start(options: argparse.Namespace) -> None:
    """What train_network does before its first step, without the network; prints what it took as JSON."""
    import torch

    from backend.config.dataset import DatasetConfig
    from backend.data.cache import DiskStore, cache_latents
    from backend.data.dataset import TrainingSet
    from backend.data.store import Caches, identity
    from backend.families.base import load_model

    begun = time.perf_counter()
    model = load_model(options.model, dtype=torch.float32)
    loaded, before = time.perf_counter(), os.times()
    caches = Caches("cache_latents_to_disk")
    training_set = TrainingSet.scan(DatasetConfig.load(options.start), caches)
    scanned = time.perf_counter()
    memory: dict[float, float] = {}

    def progress(done: int, total: int) -> None:
        for share in (0.25, 1.0):
            if done >= share * total:
                memory.setdefault(share, own_memory())

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return model.family.encode_images(model, pixels)

    store = DiskStore(caches, identity([model.vae], model.vae.config))
    cache_latents(training_set, encode, options.vae_batch_size, progress, store=store, workers=min(4, cpu_count()))
    after, ended = os.times(), time.perf_counter()
    print(
        json.dumps(
            {
                "model": loaded - begun,
                "scan": scanned - loaded,
                "cache": ended - scanned,
                "busy": (after.user + after.system - before.user - before.system) / (ended - loaded),
                "quarter": memory[0.25],
                "all": memory[1.0],
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--vae_batch_size", type=int, default=1)
    parser.add_argument("--model", default="backend/demo/model")
    parser.add_argument("--start", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        start(options)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder, toml = Path(scratch) / "pictures", Path(scratch) / "dataset.toml"
        make_pictures(folder, options.pictures)
        sides = {"least": options.resolution // 2, "most": options.resolution * 2}
        toml.write_text(
            DATASET.format(folder=folder.as_posix(), resolution=options.resolution, **sides), encoding="utf-8"
        )
        time.sleep(2.5)  # the cache does not believe the times of files that are younger
        for name in ("first", "second"):
            begun = time.perf_counter()
            command = [sys.executable, "-m", "benchmarks.caching", *sys.argv[1:], "--start", str(toml)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found = json.loads(printed.splitlines()[-1])
            ready = found["scan"] + found["cache"]
            print(
                f"{name} start: scan {found['scan']:.2f} s and cache {found['cache']:.2f} s, "
                f"{options.pictures / ready:.1f} pictures/s, CPU {found['busy']:.2f} of {cpu_count()}; "
                f"memory {found['quarter']:.0f} MB at a quarter, {found['all']:.0f} MB at the end; "
                f"model {found['model']:.1f} s, whole process {time.perf_counter() - begun:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
