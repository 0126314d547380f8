"""Pictures to train on: coarse noise with a caption each."""

import random
from pathlib import Path

from PIL import Image

# Batches of different pictures that a run goes through again and again.
BATCHES = 4
WORDS = ("monster", "castle", "river", "lantern", "garden")


def draw_pictures(folder: Path, count: int, size: int) -> None:
    """Square pictures of `size` pixels, the same ones every time."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = random.Random(0)
    for index in range(count):
        coarse = Image.frombytes("RGB", (8, 8), drawn.randbytes(8 * 8 * 3))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{index:03d}.png")
        caption = f"a picture of a {WORDS[index % len(WORDS)]}, number {index}"
        (folder / f"{index:03d}.txt").write_text(caption, encoding="utf-8")
