"""Options of the tools."""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from backend.config.declare import Command, Option, Section


class Conversion(Section):
    """Conversion."""

    src: Annotated[Path, Option(positional=True, widget="model")]
    """What to convert: a .safetensors or .ckpt file in the original layout, a Diffusers folder, or a hub name."""

    dst: Annotated[Path, Option(positional=True, widget="file")]
    """Where to: a folder for a file, a .safetensors or .ckpt file for a folder."""

    save_precision: Literal["float", "fp16", "bf16"] | None = None
    """Precision of the saved numbers; left out, as they are."""

    revision: Annotated[str | None, Option(advanced=True)] = None
    """Branch, tag or commit of a model on the hub."""

    vae: Annotated[str | None, Option(widget="model", advanced=True)] = Field(None, min_length=1)
    """VAE to put in place of the model's own, or into a model that has none: a .safetensors, .ckpt or .pt file, a
    Diffusers folder, or a hub name."""

    overwrite: bool = False
    """Replace what is there."""


class ConvertModel(Command):
    """Convert a model between a single file and a Diffusers folder."""

    command: ClassVar[str] = "convert_diffusers20_original_sd"

    convert: Conversion


class Inspection(Section):
    """What to look at."""

    file: Annotated[Path, Option(positional=True, widget="file")]
    """LoRA file: .safetensors, .ckpt, .pt or .bin; or the folder of a PEFT adapter."""

    print_json: Annotated[bool, Option(aliases=("json",))] = False
    """Print JSON instead of a table."""


class InspectLora(Command):
    """Show what a LoRA file holds."""

    command: ClassVar[str] = "inspect_lora"

    inspect: Inspection


class Resizing(Section):
    """Pictures."""

    src: Annotated[Path, Option(positional=True, widget="folder")]
    """Folder of pictures."""

    dst: Annotated[Path, Option(positional=True, widget="folder")]
    """Folder to write to: the originals, and one more picture per size."""

    max_resolution: tuple[str, ...] = ("512x512", "384x384", "256x256", "128x128")
    """Sizes such as 512x512,384x384: a picture is made smaller until its area is at most that of the size; its shape
    stays as it is."""

    divisible_by: int = Field(1, ge=1)
    """Width and height become multiples of this, by cutting off the edges."""

    interpolation: Literal["area", "cubic", "lanczos4"] = "area"
    """How pixels are computed."""

    save_as_png: bool = False
    """Save as PNG; left out, as JPEG of quality 100."""

    copy_associated_files: bool = False
    """Copy files of the same name, such as captions, beside every size."""

    overwrite: bool = False
    """Replace files that are there."""

    dry_run: bool = False
    """Show what would be written and write nothing."""

    @field_validator("max_resolution", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        pieces = [value] if isinstance(value, str) else value
        if not isinstance(pieces, list | tuple) or not all(isinstance(piece, str) for piece in pieces):
            return value
        return tuple(size for piece in pieces for size in re.split(r"[,\s]+", piece.strip()) if size)

    @field_validator("max_resolution")
    @classmethod
    def _sizes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [size for size in value if not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", size)]
        if wrong or not value:
            raise ValueError(f'must be sizes such as 512x512,384x384, got "{",".join(wrong)}"')
        return tuple(dict.fromkeys(value))

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The sizes as (width, height)."""
        return tuple((int(width), int(height)) for width, height in (size.split("x") for size in self.max_resolution))


class ResizeImages(Command):
    """Make smaller copies of pictures for training at several resolutions."""

    command: ClassVar[str] = "resize_images_to_resolution"

    pictures: Resizing
