"""Where the latents of a batch come from: the cache, or the VAE at every step."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from backend.config.dataset import DatasetConfig
from backend.config.training.data import Data
from backend.data.batches import Batch
from backend.data.cache import ALONE, DiskStore, LatentCache, Sharers, cache_latents, check_finite
from backend.data.dataset import TrainingSet
from backend.data.decode import cpu_count
from backend.data.loader import PixelLoader
from backend.data.store import Caches, identity
from backend.errors import UserError
from backend.families.model import Model
from backend.terminal import bar

MOST_WORKERS = 8
# On a CPU, where one picture does not keep many cores busy.
MOST_ENCODERS = 4
# Options of a subset whose draws cached latents cannot follow.
DRAWN_ANEW = ("color_aug", "random_crop", "face_crop_aug_range")


class MicroBatch(NamedTuple):
    """Samples that go through the model at once.

    Attributes:
        batch: their pictures and captions.
        latents: [B, C, h, w] on the device.
        masks: how much each latent pixel counts in the loss, [B, 1, h, w] in [0, 1] on the device; None counts all.
    """

    batch: Batch
    latents: Tensor
    masks: Tensor | None = None


Feed = Callable[[Sequence[Batch]], Iterator[MicroBatch]]


def check_pixels(options: Data, datasets: DatasetConfig) -> None:
    """See that what the datasets do to their pictures goes with how the run feeds them.

    Raises:
        UserError: it does not.
    """
    subsets = [subset for dataset in datasets.datasets for subset in dataset.subsets]
    for subset in subsets if options.cache_latents else ():
        drawn = [name for name in DRAWN_ANEW if getattr(subset, name)]
        if drawn:
            message = (
                f"keeps pictures as they are once, but {subset.image_dir} has {drawn[0]}, which shows them differently "
                "each time; leave one out"
            )
            raise UserError(message, "cache_latents")
    with_masks = [subset for subset in subsets if subset.conditioning_data_dir is not None]
    if with_masks and not options.masked_loss:
        message = f"{with_masks[0].image_dir} has masks, which count with masked_loss only; set it, or leave this out"
        raise UserError(message, "conditioning_data_dir")
    if options.masked_loss and not with_masks and not any(subset.alpha_mask for subset in subsets):
        message = "no dataset has a mask; give a subset conditioning_data_dir or alpha_mask, or leave masked_loss out"
        raise UserError(message, "masked_loss")


def open_caches(options: Data, writes: bool = True) -> Caches | None:
    """What the run keeps on the disk, None where it keeps nothing; of several processes on a machine one writes."""
    for name in ("cache_latents_to_disk", "cache_text_encoder_outputs_to_disk"):
        if getattr(options, name):
            return Caches(name, options.skip_cache_check, writes)
    return None


def make_feed(
    options: Data,
    training_set: TrainingSet,
    model: Model,
    device: torch.device,
    caches: Caches | None = None,
    sharers: Sharers = ALONE,
) -> Feed:
    """Batches -> micro-batches with their latents on the device, in order.

    Latents are the posterior's mode (its deviation is far below the noise of training), cached or not, so that caching
    changes no loss. With `cache_latents` every picture is encoded here and now, and the VAE is not needed afterwards.
    With `cache_latents_to_disk` those that `caches` has of an earlier run are taken from there. Several processes, the
    `sharers`, encode a part each.
    """
    store = None
    if options.cache_latents_to_disk and caches is not None:
        store = DiskStore(caches, identity([model.vae], model.vae.config))
    model.vae.to(device)
    if not options.cache_latents:
        workers = options.max_data_loader_n_workers
        if workers is None:
            workers = min(MOST_WORKERS, cpu_count() - 1)
        return encoding_feed(PixelLoader(workers, options.persistent_data_loader_workers), model)

    def encode(pixels: Tensor) -> Tensor:
        return model.family.encode_images(model, pixels)

    with bar("caching latents") as report:
        workers = min(MOST_ENCODERS, cpu_count()) if device.type == "cpu" else 1
        cache = cache_latents(
            training_set, encode, options.vae_batch_size, report, store=store, workers=workers, sharers=sharers
        )
    model.vae.to("cpu")
    return cached_feed(cache, device)


def validation_feed(feed: Feed, options: Data, model: Model) -> Feed:
    """A feed for held out pictures that may be asked while another is under way: the cache, or a loader of its own."""
    return feed if options.cache_latents else encoding_feed(PixelLoader(), model)


def cached_feed(cache: LatentCache, device: torch.device) -> Feed:
    """Latents out of the cache."""

    def feed(batches: Sequence[Batch]) -> Iterator[MicroBatch]:
        for batch in batches:
            if not batch.items:
                yield nothing(batch, device)
                continue
            latents, masks = cache.batch(batch)
            yield MicroBatch(batch, latents.to(device), None if masks is None else masks.to(device))

    return feed


def encoding_feed(loader: PixelLoader, model: Model) -> Feed:
    """Pixels from the loader, encoded as they come."""

    def feed(batches: Sequence[Batch]) -> Iterator[MicroBatch]:
        for batch, pixels, masks in loader.epoch(batches):
            if not batch.items:
                yield nothing(batch, pixels.device)
                continue
            latents = model.family.encode_images(model, pixels).float()
            for latent, item in zip(latents, batch.items, strict=True):
                check_finite(latent, item.picture)
            yield MicroBatch(batch, latents, None if masks is None else masks.to(latents.device))

    return feed


def nothing(batch: Batch, device: torch.device) -> MicroBatch:
    """The share of a process that a short batch has no sample for."""
    return MicroBatch(batch, torch.zeros(0, device=device))


def grouped(micro_batches: Iterator[MicroBatch], size: int) -> Iterator[list[MicroBatch]]:
    """Micro-batches in groups of `size`, one group for each optimizer step; the last group of an epoch may be short."""
    return iter(lambda: list(islice(micro_batches, size)), [])
