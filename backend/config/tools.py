"""Options of the tools."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

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

    overwrite: bool = False
    """Replace what is there."""


class ConvertModel(Command):
    """Convert a model between a single file and a Diffusers folder."""

    command: ClassVar[str] = "convert_diffusers20_original_sd"

    convert: Conversion


class Inspection(Section):
    """What to look at."""

    file: Annotated[Path, Option(positional=True, widget="file")]
    """LoRA file: .safetensors, .ckpt or .pt."""

    print_json: Annotated[bool, Option(aliases=("json",))] = False
    """Print JSON instead of a table."""


class InspectLora(Command):
    """Show what a LoRA file holds."""

    command: ClassVar[str] = "inspect_lora"

    inspect: Inspection
