"""Learning rates against the curves of diffusers, transformers and PyTorch, over whole runs."""

import math

import pytest
import torch
from diffusers.optimization import get_piecewise_constant_schedule
from transformers import optimization as theirs

from backend.config.base import resolve
from backend.config.train import TrainNetwork
from backend.config.training.optim import Optim
from backend.errors import ConfigError, UserError
from backend.tables.schedules import READERS, read_step_rules
from backend.train.schedules import make_rates, make_schedule, steps_of

TOTAL, PEAK = 60, 3e-4
LOCATION = {"pretrained_model_name_or_path": "model", "dataset_config": "d.toml", "output_dir": "out"}


def options(**given: object) -> Optim:
    return resolve(TrainNetwork, LOCATION | {"learning_rate": PEAK} | given).optim


def curve(scheduler: torch.optim.lr_scheduler.LRScheduler) -> list[float]:
    """The rate of each step of a run, as a training loop that steps the scheduler sees it."""
    rates = []
    for _ in range(TOTAL):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def reference(name: str, **arguments: object) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    return curve(getattr(theirs, f"get_{name}")(optimizer, **arguments))


WARM = {"num_warmup_steps": 7, "num_training_steps": TOTAL}
COLD = {"num_warmup_steps": 0, "num_training_steps": TOTAL}
CASES = {
    "constant": ({"lr_scheduler": "constant"}, "constant_schedule", {}),
    "constant_with_warmup": (
        {"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 7},
        "constant_schedule_with_warmup",
        {"num_warmup_steps": 7},
    ),
    "linear": ({"lr_scheduler": "linear", "lr_warmup_steps": 7}, "linear_schedule_with_warmup", WARM),
    "linear, cold": ({"lr_scheduler": "linear"}, "linear_schedule_with_warmup", COLD),
    "cosine": ({"lr_scheduler": "cosine", "lr_warmup_steps": 7}, "cosine_schedule_with_warmup", WARM),
    "cosine, cold": ({"lr_scheduler": "cosine"}, "cosine_schedule_with_warmup", COLD),
    "restarts": (
        {"lr_scheduler": "cosine_with_restarts", "lr_warmup_steps": 7, "lr_scheduler_num_cycles": 3},
        "cosine_with_hard_restarts_schedule_with_warmup",
        WARM | {"num_cycles": 3},
    ),
    "minimum": (
        {"lr_scheduler": "cosine_with_min_lr", "lr_warmup_steps": 7, "lr_scheduler_min_lr_ratio": 0.1},
        "cosine_with_min_lr_schedule_with_warmup",
        WARM | {"min_lr_rate": 0.1},
    ),
    "minimum, three half waves": (
        {"lr_scheduler": "cosine_with_min_lr", "lr_scheduler_num_cycles": 3, "lr_scheduler_min_lr_ratio": 0.2},
        "cosine_with_min_lr_schedule_with_warmup",
        COLD | {"num_cycles": 1.5, "min_lr_rate": 0.2},
    ),
    "polynomial": (
        {"lr_scheduler": "polynomial", "lr_warmup_steps": 7, "lr_scheduler_power": 2.5},
        "polynomial_decay_schedule_with_warmup",
        WARM | {"power": 2.5},
    ),
    "polynomial, end": (
        {"lr_scheduler": "polynomial", "lr_scheduler_args": ["lr_end=1e-5"]},
        "polynomial_decay_schedule_with_warmup",
        COLD | {"lr_end": 1e-5},
    ),
    "inverse_sqrt": (
        {"lr_scheduler": "inverse_sqrt", "lr_warmup_steps": 7},
        "inverse_sqrt_schedule",
        {"num_warmup_steps": 7},
    ),
    "inverse_sqrt, cold": ({"lr_scheduler": "inverse_sqrt"}, "inverse_sqrt_schedule", {"num_warmup_steps": 0}),
    "inverse_sqrt, timescale": (
        {"lr_scheduler": "inverse_sqrt", "lr_warmup_steps": 7, "lr_scheduler_timescale": 20},
        "inverse_sqrt_schedule",
        {"num_warmup_steps": 7, "timescale": 20},
    ),
    "wsd": (
        {"lr_scheduler": "warmup_stable_decay", "lr_warmup_steps": 7, "lr_decay_steps": 20},
        "wsd_schedule",
        WARM | {"num_decay_steps": 20},
    ),
    "wsd, all of it": (
        {
            "lr_scheduler": "warmup_stable_decay",
            "lr_warmup_steps": 0.25,
            "lr_decay_steps": 0.5,
            "lr_scheduler_min_lr_ratio": 0.1,
            "lr_scheduler_num_cycles": 3,
            "lr_scheduler_args": ["warmup_type=cosine"],
        },
        "wsd_schedule",
        {
            "num_warmup_steps": 15,
            "num_training_steps": TOTAL,
            "num_decay_steps": 30,
            "min_lr_ratio": 0.1,
            "num_cycles": 1.5,
            "warmup_type": "cosine",
        },
    ),
    "wsd, roots": (
        {
            "lr_scheduler": "warmup_stable_decay",
            "lr_warmup_steps": 10,
            "lr_decay_steps": 50,
            "lr_scheduler_args": ["warmup_type=1-sqrt", "decay_type=1-sqrt"],
        },
        "wsd_schedule",
        WARM | {"num_warmup_steps": 10, "num_decay_steps": 50, "warmup_type": "1-sqrt", "decay_type": "1-sqrt"},
    ),
    "wsd, lines": (
        {"lr_scheduler": "warmup_stable_decay", "lr_decay_steps": 9, "lr_scheduler_args": "decay_type=linear"},
        "wsd_schedule",
        COLD | {"num_decay_steps": 9, "decay_type": "linear"},
    ),
}


@pytest.mark.filterwarnings("ignore:Detected call")
@pytest.mark.parametrize("case", CASES)
def test_a_schedule_equals_that_of_transformers_over_a_whole_run(case) -> None:
    given, name, arguments = CASES[case]
    rates = make_rates(options(**given), TOTAL, [PEAK, 2 * PEAK])
    assert [rates(step)[0] for step in range(TOTAL)] == pytest.approx(reference(name, **arguments), abs=1e-12, rel=0)
    factor = make_schedule(options(**given), TOTAL)
    assert [factor(step) for step in range(TOTAL)] == pytest.approx(
        [rate / PEAK for rate in reference(name, **arguments)], abs=1e-12, rel=0
    )
    # No state: any order gives the same, and every group has its own peak.
    assert [rates(step) for step in (41, 3, 41)] == [(PEAK * factor(s), 2 * PEAK * factor(s)) for s in (41, 3, 41)]


@pytest.mark.filterwarnings("ignore:Detected call")
def test_piecewise_rules_equal_those_of_diffusers() -> None:
    rules = "1:10,0.1:20,2:21,0.005"
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    expected = curve(get_piecewise_constant_schedule(optimizer, rules))
    for text in ([f"step_rules={rules}"], [f"step_rules='{rules}'"], {"step_rules": rules}):
        rates = make_rates(options(lr_scheduler="piecewise_constant", lr_scheduler_args=text), TOTAL, [PEAK])
        assert [rates(step)[0] for step in range(TOTAL)] == pytest.approx(expected, abs=1e-12, rel=0)
    assert expected[9] != expected[10] and read_step_rules("0.5") == ((), 0.5)


@pytest.mark.parametrize("rules", ["1:10", "1:10,", "1-10,0.1", "1:20,0.1:10,1", "-1:10,1", "a"])
def test_piecewise_rules_that_say_nothing_are_refused(rules) -> None:
    with pytest.raises(ConfigError, match="lr_scheduler_args.step_rules: must"):
        options(lr_scheduler="piecewise_constant", lr_scheduler_args=[f"step_rules={rules}"])


def test_steps_below_one_are_a_share_of_all_steps() -> None:
    assert [steps_of(value, 41) for value in (0.25, 0.999, 1, 10, 0)] == [10, 40, 1, 10, 0]
    share = make_schedule(options(lr_scheduler="cosine", lr_warmup_steps=0.25), 40)
    assert share(5) == make_schedule(options(lr_scheduler="cosine", lr_warmup_steps=10), 40)(5) == 0.5


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"lr_scheduler": "cosine", "lr_warmup_steps": 61}, "lr_warmup_steps"),
        ({"lr_scheduler": "warmup_stable_decay", "lr_warmup_steps": 31, "lr_decay_steps": 30}, "lr_decay_steps"),
    ],
)
def test_what_is_longer_than_the_run_is_refused(given, field) -> None:
    with pytest.raises(UserError, match=field):
        make_rates(options(**given), TOTAL, [PEAK])


NEEDED = {
    "cosine_with_min_lr": {"lr_scheduler_min_lr_ratio": 0.1},
    "warmup_stable_decay": {"lr_decay_steps": 5},
    "piecewise_constant": {"lr_scheduler_args": ["step_rules=1:3,0.1"]},
    "adafactor": {"optimizer_type": "AdaFactor"},
}
CHANGED = {
    "lr_warmup_steps": 5,
    "lr_decay_steps": 7,
    "lr_scheduler_num_cycles": 3,
    "lr_scheduler_power": 2.0,
    "lr_scheduler_timescale": 9,
    "lr_scheduler_min_lr_ratio": 0.3,
}


@pytest.mark.parametrize("option", READERS)
@pytest.mark.parametrize("name", [*READERS["lr_warmup_steps"], "constant", "piecewise_constant", "adafactor"])
def test_an_option_changes_the_curves_of_its_schedules_and_is_refused_elsewhere(option, name) -> None:
    base = {"lr_scheduler": name} | NEEDED.get(name, {})
    if name in READERS[option]:
        plain, changed = (make_schedule(options(**given), TOTAL) for given in (base, base | {option: CHANGED[option]}))
        assert [plain(step) for step in range(TOTAL)] != [changed(step) for step in range(TOTAL)]
    else:
        with pytest.raises(ConfigError, match=f"{option}: has no effect with lr_scheduler"):
            options(**base, **{option: CHANGED[option]})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr_scheduler": "cosine_with_min_lr"}, "lr_scheduler_min_lr_ratio: is required"),
        ({"lr_scheduler": "warmup_stable_decay"}, "lr_decay_steps: is required"),
        ({"lr_scheduler": "piecewise_constant"}, "lr_scheduler_args: needs .step_rules"),
        ({"lr_scheduler": "cosin"}, "did you mean cosine"),
        (
            {"lr_scheduler": "cosine", "lr_scheduler_args": ["lr_end=1e-6"]},
            "lr_scheduler_args.lr_end: is not an option",
        ),
        ({"lr_scheduler": "polynomial", "lr_scheduler_args": ["lr_end=1"]}, "lr_end: must be below learning_rate"),
        ({"lr_scheduler": "cosine", "lr_scheduler_type": "StepLR"}, "lr_scheduler_type: cannot be set together"),
        (
            {"lr_scheduler_type": "StepLR", "lr_warmup_steps": 3},
            "lr_warmup_steps: has no effect with lr_scheduler_type",
        ),
        ({"lr_scheduler": "adafactor"}, "lr_scheduler: adafactor needs optimizer_type AdaFactor"),
        (
            {"lr_scheduler": "cosine", "optimizer_type": "AdaFactor"},
            "has no effect with AdaFactor.*relative_step=False",
        ),
        ({"lr_scheduler": "cosine", "optimizer_type": "AdamWScheduleFree"}, "lr_scheduler: does not go with"),
        ({"lr_scheduler_type": "StepLR", "optimizer_type": "SGDScheduleFree"}, "lr_scheduler_type: does not go with"),
        ({"lr_decay_steps": 2.5, "lr_scheduler": "warmup_stable_decay"}, "lr_decay_steps: must be a whole number"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_by_the_config(given, message) -> None:
    with pytest.raises(ConfigError, match=message):
        options(**given)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("CosineAnnealingLR", {"T_max": 20, "eta_min": 1e-5}),
        ("torch.optim.lr_scheduler.StepLR", {"step_size": 7, "gamma": 0.5}),
        ("OneCycleLR", {"max_lr": 1e-3, "total_steps": TOTAL, "cycle_momentum": False}),
        ("CosineAnnealingWarmRestarts", {"T_0": 11}),
    ],
)
def test_a_schedule_of_pytorch_is_followed_group_by_group(name, arguments) -> None:
    peaks = [PEAK, 1e-4]
    given = [f"{key}={value}" for key, value in arguments.items()]
    rates = make_rates(options(lr_scheduler_type=name, lr_scheduler_args=given), TOTAL, peaks)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": peak} for peak in peaks]
    optimizer = torch.optim.SGD(groups)
    scheduler = getattr(torch.optim.lr_scheduler, name.split(".")[-1])(optimizer, **arguments)
    expected = []
    for _ in range(TOTAL):
        expected.append(tuple(group["lr"] for group in optimizer.param_groups))
        optimizer.step()
        scheduler.step()
    for step in reversed(range(TOTAL)):
        assert rates(step) == pytest.approx(expected[step], abs=1e-12, rel=0)
    assert not math.isclose(expected[0][0], expected[30][0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr_scheduler_type": "CosineAnealingLR"}, "lr_scheduler_type: .*did you mean CosineAnnealingLR"),
        ({"lr_scheduler_type": "no_such.Thing"}, "lr_scheduler_type: no_such does not load"),
        ({"lr_scheduler_type": "os.path"}, "lr_scheduler_type: os is not in an installed package"),
        ({"lr_scheduler_type": "torch.nn.Linear"}, "lr_scheduler_type: torch.nn has no schedule Linear"),
        ({"lr_scheduler_type": "ReduceLROnPlateau"}, "lr_scheduler_args: .*metrics"),
        ({"lr_scheduler_type": "StepLR", "lr_scheduler_args": ["stepsize=3"]}, "lr_scheduler_args: .*stepsize"),
        (
            {"lr_scheduler_type": "OneCycleLR", "lr_scheduler_args": ["max_lr=1e-3", "total_steps=99"]},
            "lr_scheduler_args: .*momentum",
        ),
    ],
)
def test_a_schedule_of_pytorch_that_needs_more_than_the_step_is_refused(given, message) -> None:
    with pytest.raises(UserError, match=message):
        make_rates(options(**given), TOTAL, [PEAK])
