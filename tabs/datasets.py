"""Datasets as the Train tab handles them: what is in them, settings that a form can change, new ones from uploads."""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from backend.config.dataset import PIXELS, DatasetConfig, DatasetOptions, SubsetOptions
from backend.config.dataset_folders import dataset_of
from backend.config.declare import section_leaves
from backend.config.paths import likely_path
from backend.config.training.data import Data
from backend.errors import UserError, workspace_errors
from backend.workspace import DATASET_FILE, PROJECT, Workspace, slug
from tabs import uploads

FOLDER = "pictures"
THUMBNAIL = 256
# Stands in where only the pictures matter.
SIZE = {"resolution": (PIXELS, PIXELS)}
SMALL_FILE = 64 * 1024
WIDEST = 2**16
# What the form can change of a dataset, in its order.
DATASET_FIELDS = ("resolution", "batch_size", "enable_bucket")
SUBSET_FIELDS = ("num_repeats", "class_tokens", "flip_aug")
FIELDS = (*DATASET_FIELDS, *SUBSET_FIELDS)


@dataclass(frozen=True)
class Picture:
    """A picture of a dataset and its caption, "" where it has none."""

    path: Path
    caption: str
    is_reg: bool


@dataclass(frozen=True)
class Dataset:
    """A dataset toml that could be read.

    Attributes:
        path: of the toml.
        config: what stands in it.
        own: it was made here, so its settings, captions and pictures may be changed here.
    """

    path: Path
    config: DatasetConfig
    own: bool

    @property
    def folder(self) -> Path:
        """Where the pictures of an own dataset lie."""
        return self.path.parent / FOLDER

    @property
    def described(self) -> bool:
        """Whether a file names the pictures, so that listing folders does not find them all."""
        return any(subset.metadata_file for options in self.config.datasets for subset in options.subsets)

    def pictures(self) -> list[Picture]:
        """Every picture with its caption, folder by folder, by name."""
        return [
            Picture(path, caption_of(path, subset), subset.is_reg)
            for options in self.config.datasets
            for subset in options.subsets
            for path in _listed(PROJECT / subset.image_dir)
        ]

    def settings(self) -> dict[str, Any]:
        """What the form shows: of the first dataset and its first subset."""
        options = self.config.datasets[0]
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

    def summary(self, pictures: Sequence[Picture]) -> str:
        """What is in it and how long an epoch is, in one line."""
        own, others = sum(not picture.is_reg for picture in pictures), sum(picture.is_reg for picture in pictures)
        if self.described:
            return "its pictures are named by a metadata_file"
        bare = sum(not picture.caption for picture in pictures)
        parts = [f"{own} picture{'s' * (own != 1)}"]
        parts += [f"{others} regularisation pictures"] if others else []
        parts += [f"{bare} without a caption"] if bare else []
        if not self.config.in_folders:
            width, height = self.config.datasets[0].resolution
            parts.append(f"trained at {width} × {height}")
        return " · ".join(parts)


def open_dataset(workspace: Workspace, path: str, flags: Mapping[str, Any] | None = None) -> Dataset:
    """Read a dataset toml.

    Args:
        workspace: whose datasets may be changed here.
        path: of the toml.
        flags: values for keys that it leaves out.

    Raises:
        UserError: it is missing or wrong.
    """
    if not path or not path.strip():
        raise UserError("choose a dataset, or upload pictures", "dataset_config")
    file = likely_path(path)
    config = DatasetConfig.load(file, flags)
    return Dataset(file, config, _is_own(workspace, file, config))


def open_folders(folder: str, reg_folder: str = "", flags: Mapping[str, Any] | None = None) -> Dataset:
    """Read folders of folders that are named by their repeats, as `train_data_dir` and `reg_data_dir` have them.

    Args:
        folder: with the pictures to learn.
        reg_folder: with regularisation pictures, "" for none.
        flags: values for keys of a dataset toml; without any, a size stands in, which they need.

    Raises:
        UserError: they are missing, or have no such folders.
    """
    reg = Path(reg_folder.strip()) if reg_folder.strip() else None
    data = Data(train_data_dir=Path(folder.strip()), reg_data_dir=reg)
    return Dataset(data.train_data_dir, dataset_of(data, SIZE if flags is None else flags), own=False)


def choices(workspace: Workspace) -> list[tuple[str, str]]:
    """The workspace's datasets as (label, path of the toml), the demo's first."""
    return [(label, str(Path(folder) / DATASET_FILE)) for label, folder in workspace.list_datasets()]


def add_pictures(
    workspace: Workspace, name: str, files: Sequence[Path], settings: Mapping[str, Any]
) -> tuple[Path, uploads.Report]:
    """Put uploaded pictures and captions into the workspace's dataset of this name, made if there is none.

    Returns:
        The path of its toml, and what became of the files.

    Raises:
        UserError: the name, a setting or everything that was sent cannot be taken.
    """
    home = workspace.resolve(workspace.datasets, slug(name, "name"), field="name")
    toml = home / DATASET_FILE
    if toml.exists() and not open_dataset(workspace, str(toml)).own:
        raise UserError("is a dataset that was not made here; choose another name", "name")
    fresh = not toml.exists()
    # Judged before anything is kept.
    text = _toml(home / FOLDER, None, settings) if fresh else ""
    existed = home.exists()
    try:
        report = uploads.take(files, home / FOLDER)
    except UserError:
        if not existed:
            shutil.rmtree(home, ignore_errors=True)
        raise
    if fresh:
        _write(toml, text)
    return toml, report


def make_resized(workspace: Workspace, name: str, sizes: Sequence[tuple[int, int]], step: int) -> None:
    """Make the dataset of this name, into which pictures of several sizes will come, each to be trained at its own.

    One that is there stays as it is.

    Args:
        workspace: where.
        name: of the dataset.
        sizes: that the pictures will have at most.
        step: what the sides of buckets are multiples of.

    Raises:
        UserError: the name, or a full disk.
    """
    home = workspace.resolve(workspace.datasets, slug(name, "dst"), field="dst")
    if (home / DATASET_FILE).exists():
        return
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    dataset = {
        "resolution": f"{width}x{height}",
        "enable_bucket": True,
        "bucket_no_upscale": True,
        "bucket_reso_steps": step,
        "min_bucket_reso": step,
        "max_bucket_reso": -(-max(width, height) * 4 // step) * step,
    }
    text = _checked(dataset, {}, home / FOLDER).to_toml()
    with workspace_errors("dst"):
        home.mkdir(parents=True, exist_ok=True)
        _write(home / DATASET_FILE, text)


def change_settings(dataset: Dataset, settings: Mapping[str, Any]) -> None:
    """Write changed settings into an own dataset's toml; whatever else stands in it stays.

    Raises:
        ConfigError: naming the wrong settings.
    """
    if dataset.own and dict(settings) != dataset.settings():
        _write(dataset.path, _toml(dataset.folder, dataset, settings))


def remove_picture(dataset: Dataset, name: str) -> None:
    """Take a picture of an own dataset, and its caption, away."""
    picture = find_picture(dataset, name)
    with workspace_errors("picture"):
        picture.unlink(missing_ok=True)
        for suffix in uploads.CAPTIONS:
            picture.with_suffix(suffix).unlink(missing_ok=True)


def set_caption(dataset: Dataset, name: str, text: str) -> None:
    """Write the caption of a picture of an own dataset."""
    if len(text.encode()) > uploads.CAPTION_BYTES:
        raise UserError("is too long", "caption")
    picture = find_picture(dataset, name)
    with workspace_errors("caption"):
        uploads.write_caption(dataset.folder, picture.stem, text)


def find_picture(dataset: Dataset, name: str) -> Path:
    """An own dataset's picture by its file name.

    Raises:
        UserError: there is none, or the dataset may not be changed.
    """
    if not dataset.own:
        raise UserError("this dataset was not made here and is not changed here", "dataset_config")
    for path in _listed(dataset.folder):
        if path.name == name:
            return path
    raise UserError(f"there is no picture {name} any more", "caption")


def caption_of(picture: Path, subset: SubsetOptions) -> str:
    """A picture's caption as the trainer finds it: first line of its caption file, else the class tokens, else none."""
    first = (subset.caption_extension,) if subset.caption_extension else ()
    for suffix in (*first, *uploads.CAPTIONS):
        try:
            source = picture.with_name(picture.stem + suffix)
            lines = source.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        except OSError:
            continue
        return lines[0].strip() if lines else ""
    return (subset.class_tokens or "").strip()


def thumbnail(picture: Path, cache: Path, served: Sequence[Path] = ()) -> Path | None:
    """A small copy of a picture to be shown, made once; None if the picture is broken.

    Args:
        picture: itself given back if it is small and may be served.
        cache: where copies are kept, and served from.
        served: folders whose files the server gives out; a picture from anywhere else it would refuse.
    """
    try:
        status = picture.stat()
        if status.st_size <= SMALL_FILE and any(picture.resolve().is_relative_to(place.resolve()) for place in served):
            return picture
        key = hashlib.sha256(f"{picture}\0{status.st_size}\0{status.st_mtime_ns}".encode()).hexdigest()[:32]
        small = cache / key / f"{uploads.make_slug(picture.stem)}.webp"
        if not small.exists():
            small.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(picture, formats=tuple(uploads.FORMATS)) as image:
                image.draft("RGB", (THUMBNAIL * 2, THUMBNAIL * 2))
                copy = ImageOps.exif_transpose(image).convert("RGB")
            copy.thumbnail((THUMBNAIL, THUMBNAIL))
            copy.save(small, quality=85)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return small


def _listed(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder), key=lambda name: (name.lower(), name))
    except OSError:
        return []
    return [folder / name for name in names if Path(name).suffix.lower() in uploads.PICTURES and name[0] != "."]


def _is_own(workspace: Workspace, file: Path, config: DatasetConfig) -> bool:
    subsets = [subset for options in config.datasets for subset in options.subsets]
    if len(subsets) != 1 or not file.resolve().is_relative_to(workspace.datasets):
        return False
    return (PROJECT / subsets[0].image_dir).resolve() == (file.parent / FOLDER).resolve()


def _toml(folder: Path, old: Dataset | None, settings: Mapping[str, Any]) -> str:
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
    if old is not None:
        options = old.config.datasets[0]
        dataset = {**_plain(options), **dataset}
        subset = {**{k: v for k, v in _plain(options.subsets[0]).items() if k not in SUBSET_FIELDS}, **subset}
    if given.get("enable_bucket") and (old is None or _shape(old.settings()) != _shape(given)):
        # The default limits are made for 512 pixels; these are judged with the resolution alone.
        wide = {"min_bucket_reso": PIXELS, "max_bucket_reso": WIDEST, "bucket_reso_steps": PIXELS}
        dataset |= _bucket_limits(_checked({**dataset, **wide}, subset, folder))
    return _checked(dataset, subset, folder).to_toml()


def _shape(settings: Mapping[str, Any]) -> tuple[str, bool]:
    return str(settings.get("resolution")), bool(settings.get("enable_bucket"))


def _checked(dataset: Mapping[str, Any], subset: Mapping[str, Any], folder: Path) -> DatasetConfig:
    tables = {"datasets": [{**dataset, "subsets": [{**subset, "image_dir": str(folder)}]}]}
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


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}", "dataset_config") from error
    finally:
        temporary.unlink(missing_ok=True)
