"""Options of the commands that bring configs from other programs, and write them for others."""

from pathlib import Path
from typing import Annotated, ClassVar

from backend.config.declare import Command, Option, Section


class Bringing(Section):
    """What to read and where to write."""

    src: Annotated[Path, Option(positional=True, widget="file")]
    """What to read: a toml of sd-scripts, a JSON of kohya_ss' GUI, or a LoRA file (.safetensors) with its metadata."""

    dst: Annotated[Path | None, Option(positional=True, widget="file")] = None
    """The toml to write, for `train_network --config_file`; left out, it is printed."""

    dataset_toml: Annotated[Path | None, Option(widget="file")] = None
    """Where to write what a LoRA file tells of its pictures, as a dataset toml whose folders are still to be named."""

    overwrite: bool = False
    """Replace files that are there."""


class ImportConfig(Command):
    """Turn another program's config into a toml of ours, and list what cannot be carried over."""

    command: ClassVar[str] = "import_config"

    conversion: Bringing


class Giving(Section):
    """What to read and where to write."""

    src: Annotated[str, Option(positional=True, widget="file")]
    """What to read: a toml for train_network, or the name of a preset."""

    dst: Annotated[Path | None, Option(positional=True, widget="file")] = None
    """The toml to write, for `train_network.py --config_file` of sd-scripts; left out, it is printed."""

    overwrite: bool = False
    """Replace files that are there."""


class ExportConfig(Command):
    """Turn a config of train_network into a toml for sd-scripts, and list what it cannot say."""

    command: ClassVar[str] = "export_config"

    conversion: Giving
