"""Which pictures are held out of training, decided once, and the batches in which they are looked at."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backend.config.dataset import DatasetOptions, SubsetOptions
from backend.data.batches import Batch, Item
from backend.data.captions import build_caption
from backend.data.pictures import Picture
from backend.draws import draw_key, rng
from backend.errors import UserError
from backend.tables.buckets import Size

CHUNK = 1 << 20
# What is done to the caption of a held out picture; all that would change it from look to look is left at its default.
KEPT = (
    "caption_prefix",
    "caption_suffix",
    "caption_separator",
    "keep_tokens_separator",
    "secondary_separator",
    "enable_wildcard",
)


@dataclass(frozen=True)
class Split:
    """The run's own split, for datasets that have none in their toml.

    Attributes:
        share: of the pictures that is held out, from 0 to 1.
        seed: which they are.
    """

    share: float = 0.0
    seed: int = 0

    def settled(self, options: DatasetOptions) -> DatasetOptions:
        """A dataset's options with its split and seed filled in; without a split the seed stays as it is."""
        share = self.share if options.validation_split is None else options.validation_split
        seed = self.seed if share and options.validation_seed is None else options.validation_seed
        return options.model_copy(update={"validation_split": share, "validation_seed": seed})


def held_out(datasets: Sequence[DatasetOptions], pictures: Sequence[Sequence[Picture]]) -> frozenset[Path]:
    """The files that are held out, a pure function of seeds and file contents.

    Copies of one file count as one picture, wherever they lie, and one that is held out for one dataset is trained in
    none. Pictures that also serve as regularisation pictures are not held out. Which are is drawn by each content's own
    key, so that a picture more or less changes the choice of few others.

    Args:
        datasets: options with `validation_split` and `validation_seed` filled in.
        pictures: of each dataset, as found.

    Raises:
        UserError: a file cannot be read any more.
    """
    if not any(options.validation_split for options in datasets):
        return frozenset()
    # A run with a cache on the disk has hashed them already.
    known = {picture.path: picture.content for found in pictures for picture in found}
    contents = {path: int(content, 16) if content else _content(path) for path, content in known.items()}
    trained_anyway = {contents[picture.path] for found in pictures for picture in found if picture.is_reg}
    chosen: set[int] = set()
    for options, found in zip(datasets, pictures, strict=True):
        seed = options.validation_seed or 0
        own = {contents[picture.path] for picture in found if not picture.is_reg} - trained_anyway
        wanted = count_held_out(len(own), options.validation_split or 0.0)
        fresh = sorted(own - chosen, key=lambda content: draw_key(seed, "validation split", content))
        chosen.update(fresh[: max(0, wanted - len(own & chosen))])
    return frozenset(path for path, content in contents.items() if content in chosen)


def count_held_out(count: int, share: float) -> int:
    """How many of `count` pictures a share is, rounded half up; where it is neither 0 nor 1, at least 1 on each side.

    A single picture is trained, unless all are held out.
    """
    if share in (0.0, 1.0) or count < 2:
        return count if share == 1.0 else 0
    return min(max(int(count * share + 0.5), 1), count - 1)


def validation_batches(datasets: Sequence[DatasetOptions], pictures: Sequence[Picture], seed: int) -> tuple[Batch, ...]:
    """Every held out picture once, upright and with its caption as it is, one bucket a batch, in a fixed mixed order.

    Args:
        datasets: their options, as `Picture.dataset` numbers them.
        pictures: the held out ones.
        seed: of the order, so that the first few batches are a fair sample of all.
    """
    buckets: dict[tuple[int, Size], list[Item]] = defaultdict(list)
    for index, picture in enumerate(pictures):
        caption = _caption(picture, datasets[picture.dataset].subsets[picture.subset])
        buckets[picture.dataset, picture.bucket].append(Item(picture, index, False, caption))
    batches = []
    for (dataset, bucket), items in sorted(buckets.items()):
        rng(seed, "validation order", dataset, *bucket).shuffle(items)
        size = datasets[dataset].batch_size
        parts = [tuple(items[start : start + size]) for start in range(0, len(items), size)]
        strength = datasets[dataset].network_multiplier
        batches += [Batch(bucket, part, 0, len(part), strength) for part in parts]
    rng(seed, "validation batches").shuffle(batches)
    return tuple(batches)


def _caption(picture: Picture, options: SubsetOptions) -> str:
    kept = {name: getattr(options, name) for name in KEPT}
    plain = SubsetOptions.model_validate({"image_dir": options.image_dir, **kept})
    return build_caption(picture.caption, plain, rng(0, "validation caption"))


def _content(path: Path) -> int:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check its permissions", "image_dir") from error
    return int.from_bytes(digest.digest(), "big")
