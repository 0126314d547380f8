"""The latent cache: every picture encoded once before training starts, kept in memory or on the disk."""

import math
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from backend.data.batches import Batch
from backend.data.dataset import TrainingSet
from backend.data.decode import cpu_count
from backend.data.masks import stacked_masks
from backend.data.pictures import Picture, load_sample, to_float
from backend.data.store import CacheFolder, Caches, key
from backend.errors import UserError
from backend.tables.buckets import Size

_Key = tuple[object, ...]
Loaded = tuple[Tensor, Tensor | None]

# Batches decoded ahead of the encoder: enough to keep the threads busy, few enough to keep memory flat.
_AHEAD = 2
# Pictures of this many pixels in all are encoded at the same time on a CPU, so that memory is never more than one large
# picture needs.
PIXELS_AT_ONCE = 1024 * 1024


class Entry(NamedTuple):
    """A picture's latent [C, height / 8, width / 8], and its mask [1, height / 8, width / 8] if it has one."""

    latent: Tensor
    mask: Tensor | None = None


Encoded = tuple[Picture, bool, Entry]


class Sharers(Protocol):
    """The processes that share the work of encoding."""

    @property
    def rank(self) -> int:
        """This process's number, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    def gather(self, value: Any, read: Callable[[Any], Any] | None = None) -> list[Any]:
        """Every process's value, by rank.

        Args:
            value: plain values and tensors.
            read: makes the value of what another process told; raises ValueError where it is none.
        """


@dataclass(frozen=True)
class Alone:
    """A process that does all of the work."""

    rank: int = 0
    size: int = 1

    def gather(self, value: Any, read: Callable[[Any], Any] | None = None) -> list[Any]:
        """See `Sharers`."""
        return [value]


ALONE = Alone()


@dataclass(frozen=True)
class DiskStore:
    """Latents on the disk.

    Attributes:
        caches: the folders beside the pictures.
        encoder: identity of what encodes: another one's latents are never given out.
    """

    caches: Caches
    encoder: str

    def place(self, picture: Picture, flip: bool, dtype: torch.dtype) -> tuple[CacheFolder, str]:
        """Folder and name of one latent."""
        mask = "alpha" if picture.alpha_mask else picture.mask_content
        shape = (picture.resized, picture.bucket, picture.interpolation, flip)
        name = key("latents", self.encoder, picture.content, mask, shape, str(dtype))
        return self.caches.beside(picture.path), name


class LatentCache:
    """Latents by picture and flip. Two pictures are the same when all is that their pixels and masks come from.

    Args:
        store: keeps them on the disk; left out, they are kept in memory.
        dtype: of the latents.
    """

    def __init__(self, store: DiskStore | None = None, dtype: torch.dtype = torch.float32) -> None:
        self.store = store
        self.dtype = dtype
        self._entries: dict[tuple[_Key, bool], Entry] = {}
        self._places: dict[tuple[_Key, bool], tuple[CacheFolder, str]] = {}

    def __len__(self) -> int:
        return len(self._entries) + len(self._places)

    def find(self, picture: Picture, flip: bool) -> bool:
        """Whether the disk has a latent of an earlier run; from now on it is one of this cache."""
        if self.store is None:
            return False
        folder, name = self.store.place(picture, flip, self.dtype)
        if not folder.has(name, self.store.caches.trust):
            return False
        self._places[_key(picture), flip] = folder, name
        return True

    def put(self, picture: Picture, flip: bool, latent: Tensor, mask: Tensor | None = None) -> None:
        """Keep the latent of a picture, and its mask.

        Raises:
            UserError: the latent is not finite, or the disk refuses it.
        """
        check_finite(latent, picture)
        if self.store is None:
            self._entries[_key(picture), flip] = Entry(latent, mask)
            return
        folder, name = self.store.place(picture, flip, self.dtype)
        folder.write(name, {"latent": latent} if mask is None else {"latent": latent, "mask": mask})
        self._places[_key(picture), flip] = folder, name

    def entry(self, picture: Picture, flip: bool = False) -> Entry:
        """The latent of a picture and its mask.

        Raises:
            KeyError: it was not encoded; mirrored ones are only where the subset has `flip_aug`.
            UserError: its file was removed or damaged after the start.
        """
        kept = self._entries.get((_key(picture), flip))
        if kept is not None:
            return kept
        folder, name = self._places[_key(picture), flip]
        tensors = folder.read(name)
        return Entry(tensors["latent"], tensors.get("mask"))

    def get(self, picture: Picture, flip: bool = False) -> Tensor:
        """As `entry`, the latent alone."""
        return self.entry(picture, flip).latent

    def batch(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The latents [B, C, height / 8, width / 8] of a batch's items, and their masks [B, 1, height / 8, width / 8].

        Pictures that have none have masks of ones; where no picture has one, there are no masks.
        """
        entries = [self.entry(item.picture, item.flip) for item in batch.items]
        return torch.stack([entry.latent for entry in entries]), stacked_masks([entry.mask for entry in entries])


def check_finite(latent: Tensor, picture: Picture) -> None:
    """See that a latent can be learnt from.

    Raises:
        UserError: it has a number that is not finite.
    """
    if not bool(latent.isfinite().all()):
        message = "the VAE makes numbers that are not finite of it; remove the picture, or give another VAE with vae"
        raise UserError(message, str(picture.path))


@torch.no_grad()
def cache_latents(
    training_set: TrainingSet,
    encode: Callable[[Tensor], Tensor],
    batch_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
    dtype: torch.dtype = torch.float32,
    store: DiskStore | None = None,
    workers: int = 1,
    sharers: Sharers = ALONE,
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
        store: where latents of earlier runs are, and new ones go; left out, all are kept in memory.
        workers: most batches that are encoded at the same time, fewer where they are large. On a CPU several small
            batches side by side, each with its share of the threads, are encoded much faster than one after the other.
        sharers: the processes that encode a part of the batches each, and give it to the others.

    Returns:
        The full cache.

    Raises:
        UserError: a picture cannot be decoded any more, its latent is not finite, or the disk refuses it.
    """
    pictures = list({_key(picture): picture for picture in training_set.every_picture}.values())
    with_flip = {_key(picture) for picture in training_set.pictures if picture.flip_aug}
    wanted = [(picture, False) for picture in pictures]
    wanted += [(picture, True) for picture in pictures if _key(picture) in with_flip]
    cache = LatentCache(store, dtype)
    with ThreadPoolExecutor(cpu_count()) as pool:
        found = list(pool.map(lambda one: cache.find(*one), wanted))
        # What one process lacks, on a machine with a disk of its own say, all of them make.
        lacking = sharers.gather(
            [index for index, there in enumerate(found) if not there], read=lambda told: _indices(told, len(wanted))
        )
        places = {(_key(picture), flip): index for index, (picture, flip) in enumerate(wanted)}
        lacked = {index for indices in lacking for index in indices}
        missing = {name for name, index in places.items() if index in lacked}
        to_encode = [picture for picture in pictures if {(_key(picture), False), (_key(picture), True)} & missing]
        done = len(pictures) - len(to_encode)
        if progress and not to_encode:
            progress(done, len(pictures))
        groups = list(_groups(to_encode, batch_size))
        most = max((len(group) * math.prod(group[0].bucket) for group in groups), default=1)

        def work(group: list[Picture], loaded: list[Loaded]) -> list[Encoded]:
            return _encode_group(encode, cache.dtype, group, loaded, missing)

        own = groups[sharers.rank :: sharers.size]
        encoded = _worked(work, _decoded(pool, own), min(workers, max(1, PIXELS_AT_ONCE // most)))
        for _ in range(0, len(groups), sharers.size):
            made = [(places[_key(picture), flip], entry) for picture, flip, entry in next(encoded, [])]
            parts = sharers.gather(made, read=lambda told: _entries(told, wanted, cache.dtype))
            for index, entry in (one for part in parts for one in part):
                cache.put(*wanted[index], *entry)
                done += not (wanted[index][1] and places[_key(wanted[index][0]), False] in lacked)
            if progress:
                progress(done, len(pictures))
    if store is not None:
        store.caches.save()
        sharers.gather(None)  # by now what the others have written is there
    return cache


def _indices(told: Any, count: int) -> list[int]:
    """The pictures that another process lacks.

    Raises:
        ValueError: it said no such thing.
    """
    if not isinstance(told, list) or any(type(index) is not int or not 0 <= index < count for index in told):
        raise ValueError("it lacks pictures that are none")
    return told


def _entries(told: Any, wanted: Sequence[tuple[Picture, bool]], dtype: torch.dtype) -> list[tuple[int, Entry]]:
    """The latents that another process has made, by their place in `wanted`.

    Raises:
        ValueError: it said no such thing.
    """
    entries = []
    for item in told if isinstance(told, list) else [None]:
        if not isinstance(item, list) or len(item) != 2 or not isinstance(item[1], list) or len(item[1]) != 2:
            raise ValueError("its latents are none")
        (index,), (latent, mask) = _indices(item[:1], len(wanted)), item[1]
        width, height = wanted[index][0].bucket
        for tensor in (latent, *([mask] if mask is not None else [])):
            if not isinstance(tensor, Tensor) or tensor.dim() != 3 or tensor.shape[1:] != (height // 8, width // 8):
                raise ValueError("a latent has another size than its picture")
        if latent.dtype != dtype or (mask is not None and not mask.is_floating_point()):
            raise ValueError("a latent has another type")
        entries.append((index, Entry(latent, mask)))
    return entries


def _key(picture: Picture) -> _Key:
    mask = picture.alpha_mask, picture.mask_path
    return picture.path, picture.resized, picture.bucket, picture.interpolation, mask


@torch.no_grad()
def _encode_group(
    encode: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
    group: Sequence[Picture],
    loaded: Sequence[Loaded],
    missing: Collection[tuple[_Key, bool]],
) -> list[Encoded]:
    """The latents of a group that are missing, upright and mirrored."""
    found: list[Encoded] = []
    for flip in (False, True):
        members = [i for i, picture in enumerate(group) if (_key(picture), flip) in missing]
        if not members:
            continue
        pixels = torch.stack([loaded[i][0] for i in members])
        latents = encode(pixels.flip(-1) if flip else pixels).to("cpu", dtype)
        for i, latent in zip(members, latents, strict=True):
            mask = loaded[i][1]
            # Cloned one by one, so that no latent holds the memory of its whole batch.
            entry = Entry(latent.clone(), mask.flip(-1) if flip and mask is not None else mask)
            found.append((group[i], flip, entry))
    return found


def _worked(
    work: Callable[[list[Picture], list[Loaded]], list[Encoded]],
    decoded: Iterable[tuple[list[Picture], list[Loaded]]],
    workers: int,
) -> Iterator[list[Encoded]]:
    """What `work` makes of each group, in their order, by so many threads; by this one where there is one worker."""
    if workers == 1:
        for group, loaded in decoded:
            yield work(group, loaded)
        return
    threads = torch.get_num_threads()
    waiting: deque[Future[list[Encoded]]] = deque()
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(max(1, threads // workers),)) as pool:
        try:
            for group, loaded in decoded:
                waiting.append(pool.submit(work, group, loaded))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            torch.set_num_threads(threads)


def _load(picture: Picture) -> Loaded:
    """Pixels [3, height, width] in [-1, 1] and the mask."""
    pixels, mask = load_sample(picture)
    return to_float(torch.from_numpy(pixels)), mask


def _groups(pictures: Iterable[Picture], size: int) -> Iterator[list[Picture]]:
    buckets: dict[Size, list[Picture]] = defaultdict(list)
    for picture in pictures:
        buckets[picture.bucket].append(picture)
    for bucket in sorted(buckets):
        for start in range(0, len(buckets[bucket]), size):
            yield buckets[bucket][start : start + size]


def _decoded(pool: ThreadPoolExecutor, groups: Sequence[list[Picture]]) -> Iterator[tuple[list[Picture], list[Loaded]]]:
    """The groups with their pixels, decoded `_AHEAD` groups (at least as many pictures as there are threads) ahead."""
    ahead = max(_AHEAD, -(-cpu_count() // max(1, len(groups[0])))) if groups else 0
    waiting: deque[tuple[list[Picture], list[Future[Loaded]]]] = deque()
    remaining = iter(groups)
    try:
        for group in islice(remaining, ahead):
            waiting.append((group, [pool.submit(_load, picture) for picture in group]))
        while waiting:
            group, futures = waiting.popleft()
            loaded = [future.result() for future in futures]
            for following in islice(remaining, 1):
                waiting.append((following, [pool.submit(_load, picture) for picture in following]))
            yield group, loaded
    finally:
        for _, futures in waiting:
            for future in futures:
                future.cancel()
