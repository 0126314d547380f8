"""Masks: how much each part of a picture counts in the loss. Found beside the pictures, shrunk to the latents' size."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backend.config.dataset import PIXELS
from backend.errors import UserError
from backend.images import FOREIGN
from backend.picture_folder import FORMAT, MASKS, is_picture, names_of, readable, same_name
from backend.tables.buckets import Size

OPTION = "conditioning_data_dir"
NAMED = 5
SHAPE_TOLERANCE = 0.02  # relative difference of the aspect ratios that comes from rounding small copies


def find_masks(paths: Sequence[Path], folder: Path) -> list[Path]:
    """The mask of each picture: the file of the same name in `folder`, else one that differs in the extension only.

    Raises:
        UserError: there is no such folder, or pictures without a mask, which are named.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: check the path", OPTION)
    listed = {same_name(path.name): path for path in _listed(folder) if is_picture(path.name)}
    by_stem = {same_name(path.stem): path for path in reversed(listed.values())}
    found = [listed.get(same_name(path.name)) or by_stem.get(same_name(path.stem)) for path in paths]
    missing = [Path(path.name) for path, mask in zip(paths, found, strict=True) if mask is None]
    if missing:
        foreign = [path for path in _listed(folder) if path.suffix.lower() in FOREIGN]
        remedy = "add one of the same name, white where all counts"
        if foreign:
            remedy = f"save {names_of(foreign)} as PNG, or {remedy}"
        raise UserError(f"{readable(folder)} has no mask for {names_of(missing, NAMED)}: {remedy}", OPTION)
    return [mask for mask in found if mask is not None]


def unused_masks(folder: Path, used: Sequence[Path]) -> dict[str, list[Path]]:
    """What lies in a folder of masks and is no picture's mask, by kind; see `backend.picture_folder.told`."""
    left = [path for path in _listed(folder) if path not in set(used)]
    foreign = [path for path in left if path.suffix.lower() in FOREIGN]
    masks = [path for path in left if is_picture(path.name)]
    return {kind: paths for kind, paths in ((FORMAT, foreign), (MASKS, masks)) if paths}


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"cannot list {readable(folder)} ({error.strerror}): check its permissions", OPTION) from error


def check_shapes(masks: Sequence[Path], mask_sizes: Sequence[Size], sizes: Sequence[Size]) -> None:
    """See that each mask has the shape of its picture; it may be smaller or larger.

    Raises:
        UserError: one has not.
    """
    for path, (wide, high), (width, height) in zip(masks, mask_sizes, sizes, strict=True):
        if abs(wide * height / (high * width) - 1) > SHAPE_TOLERANCE:
            message = f"the mask {path} is {wide}x{high}, its picture {width}x{height}: make it of the same shape"
            raise UserError(message, OPTION)


def latent_mask(mask: np.ndarray) -> Tensor:
    """uint8 [height, width] -> float32 [1, height / 8, width / 8] in [0, 1]: the mean over each latent pixel's area."""
    high, wide = (side // PIXELS for side in mask.shape)
    blocks = torch.from_numpy(mask.reshape(high, PIXELS, wide, PIXELS).sum((1, 3), dtype=np.int32))
    return (blocks.float() / (255 * PIXELS * PIXELS))[None]


def stacked_masks(masks: Sequence[Tensor | None]) -> Tensor | None:
    """Masks [1, h, w] of one size as [B, 1, h, w], ones for the pictures without; None where all are."""
    known = next((mask for mask in masks if mask is not None), None)
    if known is None:
        return None
    return torch.stack([torch.ones_like(known) if mask is None else mask for mask in masks])
