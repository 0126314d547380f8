"""Options of train_network: optimizer, learning rates and how long to train."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from backend.config.declare import Option, Section, reject
from backend.config.text import read_literals

ADVANCED = Option(advanced=True)


class Optim(Section):
    """Optimizer and schedule."""

    learning_rate: float = Field(1e-4, gt=0)
    """Learning rate."""

    unet_lr: float | None = Field(None, ge=0)
    """Learning rate of the U-Net's network; left out, learning_rate."""

    text_encoder_lr: tuple[float, ...] = ()
    """Learning rate of the text encoder's network, or one for each of SDXL's two; left out, learning_rate."""

    optimizer_type: Literal["AdamW", "AdamW8bit"] = "AdamW"
    """Optimizer. AdamW8bit keeps its state in 8 bits, which saves memory."""

    optimizer_args: Annotated[dict[str, Any], ADVANCED] = Field(default_factory=dict)
    """Further arguments of the optimizer, such as "weight_decay=0.01" "betas=0.9,0.99"."""

    max_grad_norm: Annotated[float, ADVANCED] = Field(1.0, ge=0)
    """Gradients are scaled down to this norm; 0 turns that off."""

    lr_scheduler: Literal["constant", "constant_with_warmup", "cosine"] = "constant"
    """How the learning rate changes over the run."""

    lr_warmup_steps: float = Field(0.0, ge=0)
    """Steps over which the learning rate rises from 0; below 1, a fraction of all steps."""

    max_train_steps: int = Field(1600, ge=1)
    """How many steps to train."""

    max_train_epochs: int | None = Field(None, ge=1)
    """How many epochs to train; overrides max_train_steps."""

    gradient_accumulation_steps: Annotated[int, ADVANCED] = Field(1, ge=1)
    """Batches whose gradients are added up for one step."""

    seed: int | None = Field(None, ge=0, le=2**63 - 1)
    """Seed of every random draw; left out, one is drawn, shown and saved."""

    @field_validator("text_encoder_lr", mode="before")
    @classmethod
    def _one_or_two_rates(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = (float(value),)
        return () if value is None else value

    @field_validator("text_encoder_lr")
    @classmethod
    def _rates_from_zero(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(value) > 2 or any(rate < 0 for rate in value):
            reject(
                "text_encoder_lr", f"must be one rate from 0, or one for each of two text encoders, got {list(value)}"
            )
        return value

    @field_validator("optimizer_args", mode="before")
    @classmethod
    def _literals(cls, value: Any) -> dict[str, Any]:
        return read_literals({} if value is None else value)

    @model_validator(mode="after")
    def _warmup(self) -> "Optim":
        steps = self.lr_warmup_steps
        if steps >= 1 and steps != int(steps):
            reject("lr_warmup_steps", f"must be a whole number of steps or a fraction below 1, got {steps:g}")
        if steps > 0 and self.lr_scheduler == "constant":
            reject("lr_warmup_steps", 'has no effect with lr_scheduler "constant"; use constant_with_warmup')
        return self
