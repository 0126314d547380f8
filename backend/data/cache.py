"""The latent cache: every picture encoded once, in memory, before training starts."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from backend.data.batches import Batch
from backend.data.dataset import TrainingSet
from backend.data.decode import cpu_count
from backend.data.pictures import Picture, load_pixels
from backend.tables.buckets import Size

_Key = tuple[Path, Size, Size]

# Batches decoded ahead of the encoder: enough to keep the threads busy, few enough to keep memory flat.
_AHEAD = 2


class LatentCache:
    """Latents by picture and flip. Two pictures are the same when file, resized size and bucket are."""

    def __init__(self) -> None:
        self._latents: dict[tuple[_Key, bool], Tensor] = {}

    def __len__(self) -> int:
        return len(self._latents)

    def put(self, picture: Picture, flip: bool, latent: Tensor) -> None:
        """Keep the latent [C, height / 8, width / 8] of a picture."""
        self._latents[_key(picture), flip] = latent

    def get(self, picture: Picture, flip: bool = False) -> Tensor:
        """The latent [C, height / 8, width / 8] of a picture.

        Raises:
            KeyError: if it was not encoded; mirrored ones are only where the subset has `flip_aug`.
        """
        return self._latents[_key(picture), flip]

    def batch(self, batch: Batch) -> Tensor:
        """The latents [B, C, height / 8, width / 8] of a batch's items."""
        return torch.stack([self.get(item.picture, item.flip) for item in batch.items])


@torch.no_grad()
def cache_latents(
    training_set: TrainingSet,
    encode: Callable[[Tensor], Tensor],
    batch_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
    dtype: torch.dtype = torch.float32,
) -> LatentCache:
    """Encode every picture of a set, held out or not, and its mirror image where the subset has `flip_aug`.

    Batches are of one bucket. While one is encoded, the next ones are decoded and resized on all CPU threads.

    Args:
        training_set: whose pictures are encoded; the same file at the same size only once.
        encode: pixels [B, 3, height, width] in [-1, 1], float32 on the CPU -> latents [B, C, height / 8, width / 8];
            moves them to its device itself.
        batch_size: most pictures that are encoded at once (`vae_batch_size`).
        progress: told (pictures done, pictures in all) after each batch.
        dtype: of the cached latents; they are kept on the CPU.

    Returns:
        The full cache.
    """
    pictures = list({_key(picture): picture for picture in training_set.every_picture}.values())
    with_flip = {_key(picture) for picture in training_set.pictures if picture.flip_aug}
    cache = LatentCache()
    done = 0
    with ThreadPoolExecutor(cpu_count()) as pool:
        for group, pixels in _decoded(pool, list(_groups(pictures, batch_size))):
            for picture, latent in zip(group, _encoded(encode, pixels, dtype), strict=True):
                cache.put(picture, False, latent)
            mirrored = [i for i, picture in enumerate(group) if _key(picture) in with_flip]
            if mirrored:
                latents = _encoded(encode, pixels[mirrored].flip(-1), dtype)
                for i, latent in zip(mirrored, latents, strict=True):
                    cache.put(group[i], True, latent)
            done += len(group)
            if progress:
                progress(done, len(pictures))
    return cache


def _key(picture: Picture) -> _Key:
    return picture.path, picture.resized, picture.bucket


def _encoded(encode: Callable[[Tensor], Tensor], pixels: Tensor, dtype: torch.dtype) -> list[Tensor]:
    # Cloned one by one, so that no latent holds the memory of its whole batch.
    return [latent.clone() for latent in encode(pixels).to("cpu", dtype)]


def _groups(pictures: Iterable[Picture], size: int) -> Iterator[list[Picture]]:
    buckets: dict[Size, list[Picture]] = defaultdict(list)
    for picture in pictures:
        buckets[picture.bucket].append(picture)
    for bucket in sorted(buckets):
        for start in range(0, len(buckets[bucket]), size):
            yield buckets[bucket][start : start + size]


def _decoded(pool: ThreadPoolExecutor, groups: Sequence[list[Picture]]) -> Iterator[tuple[list[Picture], Tensor]]:
    """The groups with their pixels, decoded `_AHEAD` groups (at least as many pictures as there are threads) ahead."""
    ahead = max(_AHEAD, -(-cpu_count() // max(1, len(groups[0]))))
    waiting: deque[tuple[list[Picture], list[Future[Tensor]]]] = deque()
    remaining = iter(groups)
    try:
        for group in islice(remaining, ahead):
            waiting.append((group, [pool.submit(load_pixels, picture) for picture in group]))
        while waiting:
            group, futures = waiting.popleft()
            pixels = torch.stack([future.result() for future in futures])
            for following in islice(remaining, 1):
                waiting.append((following, [pool.submit(load_pixels, picture) for picture in following]))
            yield group, pixels
    finally:
        for _, futures in waiting:
            for future in futures:
                future.cancel()
