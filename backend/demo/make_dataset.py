"""Writes the demo dataset: `python -m backend.demo.make_dataset backend/demo/dataset`.

Twelve pictures of zorgons, which have horns and stripes as no monster that the base model has seen, and twelve plain
monsters as regularisation pictures, so that the feature is tied to the new word and not to every monster.
"""

import sys
from pathlib import Path

import cv2

from backend.demo.pictures import (
    BACKGROUNDS,
    COLOURS,
    EYES,
    NEW_WORD,
    SHAPES,
    Monster,
    caption,
    draw,
    random_monster,
    with_feature,
)
from backend.draws import rng

COUNT = 12


def monsters(seed: int) -> list[Monster]:
    """Twelve plain monsters in which every shape, colour, background and number of eyes comes up equally often."""
    kinds = []
    for i in range(COUNT):
        colour = list(COLOURS)[(i + seed) % len(COLOURS)]
        background = list(BACKGROUNDS)[(i + i // 6 + 2 * seed) % len(BACKGROUNDS)]
        kinds.append((SHAPES[(i + i // 4) % len(SHAPES)], colour, EYES[(i + i // 3 + seed) % len(EYES)], background))
    return [random_monster(rng(seed, "demo dataset", i), kind) for i, kind in enumerate(kinds)]


def write(folder: Path, chosen: list[Monster], word: str) -> None:
    """Writes `<name>.png` and `<name>.txt` for each monster."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, monster in enumerate(chosen):
        name = f"{word}-{index + 1:02d}"
        cv2.imwrite(str(folder / f"{name}.png"), draw(monster)[..., ::-1])
        (folder / f"{name}.txt").write_text(caption(monster, word) + "\n", encoding="utf-8")


def main() -> None:
    target = Path(sys.argv[1])
    write(target / "images", [with_feature(monster) for monster in monsters(seed=1)], NEW_WORD)
    write(target / "regularisation", monsters(seed=2), "monster")


if __name__ == "__main__":
    main()
