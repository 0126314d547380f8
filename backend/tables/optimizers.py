"""Optimizers by the names that users know, and where each comes from: plain data, read by the form and by training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class OptimizerRow:
    """One optimizer.

    Attributes:
        name: as users write it, in any case.
        module, cls: where it is.
        package: what `pip install` brings it, "" for what is always there.
        options: arguments that it gets unless others are given.
        adaptive: it finds the rate by itself, one for all parameters; the learning rate is a factor, and 1 is usual.
        rests: it can take a step at the rate 0, where a warm-up begins.
    """

    name: str
    module: str
    cls: str
    package: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    adaptive: bool = False
    rests: bool = True


def _torch(name: str, cls: str = "", **options: Any) -> OptimizerRow:
    return OptimizerRow(name, "torch.optim", cls or name, options=tuple(options.items()))


def _bitsandbytes(name: str, cls: str = "", **options: Any) -> OptimizerRow:
    return OptimizerRow(name, "bitsandbytes.optim", cls or name, "bitsandbytes", tuple(options.items()))


def _d_adaptation(name: str, module: str = "dadaptation", cls: str = "", rests: bool = True) -> OptimizerRow:
    return OptimizerRow(name, module, cls or name, "dadaptation", adaptive=True, rests=rests)


ROWS = (
    _torch("AdamW"),
    _bitsandbytes("AdamW8bit"),
    _bitsandbytes("PagedAdamW"),
    _bitsandbytes("PagedAdamW8bit"),
    _bitsandbytes("PagedAdamW32bit"),
    OptimizerRow("Lion", "lion_pytorch", "Lion", "lion-pytorch"),
    _bitsandbytes("Lion8bit"),
    _bitsandbytes("PagedLion8bit"),
    _torch("SGDNesterov", "SGD", nesterov=True, momentum=0.9),
    _bitsandbytes("SGDNesterov8bit", "SGD8bit", nesterov=True, momentum=0.9),
    _d_adaptation("DAdaptation", "dadaptation.experimental", "DAdaptAdamPreprint"),
    _d_adaptation("DAdaptAdamPreprint", "dadaptation.experimental"),
    _d_adaptation("DAdaptAdaGrad"),
    _d_adaptation("DAdaptAdam"),
    _d_adaptation("DAdaptAdan"),
    _d_adaptation("DAdaptAdanIP", "dadaptation.experimental"),
    _d_adaptation("DAdaptLion"),
    _d_adaptation("DAdaptSGD", rests=False),
    OptimizerRow("Prodigy", "prodigyopt", "Prodigy", "prodigyopt", adaptive=True),
    OptimizerRow("AdaFactor", "transformers.optimization", "Adafactor", options=(("relative_step", True),)),
    OptimizerRow("RAdamScheduleFree", "schedulefree", "RAdamScheduleFree", "schedulefree"),
    OptimizerRow("AdamWScheduleFree", "schedulefree", "AdamWScheduleFree", "schedulefree"),
    OptimizerRow("SGDScheduleFree", "schedulefree", "SGDScheduleFree", "schedulefree"),
    # PyTorch's own under their own names. Its Adafactor is torch.optim.Adafactor, as AdaFactor has always been another.
    *(
        _torch(name)
        for name in (
            "Adadelta",
            "Adagrad",
            "Adam",
            "Adamax",
            "ASGD",
            "LBFGS",
            "Muon",
            "NAdam",
            "RAdam",
            "RMSprop",
            "Rprop",
            "SGD",
            "SparseAdam",
        )
    ),
)
OPTIMIZERS: Mapping[str, OptimizerRow] = {row.name.lower(): row for row in ROWS}
# These can be named, and are told why they cannot train: one needs the loss as a function, one sparse gradients.
UNFIT = ("LBFGS", "SparseAdam")
NAMES = tuple(row.name for row in ROWS if row.name not in UNFIT)


def find_row(name: str) -> OptimizerRow | None:
    """The row of a name in any case, a new one for any `module.Class`, or None for what is neither."""
    module, _, cls = name.strip().rpartition(".")
    if module and all(part.isidentifier() for part in (*module.split("."), cls)):
        return OptimizerRow(name.strip(), module, cls, "")
    return OPTIMIZERS.get(name.strip().lower())


def is_schedule_free(name: str) -> bool:
    """Whether an optimizer averages its weights in place of a schedule (arXiv 2405.15682); told by its name."""
    return name.lower().endswith("schedulefree")


def sets_own_rates(name: str, options: Mapping[str, Any]) -> bool:
    """Whether Adafactor works out its rates from the step and the size of the weights (arXiv 1804.04235, section 8).

    Args:
        name: of an optimizer.
        options: its arguments; those that are not given have the row's values.
    """
    row = find_row(name)
    if row is None or (row.module, row.cls) != ("transformers.optimization", "Adafactor"):
        return False
    return bool({"relative_step": True, **options}["relative_step"])


def one_rate(name: str, rates: Sequence[float]) -> str:
    """The message for several rates where the optimizer can have only one."""
    listed = ", ".join(f"{rate:g}" for rate in rates)
    return (
        f"{name} finds one rate for the whole network, so all its rates must be equal (or 0), got {listed}; leave "
        "unet_lr, text_encoder_lr and factors of parts out, or take another optimizer_type"
    )
