"""Options of train_network: curves for TensorBoard and Weights & Biases."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from backend.config.declare import Option, Section, reject

ADVANCED = Option(advanced=True)
NAME = Option(advanced=True, names_file=True)


class Logs(Section):
    """Logging."""

    logging_dir: Annotated[Path | None, Option(widget="folder")] = None
    """Folder for TensorBoard's files, or those of Weights & Biases. Each run makes a folder of its own in it."""

    log_with: Literal["tensorboard", "wandb", "all"] | None = None
    """What the curves are written for; left out, tensorboard where there is a logging_dir. wandb takes its key from
    WANDB_API_KEY in the environment."""

    log_prefix: Annotated[str | None, NAME] = None
    """Begins the name of the run's folder in logging_dir, before the time."""

    log_tracker_name: Annotated[str, NAME] = "network_train"
    """Project in Weights & Biases, and TensorBoard's folder within the run's."""

    log_tracker_config: Annotated[Path | None, Option(advanced=True, widget="file")] = None
    """Toml file with further arguments: [tensorboard] for its SummaryWriter, [wandb] for wandb.init."""

    wandb_run_name: Annotated[str | None, ADVANCED] = Field(None, min_length=1)
    """Name of the run in Weights & Biases; left out, it makes one up."""

    log_config: Annotated[bool, ADVANCED] = False
    """Log the run's options too."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is logged to."""
        if self.log_with == "all":
            return ("tensorboard", "wandb")
        if self.log_with is not None:
            return (self.log_with,)
        return ("tensorboard",) if self.logging_dir is not None else ()

    @field_validator("log_prefix", "log_tracker_name")
    @classmethod
    def _plain_name(cls, value: str | None) -> str | None:
        if value is not None and (not value.strip() or value.startswith(".") or any(mark in value for mark in "/\\\0")):
            raise ValueError(f'must be a plain name without a folder, got "{value}"')
        return value

    @model_validator(mode="after")
    def _each_has_what_it_needs(self) -> "Logs":
        if "tensorboard" in self.kinds and self.logging_dir is None:
            reject("logging_dir", f'is required with log_with "{self.log_with}": the folder for TensorBoard\'s files')
        if not self.kinds:
            for name in ("log_prefix", "log_tracker_config", "log_config"):
                if getattr(self, name):
                    reject(name, "has no effect without logging_dir or log_with")
            if self.log_tracker_name != type(self).model_fields["log_tracker_name"].default:
                reject("log_tracker_name", "has no effect without logging_dir or log_with")
        if self.log_prefix is not None and self.logging_dir is None:
            reject("log_prefix", "has no effect without logging_dir")
        if self.wandb_run_name is not None and "wandb" not in self.kinds:
            reject("wandb_run_name", 'has no effect without log_with "wandb" or "all"')
        return self
