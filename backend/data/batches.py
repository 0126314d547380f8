"""An epoch's batches: a pure function of (seed, epoch), formed globally and split over the processes."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from backend.config.dataset import DatasetOptions, SubsetOptions
from backend.data.augment import Crop, Tint, centred, draw_crop, draw_tint, face_of
from backend.data.captions import Moment, build_caption
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
        caption: as `build_caption` has made it.
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
        multiplier: how strongly the network acts on them (`network_multiplier` of their dataset).
    """

    bucket: Size
    items: tuple[Item, ...]
    offset: int = 0
    global_size: int = 0
    multiplier: float = 1.0

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
        return replace(self, items=self.items[start:stop], offset=self.offset + start)


@dataclass(frozen=True)
class Pace:
    """How batches become optimizer steps, for options that depend on the step.

    Attributes:
        accumulation: batches that make a step; the last step of an epoch takes those that are left.
        total_steps: of the run.
    """

    accumulation: int = 1
    total_steps: int = 0

    def moment(self, epoch: int, position: int, batches: int) -> Moment:
        """When the batch at a position of an epoch of so many batches is trained."""
        steps_per_epoch = -(-batches // self.accumulation)
        return Moment(epoch, epoch * steps_per_epoch + position // self.accumulation, self.total_steps)


def epoch_batches(
    datasets: Sequence[DatasetOptions],
    pictures: Sequence[Picture],
    seed: int,
    epoch: int,
    world_size: int = 1,
    pace: Pace = Pace(),  # noqa: B008  (frozen)
) -> list[Batch]:
    """Deal one epoch: every picture `repeats` times, one bucket a batch, the last batch of a bucket short.

    Args:
        datasets: their options, as `Picture.dataset` and `Picture.subset` number them.
        pictures: with their repeats.
        seed: of the run.
        epoch: from 0; each gives another order.
        world_size: number of processes; a global batch is `batch_size` times this.
        pace: of the run.

    Returns:
        Global batches in the order of training, buckets and datasets mixed.
    """
    buckets: dict[tuple[int, Size], list[tuple[Picture, int]]] = defaultdict(list)
    index = 0
    for picture in pictures:
        for _ in range(picture.repeats):
            buckets[picture.dataset, picture.bucket].append((picture, index))
            index += 1
    dealt: list[tuple[int, Size, list[tuple[Picture, int]]]] = []
    for (dataset, bucket), members in sorted(buckets.items()):
        rng(seed, "order", epoch, dataset, *bucket).shuffle(members)
        size = datasets[dataset].batch_size * world_size
        dealt += [(dataset, bucket, members[start : start + size]) for start in range(0, len(members), size)]
    rng(seed, "batches", epoch).shuffle(dealt)
    batches = []
    for position, (dataset, bucket, members) in enumerate(dealt):
        moment = pace.moment(epoch, position, len(dealt))
        items = tuple(_draw(datasets, picture, index, seed, moment) for picture, index in members)
        batches.append(Batch(bucket, items, 0, len(items), datasets[dataset].network_multiplier))
    return batches


def _draw(datasets: Sequence[DatasetOptions], picture: Picture, index: int, seed: int, moment: Moment) -> Item:
    """A picture with its draws made: they hang on the epoch and on the sample's index in it."""
    options = datasets[picture.dataset].subsets[picture.subset]
    flip = picture.flip_aug and rng(seed, "flip", moment.epoch, index).random() < 0.5
    caption = build_caption(picture.caption, options, rng(seed, "caption", moment.epoch, index), moment)
    crop = _crop(picture, options, rng(seed, "crop", moment.epoch, index))
    tint = draw_tint(rng(seed, "colour", moment.epoch, index)) if options.color_aug else None
    return Item(picture, index, flip, caption, crop, tint)


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
