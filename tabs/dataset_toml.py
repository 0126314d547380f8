"""The toml of a dataset that was made in the page: from the settings of the form, and from folders with numbers."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backend.config.dataset import PIXELS, DatasetConfig, DatasetOptions, SubsetOptions
from backend.config.declare import section_leaves
from backend.picture_folder import is_picture
from tabs.uploads import Numbered

# Where all pictures lie that are in no numbered folder.
FOLDER = "pictures"
# What the form can change of a dataset, in its order.
DATASET_FIELDS = ("resolution", "batch_size", "enable_bucket")
SUBSET_FIELDS = ("num_repeats", "class_tokens", "flip_aug")
FIELDS = (*DATASET_FIELDS, *SUBSET_FIELDS)
# Those that all folders of a dataset share; the others numbered folders say by their names.
SHARED_FIELDS = ("flip_aug",)
WIDEST = 2**16


def settings_of(config: DatasetConfig) -> dict[str, Any]:
    """What the form shows: of the first dataset and its first subset."""
    options = config.datasets[0]
    first = options.subsets[0]
    width, height = options.resolution
    return {
        "resolution": str(width) if width == height else f"{width}x{height}",
        "batch_size": options.batch_size,
        "enable_bucket": options.enable_bucket,
        "num_repeats": first.num_repeats,
        "class_tokens": first.class_tokens or "",
        "flip_aug": first.flip_aug,
    }


def with_folders(config: DatasetConfig, home: Path, numbered: Sequence[Numbered]) -> DatasetConfig:
    """An own dataset's config with its numbered folders, and without the folder of all others while that is empty."""
    options = config.datasets[0]
    kept = {subset.image_dir.name: subset for subset in options.subsets}
    plain = kept.get(FOLDER) or options.subsets[0].model_copy(
        update={"image_dir": home / FOLDER, "num_repeats": 1, "class_tokens": None, "is_reg": False}
    )
    for each in numbered:
        told = {"image_dir": home / each.name, "num_repeats": each.repeats, "is_reg": each.is_reg}
        kept.setdefault(each.name, plain.model_copy(update=told | {"class_tokens": each.tokens}))
    first = {FOLDER: plain} if listed(home / FOLDER) or len(kept) == (FOLDER in kept) else {}
    kept.pop(FOLDER, None)
    subsets = tuple((first | kept).values())
    return DatasetConfig((options.model_copy(update={"subsets": subsets}),))


def settings_toml(folder: Path, old: DatasetConfig | None, settings: Mapping[str, Any]) -> str:
    """The toml of an own dataset: what the old one says, with the settings over it."""
    given = {name: value for name, value in settings.items() if value not in (None, "")}
    number_fields = ("batch_size", "num_repeats")
    given |= {
        name: int(given[name])
        for name in number_fields
        if isinstance(given.get(name), float) and given[name].is_integer()
    }
    dataset: dict[str, Any] = {name: given[name] for name in DATASET_FIELDS if name in given}
    subset: dict[str, Any] = {name: given[name] for name in SUBSET_FIELDS if name in given}
    subsets = [{**subset, "image_dir": str(folder)}]
    if old is not None:
        options = old.datasets[0]
        dataset = {**_plain(options), **dataset}
        # What folders say of themselves by their names is not for one field to change.
        changed = SUBSET_FIELDS if len(options.subsets) == 1 else SHARED_FIELDS
        given_here = {name: value for name, value in subset.items() if name in changed}
        subsets = [
            {**{k: v for k, v in _plain(each).items() if k not in changed}, **given_here} for each in options.subsets
        ]
    if given.get("enable_bucket") and (old is None or _shape(settings_of(old)) != _shape(given)):
        # The default limits are made for 512 pixels; these are judged with the resolution alone.
        wide = {"min_bucket_reso": PIXELS, "max_bucket_reso": WIDEST, "bucket_reso_steps": PIXELS}
        dataset |= _bucket_limits(checked({**dataset, **wide}, subsets))
    return checked(dataset, subsets).to_toml()


def _shape(settings: Mapping[str, Any]) -> tuple[str, bool]:
    return str(settings.get("resolution")), bool(settings.get("enable_bucket"))


def checked(dataset: Mapping[str, Any], subsets: Sequence[Mapping[str, Any]]) -> DatasetConfig:
    tables = {"datasets": [{**dataset, "subsets": list(subsets)}]}
    return DatasetConfig.from_tables(tables, "the settings")


def _bucket_limits(config: DatasetConfig) -> dict[str, int]:
    short, long = min(config.datasets[0].resolution), max(config.datasets[0].resolution)
    step = 64 if short >= 256 else 8
    return {
        "bucket_reso_steps": step,
        "min_bucket_reso": max(step, short // 2 // step * step),
        "max_bucket_reso": -(-long * 2 // step) * step,
    }


def _plain(options: DatasetOptions | SubsetOptions) -> dict[str, Any]:
    known = section_leaves(type(options))
    values = {name: getattr(options, name) for name in known if name != "subsets"}
    return {
        name: list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
        for name, value in values.items()
        if value is not None
    }


def listed(folder: Path) -> list[Path]:
    """The pictures of a folder, by name; none if it cannot be read."""
    try:
        names = sorted(os.listdir(folder), key=lambda name: (name.lower(), name))
    except OSError:
        return []
    return [folder / name for name in names if is_picture(name) and (folder / name).is_file()]
