"""Options of `train_network`: its sections put together, and what holds between them."""

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from backend.config.declare import Command, Option, reject
from backend.config.model import ModelOptions
from backend.config.training.data import Data
from backend.config.training.dataset import DatasetFlags
from backend.config.training.description import Description
from backend.config.training.devices import Devices
from backend.config.training.logs import Logs
from backend.config.training.network import Network
from backend.config.training.noise import Noise
from backend.config.training.optim import Optim
from backend.config.training.samples import Samples
from backend.config.training.save import Save
from backend.config.training.speed import Speed
from backend.config.training.state import State
from backend.config.training.validation import Validation
from backend.processes import is_launched
from backend.tables.optimizers import find_row, one_rate


class Model(ModelOptions):
    """Model."""

    pretrained_model_name_or_path: Annotated[str, Option(widget="model")] = Field(min_length=1)
    """Model to train on: a .safetensors or .ckpt file, a Diffusers folder, or a hub name (org/repo, or
    org/repo/file.safetensors)."""


class TrainNetwork(Command):
    """Train a LoRA."""

    command: ClassVar[str] = "train_network"

    model: Model
    data: Data
    dataset_defaults: DatasetFlags
    network: Network
    optim: Optim
    save: Save
    state: State
    samples: Samples
    speed: Speed
    devices: Devices
    noise: Noise
    validation: Validation
    logs: Logs
    description: Description

    def starts_processes(self) -> bool:
        """See `Command.starts_processes`; what a launcher has started is one of the processes."""
        return (self.devices.num_processes or 1) > 1 and not is_launched() and not self.data.debug_dataset

    def packages(self) -> tuple[str, ...]:
        """See `Command.packages`."""
        return ("xformers",) if self.speed.xformers else ()

    @model_validator(mode="after")
    def _encoders_that_are_dropped_cannot_learn(self) -> "TrainNetwork":
        if self.data.cache_text_encoder_outputs and not self.network.network_train_unet_only:
            message = "needs network_train_unet_only: the text encoders are dropped, so they cannot be trained"
            reject("cache_text_encoder_outputs", message)
        return self

    @model_validator(mode="after")
    def _one_rate_for_all(self) -> "TrainNetwork":
        row, optim, network = find_row(self.optim.optimizer), self.optim, self.network
        if row is None or not row.adaptive:
            return self
        unet = () if network.network_train_text_encoder_only else (optim.unet_lr,)
        text = () if network.network_train_unet_only else optim.text_encoder_lr or (None,)
        rates = {optim.learning_rate if rate is None else rate for rate in (*unet, *text)} - {0.0}
        if len(rates) > 1:
            reject("text_encoder_lr" if optim.text_encoder_lr else "unet_lr", one_rate(row.name, sorted(rates)))
        return self
