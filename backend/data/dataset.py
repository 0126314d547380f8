"""A training set: the folders of a dataset toml, scanned once, sorted into buckets and counted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from backend.config.dataset import DatasetConfig, DatasetOptions, SubsetOptions
from backend.data.augment import face_of
from backend.data.batches import Batch, Item, Pace, batches_per_epoch, epoch_batches
from backend.data.captions import Caption, find_caption, tag_frequency
from backend.data.describe import describe, num_reg_images
from backend.data.masks import OPTION, check_shapes, find_masks, unused_masks
from backend.data.metadata_file import read_metadata
from backend.data.pictures import Facts, Picture, list_pictures, load_pixels, measure_pictures
from backend.data.split import Split, held_out, validation_batches
from backend.data.store import Caches
from backend.errors import UserError
from backend.picture_folder import (
    LINES,
    CaptionFiles,
    Found,
    caption_extensions,
    gathered,
    left_out,
    names_of,
    readable,
    told,
    unnamed,
)
from backend.tables.buckets import Size, make_buckets, select_bucket, select_bucket_no_upscale

NO_FACTS = Facts((0, 0))

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
            dataset twice, or that is shown 0 times, is left out.
        pictures: those that are trained, in the order of the folders, with their repeats.
        validation: those that are held out, which are no others' copies.
        folders: for each dataset, what each subset's folder holds.
        warnings: one line each, for the user to read.
        in_folders: it was named by folders on the command line, and is one dataset then.
        pace: of the run that it is trained in.
        processes: that a batch is split over: each takes `batch_size` of it.
    """

    datasets: tuple[DatasetOptions, ...]
    pictures: tuple[Picture, ...]
    validation: tuple[Picture, ...]
    folders: tuple[tuple[FolderCount, ...], ...]
    warnings: tuple[str, ...]
    in_folders: bool = False
    pace: Pace = Pace()
    processes: int = 1

    @classmethod
    def scan(cls, config: DatasetConfig, caches: Caches | None = None, split: Split | None = None) -> "TrainingSet":
        """Find, check and measure the pictures of every subset, read their captions, and hold some out.

        Args:
            config: the datasets.
            caches: where earlier runs have kept what is known of the pictures; they are hashed for it.
            split: for datasets that say nothing of validation; left out, nothing is held out of them.

        Raises:
            UserError: for a missing or empty folder, a picture that cannot be decoded, a caption that is not UTF-8, a
                picture that fits no bucket, a dataset of regularisation pictures only, or one without pictures left.
        """
        split = split or Split()
        datasets, scanned, pictures, folders, warnings, captions = [], [], [], [], list(config.warnings), []
        passed_over: list[Found] = []
        places = _places(config)
        for given in config.datasets:
            options, why = _without_idle(split.settled(given))
            warnings += why
            if not options.subsets:
                continue
            index = len(datasets)
            found = [_scan_subset(options, index, number, caches) for number in range(len(options.subsets))]
            if not any(not picture.is_reg for subset in found for picture in subset.pictures):
                message = "a dataset has regularisation pictures only: add a subset without is_reg"
                raise UserError(message, "is_reg")
            datasets.append(options)
            scanned.append([picture for subset in found for picture in subset.pictures])
            captions += [
                (picture.path, caption)
                for subset in found
                for picture, caption in zip(subset.pictures, subset.captions, strict=True)
            ]
            passed_over += [subset.left_out(options.subsets[number], places) for number, subset in enumerate(found)]
            folders.append(tuple(subset.count for subset in found))
        if not datasets:
            raise UserError("is 0 in every subset, so that no picture is left; give 1 or more", "num_repeats")
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
        warnings += told(gathered(passed_over))
        warnings += _face_warnings(datasets, pictures)
        if caches is not None:
            caches.save()
        return cls(tuple(datasets), tuple(pictures), validation, tuple(folders), tuple(warnings), config.in_folders)

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
        return sum(num_reg_images(self, index) for index in range(len(self.datasets)))

    def epoch_batches(self, seed: int, epoch: int) -> list[Batch]:
        """The global batches of one epoch; see `backend.data.batches.epoch_batches`."""
        return epoch_batches(self.datasets, self.pictures, seed, epoch, self.processes, self.pace)

    def validation_batches(self, seed: int) -> tuple[Batch, ...]:
        """The batches of held out pictures; see `backend.data.split.validation_batches`."""
        return validation_batches(self.datasets, self.validation, seed)

    def batches_per_epoch(self) -> int:
        """The number of global batches in every epoch."""
        return batches_per_epoch(self.datasets, self.pictures, self.processes)

    @property
    def info(self) -> dict[str, str]:
        """The set's part of a LoRA file's metadata; see `backend.data.describe`."""
        return describe(self)


def balance_repeats(repeats: Sequence[int], target: int) -> list[int]:
    """How often each regularisation picture is shown so that their number is `target`.

    First every picture its own repeats, then one more each, round and round; as soon as the target is reached the rest
    are shown no more. The last one of the first round keeps all of its repeats, though the sum may be more than the
    target then: so it is in the reference trainer.
    """
    result = [0] * len(repeats)
    left = target
    while left > 0:
        first_round = not any(result)
        for index, count in enumerate(repeats):
            step = count if first_round else 1
            result[index] += step
            left -= step
            if left <= 0:
                break
    return result


@dataclass(frozen=True)
class _Scanned:
    """The pictures of a subset, the caption of each, and the caption files and masks that were looked up."""

    pictures: list[Picture]
    captions: list[Caption]
    masks: list[Path]
    files: CaptionFiles | None = None

    @property
    def count(self) -> FolderCount:
        """What the subset's folder holds."""
        return FolderCount(len(self.pictures), tag_frequency(caption.text for caption in self.captions))

    def left_out(self, subset: SubsetOptions, places: Sequence[Path]) -> Found:
        """What of the subset's folders is not used, by kind; `places` are used by other subsets."""
        folder, paths = Path(subset.image_dir), [picture.path for picture in self.pictures]
        parts: list[Found] = []
        if self.files is None:
            parts.append(unnamed(folder, paths, places))
        else:
            extensions = caption_extensions(subset.caption_extension)
            parts.append(left_out(folder, paths, self.files.used, extensions, (*places, *self.masks)))
        if subset.conditioning_data_dir is not None:
            parts.append(unused_masks(Path(subset.conditioning_data_dir), self.masks))
        parts.append({LINES: [c.source for c in self.captions if c.unread and c.source is not None]})
        return gathered(parts)


def _places(config: DatasetConfig) -> list[Path]:
    """The folders and files that subsets name."""
    subsets = [subset for options in config.datasets for subset in options.subsets]
    named = [(subset.image_dir, subset.metadata_file, subset.conditioning_data_dir) for subset in subsets]
    return [Path(path) for paths in named for path in paths if path is not None]


def _scan_subset(
    options: DatasetOptions, dataset: int, number: int, caches: Caches | None
) -> _Scanned:
    subset = options.subsets[number]
    files = None
    if subset.metadata_file is not None:
        paths, captions = read_metadata(subset)
    else:
        paths = list_pictures(Path(subset.image_dir))
        extensions = caption_extensions(subset.caption_extension)
        files = CaptionFiles(Path(subset.image_dir))
        captions = [find_caption(p, extensions, subset.class_tokens, subset.enable_wildcard, files) for p in paths]
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
    return _Scanned(pictures, captions, [path for path, _ in masks if path is not None], files)


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


def _without_idle(options: DatasetOptions) -> tuple[DatasetOptions, list[str]]:
    """Without the subsets of folders that an earlier one has, and those that are shown 0 times; and what to say."""
    kept: dict[Path, SubsetOptions] = {}
    why = []
    for subset in options.subsets:
        source = Path(subset.metadata_file or subset.image_dir)
        name = readable(source)
        if not subset.num_repeats:
            why.append(f"{name} is left out: its num_repeats is 0")
            continue
        if source.resolve() in kept:
            why.append(f"{name} stands twice in one dataset: the second subset is left out")
        kept.setdefault(source.resolve(), subset)
    return options.model_copy(update={"subsets": tuple(kept.values())}), why


def _caption_warning(captions: Sequence[tuple[Path, Caption]]) -> list[str]:
    """What is said of pictures (path, caption) without a caption file, and of empty captions."""
    missing = [(path, caption) for path, caption in captions if caption.source is None]
    empty = [caption.source for _, caption in captions if caption.source is not None and not caption.text]
    parts = []
    if missing:
        with_class = sum(1 for _, caption in missing if caption.text)
        parts.append(
            f"{len(missing)} of {len(captions)} pictures have no caption file "
            f"({with_class} take their class_tokens, {len(missing) - with_class} an empty caption): "
            f"{names_of([path for path, _ in missing])}"
        )
    if empty:
        parts.append(f"{len(empty)} of {len(captions)} captions are empty: {names_of(empty)}")
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
