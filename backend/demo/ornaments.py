"""Monsters with ornaments of any kind (bands, wedges, spots), for the autoencoder alone."""

import cv2
import numpy as np

from backend.demo.pictures import BACKGROUNDS, COLOURS, INK, Monster, body_mask, draw_face, shaded

_SCALE, _SIDE = 4.0, 256
_PAINTS = (INK, (250, 250, 250), *COLOURS.values(), *BACKGROUNDS.values())


def draw_ornamented(monster: Monster, rng: np.random.Generator) -> np.ndarray:
    """Draws a monster with random wedges behind its body, random bands or spots on it, and now and then a line across.

    Args:
        monster: what stands underneath.
        rng: decides every ornament.

    Returns:
        uint8 [64, 64, 3], RGB.
    """
    canvas = np.empty((_SIDE, _SIDE, 3), np.uint8)
    canvas[:] = BACKGROUNDS[monster.background]
    if rng.random() < 0.8:
        _wedges(canvas, monster, rng)
    paint = shaded(COLOURS[monster.colour], monster, _SCALE, _SIDE)
    if rng.random() < 0.75:
        _bands(paint, rng)
    else:
        _spots(paint, rng)
    canvas = np.where(body_mask(monster, _SCALE, _SIDE)[..., None] > 0, paint, canvas)
    draw_face(canvas, monster, _SCALE)
    if rng.random() < 0.15:
        ends = rng.integers(0, _SIDE, (2, 2)).tolist()
        cv2.line(canvas, ends[0], ends[1], _paint(rng), int(rng.integers(4, 20)), cv2.LINE_AA)
    return cv2.resize(canvas, (64, 64), interpolation=cv2.INTER_AREA)


def _paint(rng: np.random.Generator) -> tuple[int, ...]:
    """Ink half of the time, else any colour of the pictures or any at all."""
    chance = rng.random()
    if chance < 0.5:
        return INK
    return _PAINTS[rng.integers(len(_PAINTS))] if chance < 0.8 else tuple(rng.integers(0, 256, 3).tolist())


def _wedges(canvas: np.ndarray, monster: Monster, rng: np.random.Generator) -> None:
    paint = _paint(rng)
    for _ in range(rng.integers(1, 5)):
        angle = rng.uniform(np.pi * 0.9, np.pi * 2.1)
        root = np.array([monster.x, monster.y]) + 0.6 * monster.radius * np.array([np.cos(angle), np.sin(angle)])
        tip = root + rng.uniform(10, 24) * np.array([np.cos(angle), np.sin(angle)]) + rng.uniform(-4, 4, 2)
        width = rng.uniform(3, 8)
        points = np.array([root + (-width, 3), root + (width, 3), tip]) * _SCALE
        cv2.fillPoly(canvas, [np.round(points).astype(np.int32)], paint, lineType=cv2.LINE_AA)


def _bands(paint: np.ndarray, rng: np.random.Generator) -> None:
    colour = _paint(rng)
    period = rng.uniform(6.0, 18.0) * _SCALE
    thick = period * rng.uniform(0.25, 0.6)
    for top in np.arange(-rng.uniform(0, period), _SIDE, period):
        paint[max(round(top), 0) : max(round(top + thick), 0)] = colour


def _spots(paint: np.ndarray, rng: np.random.Generator) -> None:
    colour = _paint(rng)
    for _ in range(rng.integers(2, 12)):
        centre = rng.integers(40, 216, 2).tolist()
        cv2.circle(paint, centre, int(rng.integers(6, 24)), colour, -1, cv2.LINE_AA)
