"""Options of `train_network`: its sections put together, and what holds between them."""

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from backend.config.declare import Command, Option, reject
from backend.config.model import ModelOptions
from backend.config.training.data import Data
from backend.config.training.logs import Logs
from backend.config.training.network import Network
from backend.config.training.optim import Optim
from backend.config.training.samples import Samples
from backend.config.training.save import Save
from backend.config.training.speed import Speed
from backend.config.training.validation import Validation


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
    network: Network
    optim: Optim
    speed: Speed
    save: Save
    samples: Samples
    validation: Validation
    logs: Logs

    @model_validator(mode="after")
    def _encoders_that_are_dropped_cannot_learn(self) -> "TrainNetwork":
        if self.data.cache_text_encoder_outputs and not self.network.network_train_unet_only:
            message = "needs network_train_unet_only: the text encoders are dropped, so they cannot be trained"
            reject("cache_text_encoder_outputs", message)
        return self
