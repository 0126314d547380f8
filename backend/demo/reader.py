"""Reads a demo picture back: which monster it shows, so that a test can say whether a prompt was followed.

Plain image processing on a uint8 RGB picture, no learned parts. `tests/demo` holds it against drawn pictures, clean and
spoilt.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from backend.demo.pictures import BACKGROUNDS, COLOURS, INK, SHAPES, Monster, outline

_NEAR = np.ones((3, 3), np.uint8)
# Stripes lie across, so gaps are closed further down than across; less across keeps a star's notches open.
_CLOSE = np.ones((11, 3), np.uint8)
_SHAPE_SIDE = 32
_STRIPE_ROWS = 3
_HORN_PIXELS = 5


@dataclass(frozen=True)
class Reading:
    """What a picture shows. `shape`, `colour` are "" and `eyes` 0 where no monster was found."""

    background: str
    colour: str
    shape: str
    eyes: int
    horns: bool
    stripes: bool

    def matches(self, monster: Monster) -> dict[str, bool]:
        """By name, whether each thing that a caption says of `monster` is there."""
        return {
            "background": self.background == monster.background,
            "colour": self.colour == monster.colour,
            "shape": self.shape == monster.shape,
            "eyes": self.eyes == monster.eyes,
        }

    @property
    def feature(self) -> bool:
        """Both marks of the demo LoRA."""
        return self.horns and self.stripes

    @property
    def affected(self) -> bool:
        """At least one mark of the demo LoRA."""
        return self.horns or self.stripes


def read(picture: np.ndarray) -> Reading:
    """Reads one picture.

    Args:
        picture: uint8 [64, 64, 3], RGB.

    Returns:
        what it shows.

    Raises:
        ValueError: if the array is not a picture of that size and type.
    """
    if picture.shape != (64, 64, 3) or picture.dtype != np.uint8:
        raise ValueError(f"expected uint8 [64, 64, 3], got {picture.dtype} {list(picture.shape)}")
    pixels = picture.astype(np.float32)
    border = np.median(
        np.concatenate([pixels[:3].reshape(-1, 3), pixels[:, :3].reshape(-1, 3), pixels[:, -3:].reshape(-1, 3)]), 0
    )
    background = _nearest(border, BACKGROUNDS)
    colour, body = _find_body(pixels, border)
    if not colour:
        return Reading(background, "", "", 0, False, False)
    ink = _ink_mask(pixels, COLOURS[colour]) & (_distance(pixels, border) > 45)
    eyes = _count_eyes(pixels, ink, body)
    dark = _ink_mask(pixels, COLOURS[colour], most=175) & (_distance(pixels, INK) < _distance(pixels, border))
    skin = body & ~(pixels.min(-1) > 150)
    return Reading(background, colour, _read_shape(body), eyes, _has_horns(dark, body), _has_stripes(ink, skin))


def _distance(pixels: np.ndarray, colour: np.ndarray | tuple[int, ...]) -> np.ndarray:
    return np.linalg.norm(pixels - np.asarray(colour, np.float32), axis=-1)


def _distance_to_blends(pixels: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Distance to the nearest mixture of two colours."""
    along = second - first
    part = np.clip((pixels - first) @ along / max(float(along @ along), 1.0), 0, 1)
    return np.linalg.norm(pixels - first - part[..., None] * along, axis=-1)


def _nearest(colour: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    return min(palette, key=lambda name: float(np.linalg.norm(colour - np.array(palette[name]))))


def _find_body(pixels: np.ndarray, border: np.ndarray) -> tuple[str, np.ndarray]:
    """The body's colour by vote of the pixels that are neither background, ink nor white, and its filled silhouette."""
    names = list(COLOURS)
    to_colours = np.stack([_distance(pixels, COLOURS[name]) for name in names], axis=-1)
    # Edges of horns are blends of ink and background, and some of these come near a body's colour.
    to_blends = _distance_to_blends(pixels, np.array(INK, np.float32), border)
    others = np.minimum(to_blends, _distance(pixels, (250, 250, 250)))
    coloured = to_colours.min(-1) < np.minimum(others, 95)
    votes = np.bincount(to_colours.argmin(-1)[coloured], minlength=len(names))
    if votes.max() < 60:
        return "", coloured
    # The silhouette is made of all coloured pixels: red beside ink may well be nearest to purple.
    return names[int(votes.argmax())], _fill(coloured)


def _fill(mask: np.ndarray) -> np.ndarray:
    """Closes the gaps of stripes, eyes and mouth and keeps the largest piece."""
    padded = np.pad(mask.astype(np.uint8), 12)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, _CLOSE)[12:-12, 12:-12]
    contours, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros_like(closed)
    cv2.drawContours(filled, [max(contours, key=cv2.contourArea)], -1, 1, thickness=-1)
    return filled.astype(bool)


def _ink_mask(pixels: np.ndarray, colour: tuple[int, int, int], most: int = 140) -> np.ndarray:
    """Pixels at least as near to ink as to the body's colour, with no channel above `most`."""
    return (_distance(pixels, INK) <= _distance(pixels, colour)) & (pixels.max(-1) < most)


def _count_eyes(pixels: np.ndarray, ink: np.ndarray, body: np.ndarray) -> int:
    """Counts pupils: small dark spots in the body that stand in a ring of white."""
    near = cv2.dilate(body.astype(np.uint8), _NEAR).astype(bool)
    white = (pixels.min(-1) > 150) & near
    dark = ((pixels.mean(-1) < 120) & cv2.dilate(white.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)) | ink
    count, labels, stats, _ = cv2.connectedComponentsWithStats(dark.astype(np.uint8), connectivity=4)
    eyes = 0
    for label in range(1, count):
        spot = labels == label
        if not 2 <= stats[label, cv2.CC_STAT_AREA] <= 80 or not (spot & body).any():
            continue
        wide = cv2.dilate(spot.astype(np.uint8), _NEAR, iterations=2).astype(bool)
        ring = wide & ~cv2.dilate(spot.astype(np.uint8), _NEAR).astype(bool)
        eyes += bool(white[ring].mean() > 0.55)
    return eyes


def _read_shape(body: np.ndarray) -> str:
    found = _normalised(body)
    overlap = {shape: max(_overlap(found, template) for template in _templates(shape)) for shape in SHAPES}
    return max(overlap, key=lambda shape: overlap[shape])


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@lru_cache(maxsize=len(SHAPES))
def _templates(shape: str) -> tuple[np.ndarray, ...]:
    """Normalised silhouettes of a shape at several tilts, made by the same closing as a body that was found."""
    templates = []
    for tilt in (-7.0, -3.5, 0.0, 3.5, 7.0):
        mask = np.zeros((64, 64), np.uint8)
        cv2.fillPoly(mask, [np.round(outline(shape, 20.0, tilt) + (32, 34)).astype(np.int32)], 1)
        templates.append(_normalised(_fill(mask.astype(bool))))
    return tuple(templates)


def _normalised(mask: np.ndarray) -> np.ndarray:
    """The mask cut to its bounding box and scaled to a fixed square."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
    return cv2.resize(cut, (_SHAPE_SIDE, _SHAPE_SIDE), interpolation=cv2.INTER_LINEAR) > 0.5


def _has_horns(ink: np.ndarray, body: np.ndarray) -> bool:
    """Ink outside the body, in its upper half, on both sides of its middle."""
    rows, columns = np.flatnonzero(body.any(1)), np.flatnonzero(body.any(0))
    outside = ink & ~cv2.dilate(body.astype(np.uint8), _NEAR).astype(bool)
    outside[(rows[0] + rows[-1]) // 2 :] = False
    middle = (columns[0] + columns[-1]) // 2
    return bool(min(outside[:, :middle].sum(), outside[:, middle + 1 :].sum()) >= _HORN_PIXELS)


def _has_stripes(ink: np.ndarray, skin: np.ndarray) -> bool:
    """Rows of the body, eyes left out, that are mostly ink."""
    width = skin.sum(1)
    striped = ((ink & skin).sum(1) > 0.5 * width) & (width >= 8)
    return bool(striped.sum() >= _STRIPE_ROWS)
