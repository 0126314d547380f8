"""The dataset toml of sd-scripts: `[general]`, `[[datasets]]`, `[[datasets.subsets]]`, with every key checked.

A value is looked up in the subset, then its dataset, then `[general]`, then the command line, then the default. Most
options here are flags of `train_network` too (backend/config/training/dataset.py).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from backend.bounded import parse_toml
from backend.config.choices import INTERPOLATION_SPELLINGS, Interpolation
from backend.config.dataset_reader import Reader
from backend.config.declare import Option, Section, reject, section_leaves
from backend.config.dialects.programs import advice, program_of
from backend.config.messages import shown
from backend.config.paths import meant_path
from backend.config.toml import load, load_json
from backend.errors import UserError

ADVANCED = Option(advanced=True)
FIELD = "dataset_config"
PIXELS = 8  # one latent pixel
MOST_REPEATS = 10_000  # an epoch lists every one of them


class SubsetOptions(Section):
    """Folder of pictures."""

    image_dir: Annotated[Path, Option(widget="folder")]
    """Folder with the pictures and, beside each, its caption file. With metadata_file, where the relative paths in it
    begin; left out, its own folder."""

    metadata_file: Annotated[Path | None, Option(widget="file", advanced=True)] = None
    """JSON file that names the pictures and their captions: path -> {"caption", "tags"}. Caption files are not read
    then."""

    is_reg: bool = False
    """These are regularisation pictures: they show what the class looks like without the new thing."""

    num_repeats: int = Field(1, ge=0, le=MOST_REPEATS)
    """How often each picture is shown in an epoch; 0 leaves the folder out."""

    class_tokens: str | None = None
    """Caption of pictures that have no caption file."""

    caption_extension: Annotated[str | None, Option(aliases=("caption_extention",))] = None
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

    keep_tokens_separator: Annotated[str | None, ADVANCED] = Field(None, min_length=1)
    """What parts a caption into kept and shuffled ones, such as |||, in place of keep_tokens: before the first one, and
    behind a second one, everything keeps its place."""

    secondary_separator: Annotated[str | None, ADVANCED] = Field(None, min_length=1)
    """What becomes a caption_separator when all else is done, such as ;;;: parts with it between them stay together."""

    enable_wildcard: Annotated[bool, ADVANCED] = False
    """Replace {a|b|c} by one of its choices each time, and take one line of a caption file with several. Braces that
    are meant are written {{ and }}."""

    flip_aug: bool = False
    """Show pictures mirrored half of the time."""

    caption_dropout_rate: Annotated[float, ADVANCED] = Field(0.0, ge=0, le=1)
    """How often a picture is shown without its caption, from 0 to 1."""

    caption_dropout_every_n_epochs: Annotated[int, ADVANCED] = Field(0, ge=0)
    """Show pictures without their captions in every epoch whose number, from 1, this divides; 0 in none."""

    caption_tag_dropout_rate: Annotated[float, ADVANCED] = Field(0.0, ge=0, le=1)
    """How often a part of a caption is left out, from 0 to 1; kept parts never are."""

    token_warmup_min: Annotated[int, ADVANCED] = Field(1, ge=0)
    """How many parts a caption begins with under token_warmup_step; kept parts are always there."""

    token_warmup_step: Annotated[float, ADVANCED] = Field(0.0, ge=0)
    """Number of steps over which captions grow to their whole length; below 1, a fraction of all steps."""

    custom_attributes: Annotated[dict[str, Any], ADVANCED] = Field(default_factory=dict)
    """Remarks of your own on the pictures, kept in the file's metadata."""

    @model_validator(mode="before")
    @classmethod
    def _beside_the_metadata(cls, data: Any) -> Any:
        named = data.get("metadata_file") if isinstance(data, Mapping) else None
        if not isinstance(named, str | Path) or "image_dir" in data:
            return data
        try:
            return {**data, "image_dir": Path(meant_path(str(named))).parent}
        except ValueError:
            return {**data, "image_dir": Path()}  # metadata_file is refused below

    @field_validator("custom_attributes")
    @classmethod
    def _known_attributes(cls, value: dict[str, Any]) -> dict[str, Any]:
        if value.get("diff_output_preservation"):
            raise ValueError("has diff_output_preservation, which there is not; use regularisation pictures (is_reg)")
        return value

    @model_validator(mode="after")
    def _warmup(self) -> "SubsetOptions":
        if self.token_warmup_step >= 1 and self.token_warmup_step != int(self.token_warmup_step):
            message = f"must be a whole number of steps or a fraction below 1, got {self.token_warmup_step:g}"
            reject("token_warmup_step", message)
        return self

    color_aug: Annotated[bool, ADVANCED] = False
    """Change the hue or the brightness of a picture slightly, a third of the time. Not with cached latents."""

    random_crop: Annotated[bool, ADVANCED] = False
    """Cut the part of a picture that is trained at a random place instead of the middle. Without enable_bucket large
    pictures are not made smaller first. Not with cached latents."""

    face_crop_aug_range: Annotated[tuple[float, float] | None, ADVANCED] = None
    """Cut around the face, the shorter side of the cut being between these two numbers times the face's size, such as
    [2.0, 4.0]. The face stands at the end of the file's name: centre x, centre y, width and height in pixels, as in
    anna_300_200_90_110.png. Not with cached latents."""

    resize_interpolation: Annotated[Interpolation | None, Option(advanced=True, spellings=INTERPOLATION_SPELLINGS)] = (
        None
    )
    """How pictures are resized; left out, by area where they get smaller and by Lanczos where they get larger."""

    alpha_mask: Annotated[bool, ADVANCED] = False
    """What is transparent in a picture does not count in the loss, half transparent counts half. The picture itself is
    put on white."""

    conditioning_data_dir: Annotated[Path | None, Option(widget="folder", advanced=True)] = None
    """Folder with a mask for each picture, of the same name: white counts in the loss, black does not. Needs
    masked_loss."""

    @field_validator("face_crop_aug_range")
    @classmethod
    def _rising(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 < value[0] <= value[1]:
            raise ValueError(f"must be two numbers above 0, the smaller one first, got {shown(value)}")
        return value

    @model_validator(mode="after")
    def _one_mask(self) -> "SubsetOptions":
        if self.alpha_mask and self.conditioning_data_dir is not None:
            reject("alpha_mask", "does not go with conditioning_data_dir: a picture has one mask; leave one out")
        return self

    @field_validator("caption_extension")
    @classmethod
    def with_dot(cls, value: str | None) -> str | None:
        """The extension with its dot."""
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

    network_multiplier: Annotated[float, ADVANCED] = 1.0
    """How strongly the network acts on the pictures of this dataset while it learns from them."""

    validation_split: Annotated[float | None, ADVANCED] = Field(None, ge=0, le=1)
    """Share of the pictures that is held out of training for validation; left out, the run's validation_split."""

    validation_seed: Annotated[int | None, ADVANCED] = Field(None, ge=0, le=2**63 - 1)
    """Seed of which pictures are held out; left out, the run's validation_seed."""

    subsets: tuple[SubsetOptions, ...] = ()

    @field_validator("resolution", mode="before")
    @classmethod
    def _width_and_height(cls, value: Any) -> Any:
        return read_resolution(value)

    @model_validator(mode="after")
    def _sizes_fit(self) -> "DatasetOptions":
        if not self.network_multiplier:
            reject("network_multiplier", "must not be 0: nothing is learnt from a network that does not act")
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


def read_resolution(value: Any) -> tuple[int, int]:
    """(width, height) of 512, [512, 768], "512", "512,768" or "512x768".

    Raises:
        ValueError: it is something else.
    """
    sides = value
    if isinstance(value, str):
        written = re.fullmatch(r"\s*(\d+)\s*(?:[x,]\s*(\d+)\s*)?", value)
        sides = [int(side) for side in written.groups() if side] if written else []
    sides = [sides] if isinstance(sides, int) else sides
    if not isinstance(sides, list | tuple) or len(sides) not in (1, 2) or any(type(side) is not int for side in sides):
        raise ValueError(f"must be a number of pixels or [width, height], got {shown(value)}")
    return (sides[0], sides[-1])


SUBSET_KEYS = section_leaves(SubsetOptions)
DATASET_KEYS = section_leaves(DatasetOptions)
SUBSET_ONLY = ("image_dir", "metadata_file", "is_reg", "conditioning_data_dir")
# A metadata file has its own captions, and no regularisation pictures.
NOT_WITH_METADATA = ("is_reg", "class_tokens", "caption_extension")


@dataclass(frozen=True)
class DatasetConfig:
    """A dataset toml with every value looked up and checked.

    Attributes:
        datasets: in the order of the file.
        in_folders: it was made from folders named on the command line (`train_data_dir`), not read from a file.
        warnings: one line each, for the user to read.
    """

    datasets: tuple[DatasetOptions, ...]
    in_folders: bool = False
    warnings: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: str | Path, defaults: Mapping[str, Any] | None = None) -> "DatasetConfig":
        """Read a dataset toml, or the same as JSON in a file that ends in .json.

        Args:
            path: of the file.
            defaults: values for keys that it leaves out.

        Raises:
            UserError: there is no such file, or it is not toml.
            ConfigError: with every wrong key and value, and the table it stands in.
        """
        read = load_json if Path(path).suffix.lower() == ".json" else load
        tables = read(path, FIELD)
        if program := program_of(tables):
            raise UserError(advice(program, path), FIELD)
        return cls.from_tables(tables, Path(path).name, defaults)

    @classmethod
    def loads(cls, text: str, source: str = "the dataset toml") -> "DatasetConfig":
        """As `load`, from the toml's text; `source` is its name in messages."""
        return cls.from_tables(parse_toml(text, source, FIELD), source)

    @classmethod
    def from_tables(
        cls, tables: Mapping[str, Any], source: str, defaults: Mapping[str, Any] | None = None
    ) -> "DatasetConfig":
        """As `load`, from the tables of the toml."""
        reader = Reader(source, DatasetOptions, SubsetOptions, defaults or {}, SUBSET_ONLY, NOT_WITH_METADATA)
        return cls(tuple(reader.read(tables)), warnings=tuple(dict.fromkeys(reader.notes)))

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


def _changed(options: Section) -> dict[str, Any]:
    values = {name: getattr(options, name) for name in section_leaves(type(options))}
    known = section_leaves(type(options))
    plain = {name: value for name, value in values.items() if known[name].required or value != known[name].default}
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in plain.items()
    }
