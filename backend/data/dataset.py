"""A training set: the folders of a dataset toml, scanned once, sorted into buckets and counted."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from backend.config.dataset import DatasetConfig, DatasetOptions, SubsetOptions
from backend.data.batches import Batch, Item, batches_per_epoch, epoch_batches
from backend.data.captions import Caption, caption_extensions, find_caption, tag_frequency
from backend.data.pictures import Picture, list_pictures, load_pixels, measure_pictures
from backend.data.split import Split, held_out, validation_batches
from backend.errors import UserError
from backend.tables.buckets import Size, make_buckets, select_bucket, select_bucket_no_upscale

__all__ = ["Batch", "Item", "Picture", "TrainingSet", "load_pixels"]


@dataclass(frozen=True)
class FolderCount:
    """What was found in the folder of one subset, before regularisation pictures are balanced."""

    pictures: int
    tags: dict[str, int]


@dataclass(frozen=True)
class TrainingSet:
    """All pictures of a run; made by `TrainingSet.scan`.

    Attributes:
        datasets: options by dataset, with their validation split filled in; a subset whose folder stands in the same
            dataset twice is left out.
        pictures: those that are trained, in the order of the folders, with their repeats.
        validation: those that are held out, which are no others' copies.
        folders: for each dataset, what each subset's folder holds.
        warnings: one line each, for the user to read.
    """

    datasets: tuple[DatasetOptions, ...]
    pictures: tuple[Picture, ...]
    validation: tuple[Picture, ...]
    folders: tuple[tuple[FolderCount, ...], ...]
    warnings: tuple[str, ...]

    @classmethod
    def scan(cls, config: DatasetConfig, split: Split = Split()) -> "TrainingSet":  # noqa: B008  (frozen)
        """Find, check and measure the pictures of every subset, read their captions, and hold some out.

        Args:
            config: the dataset toml.
            split: for datasets that say nothing of validation.

        Raises:
            UserError: for a missing or empty folder, a picture that cannot be decoded, a caption that is not UTF-8, a
                picture that fits no bucket, a dataset of regularisation pictures only, or one without pictures left.
        """
        datasets, scanned, pictures, folders, warnings, captions = [], [], [], [], [], []
        for index, given in enumerate(config.datasets):
            options, dropped = _without_duplicates(split.settled(given))
            warnings += [f"{folder} stands twice in one dataset: the second subset is left out" for folder in dropped]
            found = [_scan_subset(options, index, number) for number in range(len(options.subsets))]
            if not any(not picture.is_reg for subset, _ in found for picture in subset):
                message = "a dataset has regularisation pictures only: add a subset without is_reg"
                raise UserError(message, "is_reg")
            datasets.append(options)
            scanned.append([picture for subset, _ in found for picture in subset])
            captions += [caption for _, texts in found for caption in texts]
            folders.append(tuple(FolderCount(len(p), tag_frequency(c.text for c in texts)) for p, texts in found))
        apart = held_out(datasets, scanned)
        for found in scanned:
            trained, unused = _balance([picture for picture in found if picture.path not in apart])
            if unused:
                warnings.append(
                    f"{unused} regularisation pictures are not used: there are more of them than training pictures "
                    "times repeats"
                )
            pictures += trained
        if not pictures:
            raise UserError("holds every picture out, so that none is left to train on; take less", "validation_split")
        validation = tuple(picture for found in scanned for picture in found if picture.path in apart)
        warnings += _caption_warning(captions)
        return cls(tuple(datasets), tuple(pictures), validation, tuple(folders), tuple(warnings))

    @property
    def every_picture(self) -> tuple[Picture, ...]:
        """Those that are trained and those that are held out."""
        return self.pictures + self.validation

    @property
    def num_train_images(self) -> int:
        """Training pictures shown in an epoch, repeats included."""
        return sum(picture.repeats for picture in self.pictures if not picture.is_reg)

    @property
    def num_reg_images(self) -> int:
        """Regularisation pictures found, `num_repeats` included, before they are balanced with the others."""
        return sum(self._num_reg_images(index) for index in range(len(self.datasets)))

    def epoch_batches(self, seed: int, epoch: int, world_size: int = 1) -> list[Batch]:
        """The global batches of one epoch; see `backend.data.batches.epoch_batches`."""
        return epoch_batches(self.datasets, self.pictures, seed, epoch, world_size)

    def validation_batches(self, seed: int) -> tuple[Batch, ...]:
        """The batches of held out pictures; see `backend.data.split.validation_batches`."""
        return validation_batches(self.datasets, self.validation, seed)

    def batches_per_epoch(self, world_size: int = 1) -> int:
        """The number of global batches in every epoch."""
        return batches_per_epoch(self.datasets, self.pictures, world_size)

    @property
    def info(self) -> dict[str, str]:
        """The set's part of a LoRA file's metadata: the reference trainer's `ss_*` keys, values as JSON."""
        described = [self._describe(index) for index in range(len(self.datasets))]
        tags: dict[str, dict[str, int]] = {}
        for dataset in described:
            for folder, frequency in dataset["tag_frequency"].items():
                tags.setdefault(folder, frequency)
        values = {
            "ss_num_train_images": self.num_train_images,
            "ss_num_validation_images": len(self.validation),
            "ss_num_reg_images": self.num_reg_images,
            "ss_datasets": described,
            "ss_dataset_dirs": self._dataset_dirs(is_reg=False),
            "ss_reg_dataset_dirs": self._dataset_dirs(is_reg=True),
            "ss_tag_frequency": tags,
        }
        rates = {subset.caption_dropout_rate for dataset in self.datasets for subset in dataset.subsets}
        if len(rates) == 1:  # where they differ, they stand with each subset alone
            values["ss_caption_dropout_rate"] = rates.pop()
        for name in ("validation_split", "validation_seed"):
            given = {getattr(dataset, name) for dataset in self.datasets}
            if self.validation and len(given) == 1:
                values[f"ss_{name}"] = given.pop()
        if len(described) == 1 and described[0]["bucket_info"]:
            values["ss_bucket_info"] = described[0]["bucket_info"]
        return {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}

    def _describe(self, index: int) -> dict:
        options, folders = self.datasets[index], self.folders[index]
        pictures = [picture for picture in self.pictures if picture.dataset == index]
        tags: dict[str, dict[str, int]] = {}
        for subset, folder in zip(options.subsets, folders, strict=True):
            counts = tags.setdefault(Path(subset.image_dir).name, {})
            for tag, count in folder.tags.items():
                counts[tag] = counts.get(tag, 0) + count
        return {
            "is_dreambooth": True,
            "batch_size_per_device": options.batch_size,
            "num_train_images": sum(picture.repeats for picture in pictures if not picture.is_reg),
            "num_reg_images": self._num_reg_images(index),
            "resolution": list(options.resolution),
            "enable_bucket": options.enable_bucket,
            "bucket_no_upscale": options.bucket_no_upscale,
            "min_bucket_reso": options.min_bucket_reso,
            "max_bucket_reso": options.max_bucket_reso,
            "tag_frequency": tags,
            "bucket_info": _bucket_info(pictures) if options.enable_bucket and pictures else None,
            "subsets": [
                {
                    "img_count": folder.pictures,
                    "num_repeats": subset.num_repeats,
                    "flip_aug": subset.flip_aug,
                    "shuffle_caption": subset.shuffle_caption,
                    "keep_tokens": subset.keep_tokens,
                    "caption_prefix": subset.caption_prefix,
                    "caption_suffix": subset.caption_suffix,
                    "image_dir": Path(subset.image_dir).name,
                    "class_tokens": subset.class_tokens,
                    "is_reg": subset.is_reg,
                }
                for subset, folder in zip(options.subsets, folders, strict=True)
            ],
        }

    def _num_reg_images(self, index: int) -> int:
        pairs = zip(self.datasets[index].subsets, self.folders[index], strict=True)
        return sum(folder.pictures * subset.num_repeats for subset, folder in pairs if subset.is_reg)

    def _dataset_dirs(self, is_reg: bool) -> dict[str, dict[str, int]]:
        directories: dict[str, dict[str, int]] = {}
        for options, folders in zip(self.datasets, self.folders, strict=True):
            for subset, folder in zip(options.subsets, folders, strict=True):
                if subset.is_reg is is_reg:
                    name = _free_name(Path(subset.image_dir).name, directories)
                    directories[name] = {"n_repeats": subset.num_repeats, "img_count": folder.pictures}
        return directories


def balance_repeats(repeats: Sequence[int], target: int) -> list[int]:
    """How often each regularisation picture is shown so that their number is `target`.

    First every picture its own repeats, then one more each, round and round; as soon as the target is reached the rest
    are shown no more.
    """
    result = [0] * len(repeats)
    left = target
    while left > 0:
        first_round = not any(result)
        for index, count in enumerate(repeats):
            step = min(left, count if first_round else 1)
            result[index] += step
            left -= step
    return result


def _scan_subset(options: DatasetOptions, dataset: int, number: int) -> tuple[list[Picture], list[Caption]]:
    subset = options.subsets[number]
    paths = list_pictures(Path(subset.image_dir))
    extensions = caption_extensions(subset.caption_extension)
    captions = [find_caption(path, extensions, subset.class_tokens) for path in paths]
    buckets = _buckets(options)
    pictures = []
    for path, size, caption in zip(paths, measure_pictures(paths), captions, strict=True):
        bucket, resized = _place(path, size, options, buckets)
        pictures.append(
            Picture(
                path=path,
                size=size,
                resized=resized,
                bucket=bucket,
                caption=caption.text,
                repeats=subset.num_repeats,
                is_reg=subset.is_reg,
                flip_aug=subset.flip_aug,
                dataset=dataset,
                subset=number,
            )
        )
    return pictures, captions


def _buckets(options: DatasetOptions) -> tuple[Size, ...]:
    if not options.enable_bucket:
        return (tuple(options.resolution),)
    return make_buckets(options.resolution, options.min_bucket_reso, options.max_bucket_reso, options.bucket_reso_steps)


def _place(path: Path, size: Size, options: DatasetOptions, buckets: tuple[Size, ...]) -> tuple[Size, Size]:
    if not (options.enable_bucket and options.bucket_no_upscale):
        return select_bucket(size, buckets)
    try:
        return select_bucket_no_upscale(size, options.resolution, options.bucket_reso_steps)
    except UserError as error:
        raise UserError(f"{path}: {error.message}", error.field) from error


def _balance(pictures: list[Picture]) -> tuple[list[Picture], int]:
    reg = [picture for picture in pictures if picture.is_reg]
    if not reg:
        return pictures, 0
    target = sum(picture.repeats for picture in pictures if not picture.is_reg)
    repeats = iter(balance_repeats([picture.repeats for picture in reg], target))
    balanced = [replace(p, repeats=next(repeats)) if p.is_reg else p for p in pictures]
    used = [picture for picture in balanced if picture.repeats]
    return used, len(pictures) - len(used)


def _without_duplicates(options: DatasetOptions) -> tuple[DatasetOptions, list[str]]:
    kept: dict[Path, SubsetOptions] = {}
    dropped = []
    for subset in options.subsets:
        folder = Path(subset.image_dir).resolve()
        if folder in kept:
            dropped.append(str(subset.image_dir))
        kept.setdefault(folder, subset)
    return options.model_copy(update={"subsets": tuple(kept.values())}), dropped


def _caption_warning(captions: list[Caption]) -> list[str]:
    missing = [caption for caption in captions if caption.source is None]
    empty = sum(1 for caption in captions if caption.source is not None and not caption.text)
    parts = []
    if missing:
        with_class = sum(1 for caption in missing if caption.text)
        parts.append(
            f"{len(missing)} of {len(captions)} pictures have no caption file "
            f"({with_class} take their class_tokens, {len(missing) - with_class} an empty caption)"
        )
    if empty:
        parts.append(f"{empty} of {len(captions)} captions are empty")
    return ["; ".join(parts)] if parts else []


def _bucket_info(pictures: list[Picture]) -> dict:
    counts: dict[Size, int] = {}
    for picture in pictures:
        counts[picture.bucket] = counts.get(picture.bucket, 0) + picture.repeats
    errors = [abs(p.bucket[0] / p.bucket[1] - p.size[0] / p.size[1]) for p in pictures]
    buckets = {str(i): {"resolution": list(size), "count": counts[size]} for i, size in enumerate(sorted(counts))}
    return {"buckets": buckets, "mean_img_ar_error": sum(errors) / len(errors)}


def _free_name(name: str, taken: dict[str, dict[str, int]]) -> str:
    number, free = 2, name
    while free in taken:
        free = f"{name} ({number})"
        number += 1
    return free
