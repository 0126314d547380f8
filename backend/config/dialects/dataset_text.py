"""What a LoRA file tells of its pictures, as a dataset toml whose folders are still to be named."""

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from backend.config.dataset import DATASET_KEYS, SUBSET_KEYS
from backend.config.declare import Leaf
from backend.config.dialects.judging import convert
from backend.config.dialects.reading import NO_COUNTERPART, OPEN, UNSET, Note, Reading, as_number, same
from backend.config.dialects.scripts import DEFAULTS
from backend.config.messages import shown

# Names in the metadata that differ from those of a dataset toml.
NAMES = {"batch_size_per_device": "batch_size"}
# Of a run that was given folders in place of a dataset toml, and of every run.
_FLAT = """
batch_size_per_device resolution color_aug flip_aug random_crop shuffle_caption enable_bucket bucket_no_upscale
min_bucket_reso max_bucket_reso keep_tokens caption_dropout_rate caption_dropout_every_n_epochs
caption_tag_dropout_rate face_crop_aug_range resize_interpolation
"""
FLAT = tuple(_FLAT.split())
COUNTED = ("num_train_images", "num_reg_images", "tag_frequency", "bucket_info", "subsets", "is_dreambooth")
FOLDERS = (("dataset_dirs", False), ("reg_dataset_dirs", True))
MOST = 500
COMMENT = "From a LoRA file's metadata: complete every image_dir."


def take_dataset(reading: Reading) -> None:
    """Turn the fields about pictures into the text of a dataset toml, and tell what is to be done with it."""
    flat = {key: reading.left.get(key) for key in FLAT if key in reading.left}
    described = _loaded(reading, "datasets", list)
    datasets = [entry for entry in described or [] if isinstance(entry, Mapping)]
    folders = {key: _loaded(reading, key, Mapping) or {} for key, _ in FOLDERS}
    if not datasets and any(folders.values()):
        datasets = [{"subsets": list(_subsets(folders))}]
        for key, _ in FOLDERS:
            reading.drop(key)
    if not datasets:
        return
    lost: list[Note] = []
    general = dataset_values(flat, "", lost)
    tables = [(dataset_values(dataset, "ss_datasets ", lost), _described(dataset, lost)) for dataset in datasets[:MOST]]
    reading.notes += list(dict.fromkeys(lost))
    told = {note.key for note in lost}
    for key in flat:
        reading.left.pop(key)
        (reading.idle if key in told or NAMES.get(key, key) not in general else reading.taken).append(key)
    for key in ("datasets", *(key for key, _ in FOLDERS)):
        if key in reading.left:
            reading.left.pop(key)
            reading.taken.append(key)
    reading.dataset = dataset_toml(general, tables, COMMENT)
    count = sum(len(subsets) for _, subsets in tables)
    text = (
        f"the file names {count} folder{'s' * (count != 1)} of pictures: complete the paths in the dataset toml below"
    )
    reading.notes.append(Note("dataset_config", "", text, OPEN))


def _loaded(reading: Reading, key: str, kind: type) -> Any:
    try:
        found = json.loads(reading.left.get(key) or "null")
    except (ValueError, TypeError, RecursionError):
        found = None
    if not isinstance(found, kind):
        if key in reading.left and reading.left[key] not in UNSET:
            reading.lose(key, "cannot be read")
        else:
            reading.drop(key)
        return None
    if not found:
        reading.drop(key)
    return found


def _subsets(folders: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The folders of a run without a dataset toml, as a dataset's subsets."""
    return [
        {
            "image_dir": name,
            "num_repeats": about.get("n_repeats"),
            "img_count": about.get("img_count"),
            "is_reg": is_reg,
        }
        for key, is_reg in FOLDERS
        for name, about in folders[key].items()
        if isinstance(about, Mapping)
    ]


def _described(dataset: Mapping[str, Any], lost: list[Note]) -> list[tuple[str, dict[str, Any], Any]]:
    """A dataset's subsets as (name of the folder, values, number of pictures)."""
    found = []
    subsets = dataset.get("subsets")
    for subset in (subsets if isinstance(subsets, list) else [])[:MOST]:
        if isinstance(subset, Mapping):
            # A name and never a path, whatever the file says.
            folder = PurePosixPath(str(subset.get("image_dir") or subset.get("metadata_file") or "").replace("\\", "/"))
            rest = {key: value for key, value in subset.items() if key not in ("image_dir", "img_count")}
            values = dataset_values(rest, "ss_datasets ", lost)
            found.append((folder.name or "unknown", values, subset.get("img_count")))
    return found


def dataset_values(table: Mapping[str, Any], place: str, lost: list[Note]) -> dict[str, Any]:
    """What a table says beyond the defaults, in the types of our dataset options; what they refuse is told."""
    known: dict[str, Leaf] = {**DATASET_KEYS, **SUBSET_KEYS}
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = NAMES.get(key, key)
        leaf = known.get(name)
        if key in COUNTED or value in UNSET:
            continue
        if leaf is None:
            if not same(value, DEFAULTS.get(name)):
                lost.append(Note(f"{place}{name}", shown(value), NO_COUNTERPART))
            continue
        try:
            typed = _resolution(value) if name == "resolution" else convert(leaf, value)
        except ValueError as error:
            lost.append(Note(f"{place}{name}", shown(value), str(error)))
            continue
        if typed != leaf.default:
            found[name] = typed
    return found


def _resolution(value: Any) -> list[int]:
    sides = value if isinstance(value, list) else str(value).strip("()[] ").replace("x", ",").split(",")
    found = [as_number(side) for side in sides]
    if len(found) not in (1, 2) or any(side is None or not side.is_integer() for side in found):
        raise ValueError(f"must be a number of pixels or [width, height], got {shown(value)}")
    return [int(side) for side in found if side is not None]


def dataset_toml(
    general: Mapping[str, Any],
    tables: list[tuple[dict[str, Any], list[tuple[str, dict[str, Any], Any]]]],
    comment: str,
) -> str:
    """The text of a dataset toml.

    Args:
        general: options of all datasets.
        tables: the datasets, each with its options and its subsets as (folder, options, number of pictures or None).
        comment: its first line.
    """
    import tomlkit  # as in toml.py

    document = tomlkit.document()
    document.add(tomlkit.comment(comment))
    if general:
        document.add("general", _table(general))
    datasets = tomlkit.aot()
    for options, subsets in tables:
        dataset = _table(options)
        inner = tomlkit.aot()
        for folder, values, count in subsets:
            table = _table({"image_dir": folder, **values})
            if isinstance(count, int):
                table["image_dir"].comment(f"{count} pictures")
            inner.append(table)
        dataset.add("subsets", inner)
        datasets.append(dataset)
    document.add("datasets", datasets)
    return tomlkit.dumps(document)


def _table(values: Mapping[str, Any]) -> Any:
    import tomlkit

    table = tomlkit.table()
    for key, value in values.items():
        table.add(key, list(value) if isinstance(value, tuple) else value)
    return table
