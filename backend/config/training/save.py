"""Options of train_network: what is saved, where and when."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from backend.config.declare import Option, Section

ADVANCED = Option(advanced=True)


class Save(Section):
    """Saving."""

    output_dir: Annotated[Path, Option(widget="folder")]
    """Folder for the LoRA files and sample pictures."""

    output_name: str = "last"
    """File name of the LoRA, without folder and extension."""

    save_model_as: Literal["safetensors", "ckpt", "pt"] = "safetensors"
    """File format."""

    save_precision: Literal["float", "fp16", "bf16"] | None = None
    """Precision of the saved numbers; left out, as trained."""

    save_every_n_epochs: int | None = Field(None, ge=1)
    """Also save after every so many epochs."""

    training_comment: Annotated[str | None, ADVANCED] = None
    """A remark that is kept in the file's metadata."""

    no_metadata: Annotated[bool, ADVANCED] = False
    """Keep the training parameters out of the file, but for the few that readers need."""

    overwrite: bool = False
    """Replace existing files of the same name."""

    @field_validator("output_name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not value.strip() or value.startswith(".") or re.search(r'[/\\:*?"<>|\x00-\x1f]', value):
            raise ValueError(f'must be a plain file name without a folder, got "{value}"')
        return value
