"""Optimizers by name, and learning-rate schedules as pure functions of the step."""

import ast
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.optim import Optimizer

from backend.errors import UserError

Schedule = Callable[[int], float]


def _adamw(groups: list[dict], options: Mapping[str, object]) -> Optimizer:
    # One kernel over all tensors instead of several for each: a tenth of a step on a CPU. It excludes the others.
    fused = not (options.get("foreach") or options.get("differentiable"))
    return torch.optim.AdamW(groups, **{"fused": fused, **options})


def _adamw8bit(groups: list[dict], options: Mapping[str, object]) -> Optimizer:
    try:
        import bitsandbytes  # noqa: PLC0415  (optional, and slow to import)
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"AdamW8bit needs the package bitsandbytes, which does not load here ({error}); "
            "`pip install bitsandbytes`, or take AdamW",
            field="optimizer_type",
        ) from None
    return bitsandbytes.optim.AdamW8bit(groups, **options)


OPTIMIZERS: dict[str, Callable[[list[dict], Mapping[str, object]], Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
}


def make_optimizer(name: str, groups: Sequence[Mapping[str, object]], options: Mapping[str, object]) -> Optimizer:
    """The optimizer `name` over parameter groups {"params", "lr"}.

    Args:
        name: a name of `OPTIMIZERS`, in any case.
        groups: what to train, each group with its own peak rate.
        options: further arguments of the optimizer's class; text is read as a Python literal where it is one.

    Raises:
        UserError: the package is missing, or the class does not take an option.
    """
    values = {key: _literal(value) for key, value in options.items()}
    if "lr" in values:
        raise UserError("lr is set by learning_rate, unet_lr and text_encoder_lr", field="optimizer_args")
    try:
        return OPTIMIZERS[name.lower()]([dict(group) for group in groups], values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} does not take these: {error}", field="optimizer_args") from None


def check_optimizer(name: str, options: Mapping[str, object]) -> None:
    """Take one step on a parameter of no use, as some wrong arguments show only then.

    Args:
        name, options: as for `make_optimizer`.

    Raises:
        UserError: as `make_optimizer` does, and where the step fails.
    """
    parameter = torch.nn.Parameter(torch.zeros(8, device="cuda" if torch.cuda.is_available() else "cpu"))
    optimizer = make_optimizer(name, [{"params": [parameter], "lr": 1e-3}], options)
    parameter.grad = torch.zeros_like(parameter)
    try:
        optimizer.step()
    except (TypeError, ValueError, RuntimeError, LookupError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{name} cannot take a step with these: {reason}", field="optimizer_args") from None


def _literal(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def warmup_steps(steps_or_ratio: float, total: int) -> int:
    """A number of steps as it is; a ratio below 1 of all steps, rounded down."""
    return int(steps_or_ratio * total) if 0 < steps_or_ratio < 1 else int(steps_or_ratio)


def constant(warmup: int, total: int) -> Schedule:
    """The full rate at every step."""
    return lambda step: 1.0


def constant_with_warmup(warmup: int, total: int) -> Schedule:
    """Rising linearly from 0 over `warmup` steps, then the full rate."""
    return lambda step: _rise(step, warmup)


def cosine(warmup: int, total: int) -> Schedule:
    """Rising over `warmup` steps, then half a cosine down to 0 at `total` (SGDR without restarts, arXiv 1608.03983)."""

    def factor(step: int) -> float:
        if step < warmup:
            return _rise(step, warmup)
        progress = (step - warmup) / max(1, total - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return factor


def _rise(step: int, warmup: int) -> float:
    return min(1.0, step / warmup) if warmup else 1.0


SCHEDULES: dict[str, Callable[[int, int], Schedule]] = {
    "constant": constant,
    "constant_with_warmup": constant_with_warmup,
    "cosine": cosine,
}


def make_schedule(name: str, warmup: float, total: int) -> Schedule:
    """Factor of the peak rate as a function of the steps done; nothing of it needs saving for a resume.

    Args:
        name: a name of `SCHEDULES`.
        warmup: steps, or a ratio below 1 of `total`.
        total: steps of the whole run.

    Raises:
        UserError: a warm-up that the schedule has none of, or one longer than the run.
    """
    steps = warmup_steps(warmup, total)
    if name == "constant" and steps:
        raise UserError("the constant schedule has no warm-up; take constant_with_warmup", field="lr_warmup_steps")
    if steps > total:
        raise UserError(f"{steps} is more than the {total} steps of the run", field="lr_warmup_steps")
    return SCHEDULES[name](steps, total)


def set_rates(optimizer: Optimizer, peaks: Sequence[float], factor: float) -> None:
    """Give each parameter group its peak rate times the schedule's factor."""
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["lr"] = peak * factor
