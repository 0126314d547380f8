"""Options of train_network: what is saved, where and when."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from backend.config.declare import Option, Section, reject

ADVANCED = Option(advanced=True)
# What is put behind a name, and around it while a file is written, takes up to 60 bytes of the 255 that there are.
NAME_BYTES = 190


class Save(Section):
    """Saving."""

    output_dir: Annotated[Path, Option(widget="folder")]
    """Folder for the LoRA files and sample pictures."""

    output_name: Annotated[str, Option(names_file=True)] = "last"
    """File name of the LoRA, without folder and extension."""

    save_model_as: Literal["safetensors", "ckpt", "pt"] = "safetensors"
    """File format."""

    save_precision: Literal["float", "fp16", "bf16"] | None = None
    """Precision of the saved numbers; left out, as trained."""

    save_every_n_epochs: int | None = Field(None, ge=1)
    """Also save after every so many epochs. The last epoch is saved under the final name only."""

    save_every_n_steps: int | None = Field(None, ge=1)
    """Also save after every so many steps."""

    save_n_epoch_ratio: Annotated[int | None, ADVANCED] = Field(None, ge=1)
    """Also save at least so many times over the run, at the ends of epochs, in place of save_every_n_epochs."""

    save_last_n_epochs: Annotated[int | None, ADVANCED] = Field(None, ge=1)
    """Of the files saved after epochs keep so many, and remove this run's older ones."""

    save_last_n_steps: Annotated[int | None, ADVANCED] = Field(None, ge=1)
    """Of the files saved after steps keep those of the last so many steps, and remove this run's older ones."""

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
        if len(value.encode()) > NAME_BYTES:
            raise ValueError(f"must be at most {NAME_BYTES} bytes long, got {len(value.encode())}")
        return value

    @model_validator(mode="after")
    def _what_is_kept_is_saved(self) -> "Save":
        if self.save_n_epoch_ratio and self.save_every_n_epochs:
            reject("save_n_epoch_ratio", "cannot be set together with save_every_n_epochs; choose one")
        if self.save_last_n_epochs and not (self.save_every_n_epochs or self.save_n_epoch_ratio):
            reject("save_last_n_epochs", "has no effect without save_every_n_epochs or save_n_epoch_ratio; set one")
        if self.save_last_n_steps and not self.save_every_n_steps:
            reject("save_last_n_steps", "has no effect without save_every_n_steps; set it too")
        return self
