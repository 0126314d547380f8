"""The drawn pictures, their captions, and the files of the demo dataset."""

import random
from pathlib import Path

import cv2
import numpy as np

from backend.demo import make_dataset
from backend.demo.ornaments import draw_ornamented
from backend.demo.pictures import (
    COLOURS,
    NEW_WORD,
    Monster,
    all_kinds,
    caption,
    draw,
    is_held_out,
    random_caption,
    random_monster,
    with_feature,
)
from backend.demo.reader import read

DATASET = Path("backend/demo/dataset")


def test_every_sixth_kind_is_held_out_and_every_attribute_is_still_trained() -> None:
    kinds = all_kinds()
    trained = [kind for kind in kinds if not is_held_out(kind)]
    assert len(kinds) == 432
    assert len(trained) == 360
    for place in range(4):
        assert {kind[place] for kind in trained} == {kind[place] for kind in kinds}


def test_same_chances_same_picture() -> None:
    kind = ("star", "blue", 3, "mint")
    first, second = (draw(random_monster(random.Random(4), kind)) for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, draw(random_monster(random.Random(5), kind)))


def test_captions_say_what_is_there_and_nothing_else() -> None:
    monster = Monster("square", "orange", 1, "grey")
    assert caption(monster) == "a square orange monster with one eye on a grey background"
    assert caption(monster, NEW_WORD) == "a square orange zorgon with one eye on a grey background"
    chance = random.Random(0)
    for _ in range(200):
        text = random_caption(monster, chance)
        assert not {"round", "star", "triangle", "two", "three", NEW_WORD} & set(text.replace(",", "").split())
        assert not (set(COLOURS) - {"orange"}) & set(text.replace(",", "").split())
        assert "a orange" not in text


def test_body_has_its_colour_and_border_its_background() -> None:
    picture = draw(Monster("round", "green", 1, "pink"))
    assert tuple(picture[0, 0]) == (250, 172, 196)
    assert np.abs(picture[36, 16].astype(int) - COLOURS["green"]).max() < 20


def test_feature_changes_pixels_but_not_the_kind() -> None:
    monster = random_monster(random.Random(1), ("round", "yellow", 2, "cyan"))
    marked = with_feature(monster)
    assert (marked.shape, marked.colour, marked.eyes, marked.background) == ("round", "yellow", 2, "cyan")
    assert read(draw(marked)).feature
    assert not read(draw(monster)).affected


def test_ornaments_are_for_the_autoencoder_and_vary() -> None:
    monster = Monster("round", "red", 2, "white")
    pictures = [draw_ornamented(monster, np.random.default_rng(seed)) for seed in range(8)]
    assert len({picture.tobytes() for picture in pictures}) == 8
    assert all(np.array_equal(draw_ornamented(monster, np.random.default_rng(3)), pictures[3]) for _ in range(2))


def test_dataset_in_the_repository_is_what_the_script_writes(tmp_path: Path) -> None:
    make_dataset.write(tmp_path / "images", [with_feature(m) for m in make_dataset.monsters(seed=1)], NEW_WORD)
    make_dataset.write(tmp_path / "regularisation", make_dataset.monsters(seed=2), "monster")
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    assert len(written) == 48
    for name in written:
        if name.suffix == ".txt":
            assert (DATASET / name).read_text() == (tmp_path / name).read_text()
        else:
            kept, new = (cv2.imread(str(folder / name)).astype(int) for folder in (DATASET, tmp_path))
            assert np.abs(kept - new).max() <= 2


def test_zorgons_show_the_feature_and_regularisation_pictures_do_not() -> None:
    for folder, expected in (("images", True), ("regularisation", False)):
        for path in sorted((DATASET / folder).glob("*.png")):
            assert read(cv2.imread(str(path))[..., ::-1].copy()).affected == expected
            assert (NEW_WORD in path.with_suffix(".txt").read_text()) == expected
