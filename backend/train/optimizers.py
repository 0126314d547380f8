"""Optimizers by name, from PyTorch and from packages that are imported when asked for."""

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch.optim import Optimizer

from backend.config.messages import did_you_mean
from backend.config.text import read_literal
from backend.config.training.optim import Optim
from backend.errors import UserError
from backend.installed import REFUSED_IMPORTS, NotInstalledError, import_installed
from backend.tables.optimizers import NAMES, OptimizerRow, find_row, one_rate, sets_own_rates

# What optimizers raise on arguments that they cannot use.
REFUSALS = (TypeError, ValueError, RuntimeError, LookupError, AssertionError, AttributeError, ArithmeticError)
# Below this a factor of D-Adaptation or Prodigy is a usual optimizer's rate, given by mistake.
LOW_FACTOR = 0.1


def make_optimizer(name: str, groups: Sequence[Mapping[str, object]], options: Mapping[str, object]) -> Optimizer:
    """The optimizer `name` over parameter groups {"params", "lr"}, ready for its first step.

    Args:
        name: of the table in backend/tables/optimizers.py, in any case, or `module.Class`.
        groups: what to train, each group with its own peak rate.
        options: further arguments of the optimizer's class; text is read as a Python literal where it is one.

    Raises:
        UserError: there is no such optimizer, its package is missing, it does not take an option, or it finds one rate
            for everything and the groups have several.
    """
    row = find_row(name)
    if row is None:
        raise UserError(f"{name} is no optimizer{did_you_mean(name, NAMES)}", field="optimizer_type")
    values = {key: read_literal(value) if isinstance(value, str) else value for key, value in options.items()}
    if "lr" in values:
        raise UserError("lr is set by learning_rate, unet_lr and text_encoder_lr", field="optimizer_args")
    members = [dict(group) for group in groups]
    rates = sorted({float(group["lr"]) for group in members})
    if row.adaptive and len(rates) > 1:
        raise UserError(one_rate(row.name, rates), field="unet_lr")
    # Some classes have no rate by default.
    default = {"lr": max(rates)}
    if sets_own_rates(name, values):
        default, members = {}, [{key: value for key, value in group.items() if key != "lr"} for group in members]
    cls = _find_class(row)
    # One kernel over all tensors instead of several for each: a tenth of a step on a CPU. It excludes the others.
    fused = {} if values.get("foreach") or values.get("differentiable") else {"fused": True}
    try:
        own = {**(fused if row.name == "AdamW" else {}), **dict(row.options)}
        optimizer = cls(members, **{**default, **own, **values})
    except REFUSALS as error:
        raise UserError(f"{row.name} does not take these: {_reason(error)}", field="optimizer_args") from None
    if averages_weights(optimizer):
        optimizer.train()
    return optimizer


def check_optimizer(name: str, options: Mapping[str, object]) -> None:
    """Take one step on a parameter of no use, as some wrong arguments show only then.

    Args:
        name, options: as for `make_optimizer`.

    Raises:
        UserError: as `make_optimizer` does, and where the step fails.
    """
    # As large as a tensor must be for a state of 8 bits.
    parameter = torch.nn.Parameter(torch.zeros(64, 64, device="cuda" if torch.cuda.is_available() else "cpu"))
    optimizer = make_optimizer(name, [{"params": [parameter], "lr": 1e-3}], options)
    parameter.grad = torch.ones_like(parameter)
    try:
        optimizer.step()
        copy.deepcopy(optimizer.state_dict())
    except REFUSALS as error:
        raise UserError(f"{name} cannot take a step with these: {_reason(error)}", field="optimizer_args") from None


def check_rates(name: str, rates: Callable[[int], Sequence[float]], total: int) -> None:
    """See that an optimizer can take the steps that a schedule makes.

    Args:
        name: of the optimizer.
        rates: of the parameter groups by the number of steps done.
        total: steps of the whole run.

    Raises:
        UserError: a rate is 0, and the optimizer would divide by it.
    """
    row = find_row(name)
    still = None if row.rests else next((step for step in range(total) if not all(rates(step))), None)
    if still is not None:
        message = f"has the rate 0 at step {still + 1}, where {name} cannot take a step; leave the warm-up out"
        raise UserError(f"{message}, or take another optimizer_type", field="lr_scheduler")


def notes(options: Optim, on_gpu: bool) -> list[str]:
    """What a user should know of the optimizer that was chosen, one line each."""
    row = find_row(options.optimizer)
    found = []
    rates = [options.learning_rate, options.unet_lr or 0.0, *options.text_encoder_lr]
    if row.adaptive and max(rates) < LOW_FACTOR:
        found.append(
            f"{row.name} finds the rate by itself and takes learning_rate as a factor, usually 1; with "
            f"{max(rates):g} it learns {1 / max(rates):,.0f} times slower than it would"
        )
    if sets_own_rates(options.optimizer, options.optimizer_args):
        found.append(
            f"{row.name} sets its rates itself (relative_step), so learning_rate, unet_lr and text_encoder_lr only "
            "tell what is trained; give optimizer_args relative_step=False to set the rates"
        )
    if row.cls.startswith("Paged") and not on_gpu:
        found.append(f"{row.name} moves its state out of a GPU's memory; without a GPU it works as one that does not")
    return found


def averages_weights(optimizer: Optimizer) -> bool:
    """Whether an optimizer trains at one point and is meant to be used at another (schedule-free, arXiv 2405.15682)."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return all(callable(getattr(inner, name, None)) for name in ("train", "eval"))


@contextmanager
def at_rest(optimizer: Optimizer) -> Iterator[None]:
    """Within it the parameters are where the optimizer wants them used; afterwards they are as before, to the bit.

    Only schedule-free optimizers make a difference between the two.
    """
    if not averages_weights(optimizer):
        yield
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # Going there and back rounds; looking at a network must not change its training.
    kept = [parameter.detach().clone() for parameter in parameters]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)


def set_rates(optimizer: Optimizer, rates: Sequence[float]) -> None:
    """Give each parameter group its rate."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def effective_rates(optimizer: Optimizer) -> list[float]:
    """The rate that each parameter group's last step was made with, where the optimizer has a hand in it.

    d * lr for those that find the rate d by themselves (arXiv 2301.07733, 2306.06101), the rate within the warm-up of
    schedule-free ones, Adafactor's relative step min(0.01, 1 / sqrt(t)) (arXiv 1804.04235, section 9), else lr.
    """
    return [_effective_rate(optimizer, group) for group in optimizer.param_groups]


def _effective_rate(optimizer: Optimizer, group: Mapping[str, object]) -> float:
    if group.get("relative_step"):
        state = optimizer.state.get(group["params"][0], {})
        step = max(1, int(state.get("step", 1)))
        return min(1e-6 * step if group.get("warmup_init") else 1e-2, 1 / math.sqrt(step))
    if "d" in group:
        return float(group["d"]) * float(group["lr"])
    return float(group.get("scheduled_lr", group["lr"]))


def _find_class(row: OptimizerRow) -> type[Optimizer]:
    try:
        module = import_installed(row.module)
    except NotInstalledError as error:
        raise UserError(str(error), field="optimizer_type") from None
    except REFUSED_IMPORTS as error:
        package = row.package or row.module.partition(".")[0]
        raise UserError(
            f"{row.name} needs the package {package}, which does not load here ({_reason(error)}); "
            f"`pip install {package}`, or take AdamW",
            field="optimizer_type",
        ) from None
    cls = getattr(module, row.cls, None)
    if not (isinstance(cls, type) and issubclass(cls, Optimizer)):
        known = [
            name for name, value in vars(module).items() if isinstance(value, type) and issubclass(value, Optimizer)
        ]
        hint = did_you_mean(row.cls, known)
        raise UserError(f"{row.module} has no optimizer {row.cls}{hint}", field="optimizer_type")
    # Told in `notes`, in words that say what it means.
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
    return cls


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
