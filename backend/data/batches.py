"""An epoch's batches: a pure function of (seed, epoch), formed globally and split over the processes."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from backend.config.dataset import DatasetOptions, SubsetOptions
from backend.data.augment import Crop, Tint, centred, draw_crop, draw_tint, face_of
from backend.data.captions import build_caption
from backend.data.pictures import Picture
from backend.draws import rng
from backend.tables.buckets import Size


@dataclass(frozen=True)
class Item:
    """One sample of an epoch: a picture with its draws made.

    Attributes:
        picture: which.
        index_in_epoch: its place in the epoch's list before shuffling; the draws hang on it, so they do not change with
            the batch size or the number of processes.
        flip: whether it is mirrored.
        caption: prefix, suffix, dropout and shuffling applied.
        crop: the part of the picture that is shown; None is the middle.
        tint: its changed colours; None is its own.
    """

    picture: Picture
    index_in_epoch: int
    flip: bool
    caption: str
    crop: Crop | None = None
    tint: Tint | None = None

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """Height and width of the upright picture, pixels cut off at top and left, height and width in training.

        What is cut off is counted after resizing (SDXL, arXiv 2307.01952, section 2.2). Of a mirrored picture the left
        is what was the right.
        """
        (width, height), (across, down) = self.picture.size, self.picture.bucket
        crop = self.crop or centred(self.picture.resized, self.picture.bucket)
        left = crop.resized[0] - across - crop.left if self.flip else crop.left
        return height, width, crop.top, left, down, across


@dataclass(frozen=True)
class Batch:
    """Samples of one bucket: a global batch, or one process's share of it.

    Attributes:
        bucket: size of all its pictures, (width, height).
        items: in the order in which they are stacked.
        offset: index of the first item in the global batch; noise and timesteps are drawn by `offset` + position.
        global_size: number of items in the global batch.
    """

    bucket: Size
    items: tuple[Item, ...]
    offset: int = 0
    global_size: int = 0

    def shard(self, rank: int, world_size: int) -> "Batch":
        """The contiguous share of one process; the first ones get one more where the batch does not divide.

        A share is empty where a short batch has fewer items than there are processes. A loss that is the mean over the
        global batch weighs each share by `len(items) / global_size`.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size}")
        each, more = divmod(len(self.items), world_size)
        start = rank * each + min(rank, more)
        stop = start + each + (rank < more)
        return Batch(self.bucket, self.items[start:stop], self.offset + start, self.global_size)


def epoch_batches(
    datasets: Sequence[DatasetOptions], pictures: Sequence[Picture], seed: int, epoch: int, world_size: int = 1
) -> list[Batch]:
    """Deal one epoch: every picture `repeats` times, one bucket a batch, the last batch of a bucket short.

    Args:
        datasets: their options, as `Picture.dataset` and `Picture.subset` number them.
        pictures: with their repeats.
        seed: of the run.
        epoch: any integer; each gives another order.
        world_size: number of processes; a global batch is `batch_size` times this.

    Returns:
        Global batches in the order of training, buckets and datasets mixed.
    """
    buckets: dict[tuple[int, Size], list[Item]] = defaultdict(list)
    index = 0
    for picture in pictures:
        options = datasets[picture.dataset].subsets[picture.subset]
        for _ in range(picture.repeats):
            flip = picture.flip_aug and rng(seed, "flip", epoch, index).random() < 0.5
            caption = build_caption(picture.caption, options, rng(seed, "caption", epoch, index))
            crop = _crop(picture, options, rng(seed, "crop", epoch, index))
            tint = draw_tint(rng(seed, "colour", epoch, index)) if options.color_aug else None
            buckets[picture.dataset, picture.bucket].append(Item(picture, index, flip, caption, crop, tint))
            index += 1
    batches = []
    for (dataset, bucket), items in sorted(buckets.items()):
        rng(seed, "order", epoch, dataset, *bucket).shuffle(items)
        size = datasets[dataset].batch_size * world_size
        for start in range(0, len(items), size):
            part = tuple(items[start : start + size])
            batches.append(Batch(bucket, part, 0, len(part)))
    rng(seed, "batches", epoch).shuffle(batches)
    return batches


def _crop(picture: Picture, options: SubsetOptions, draws: random.Random) -> Crop | None:
    if not options.random_crop and options.face_crop_aug_range is None:
        return None
    return draw_crop(picture.size, picture.resized, picture.bucket, face_of(picture.path), options, draws)


def batches_per_epoch(datasets: Sequence[DatasetOptions], pictures: Sequence[Picture], world_size: int = 1) -> int:
    """The number of global batches that `epoch_batches` gives, the same in every epoch."""
    counts: dict[tuple[int, Size], int] = defaultdict(int)
    for picture in pictures:
        counts[picture.dataset, picture.bucket] += picture.repeats
    return sum(-(-count // (datasets[dataset].batch_size * world_size)) for (dataset, _), count in counts.items())
