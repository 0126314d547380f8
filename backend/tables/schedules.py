"""Schedules of the learning rate: which of the options each one reads, and the text form of piecewise rules."""

from typing import Literal

Scheduler = Literal[
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
    "piecewise_constant",
    "adafactor",
]

# An option of a schedule, and the schedules that read it.
READERS: dict[str, tuple[str, ...]] = {
    "lr_warmup_steps": (
        "constant_with_warmup",
        "linear",
        "cosine",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "polynomial",
        "inverse_sqrt",
        "warmup_stable_decay",
    ),
    "lr_decay_steps": ("warmup_stable_decay",),
    "lr_scheduler_num_cycles": ("cosine_with_restarts", "cosine_with_min_lr", "warmup_stable_decay"),
    "lr_scheduler_power": ("polynomial",),
    "lr_scheduler_timescale": ("inverse_sqrt",),
    "lr_scheduler_min_lr_ratio": ("cosine_with_min_lr", "warmup_stable_decay"),
}


def read_step_rules(text: str) -> tuple[tuple[tuple[int, float], ...], float]:
    """Rules such as "1:10,0.1:20,0.005": the factor before step 10, before step 20, and from there on.

    Returns:
        Pairs of (first step that the factor does not hold for, factor) with rising steps, and the last factor.

    Raises:
        ValueError: saying what is expected.
    """
    *rules, last = text.strip().strip("\"'").split(",")
    try:
        pairs = tuple((int(until), float(factor)) for factor, until in (rule.split(":") for rule in rules))
        final = float(last)
    except ValueError:
        message = 'must be factor:step pairs with a last factor behind them, such as "1:10,0.1:20,0.005"'
        raise ValueError(f'{message}, got "{text}"') from None
    steps = [until for until, _ in pairs]
    if steps != sorted(set(steps)) or any(factor < 0 for _, factor in pairs) or final < 0:
        raise ValueError(f'must have rising steps and factors from 0, got "{text}"')
    return pairs, final
