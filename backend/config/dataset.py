"""The dataset toml of sd-scripts: `[general]`, `[[datasets]]`, `[[datasets.subsets]]`, with every key checked.

A value is looked up in the subset, then its dataset, then `[general]`, then the default.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from backend.config.declare import Option, Section, reject, section_leaves
from backend.config.merge import Problems, validate_section
from backend.config.messages import did_you_mean, shown
from backend.config.toml import load, loads
from backend.errors import ConfigError

ADVANCED = Option(advanced=True)
PIXELS = 8  # one latent pixel
MOST_REPEATS = 10_000  # an epoch lists every one of them


class SubsetOptions(Section):
    """Folder of pictures."""

    image_dir: Annotated[Path, Option(widget="folder")]
    """Folder with the pictures and, beside each, its caption file."""

    is_reg: bool = False
    """These are regularisation pictures: they show what the class looks like without the new thing."""

    num_repeats: int = Field(1, ge=1, le=MOST_REPEATS)
    """How often each picture is shown in an epoch."""

    class_tokens: str | None = None
    """Caption of pictures that have no caption file."""

    caption_extension: str | None = None
    """Extension of the caption files; left out, .txt and .caption are both found."""

    shuffle_caption: bool = False
    """Put the parts of the caption in a new order each time."""

    keep_tokens: int = Field(0, ge=0)
    """How many parts at the beginning of the caption keep their place when the others are shuffled."""

    caption_separator: Annotated[str, ADVANCED] = Field(",", min_length=1)
    """What stands between the parts of a caption."""

    caption_prefix: Annotated[str | None, ADVANCED] = None
    """Put before every caption."""

    caption_suffix: Annotated[str | None, ADVANCED] = None
    """Put behind every caption."""

    flip_aug: bool = False
    """Show pictures mirrored half of the time."""

    caption_dropout_rate: Annotated[float, ADVANCED] = Field(0.0, ge=0, le=1)
    """How often a picture is shown without its caption, from 0 to 1."""

    @field_validator("caption_extension")
    @classmethod
    def _with_dot(cls, value: str | None) -> str | None:
        if value and any(mark in value for mark in "/\\\0"):
            raise ValueError(f"must be the end of a file name such as .txt, got {shown(value)}")
        return f".{value}" if value and not value.startswith(".") else value or None


class DatasetOptions(Section):
    """Dataset."""

    resolution: tuple[int, int]
    """Size to train at in pixels: one number, or [width, height]."""

    batch_size: int = Field(1, ge=1)
    """Pictures in a batch."""

    enable_bucket: bool = False
    """Keep each picture's shape by sorting pictures into buckets of about the same area; else all are cropped to the
    resolution."""

    min_bucket_reso: int = Field(256, ge=PIXELS)
    """Shortest side of a bucket."""

    max_bucket_reso: int = Field(1024, ge=PIXELS)
    """Longest side of a bucket."""

    bucket_reso_steps: int = Field(64, ge=PIXELS, multiple_of=PIXELS)
    """Sides of buckets are multiples of this."""

    bucket_no_upscale: bool = False
    """Never enlarge a picture: small ones get buckets of their own."""

    validation_split: Annotated[float | None, ADVANCED] = Field(None, ge=0, le=1)
    """Share of the pictures that is held out of training for validation; left out, the run's validation_split."""

    validation_seed: Annotated[int | None, ADVANCED] = Field(None, ge=0, le=2**63 - 1)
    """Seed of which pictures are held out; left out, the run's validation_seed."""

    subsets: tuple[SubsetOptions, ...] = ()

    @field_validator("resolution", mode="before")
    @classmethod
    def _width_and_height(cls, value: Any) -> Any:
        sides = value
        if isinstance(value, str):
            written = re.fullmatch(r"\s*(\d+)\s*(?:[x,]\s*(\d+)\s*)?", value)
            sides = [int(side) for side in written.groups() if side] if written else []
        sides = [sides] if isinstance(sides, int) else sides
        if (
            not isinstance(sides, list | tuple)
            or len(sides) not in (1, 2)
            or any(type(side) is not int for side in sides)
        ):
            raise ValueError(f"must be a number of pixels or [width, height], got {shown(value)}")
        return (sides[0], sides[-1])

    @model_validator(mode="after")
    def _sizes_fit(self) -> "DatasetOptions":
        width, height = self.resolution
        if min(width, height) < PIXELS:
            reject("resolution", f"must be at least {PIXELS} pixels, got {width}x{height}")
        if not self.enable_bucket:
            if width % PIXELS or height % PIXELS:
                message = f"must be a multiple of {PIXELS} in both directions, got {width}x{height}"
                reject("resolution", f"{message}; or set enable_bucket")
            return self
        if self.min_bucket_reso > self.max_bucket_reso:
            reject("min_bucket_reso", f"is greater than max_bucket_reso ({self.max_bucket_reso})")
        if self.bucket_no_upscale:
            return self
        size = f"the resolution, which is {width}x{height}"
        if self.min_bucket_reso > min(width, height):
            reject("min_bucket_reso", f"must not exceed the shorter side of {size}; got {self.min_bucket_reso}")
        if self.max_bucket_reso < max(width, height):
            reject("max_bucket_reso", f"must not be below the longer side of {size}; got {self.max_bucket_reso}")
        return self


SUBSET_KEYS = section_leaves(SubsetOptions)
DATASET_KEYS = section_leaves(DatasetOptions)
SUBSET_ONLY = ("image_dir", "is_reg")
SHARED_KEYS = tuple(name for name in SUBSET_KEYS if name not in SUBSET_ONLY)


@dataclass(frozen=True)
class DatasetConfig:
    """A dataset toml with every value looked up and checked."""

    datasets: tuple[DatasetOptions, ...]

    @classmethod
    def load(cls, path: str | Path) -> "DatasetConfig":
        """Read a dataset toml.

        Raises:
            UserError: there is no such file, or it is not toml.
            ConfigError: with every wrong key and value, and the table it stands in.
        """
        return cls.from_tables(load(path, "dataset_config"), Path(path).name)

    @classmethod
    def loads(cls, text: str, source: str = "the dataset toml") -> "DatasetConfig":
        """As `load`, from the toml's text; `source` is its name in messages."""
        return cls.from_tables(loads(text, source, "dataset_config"), source)

    @classmethod
    def from_tables(cls, tables: Mapping[str, Any], source: str) -> "DatasetConfig":
        """As `load`, from the tables of the toml."""
        return _Reader(source).read(tables)

    def to_toml(self) -> str:
        """A toml that reads back equal; what is at its default is left out."""
        import tomlkit  # not needed by a command line that only reads

        document = tomlkit.document()
        datasets = tomlkit.aot()
        for options in self.datasets:
            dataset = tomlkit.item(_changed(options))
            subsets = tomlkit.aot()
            for subset in options.subsets:
                subsets.append(tomlkit.item(_changed(subset)))
            dataset.add("subsets", subsets)
            datasets.append(dataset)
        document.add("datasets", datasets)
        return tomlkit.dumps(document)


class _Reader:
    """Reads the tables of one file and gathers what is wrong with them."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: Problems = []

    def read(self, tables: Mapping[str, Any]) -> DatasetConfig:
        for key in tables:
            if key not in ("general", "datasets"):
                home = _home(key)
                hint = f"; it belongs in {home}" if home else did_you_mean(key, ("general", "datasets"))
                self._add(key, f"is not a key of a dataset toml's top level{hint}", "")
        general = tables.get("general", {})
        if not isinstance(general, Mapping):
            self._add("general", "must be a table, [general]", "")
            general = {}
        self._check_keys(general, (*DATASET_KEYS, *SHARED_KEYS), "[general]")
        datasets = []
        for number, table in enumerate(self._tables(tables, "datasets", "[[datasets]]", ""), start=1):
            datasets.append(self._dataset(general, table, number))
        if self.problems:
            raise ConfigError(list(dict.fromkeys(self.problems)))
        return DatasetConfig(tuple(datasets))

    def _dataset(self, general: Mapping[str, Any], table: Mapping[str, Any], number: int) -> DatasetOptions | None:
        place = f"dataset {number}"
        self._check_keys(table, (*DATASET_KEYS, *SHARED_KEYS, "subsets"), place)
        subsets = []
        for index, subset in enumerate(self._tables(table, "subsets", "[[datasets.subsets]]", place), start=1):
            inner = f"subset {index} of {place}"
            self._check_keys(subset, tuple(SUBSET_KEYS), inner)
            levels = [(general, "[general]"), (table, place), (subset, inner)]
            subsets.append(self._section(SubsetOptions, levels, inner))
        options = self._section(DatasetOptions, [(general, "[general]"), (table, place)], place)
        if options is None or None in subsets:
            return None
        return options.model_copy(update={"subsets": tuple(subsets)})

    def _section(self, section: type[Section], levels: list[tuple[Mapping[str, Any], str]], place: str) -> Any:
        known = section_leaves(section)
        given, origin = {}, {}
        for table, level in levels:
            for key, value in table.items():
                if key in known:
                    given[key], origin[key] = value, level
        options, problems = validate_section(section, given)
        for field, message in problems:
            self._add(field, message, origin.get(field, place))
        return options

    def _tables(self, table: Mapping[str, Any], key: str, header: str, place: str) -> list[Mapping[str, Any]]:
        found = table.get(key)
        if not isinstance(found, list) or not found or not all(isinstance(item, Mapping) for item in found):
            self._add(key, f"must be given as one or more tables {header}", place)
            return []
        return found

    def _check_keys(self, table: Mapping[str, Any], allowed: tuple[str, ...], place: str) -> None:
        for key in table:
            if key not in allowed:
                home = _home(key)
                hint = f"; it belongs in {home}" if home else did_you_mean(key, allowed)
                self._add(key, f"is not a key of this table{hint}", place)

    def _add(self, field: str, message: str, place: str) -> None:
        self.problems.append(
            (field, f"{message} ({place} in {self.source})" if place else f"{message} ({self.source})")
        )


def _home(key: str) -> str:
    """The table where a key belongs that is right by name."""
    if key in SUBSET_ONLY:
        return "[[datasets.subsets]]"
    if key in DATASET_KEYS:
        return "[[datasets]] or [general]"
    return "[general], [[datasets]] or [[datasets.subsets]]" if key in SHARED_KEYS else ""


def _changed(options: Section) -> dict[str, Any]:
    values = {name: getattr(options, name) for name in section_leaves(type(options))}
    known = section_leaves(type(options))
    plain = {name: value for name, value in values.items() if known[name].required or value != known[name].default}
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in plain.items()
    }
