"""Pixels for training without cached latents: decoded and resized in worker processes, ahead of the training step."""

import os
import sys
from collections.abc import Iterator, Sequence

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from backend.data.batches import Batch
from backend.data.masks import stacked_masks
from backend.data.pictures import load_sample, to_float
from backend.errors import UserError

# Copies of this process, which have torch already. Python 3.14 would start each afresh on Linux, as it does elsewhere.
CONTEXT = "fork" if sys.platform == "linux" else None


class PixelLoader:
    """Yields the pixels of batches in order.

    A batch carries its draws with it, so the workers have no random state and their number changes nothing.

    Args:
        num_workers: processes that decode (`max_data_loader_n_workers`); 0 decodes in this one.
        persistent: keep the processes from epoch to epoch (`persistent_data_loader_workers`) instead of starting
            new ones.
    """

    def __init__(self, num_workers: int = 0, persistent: bool = False) -> None:
        self._order = _Order()
        self._loader = DataLoader(
            _Pixels(),
            batch_size=None,
            sampler=self._order,
            num_workers=num_workers,
            persistent_workers=persistent and num_workers > 0,
            prefetch_factor=2 if num_workers else None,
            worker_init_fn=_start_worker,
            multiprocessing_context=CONTEXT if num_workers else None,
            generator=torch.Generator(),  # leaves torch's global generator alone
        )

    def epoch(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Tensor, Tensor | None]]:
        """Go through the batches of one epoch, or the rest of it.

        Args:
            batches: global ones or shares; an empty share has no pixels.

        Yields:
            The batch, its pixels, float32 [B, 3, height, width] in [-1, 1], and its masks, float32
            [B, 1, height / 8, width / 8] in [0, 1], None where no picture of the batch has one.

        Raises:
            UserError: if a picture cannot be decoded any more.
        """
        self._order.batches = batches
        for batch, loaded in zip(batches, self._loader, strict=True):
            if isinstance(loaded, UserError):
                raise loaded
            pixels, masks = loaded
            yield batch, to_float(pixels), masks


class _Order(Sampler[Batch]):
    """Hands whole batches to the workers in place of indices, so that workers outlive an epoch."""

    def __init__(self) -> None:
        self.batches: Sequence[Batch] = ()

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Pixels(Dataset[tuple[Tensor, Tensor | None] | UserError]):
    def __getitem__(self, batch: Batch) -> tuple[Tensor, Tensor | None] | UserError:
        """uint8 [B, height, width, 3] and masks; an error is returned, a raised one would come back as a traceback."""
        width, height = batch.bucket
        pixels = torch.empty((len(batch.items), height, width, 3), dtype=torch.uint8)
        masks = []
        try:
            for row, item in zip(pixels, batch.items, strict=True):
                shown, mask = load_sample(item.picture, item.flip, item.crop, item.tint)
                row.copy_(torch.from_numpy(shown))
                masks.append(mask)
        except UserError as error:
            return error
        return pixels, stacked_masks(masks)


def _start_worker(_: int) -> None:
    # The workers share the cores already; threads of OpenCV inherited over a fork may hang.
    cv2.setNumThreads(0)
    # Out of the group that Ctrl-C and `timeout` signal: the run finishes its step first, and needs its pictures for
    # that. A worker whose run is gone ends by itself.
    os.setpgrp()
