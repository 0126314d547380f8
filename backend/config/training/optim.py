"""Options of train_network: optimizer, learning rates and how long to train."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from backend.config.declare import Option, Section, reject, reject_all
from backend.config.messages import did_you_mean
from backend.config.text import read_literals, read_section
from backend.installed import NotInstalledError, refuse_elsewhere
from backend.tables.optimizers import NAMES, find_row, is_schedule_free, sets_own_rates
from backend.tables.schedules import READERS, Scheduler, read_step_rules

ADVANCED = Option(advanced=True)
LEGACY = {"use_8bit_adam": "AdamW8bit", "use_lion_optimizer": "Lion"}


class NoArgs(Section):
    """Arguments of a schedule that takes none."""


class PolynomialArgs(Section):
    """Arguments of polynomial."""

    lr_end: float = Field(1e-7, ge=0)
    """Rate at the end, for a peak of learning_rate."""


class StableDecayArgs(Section):
    """Arguments of warmup_stable_decay."""

    warmup_type: Literal["linear", "cosine", "1-sqrt"] = "linear"
    """Shape of the rise."""

    decay_type: Literal["linear", "cosine", "1-sqrt"] = "cosine"
    """Shape of the fall."""


class PiecewiseArgs(Section):
    """Arguments of piecewise_constant."""

    step_rules: str
    """Factors and the steps before which they hold: "1:10,0.1:20,0.005" is 1 before step 10, 0.1 before step 20, then
    0.005."""

    @field_validator("step_rules")
    @classmethod
    def _rules(cls, value: str) -> str:
        read_step_rules(value)
        return value.strip().strip("\"'")


SCHEDULE_ARGS: dict[str, type[Section]] = {
    "polynomial": PolynomialArgs,
    "warmup_stable_decay": StableDecayArgs,
    "piecewise_constant": PiecewiseArgs,
}


class Optim(Section):
    """Optimizer and schedule."""

    learning_rate: float = Field(1e-4, gt=0)
    """Learning rate."""

    unet_lr: float | None = Field(None, ge=0)
    """Learning rate of the U-Net's network; left out, learning_rate."""

    text_encoder_lr: tuple[float, ...] = ()
    """Learning rate of the text encoder's network, or one for each of SDXL's two; left out, learning_rate."""

    optimizer_type: Annotated[str, Option(suggestions=NAMES)] = "AdamW"
    """Optimizer: one of these names in any case, or module.Class of any other that is installed. 8bit ones keep their
    state in 8 bits, Paged ones move it out of a full GPU; DAdapt* and Prodigy find the rate by themselves, and take
    learning_rate 1."""

    optimizer_args: Annotated[dict[str, Any], ADVANCED] = Field(default_factory=dict)
    """Further arguments of the optimizer, such as "weight_decay=0.01" "betas=0.9,0.99"."""

    use_8bit_adam: Annotated[bool, ADVANCED] = False
    """The old way to say optimizer_type AdamW8bit."""

    use_lion_optimizer: Annotated[bool, ADVANCED] = False
    """The old way to say optimizer_type Lion."""

    max_grad_norm: Annotated[float, ADVANCED] = Field(1.0, ge=0)
    """Gradients are scaled down to this norm; 0 turns that off."""

    lr_scheduler: Scheduler = "constant"
    """How the learning rate changes over the run. adafactor leaves it to the optimizer AdaFactor."""

    lr_warmup_steps: float = Field(0.0, ge=0)
    """Steps over which the learning rate rises from 0; below 1, a fraction of all steps."""

    lr_decay_steps: Annotated[float, ADVANCED] = Field(0.0, ge=0)
    """Steps over which the learning rate falls at the end of warmup_stable_decay; below 1, a fraction of all steps."""

    lr_scheduler_num_cycles: Annotated[int, ADVANCED] = Field(1, ge=1)
    """How often cosine_with_restarts falls; half waves of cosine_with_min_lr and of warmup_stable_decay's fall."""

    lr_scheduler_power: Annotated[float, ADVANCED] = Field(1.0, gt=0)
    """Power of the schedule polynomial; 1 is a straight line."""

    lr_scheduler_timescale: Annotated[int | None, ADVANCED] = Field(None, ge=1)
    """Steps after which inverse_sqrt bends; left out, its warm-up, or 10000 without one."""

    lr_scheduler_min_lr_ratio: Annotated[float | None, ADVANCED] = Field(None, ge=0, lt=1)
    """Lowest rate of cosine_with_min_lr and warmup_stable_decay, as a share of the highest."""

    lr_scheduler_type: Annotated[str | None, ADVANCED] = None
    """A schedule of PyTorch or of another package in place of lr_scheduler: a class of torch.optim.lr_scheduler, or
    module.Class. It must need nothing but the number of the step."""

    lr_scheduler_args: Annotated[dict[str, Any], ADVANCED] = Field(default_factory=dict)
    """Further arguments of the schedule: "step_rules=1:10,0.1:20,0.005" of piecewise_constant, lr_end of polynomial,
    warmup_type and decay_type (linear, cosine, 1-sqrt) of warmup_stable_decay, or those of lr_scheduler_type."""

    max_train_steps: int = Field(1600, ge=1)
    """How many steps to train."""

    max_train_epochs: int | None = Field(None, ge=1)
    """How many epochs to train; overrides max_train_steps."""

    gradient_accumulation_steps: Annotated[int, ADVANCED] = Field(1, ge=1)
    """Batches whose gradients are added up for one step."""

    seed: int | None = Field(None, ge=0, le=2**63 - 1)
    """Seed of every random draw; left out, one is drawn, shown and saved."""

    @property
    def optimizer(self) -> str:
        """The optimizer that the options name, the old flags among them."""
        return next((name for flag, name in LEGACY.items() if getattr(self, flag)), self.optimizer_type)

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

    @field_validator("optimizer_type")
    @classmethod
    def _known_optimizer(cls, value: str) -> str:
        if not value.strip():
            return "AdamW"  # as kohya's own toml files say it
        if find_row(value) is None:
            hint = did_you_mean(value, NAMES) or f"; known are {', '.join(NAMES)}"
            reject("optimizer_type", f'"{value}" is no optimizer, nor module.Class of one{hint}')
        _refuse_foreign_code("optimizer_type", value.strip())
        return value.strip()

    @field_validator("optimizer_args", mode="before")
    @classmethod
    def _literals(cls, value: Any) -> dict[str, Any]:
        return read_literals({} if value is None else value)

    @field_validator("lr_scheduler_type")
    @classmethod
    def _named_or_none(cls, value: str | None) -> str | None:
        value = (value or "").strip() or None
        if value is not None:
            if not all(part.isidentifier() for part in value.split(".")):
                reject("lr_scheduler_type", f'"{value}" is no class of torch.optim.lr_scheduler, nor module.Class')
            _refuse_foreign_code("lr_scheduler_type", value)
        return value

    @field_validator("lr_scheduler_args", mode="before")
    @classmethod
    def _known_schedule_args(cls, value: Any, info: ValidationInfo) -> dict[str, Any]:
        value = {} if value is None else value
        if info.data.get("lr_scheduler_type"):
            return read_literals(value)
        name = info.data.get("lr_scheduler")
        if name is None:
            return {}  # a wrong schedule is a problem of its own
        section = SCHEDULE_ARGS.get(name, NoArgs)
        arguments, problems = read_section(section, value, "lr_scheduler_args", f'lr_scheduler "{name}"')
        if problems:
            reject_all(problems)
        return arguments

    @model_validator(mode="after")
    def _one_optimizer(self) -> "Optim":
        asked = [flag for flag in LEGACY if getattr(self, flag)]
        if len(asked) > 1:
            reject(asked[1], f"cannot be set together with {asked[0]}; choose one")
        if asked and self.optimizer_type not in ("AdamW", LEGACY[asked[0]]):
            reject(asked[0], f'contradicts optimizer_type "{self.optimizer_type}"; choose one')
        return self

    @model_validator(mode="after")
    def _steps_or_shares(self) -> "Optim":
        for name in ("lr_warmup_steps", "lr_decay_steps"):
            steps = getattr(self, name)
            if steps >= 1 and steps != int(steps):
                reject(name, f"must be a whole number of steps or a fraction below 1, got {steps:g}")
        return self

    @model_validator(mode="after")
    def _schedule(self) -> "Optim":
        name, other = self.lr_scheduler, self.lr_scheduler_type
        if other and name != "constant":
            reject("lr_scheduler_type", f'cannot be set together with lr_scheduler "{name}"; choose one')
        for option, readers in READERS.items():
            if getattr(self, option) != type(self).model_fields[option].default and (other or name not in readers):
                title = f'lr_scheduler_type "{other}"' if other else f'lr_scheduler "{name}"'
                use = "constant_with_warmup" if name == "constant" and option == "lr_warmup_steps" else ""
                hint = f"use {use}" if use and not other else f"it is for {', '.join(readers)}"
                reject(option, f"has no effect with {title}; {hint}")
        if name == "cosine_with_min_lr" and self.lr_scheduler_min_lr_ratio is None:
            reject("lr_scheduler_min_lr_ratio", "is required with cosine_with_min_lr: the lowest rate, as a share")
        if name == "warmup_stable_decay" and not self.lr_decay_steps:
            reject("lr_decay_steps", "is required with warmup_stable_decay: the steps of the fall")
        if name == "piecewise_constant" and not self.lr_scheduler_args:
            reject("lr_scheduler_args", 'needs "step_rules=1:10,0.1:20,0.005", say, with piecewise_constant')
        end = self.lr_scheduler_args.get("lr_end", 1e-7)
        if name == "polynomial" and end >= self.learning_rate:
            reject("lr_scheduler_args.lr_end", f"must be below learning_rate {self.learning_rate:g}, got {end:g}")
        return self

    @model_validator(mode="after")
    def _schedule_of_the_optimizer(self) -> "Optim":
        own = sets_own_rates(self.optimizer, self.optimizer_args)
        if self.lr_scheduler == "adafactor" and not own:
            reject("lr_scheduler", "adafactor needs optimizer_type AdaFactor with its relative_step")
        wanted = self.lr_scheduler_type or ("" if self.lr_scheduler in ("constant", "adafactor") else self.lr_scheduler)
        field = "lr_scheduler_type" if self.lr_scheduler_type else "lr_scheduler"
        if wanted and own:
            hint = "leave it out, or give optimizer_args relative_step=False"
            reject(field, f"has no effect with {self.optimizer}, which sets its rates itself; {hint}")
        if wanted and is_schedule_free(self.optimizer):
            hint = "leave it out (a warm-up is optimizer_args warmup_steps=100)"
            reject(field, f"does not go with {self.optimizer}, which averages weights in place of a schedule; {hint}")
        return self


def _refuse_foreign_code(field: str, name: str) -> None:
    """Refuse `module.Class` where the module is not one of an installed package."""
    if "." not in name:
        return
    try:
        refuse_elsewhere(name.rpartition(".")[0])
    except NotInstalledError as error:
        reject(field, str(error))
