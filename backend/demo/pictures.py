"""Draws the demo's pictures, little monsters with a shape, a colour, eyes and a background, and writes their captions.

Everything is a pure function of a `Monster`; `random_monster` and `random_caption` take the generator that they draw
from. Sizes are in pixels of a 64 px picture and scale with `size`.
"""

import math
import random
from dataclasses import dataclass, replace

import cv2
import numpy as np

SHAPES = ("round", "square", "triangle", "star")
COLOURS = {
    "red": (222, 48, 48),
    "orange": (246, 138, 30),
    "yellow": (250, 216, 50),
    "green": (52, 165, 72),
    "blue": (48, 92, 222),
    "purple": (142, 64, 190),
}
BACKGROUNDS = {
    "white": (246, 246, 246),
    "grey": (150, 152, 158),
    "pink": (250, 172, 196),
    "cyan": (132, 220, 238),
    "brown": (136, 94, 62),
    "mint": (176, 236, 190),
}
EYES = (1, 2, 3)
COUNT_WORDS = {1: "one eye", 2: "two eyes", 3: "three eyes"}
INK = (34, 22, 44)
NEW_WORD = "zorgon"

_FULL_CAPTIONS = (
    "a {shape} {colour} monster with {eyes} on a {background} background",
    "{shape} {colour} monster, {eyes}, {background} background",
    "a picture of a {colour} {shape} monster with {eyes}, {background} background",
    "a {colour} monster, {shape}, {eyes}, on a {background} background",
)
_PARTIAL_CAPTIONS = (
    "a {shape} {colour} monster on a {background} background",
    "a {colour} monster with {eyes}",
    "a {shape} monster with {eyes} on a {background} background",
    "a {shape} {colour} monster",
    "{eyes}, {colour} monster, {background} background",
    "a monster on a {background} background",
    "a monster",
)


@dataclass(frozen=True)
class Monster:
    """What a caption can say of a picture, and below that what it leaves to chance.

    `horns` and `stripes` are the feature of the demo LoRA; the base model never sees them.
    """

    shape: str
    colour: str
    eyes: int
    background: str
    horns: bool = False
    stripes: bool = False
    x: float = 32.0
    y: float = 35.0
    radius: float = 20.0
    tilt: float = 0.0
    gaze: tuple[float, float] = (0.0, 0.0)


def all_kinds() -> list[tuple[str, str, int, str]]:
    """Every combination of shape, colour, number of eyes and background, in a fixed order."""
    return [(s, c, e, b) for s in SHAPES for c in COLOURS for e in EYES for b in BACKGROUNDS]


def is_held_out(kind: tuple[str, str, int, str]) -> bool:
    """Whether a combination (one in six) is kept away from training, for evaluation to ask for what was never seen."""
    shape, colour, eyes, background = kind
    place = SHAPES.index(shape) + 2 * list(COLOURS).index(colour) + 3 * eyes + 5 * list(BACKGROUNDS).index(background)
    return place % 6 == 0


def random_monster(rng: random.Random, kind: tuple[str, str, int, str]) -> Monster:
    """A monster of the given kind with place, size, tilt and gaze drawn from `rng`."""
    angle = rng.uniform(0, 2 * math.pi)
    gaze = rng.uniform(0.0, 1.0)
    return Monster(
        *kind,
        x=rng.uniform(28.5, 35.5),
        y=rng.uniform(34.0, 37.5),
        radius=rng.uniform(18.0, 22.0),
        tilt=rng.uniform(-7.0, 7.0),
        gaze=(gaze * math.cos(angle), gaze * math.sin(angle)),
    )


def with_feature(monster: Monster) -> Monster:
    """The same monster with the horns and stripes that the demo LoRA teaches."""
    return replace(monster, horns=True, stripes=True, y=max(monster.y, 36.0), radius=min(monster.radius, 20.5))


def random_caption(monster: Monster, rng: random.Random, partial_rate: float = 0.25) -> str:
    """A caption in one of several wordings; with probability `partial_rate` one that leaves attributes out."""
    wordings = _PARTIAL_CAPTIONS if rng.random() < partial_rate else _FULL_CAPTIONS
    return _fill(rng.choice(wordings), monster)


def caption(monster: Monster, word: str = "monster") -> str:
    """The plain full caption; `word` says what kind of creature it is."""
    return _fill(_FULL_CAPTIONS[0], monster).replace("monster", word)


def _fill(wording: str, monster: Monster) -> str:
    return wording.format(
        shape=monster.shape, colour=monster.colour, eyes=COUNT_WORDS[monster.eyes], background=monster.background
    ).replace("a orange", "an orange")


def draw(monster: Monster, size: int = 64) -> np.ndarray:
    """Draws a monster.

    Args:
        monster: what to draw.
        size: side of the square picture in pixels.

    Returns:
        uint8 array [size, size, 3], RGB.
    """
    scale = 4 * size / 64
    side = 4 * size
    canvas = np.empty((side, side, 3), np.uint8)
    canvas[:] = BACKGROUNDS[monster.background]
    body = body_mask(monster, scale, side)
    if monster.horns:
        _draw_horns(canvas, monster, scale)
    paint = shaded(COLOURS[monster.colour], monster, scale, side)
    if monster.stripes:
        _draw_stripes(paint, monster, scale)
    canvas = np.where(body[..., None] > 0, paint, canvas)
    draw_face(canvas, monster, scale)
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)


def outline(shape: str, radius: float, tilt: float = 0.0) -> np.ndarray:
    """The corner points of a body around the origin, float [N, 2]; y grows downwards, `tilt` in degrees."""
    turn = math.radians(tilt)
    if shape == "round":
        angles = np.linspace(0, 2 * math.pi, 64, endpoint=False)
        points = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    elif shape == "square":
        half = 0.84 * radius
        points = _rounded(np.array([(-half, -half), (half, -half), (half, half), (-half, half)]), 0.22 * radius)
    elif shape == "triangle":
        corners = np.array([(0.0, -1.22 * radius), (1.16 * radius, 0.84 * radius), (-1.16 * radius, 0.84 * radius)])
        points = _rounded(corners, 0.22 * radius)
    else:
        angles = -math.pi / 2 + np.arange(10) * math.pi / 5
        reach = np.where(np.arange(10) % 2 == 0, 1.24, 0.66) * radius
        points = np.stack([reach * np.cos(angles), reach * np.sin(angles)], axis=1)
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    return points @ rotation


def _rounded(corners: np.ndarray, radius: float) -> np.ndarray:
    """Cuts each corner of a polygon with a quadratic curve that starts `radius` before it."""
    points = []
    for index, corner in enumerate(corners):
        before, after = corners[index - 1] - corner, corners[(index + 1) % len(corners)] - corner
        start = corner + before / np.linalg.norm(before) * radius
        end = corner + after / np.linalg.norm(after) * radius
        for t in np.linspace(0, 1, 9):
            points.append((1 - t) ** 2 * start + 2 * t * (1 - t) * corner + t**2 * end)
    return np.array(points)


def body_mask(monster: Monster, scale: float, side: int) -> np.ndarray:
    """The body's silhouette, 0 or 255, uint8 [side, side]; `scale`: canvas pixels per pixel of a 64 px picture."""
    mask = np.zeros((side, side), np.uint8)
    points = (outline(monster.shape, monster.radius, monster.tilt) + (monster.x, monster.y)) * scale
    cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 255)
    return mask


def shaded(colour: tuple[int, int, int], monster: Monster, scale: float, side: int) -> np.ndarray:
    """A sheet of the body's colour, a little lighter above than below."""
    height = (np.arange(side) / scale - monster.y) / monster.radius
    light = 1.0 - 0.09 * np.clip(height, -1.2, 1.2)
    sheet = np.clip(light[:, None, None] * np.array(colour, np.float64), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(sheet, (side, side, 3)))


def _draw_stripes(paint: np.ndarray, monster: Monster, scale: float) -> None:
    for centre in np.arange(-24.5, 30.0, 9.8):
        top, bottom = (round((monster.y + centre + d) * scale) for d in (-2.1, 2.1))
        paint[max(top, 0) : max(bottom, 0)] = INK


def _draw_horns(canvas: np.ndarray, monster: Monster, scale: float) -> None:
    spread = 0.50 if monster.shape in ("round", "square") else 0.62
    for side in (-1, 1):
        base = np.array([monster.x + side * spread * monster.radius, monster.y - 0.55 * monster.radius])
        points = base + np.array([(-5.6, 7.0), (5.6, 7.0), (side * 7.5, -0.58 * monster.radius - 5.0)])
        cv2.fillPoly(canvas, [np.round(points * scale).astype(np.int32)], INK, lineType=cv2.LINE_AA)


_EYE_PLACES = {
    1: ((0.0, -3.0, 7.2),),
    2: ((-6.6, -3.0, 5.4), (6.6, -3.0, 5.4)),
    3: ((-6.9, 0.9, 4.4), (6.9, 0.9, 4.4), (0.0, -8.2, 4.4)),
}


def draw_face(canvas: np.ndarray, monster: Monster, scale: float) -> None:
    """Draws eyes and mouth onto `canvas`."""
    grow = monster.radius / 20.0
    # A triangle is narrow where the others carry their eyes.
    drop, squeeze = (5.0, 0.86) if monster.shape == "triangle" else (1.5, 1.0)
    for dx, dy, size in _EYE_PLACES[monster.eyes]:
        radius = size * squeeze
        centre = (monster.x + dx * squeeze * grow, monster.y + dy * grow + drop)
        _disc(canvas, centre, radius * grow, (252, 252, 252), scale)
        look = (centre[0] + monster.gaze[0] * 0.2 * radius, centre[1] + monster.gaze[1] * 0.2 * radius)
        _disc(canvas, look, 0.46 * radius * grow, INK, scale)
    middle = (round(monster.x * scale), round((monster.y + (8.0 + 0.5 * drop) * grow) * scale))
    axes = (round(4.2 * grow * scale), round(2.8 * grow * scale))
    cv2.ellipse(canvas, middle, axes, 0, 10, 170, INK, thickness=round(1.5 * scale), lineType=cv2.LINE_AA)


def _disc(
    canvas: np.ndarray, centre: tuple[float, float], radius: float, colour: tuple[int, ...], scale: float
) -> None:
    place = (round(centre[0] * scale), round(centre[1] * scale))
    cv2.circle(canvas, place, round(radius * scale), colour, thickness=-1, lineType=cv2.LINE_AA)
