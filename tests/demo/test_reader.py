"""The picture reader against pictures whose content is known, clean and spoilt."""

import collections
import random

import cv2
import numpy as np
import pytest

from backend.demo.pictures import Monster, all_kinds, draw, random_monster, with_feature
from backend.demo.reader import Reading, read

COUNT = 150


def _rates(feature: bool, blur: float, noise: float) -> dict[str, float]:
    chance, grain = random.Random(3), np.random.default_rng(3)
    right = collections.Counter()
    for _ in range(COUNT):
        monster = random_monster(chance, chance.choice(all_kinds()))
        monster = with_feature(monster) if feature else monster
        picture = draw(monster).astype(np.float64)
        picture = cv2.GaussianBlur(picture, (0, 0), blur) if blur else picture
        picture = np.clip(picture + grain.normal(0, noise, picture.shape), 0, 255).astype(np.uint8)
        reading = read(picture)
        right.update(name for name, value in reading.matches(monster).items() if value)
        right["horns"] += reading.horns == monster.horns
        right["stripes"] += reading.stripes == monster.stripes
    return {name: count / COUNT for name, count in right.items()}


@pytest.mark.parametrize(("blur", "noise"), [(0, 0), (0.7, 0), (0.7, 8)])
def test_plain_monsters_are_read_right(blur: float, noise: float) -> None:
    rates = _rates(feature=False, blur=blur, noise=noise)
    assert rates["background"] == rates["colour"] == rates["stripes"] == 1.0
    assert min(rates["shape"], rates["eyes"], rates["horns"]) >= 0.97


@pytest.mark.parametrize(("blur", "noise"), [(0, 0), (0.7, 0)])
def test_zorgons_are_read_right(blur: float, noise: float) -> None:
    rates = _rates(feature=True, blur=blur, noise=noise)
    assert rates["background"] == rates["colour"] == 1.0
    assert min(rates["shape"], rates["horns"], rates["stripes"]) >= 0.9


def test_one_mark_alone_is_not_the_feature() -> None:
    monster = Monster("round", "red", 2, "white", horns=True)
    reading = read(draw(monster))
    assert (reading.horns, reading.stripes, reading.feature, reading.affected) == (True, False, False, True)


def test_an_empty_picture_has_no_monster() -> None:
    assert read(np.full((64, 64, 3), (250, 172, 196), np.uint8)) == Reading("pink", "", "", 0, False, False)


def test_noise_is_not_taken_for_a_monster_with_marks() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert not read(noise).feature


def test_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match="64, 64, 3"):
        read(np.zeros((32, 32, 3), np.uint8))
