"""Where the latents of a batch come from: the cache, or the VAE at every step."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from backend import events
from backend.config.training.data import Data
from backend.data.batches import Batch
from backend.data.cache import LatentCache, cache_latents
from backend.data.dataset import TrainingSet
from backend.data.decode import cpu_count
from backend.data.loader import PixelLoader
from backend.families.model import Model

MOST_WORKERS = 8


class MicroBatch(NamedTuple):
    """Samples that go through the model at once.

    Attributes:
        batch: their pictures and captions.
        latents: [B, C, h, w] on the device.
        masks: how much each latent pixel counts in the loss, [B, 1, h, w] on the device; None counts all.
    """

    batch: Batch
    latents: Tensor
    masks: Tensor | None = None


Feed = Callable[[Sequence[Batch]], Iterator[MicroBatch]]


def make_feed(options: Data, training_set: TrainingSet, model: Model, device: torch.device) -> Feed:
    """Batches -> micro-batches with their latents on the device, in order.

    Latents are the posterior's mode (its deviation is far below the noise of training), cached or not, so that caching
    changes no loss. With `cache_latents` every picture is encoded here and now, and the VAE is not needed afterwards.
    """
    model.vae.to(device)
    if not options.cache_latents:
        workers = options.max_data_loader_n_workers
        if workers is None:
            workers = min(MOST_WORKERS, cpu_count() - 1)
        return encoding_feed(PixelLoader(workers, options.persistent_data_loader_workers), model)

    def report(done: int, total: int) -> None:
        events.emit("phase", name="caching latents", step=done, total=total)

    cache = cache_latents(
        training_set, lambda pixels: model.family.encode_images(model, pixels), options.vae_batch_size, report
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
            yield MicroBatch(batch, cache.batch(batch).to(device))

    return feed


def encoding_feed(loader: PixelLoader, model: Model) -> Feed:
    """Pixels from the loader, encoded as they come."""

    def feed(batches: Sequence[Batch]) -> Iterator[MicroBatch]:
        for batch, pixels in loader.epoch(batches):
            yield MicroBatch(batch, model.family.encode_images(model, pixels).float())

    return feed


def grouped(micro_batches: Iterator[MicroBatch], size: int) -> Iterator[list[MicroBatch]]:
    """Micro-batches in groups of `size`, one group for each optimizer step; the last group of an epoch may be short."""
    return iter(lambda: list(islice(micro_batches, size)), [])
