"""What a run asks of its base model beyond the model itself."""

from dataclasses import dataclass
from typing import Self

from backend.config.model import ModelOptions
from backend.errors import UserError
from backend.families import prediction
from backend.families.model import Checkpoint, Family
from backend.families.original import set_edge


@dataclass(frozen=True)
class LoadOptions:
    """Wishes that a model can contradict; nothing is asked where none is given.

    Attributes:
        v2: the model is Stable Diffusion 2.
        v_parameterization: it predicts v.
        vae: where the VAE to use in place of its own lies.
        clip_skip: which layer of the text encoder is read, counted from the last, 1.
        max_token_length: tokens of a caption that count: 75, 150 or 225.
    """

    v2: bool = False
    v_parameterization: bool = False
    vae: str | None = None
    clip_skip: int | None = None
    max_token_length: int = 75

    @classmethod
    def of(cls, options: ModelOptions) -> Self:
        """What a command's options ask."""
        return cls(**{name: getattr(options, name) for name in cls.__dataclass_fields__})


def settle(checkpoint: Checkpoint, family: Family, options: LoadOptions) -> tuple[str, ...]:
    """Check the options against a checkpoint and work into it what concerns it; returns lines for the user to read.

    Raises:
        UserError: an option contradicts the model.
    """
    if options.v2 and not family.v2:
        message = f"is set, but {checkpoint.source} is a {family.title} model; leave it out"
        raise UserError(message, field="v2")
    notes = _settle_prediction(checkpoint, family, options.v_parameterization)
    if options.clip_skip is not None:
        _check_clip_skip(checkpoint, family, options.clip_skip)
    return notes


def _settle_prediction(checkpoint: Checkpoint, family: Family, v_parameterization: bool) -> tuple[str, ...]:
    said = str(checkpoint.scheduler["prediction_type"]) if checkpoint.prediction_stated else None
    found = prediction.settle(checkpoint.scheduler, said, v_parameterization, checkpoint.source)
    if said is not None or not family.v2:
        return ()
    if found == prediction.V:
        config = {name: part.config for name, part in checkpoint.parts.items()}
        if config["unet"]["sample_size"] == family.config()["unet"]["sample_size"]:
            set_edge(config, prediction.V_EDGE)
        return ()
    line = f"{checkpoint.source} does not say what it predicts, so epsilon is assumed; set v_parameterization if it is"
    return (f"{line} one of Stable Diffusion 2's models for 768 pixels",)


def _check_clip_skip(checkpoint: Checkpoint, family: Family, clip_skip: int) -> None:
    if family.clip_skips and clip_skip not in family.clip_skips:
        message = f"{family.title} always reads the last layer but one; leave clip_skip out"
        raise UserError(f"{clip_skip} cannot be had: {message}", field="clip_skip")
    layers = checkpoint.parts["text_encoder"].config["num_hidden_layers"]
    if clip_skip > layers:
        raise UserError(f"{clip_skip} is more than the text encoder's {layers} layers", field="clip_skip")
