"""What a LoRA file says of the pictures that it was trained on: the reference trainer's `ss_*` fields."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from backend.config.dataset import SubsetOptions
from backend.data.pictures import Picture
from backend.picture_folder import readable
from backend.tables.buckets import Size

if TYPE_CHECKING:
    from backend.data.dataset import TrainingSet

T = TypeVar("T")
DROPOUTS = ("caption_dropout_rate", "caption_dropout_every_n_epochs", "caption_tag_dropout_rate")


def describe(training_set: "TrainingSet") -> dict[str, str]:
    """The set's part of a LoRA file's metadata: the reference trainer's `ss_*` keys.

    Values are JSON, single options text.
    """
    described = [_describe(training_set, index) for index in range(len(training_set.datasets))]
    tags: dict[str, dict[str, int]] = {}
    for dataset in described:
        for folder, frequency in dataset["tag_frequency"].items():
            tags.setdefault(folder, frequency)
    values = {
        "ss_num_train_images": training_set.num_train_images,
        "ss_num_validation_images": len(training_set.validation),
        "ss_num_reg_images": training_set.num_reg_images,
        "ss_datasets": described,
        "ss_dataset_dirs": _dataset_dirs(training_set, is_reg=False),
        "ss_reg_dataset_dirs": _dataset_dirs(training_set, is_reg=True),
        "ss_tag_frequency": tags,
    }
    for name in DROPOUTS:
        rates = {getattr(subset, name) for dataset in training_set.datasets for subset in dataset.subsets}
        if len(rates) == 1:  # where they differ, they stand with each subset alone
            values[f"ss_{name}"] = rates.pop()
    for name in ("validation_split", "validation_seed"):
        given = {getattr(dataset, name) for dataset in training_set.datasets}
        if training_set.validation and len(given) == 1:
            values[f"ss_{name}"] = given.pop()
    if len(described) == 1 and described[0]["bucket_info"]:
        values["ss_bucket_info"] = described[0]["bucket_info"]
    subsets = [subset for dataset in training_set.datasets for subset in dataset.subsets]
    shared = {
        f"ss_{name}": str(common([getattr(subset, name) for subset in subsets]))
        for name in ("face_crop_aug_range", "resize_interpolation")
    }
    flat = _flat(training_set) if training_set.in_folders else {}
    return {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()} | shared | flat


def _flat(training_set: "TrainingSet") -> dict[str, str]:
    """What the reference writes of a set of folders, beside what it writes of every set."""
    options = training_set.datasets[0]
    subset = options.subsets[0]
    bounds = (options.min_bucket_reso, options.max_bucket_reso) if options.enable_bucket else (None, None)
    values = {
        "batch_size_per_device": options.batch_size,
        "total_batch_size": options.batch_size * training_set.processes * training_set.pace.accumulation,
        "resolution": tuple(options.resolution),
        "enable_bucket": options.enable_bucket,
        "bucket_no_upscale": options.bucket_no_upscale,
        "min_bucket_reso": bounds[0],
        "max_bucket_reso": bounds[1],
        "bucket_info": json.dumps(_bucket_info([*training_set.pictures]) if options.enable_bucket else None),
        "color_aug": subset.color_aug,
        "flip_aug": subset.flip_aug,
        "random_crop": subset.random_crop,
        "shuffle_caption": subset.shuffle_caption,
        "keep_tokens": subset.keep_tokens,
    }
    return {f"ss_{name}": str(value) for name, value in values.items()}


def _describe(training_set: "TrainingSet", index: int) -> dict:
    options, folders = training_set.datasets[index], training_set.folders[index]
    pictures = [picture for picture in training_set.pictures if picture.dataset == index]
    tags: dict[str, dict[str, int]] = {}
    for subset, folder in zip(options.subsets, folders, strict=True):
        counts = tags.setdefault(_name(subset), {})
        for tag, count in folder.tags.items():
            counts[tag] = counts.get(tag, 0) + count
    return {
        "is_dreambooth": all(subset.metadata_file is None for subset in options.subsets),
        "batch_size_per_device": options.batch_size,
        "num_train_images": sum(picture.repeats for picture in pictures if not picture.is_reg),
        "num_reg_images": num_reg_images(training_set, index),
        "resolution": list(options.resolution),
        "enable_bucket": options.enable_bucket,
        "bucket_no_upscale": options.bucket_no_upscale,
        "min_bucket_reso": options.min_bucket_reso,
        "max_bucket_reso": options.max_bucket_reso,
        "tag_frequency": tags,
        "network_multiplier": options.network_multiplier,
        "bucket_info": _bucket_info(pictures) if options.enable_bucket and pictures else None,
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
                "image_dir": readable(Path(subset.image_dir).name),
                **_of_its_kind(subset),
            }
            for subset, folder in zip(options.subsets, folders, strict=True)
        ],
    }


def num_reg_images(training_set: "TrainingSet", index: int) -> int:
    pairs = zip(training_set.datasets[index].subsets, training_set.folders[index], strict=True)
    return sum(folder.pictures * subset.num_repeats for subset, folder in pairs if subset.is_reg)


def _dataset_dirs(training_set: "TrainingSet", is_reg: bool) -> dict[str, dict[str, int]]:
    directories: dict[str, dict[str, int]] = {}
    for options, folders in zip(training_set.datasets, training_set.folders, strict=True):
        for subset, folder in zip(options.subsets, folders, strict=True):
            if subset.is_reg is is_reg:
                name = _free_name(_name(subset), directories)
                directories[name] = {"n_repeats": subset.num_repeats, "img_count": folder.pictures}
    return directories


def common(values: Sequence[T]) -> T | None:
    """The value that all are equal to, None where they differ."""
    return values[0] if values and all(value == values[0] for value in values) else None


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
        return {"metadata_file": readable(Path(subset.metadata_file).name), **attributes}
    return {"class_tokens": subset.class_tokens, "is_reg": subset.is_reg, **attributes}


def _name(subset: SubsetOptions) -> str:
    """What a subset is called in the metadata: its folder's name, or its metadata file's."""
    return readable(Path(subset.metadata_file or subset.image_dir).name)


def _free_name(name: str, taken: dict[str, dict[str, int]]) -> str:
    number, free = 2, name
    while free in taken:
        free = f"{name} ({number})"
        number += 1
    return free
