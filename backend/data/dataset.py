"""A training set: the folders of a dataset toml, scanned once, sorted into buckets and counted."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from backend.config.dataset import DatasetConfig, DatasetOptions, SubsetOptions
from backend.data.augment import face_of
from backend.data.batches import Batch, Item, Pace, batches_per_epoch, epoch_batches
from backend.data.captions import Caption, caption_extensions, find_caption, tag_frequency
from backend.data.masks import OPTION, check_shapes, find_masks
from backend.data.metadata_file import read_metadata
from backend.data.pictures import Facts, Picture, list_pictures, load_pixels, measure_pictures
from backend.data.store import Caches
from backend.errors import UserError
from backend.tables.buckets import Size, make_buckets, select_bucket, select_bucket_no_upscale

T = TypeVar("T")
NO_FACTS = Facts((0, 0))
DROPOUTS = ("caption_dropout_rate", "caption_dropout_every_n_epochs", "caption_tag_dropout_rate")

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
        datasets: options by dataset; a subset whose folder stands in the same dataset twice is left out.
        pictures: those that are trained, in the order of the folders, with their repeats.
        folders: for each dataset, what each subset's folder holds.
        warnings: one line each, for the user to read.
        in_folders: it was named by folders on the command line, and is one dataset then.
        pace: of the run that it is trained in.
    """

    datasets: tuple[DatasetOptions, ...]
    pictures: tuple[Picture, ...]
    folders: tuple[tuple[FolderCount, ...], ...]
    warnings: tuple[str, ...]
    in_folders: bool = False
    pace: Pace = Pace()

    @classmethod
    def scan(cls, config: DatasetConfig, caches: Caches | None = None) -> "TrainingSet":
        """Find, check and measure the pictures of every subset, and read their captions.

        Args:
            config: the datasets.
            caches: where earlier runs have kept what is known of the pictures; they are hashed for it.

        Raises:
            UserError: for a missing or empty folder, a picture that cannot be decoded, a caption that is not UTF-8, a
                picture that fits no bucket, or a dataset of regularisation pictures only.
        """
        datasets, pictures, folders, warnings, captions = [], [], [], list(config.warnings), []
        for index, given in enumerate(config.datasets):
            options, dropped = _without_duplicates(given)
            warnings += [f"{folder} stands twice in one dataset: the second subset is left out" for folder in dropped]
            found = [_scan_subset(options, index, number, caches) for number in range(len(options.subsets))]
            trained, unused = _balance([picture for subset, _ in found for picture in subset])
            if not any(not picture.is_reg for picture in trained):
                message = "a dataset has regularisation pictures only: add a subset without is_reg"
                raise UserError(message, "is_reg")
            if unused:
                warnings.append(
                    f"{unused} regularisation pictures are not used: there are more of them than training pictures "
                    "times repeats"
                )
            datasets.append(options)
            pictures += trained
            captions += [caption for _, texts in found for caption in texts]
            folders.append(tuple(FolderCount(len(p), tag_frequency(c.text for c in texts)) for p, texts in found))
        warnings += _caption_warning(captions)
        warnings += _face_warnings(datasets, pictures)
        if caches is not None:
            caches.save()
        return cls(tuple(datasets), tuple(pictures), tuple(folders), tuple(warnings), config.in_folders)

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
        return epoch_batches(self.datasets, self.pictures, seed, epoch, world_size, self.pace)

    def batches_per_epoch(self, world_size: int = 1) -> int:
        """The number of global batches in every epoch."""
        return batches_per_epoch(self.datasets, self.pictures, world_size)

    @property
    def info(self) -> dict[str, str]:
        """The set's part of a LoRA file's metadata: the reference trainer's `ss_*` keys.

        Values are JSON, single options text.
        """
        described = [self._describe(index) for index in range(len(self.datasets))]
        tags: dict[str, dict[str, int]] = {}
        for dataset in described:
            for folder, frequency in dataset["tag_frequency"].items():
                tags.setdefault(folder, frequency)
        values = {
            "ss_num_train_images": self.num_train_images,
            "ss_num_reg_images": self.num_reg_images,
            "ss_datasets": described,
            "ss_dataset_dirs": self._dataset_dirs(is_reg=False),
            "ss_reg_dataset_dirs": self._dataset_dirs(is_reg=True),
            "ss_tag_frequency": tags,
        }
        for name in DROPOUTS:
            rates = {getattr(subset, name) for dataset in self.datasets for subset in dataset.subsets}
            if len(rates) == 1:  # where they differ, they stand with each subset alone
                values[f"ss_{name}"] = rates.pop()
        if len(described) == 1 and described[0]["bucket_info"]:
            values["ss_bucket_info"] = described[0]["bucket_info"]
        subsets = [subset for dataset in self.datasets for subset in dataset.subsets]
        shared = {
            f"ss_{name}": str(common([getattr(subset, name) for subset in subsets]))
            for name in ("face_crop_aug_range", "resize_interpolation")
        }
        flat = self._flat() if self.in_folders else {}
        return {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()} | shared | flat

    def _flat(self) -> dict[str, str]:
        """What the reference writes of a set of folders, beside what it writes of every set."""
        options = self.datasets[0]
        subset = options.subsets[0]
        bounds = (options.min_bucket_reso, options.max_bucket_reso) if options.enable_bucket else (None, None)
        values = {
            "batch_size_per_device": options.batch_size,
            "total_batch_size": options.batch_size * self.pace.accumulation,
            "resolution": tuple(options.resolution),
            "enable_bucket": options.enable_bucket,
            "bucket_no_upscale": options.bucket_no_upscale,
            "min_bucket_reso": bounds[0],
            "max_bucket_reso": bounds[1],
            "bucket_info": json.dumps(_bucket_info([*self.pictures]) if options.enable_bucket else None),
            "color_aug": subset.color_aug,
            "flip_aug": subset.flip_aug,
            "random_crop": subset.random_crop,
            "shuffle_caption": subset.shuffle_caption,
            "keep_tokens": subset.keep_tokens,
        }
        return {f"ss_{name}": str(value) for name, value in values.items()}

    def _describe(self, index: int) -> dict:
        options, folders = self.datasets[index], self.folders[index]
        pictures = [picture for picture in self.pictures if picture.dataset == index]
        tags: dict[str, dict[str, int]] = {}
        for subset, folder in zip(options.subsets, folders, strict=True):
            counts = tags.setdefault(_name(subset), {})
            for tag, count in folder.tags.items():
                counts[tag] = counts.get(tag, 0) + count
        return {
            "is_dreambooth": all(subset.metadata_file is None for subset in options.subsets),
            "batch_size_per_device": options.batch_size,
            "num_train_images": sum(picture.repeats for picture in pictures if not picture.is_reg),
            "num_reg_images": self._num_reg_images(index),
            "resolution": list(options.resolution),
            "enable_bucket": options.enable_bucket,
            "bucket_no_upscale": options.bucket_no_upscale,
            "min_bucket_reso": options.min_bucket_reso,
            "max_bucket_reso": options.max_bucket_reso,
            "tag_frequency": tags,
            "network_multiplier": options.network_multiplier,
            "bucket_info": _bucket_info(pictures) if options.enable_bucket else None,
            "resize_interpolation": common([subset.resize_interpolation for subset in options.subsets]),
            "subsets": [
                {
                    "img_count": folder.pictures,
                    "num_repeats": subset.num_repeats,
                    "color_aug": subset.color_aug,
                    "flip_aug": subset.flip_aug,
                    "random_crop": subset.random_crop,
                    "face_crop_aug_range": subset.face_crop_aug_range,
                    "shuffle_caption": subset.shuffle_caption,
                    "keep_tokens": subset.keep_tokens,
                    "keep_tokens_separator": subset.keep_tokens_separator,
                    "secondary_separator": subset.secondary_separator,
                    "enable_wildcard": subset.enable_wildcard,
                    "caption_prefix": subset.caption_prefix,
                    "caption_suffix": subset.caption_suffix,
                    **{name: getattr(subset, name) for name in DROPOUTS},
                    "token_warmup_min": subset.token_warmup_min,
                    "token_warmup_step": subset.token_warmup_step,
                    "resize_interpolation": subset.resize_interpolation,
                    "image_dir": Path(subset.image_dir).name,
                    **_of_its_kind(subset),
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
                    name = _free_name(_name(subset), directories)
                    directories[name] = {"n_repeats": subset.num_repeats, "img_count": folder.pictures}
        return directories


def common(values: Sequence[T]) -> T | None:
    """The value that all are equal to, None where they differ."""
    return values[0] if values and all(value == values[0] for value in values) else None


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


def _scan_subset(
    options: DatasetOptions, dataset: int, number: int, caches: Caches | None
) -> tuple[list[Picture], list[Caption]]:
    subset = options.subsets[number]
    if subset.metadata_file is not None:
        paths, captions = read_metadata(subset)
    else:
        paths = list_pictures(Path(subset.image_dir))
        extensions = caption_extensions(subset.caption_extension)
        captions = [find_caption(path, extensions, subset.class_tokens, subset.enable_wildcard) for path in paths]
    buckets = _buckets(options)
    pictures = []
    known = measure_pictures(paths, caches and caches.beside(paths[0]))
    masks = _masks(subset, paths, known, caches)
    for path, facts, (mask_path, mask), caption in zip(paths, known, masks, captions, strict=True):
        size = facts.size
        bucket, resized = _place(path, size, options, buckets)
        if subset.random_crop and not options.enable_bucket and size[0] >= bucket[0] and size[1] >= bucket[1]:
            resized = size
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
                interpolation=subset.resize_interpolation,
                alpha_mask=subset.alpha_mask,
                mask_path=mask_path,
                content=facts.content,
                mask_content=mask.content,
            )
        )
    return pictures, captions


def _masks(
    subset: SubsetOptions, paths: Sequence[Path], known: Sequence[Facts], caches: Caches | None
) -> list[tuple[Path | None, Facts]]:
    """The mask file of each picture and what is known of it."""
    if subset.conditioning_data_dir is None:
        return [(None, NO_FACTS)] * len(paths)
    masks = find_masks(paths, Path(subset.conditioning_data_dir))
    facts = measure_pictures(masks, caches and caches.beside(paths[0]), OPTION)
    check_shapes(masks, [fact.size for fact in facts], [fact.size for fact in known])
    return list(zip(masks, facts, strict=True))


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
        source = Path(subset.metadata_file or subset.image_dir).resolve()
        if source in kept:
            dropped.append(str(subset.metadata_file or subset.image_dir))
        kept.setdefault(source, subset)
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


def _face_warnings(datasets: Sequence[DatasetOptions], pictures: Sequence[Picture]) -> list[str]:
    """Pictures that are to be cut around a face, and whose names tell of none.

    Raises:
        UserError: no picture of a subset's does.
    """
    warnings = []
    for dataset, options in enumerate(datasets):
        for number, subset in enumerate(options.subsets):
            own = [p for p in pictures if (p.dataset, p.subset) == (dataset, number)]
            without = sum(face_of(picture.path) is None for picture in own)
            if subset.face_crop_aug_range is None or not without:
                continue
            message = f"{without} of {len(own)} pictures in {subset.image_dir} have no face in their names"
            if without == len(own):
                example = "such as name_320_240_100_120.png (centre x, centre y, width, height in pixels)"
                raise UserError(f"{message}: rename them, {example}, or leave the option out", "face_crop_aug_range")
            warnings.append(f"face_crop_aug_range: {message}")
    return warnings


def _bucket_info(pictures: list[Picture]) -> dict:
    counts: dict[Size, int] = {}
    for picture in pictures:
        counts[picture.bucket] = counts.get(picture.bucket, 0) + picture.repeats
    errors = [abs(p.bucket[0] / p.bucket[1] - p.size[0] / p.size[1]) for p in pictures]
    buckets = {str(i): {"resolution": list(size), "count": counts[size]} for i, size in enumerate(sorted(counts))}
    return {"buckets": buckets, "mean_img_ar_error": sum(errors) / len(errors)}


def _of_its_kind(subset: SubsetOptions) -> dict[str, object]:
    attributes = {"custom_attributes": subset.custom_attributes} if subset.custom_attributes else {}
    if subset.metadata_file is not None:
        return {"metadata_file": Path(subset.metadata_file).name, **attributes}
    return {"class_tokens": subset.class_tokens, "is_reg": subset.is_reg, **attributes}


def _name(subset: SubsetOptions) -> str:
    """What a subset is called in the metadata: its folder's name, or its metadata file's."""
    return Path(subset.metadata_file or subset.image_dir).name


def _free_name(name: str, taken: dict[str, dict[str, int]]) -> str:
    number, free = 2, name
    while free in taken:
        free = f"{name} ({number})"
        number += 1
    return free
