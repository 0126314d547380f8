"""Datasets as the Train tab handles them: what is in them, settings that a form can change, new ones from uploads."""

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.bounded import read_text, split_lines
from backend.config.dataset import PIXELS, DatasetConfig, SubsetOptions
from backend.config.dataset_folders import dataset_of
from backend.config.toml import named_file
from backend.config.training.data import Data
from backend.errors import UserError, workspace_errors
from backend.picture_folder import LINES, CaptionFiles, caption_extensions, gathered, left_out, told
from backend.workspace import DATASET_FILE, PROJECT, Workspace, slug
from tabs import uploads
from tabs.dataset_toml import FIELDS, FOLDER, checked, listed, settings_of, settings_toml, with_folders

__all__ = ["FIELDS", "FOLDER"]

# Stands in where only the pictures matter.
SIZE = {"resolution": (PIXELS, PIXELS)}
FOLDERS_SHOWN = 6


@dataclass(frozen=True)
class Picture:
    """A picture of a dataset.

    Attributes:
        path: of its file.
        caption: as the trainer takes it, "" where it has none.
        is_reg: it is for regularisation.
        text: every line of its caption file.
        fault: why its caption cannot be read.
    """

    path: Path
    caption: str
    is_reg: bool
    text: str = ""
    fault: str = ""

    @property
    def unread(self) -> bool:
        """Whether its caption file has more lines than the first one."""
        return "\n" in self.text


@dataclass(frozen=True)
class Dataset:
    """A dataset toml that could be read.

    Attributes:
        path: of the toml.
        config: what stands in it.
        own: it was made here, so its settings, captions and pictures may be changed here.
        passed_over: what its folders hold and a run leaves out, one line for each kind, once `pictures` was asked.
    """

    path: Path
    config: DatasetConfig
    own: bool
    passed_over: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Where the pictures of an own dataset lie, but for those of numbered folders."""
        return self.path.parent / FOLDER

    @property
    def folders(self) -> list[Path]:
        """Every folder of pictures."""
        return [PROJECT / subset.image_dir for options in self.config.datasets for subset in options.subsets]

    @property
    def described(self) -> bool:
        """Whether a file names the pictures, so that listing folders does not find them all."""
        return any(subset.metadata_file for options in self.config.datasets for subset in options.subsets)

    def pictures(self) -> list[Picture]:
        """Every picture with its caption, folder by folder, by name."""
        found: list[Picture] = []
        left = []
        for options in self.config.datasets:
            for subset in options.subsets:
                folder, extensions = PROJECT / subset.image_dir, caption_extensions(subset.caption_extension)
                files, paths = CaptionFiles(folder), listed(folder)
                own = [_picture(path, subset, files) for path in paths]
                found += own if subset.num_repeats else []
                if not self.described:
                    left.append(left_out(folder, paths, files.used, extensions, self.folders))
                    several = [] if subset.enable_wildcard else [each for each in own if each.unread]
                    left.append({LINES: [files.find(each.path, extensions) or each.path for each in several]})
        self.passed_over[:] = [*self.config.warnings, *_faults(found), *told(gathered(left))]
        return found

    def settings(self) -> dict[str, Any]:
        """What the form shows: of the first dataset and its first subset."""
        return settings_of(self.config)

    def summary(self, pictures: Sequence[Picture]) -> str:
        """What is in it and how long an epoch is, in one line."""
        own, others = sum(not picture.is_reg for picture in pictures), sum(picture.is_reg for picture in pictures)
        if self.described:
            return "its pictures are named by a metadata_file"
        bare = sum(not picture.caption for picture in pictures)
        parts = [f"{own} picture{'s' * (own != 1)}"]
        parts += [f"{others} regularisation pictures"] if others else []
        parts += [f"{bare} without a caption"] if bare else []
        parts += self._repeats()
        if not self.config.in_folders:
            width, height = self.config.datasets[0].resolution
            parts.append(f"trained at {width} × {height}")
        return " · ".join(parts)


    def _repeats(self) -> list[str]:
        """What each folder's pictures count, where there are several or one is left out."""
        subsets = [subset for options in self.config.datasets for subset in options.subsets]
        if len(subsets) < 2 and all(subset.num_repeats for subset in subsets):
            return []
        shown = [f"{subset.image_dir.name} × {subset.num_repeats}" for subset in subsets if subset.num_repeats]
        idle = [f"{subset.image_dir.name} is left out (num_repeats 0)" for subset in subsets if not subset.num_repeats]
        more = [f"and {len(shown) - FOLDERS_SHOWN} more"] if len(shown) > FOLDERS_SHOWN else []
        return [*shown[:FOLDERS_SHOWN], *more, *idle]


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
    file = named_file(path, "dataset_config")
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
    workspace: Workspace, name: str, files: Sequence[Path | str], settings: Mapping[str, Any]
) -> tuple[Path, uploads.Report]:
    """Put uploaded pictures and captions into the workspace's dataset of this name, made if there is none.

    Folders of a ZIP that say their repeats, such as `10_shs dog`, become folders of the dataset with these repeats.

    Returns:
        The path of its toml, and what became of the files.

    Raises:
        UserError: the name, a setting or everything that was sent cannot be taken; then nothing was.
    """
    home = workspace.resolve(workspace.datasets, slug(name, "name"), field="name")
    toml = home / DATASET_FILE
    old = open_dataset(workspace, str(toml)) if toml.exists() else None
    if old is not None and not old.own:
        raise UserError("is a dataset that was not made here; choose another name", "name")
    # Judged before anything is kept.
    config = old.config if old is not None else DatasetConfig.loads(settings_toml(home / FOLDER, None, settings))
    existed = home.exists()
    try:
        report = uploads.take(files, home / FOLDER, old.folders if old is not None else (), numbered=True)
        text = with_folders(config, home, report.numbered).to_toml()
        if old is None or text != config.to_toml():
            _write(toml, text)
    except UserError:
        if not existed:
            shutil.rmtree(home, ignore_errors=True)
        raise
    return toml, report


def delete_dataset(workspace: Workspace, dataset: Dataset) -> None:
    """Delete an own dataset, its pictures and captions.

    Raises:
        UserError: it was not made here, or the disk refuses.
    """
    home = dataset.path.parent
    if not dataset.own or home.is_symlink() or home.resolve().parent != workspace.datasets:
        raise UserError("this dataset was not made here and is not deleted here", "dataset_config")
    # First out of sight, so that nothing is half there if it ends in between.
    gone = workspace.datasets / f".deleted-{uuid.uuid4().hex}"
    with workspace_errors("dataset_config"):
        os.replace(home, gone)
        shutil.rmtree(gone)


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
    text = checked(dataset, [{"image_dir": str(home / FOLDER)}]).to_toml()
    with workspace_errors("dst"):
        home.mkdir(parents=True, exist_ok=True)
        _write(home / DATASET_FILE, text)


def change_settings(dataset: Dataset, settings: Mapping[str, Any]) -> None:
    """Write changed settings into an own dataset's toml; whatever else stands in it stays.

    Raises:
        ConfigError: naming the wrong settings.
    """
    if dataset.own and dict(settings) != dataset.settings():
        _write(dataset.path, settings_toml(dataset.folder, dataset.config, settings))


def remove_picture(dataset: Dataset, name: str) -> None:
    """Take a picture of an own dataset, and its caption, away."""
    picture = find_picture(dataset, name)
    with workspace_errors("picture"):
        picture.unlink(missing_ok=True)
        for suffix in uploads.CAPTIONS:
            picture.with_suffix(suffix).unlink(missing_ok=True)


def set_caption(dataset: Dataset, name: str, text: str) -> None:
    """Write the caption of a picture of an own dataset."""
    if len(text.encode("utf-8", "replace")) > uploads.CAPTION_BYTES:
        raise UserError("is too long", "caption")
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError("has characters that are no text; write it anew", "caption")
    picture = find_picture(dataset, name)
    with workspace_errors("caption"):
        uploads.write_caption(picture.parent, picture.stem, text)


def find_picture(dataset: Dataset, name: str) -> Path:
    """An own dataset's picture by its name, as `name_in` gives it.

    Raises:
        UserError: there is none, or the dataset may not be changed.
    """
    if not dataset.own:
        raise UserError("this dataset was not made here and is not changed here", "dataset_config")
    for path in (path for folder in dataset.folders for path in listed(folder)):
        if name_in(path) == name:
            return path
    raise UserError(f"there is no picture {name} any more", "caption")


def name_in(picture: Path) -> str:
    """What a picture of an own dataset is called: its file's name, with its folder's before it if that is numbered."""
    return picture.name if picture.parent.name == FOLDER else f"{picture.parent.name}/{picture.name}"


def caption_of(picture: Path, subset: SubsetOptions) -> str:
    """A picture's caption as the trainer finds it: first line of its caption file, else the class tokens, else none."""
    return _picture(picture, subset, CaptionFiles(picture.parent)).caption


def _picture(path: Path, subset: SubsetOptions, files: CaptionFiles) -> Picture:
    source = files.find(path, caption_extensions(subset.caption_extension))
    if source is None:
        caption = (subset.class_tokens or "").strip()
        return Picture(path, caption, subset.is_reg, caption)
    try:
        text = read_text(source, None, "caption")
    except UserError as error:
        return Picture(path, "", subset.is_reg, fault=error.message)
    first = next(iter(split_lines(text)), "").strip()
    return Picture(path, first, subset.is_reg, uploads.tidy(text))


def _faults(pictures: Sequence[Picture]) -> list[str]:
    faults = [picture.fault for picture in pictures if picture.fault]
    more = f"; and {len(faults) - 1} more such captions" if len(faults) > 1 else ""
    return [f"{faults[0]}{more}"] if faults else []


def _is_own(workspace: Workspace, file: Path, config: DatasetConfig) -> bool:
    subsets = [subset for options in config.datasets for subset in options.subsets]
    if len(config.datasets) != 1 or not file.resolve().is_relative_to(workspace.datasets):
        return False
    home = file.parent.resolve()
    return all(
        (PROJECT / subset.image_dir).resolve().parent == home
        and subset.metadata_file is None
        and (subset.image_dir.name == FOLDER or uploads.NUMBERED.fullmatch(subset.image_dir.name.removeprefix("reg-")))
        for subset in subsets
    )


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}", "dataset_config") from error
    finally:
        temporary.unlink(missing_ok=True)
