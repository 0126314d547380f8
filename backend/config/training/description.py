"""Options of train_network: what the file says of itself to people and programs that list models."""

from pathlib import Path
from typing import Annotated, Literal

from backend.config.declare import Option, Section

ADVANCED = Option(advanced=True)


class Description(Section):
    """Description in the file."""

    metadata_title: str | None = None
    """Title that is shown in place of the file's name."""

    metadata_author: str | None = None
    """Who made it."""

    metadata_description: Annotated[str | None, Option(widget="text")] = None
    """What it does."""

    metadata_trigger_phrase: str | None = None
    """Words of a prompt that bring it out."""

    metadata_tags: str | None = None
    """Tags, with commas between them."""

    metadata_license: Annotated[str | None, ADVANCED] = None
    """Name of the license, a link to it, or its text."""

    metadata_usage_hint: Annotated[str | None, ADVANCED] = None
    """A short hint how to use it."""

    metadata_thumbnail: Annotated[Path | None, Option(advanced=True, widget="file")] = None
    """Picture that is shown in lists of models; a small copy of it goes into the file."""

    metadata_merged_from: Annotated[str | None, ADVANCED] = None
    """Models that it was made from, with commas between them."""

    metadata_preprocessor: Annotated[str | None, ADVANCED] = None
    """Kind of preprocessing that its input needs, such as depth."""

    metadata_is_negative_embedding: Annotated[Literal["true", "false"] | None, ADVANCED] = None
    """Whether it is meant for negative prompts."""
