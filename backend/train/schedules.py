"""Learning rates as pure functions of the step: a resumed run needs its step's number and nothing else."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.optim.lr_scheduler import LRScheduler

from backend.config.messages import did_you_mean
from backend.config.training.optim import Optim
from backend.errors import UserError
from backend.installed import REFUSED_IMPORTS, NotInstalledError, import_installed
from backend.tables.schedules import read_step_rules

# Factor of the peak rate, by the number of steps done.
Schedule = Callable[[int], float]
# The rate of each parameter group, by the number of steps done.
Rates = Callable[[int], tuple[float, ...]]


def steps_of(steps_or_share: float, total: int) -> int:
    """A number of steps as it is; a share below 1 of all steps, rounded down."""
    return int(steps_or_share * total) if 0 < steps_or_share < 1 else int(steps_or_share)


def constant() -> Schedule:
    """The full rate at every step."""
    return lambda step: 1.0


def constant_with_warmup(warmup: int) -> Schedule:
    """Rising linearly from 0 over `warmup` steps, then the full rate."""
    return lambda step: _rise(step, warmup)


def linear(warmup: int, total: int) -> Schedule:
    """Rising over `warmup` steps, then falling in a straight line to 0 at `total`."""
    return _after(warmup, lambda step: 1 - _progress(step, warmup, total))


def cosine(warmup: int, total: int, waves: float = 0.5, least: float = 0.0) -> Schedule:
    """Rising over `warmup` steps, then `waves` waves of a cosine between 1 and `least` (SGDR, arXiv 1608.03983)."""

    def factor(step: int) -> float:
        wave = 0.5 * (1 + math.cos(2 * math.pi * waves * _progress(step, warmup, total)))
        return wave * (1 - least) + least

    return _after(warmup, factor)


def cosine_with_restarts(warmup: int, total: int, cycles: int = 1) -> Schedule:
    """Rising over `warmup` steps, then `cycles` times half a cosine from 1 down to 0 (SGDR, arXiv 1608.03983)."""

    def factor(step: int) -> float:
        progress = _progress(step, warmup, total)
        return 0.0 if progress >= 1 else 0.5 * (1 + math.cos(math.pi * (cycles * progress % 1)))

    return _after(warmup, factor)


def polynomial(warmup: int, total: int, power: float = 1.0, end: float = 0.0) -> Schedule:
    """Rising over `warmup` steps, then falling to `end` as the `power`th power of what is left of the run."""
    return _after(warmup, lambda step: (1 - end) * (1 - _progress(step, warmup, total)) ** power + end)


def inverse_sqrt(warmup: int, timescale: int | None = None) -> Schedule:
    """Rising over `warmup` steps, then 1 / sqrt(1 + (step - warmup) / timescale), which is `warmup` or else 10000."""
    scale = timescale or warmup or 10_000
    return _after(warmup, lambda step: 1 / math.sqrt((step - warmup + scale) / scale))


def warmup_stable_decay(
    warmup: int, decay: int, total: int, shapes: tuple[str, str], waves: float = 0.5, least: float = 0.0
) -> Schedule:
    """Rising from `least` over `warmup` steps, the full rate, then falling to `least` over the last `decay` steps.

    Args:
        shapes: of the rise and of the fall: "linear", "cosine" or "1-sqrt" (MiniCPM, arXiv 2404.06395; the last from
            arXiv 2405.18392).
        waves: of a cosine's fall.
    """
    rise, fall = shapes
    begin = total - decay

    def factor(step: int) -> float:
        if step < warmup:
            done = step / warmup
            shaped = {"linear": done, "cosine": 0.5 * (1 - math.cos(math.pi * done)), "1-sqrt": 1 - math.sqrt(1 - done)}
            return shaped[rise] * (1 - least) + least
        if step < begin:
            return 1.0
        if step >= total:
            return least
        done = (step - begin) / decay
        wave = 0.5 * (1 + math.cos(2 * math.pi * waves * done))
        shaped = {"linear": 1 - done, "cosine": wave, "1-sqrt": 1 - math.sqrt(done)}
        return shaped[fall] * (1 - least) + least

    return factor


def piecewise_constant(rules: Sequence[tuple[int, float]], last: float) -> Schedule:
    """The factor of the first rule (step, factor) whose step is not reached, then `last`."""
    return lambda step: next((factor for until, factor in rules if step < until), last)


def make_schedule(options: Optim, total: int) -> Schedule:
    """The factor of the peak rate that `lr_scheduler` and the options beside it say.

    Args:
        total: steps of the whole run.

    Raises:
        UserError: rise and fall are longer than the run.
    """
    warmup, decay = (steps_of(steps, total) for steps in (options.lr_warmup_steps, options.lr_decay_steps))
    cycles, least = options.lr_scheduler_num_cycles, options.lr_scheduler_min_lr_ratio or 0.0
    arguments = options.lr_scheduler_args
    if warmup > total:
        raise UserError(f"{warmup} is more than the {total} steps of the run", field="lr_warmup_steps")
    if warmup + decay > total:
        message = f"{decay} and {warmup} of lr_warmup_steps are more than the {total} steps of the run"
        raise UserError(message, field="lr_decay_steps")
    # A cosine of one cycle is half a wave.
    made: Mapping[str, Callable[[], Schedule]] = {
        "constant": constant,
        "adafactor": constant,
        "constant_with_warmup": lambda: constant_with_warmup(warmup),
        "linear": lambda: linear(warmup, total),
        "cosine": lambda: cosine(warmup, total),
        "cosine_with_restarts": lambda: cosine_with_restarts(warmup, total, cycles),
        "cosine_with_min_lr": lambda: cosine(warmup, total, cycles / 2, least),
        # The end is a rate and not a factor; it is meant for the rate that all others default to.
        "polynomial": lambda: polynomial(
            warmup, total, options.lr_scheduler_power, arguments.get("lr_end", 1e-7) / options.learning_rate
        ),
        "inverse_sqrt": lambda: inverse_sqrt(warmup, options.lr_scheduler_timescale),
        "warmup_stable_decay": lambda: warmup_stable_decay(
            warmup,
            decay,
            total,
            (arguments.get("warmup_type", "linear"), arguments.get("decay_type", "cosine")),
            cycles / 2,
            least,
        ),
        "piecewise_constant": lambda: piecewise_constant(*read_step_rules(arguments["step_rules"])),
    }
    return made[options.lr_scheduler]()


def make_rates(options: Optim, total: int, peaks: Sequence[float]) -> Rates:
    """The rate of each parameter group at each step.

    Args:
        total: steps of the whole run.
        peaks: the full rate of each group.

    Raises:
        UserError: as `make_schedule` and `foreign_rates`.
    """
    if options.lr_scheduler_type:
        return foreign_rates(options.lr_scheduler_type, options.lr_scheduler_args, total, peaks)
    schedule = make_schedule(options, total)
    return lambda step: tuple(peak * schedule(step) for peak in peaks)


def foreign_rates(name: str, arguments: Mapping[str, object], total: int, peaks: Sequence[float]) -> Rates:
    """The rates of another library's schedule, which is run through once beside the training to know them all.

    Args:
        name: a class of torch.optim.lr_scheduler, or `module.Class`.
        arguments: of that class, beside the optimizer.
        total: steps of the whole run.
        peaks: the full rate of each group.

    Raises:
        UserError: there is no such class, or it needs more than the number of steps, such as the loss.
    """
    cls = _find_class(name)
    # One without momentum, so that a schedule that would change that too is refused and not half obeyed.
    stand_in = torch.optim.Adagrad([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": peak} for peak in peaks])
    rows = []
    try:
        scheduler = cls(stand_in, **arguments)
        while len(rows) < total:
            if rows:
                stand_in.step()
                scheduler.step()
            rows.append(tuple(float(group["lr"]) for group in stand_in.param_groups))
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name} cannot be a schedule of {total} steps with these: {reason}", field="lr_scheduler_args"
        ) from None
    return lambda step: rows[min(step, total - 1)]


def _find_class(name: str) -> type:
    module_name, _, cls_name = name.rpartition(".")
    module_name = module_name or "torch.optim.lr_scheduler"
    try:
        module = import_installed(module_name)
    except NotInstalledError as error:
        raise UserError(str(error), field="lr_scheduler_type") from None
    except REFUSED_IMPORTS as error:
        raise UserError(f"{module_name} does not load here ({error})", field="lr_scheduler_type") from None
    cls = getattr(module, cls_name, None)
    if not (isinstance(cls, type) and callable(getattr(cls, "step", None))):
        known = [
            key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, LRScheduler)
        ]
        message = f"{module_name} has no schedule {cls_name}{did_you_mean(cls_name, known)}"
        raise UserError(message, field="lr_scheduler_type")
    return cls


def _rise(step: int, warmup: int) -> float:
    return min(1.0, step / warmup) if warmup else 1.0


def _progress(step: int, warmup: int, total: int) -> float:
    """How much of the run after the warm-up is done, from 0 to 1."""
    return min(1.0, (step - warmup) / max(1, total - warmup))


def _after(warmup: int, factor: Schedule) -> Schedule:
    return lambda step: _rise(step, warmup) if step < warmup else factor(step)
