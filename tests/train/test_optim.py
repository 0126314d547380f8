"""Every optimizer by name: that it learns, that its state can be kept, and what is wrong with names and arguments."""

import copy
import math
import sys

import pytest
import torch

from backend import events
from backend.config.base import resolve
from backend.config.train import TrainNetwork
from backend.config.training.optim import Optim
from backend.errors import ConfigError, UserError
from backend.lora.file import read_lora
from backend.tables.optimizers import NAMES, ROWS, find_row
from backend.train.loop import current_rates, train, training_step
from backend.train.optimizers import (
    at_rest,
    check_optimizer,
    check_rates,
    effective_rates,
    make_optimizer,
    notes,
    set_rates,
)
from backend.train.schedules import make_rates

LOCATION = {"pretrained_model_name_or_path": "model", "dataset_config": "d.toml", "output_dir": "out"}
USELESS = ("LBFGS", "SparseAdam")
USABLE = [row for row in ROWS if row.name not in USELESS]
# What is left of the loss after 200 steps; a fifth where nothing else is said.
LEFT = {"RAdamScheduleFree": 0.65, "Adagrad": 0.65, "Muon": 0.65, "RAdam": 0.35}
SCHEDULE_FREE = ("RAdamScheduleFree", "AdamWScheduleFree", "SGDScheduleFree")


def options(**given: object) -> Optim:
    return resolve(TrainNetwork, LOCATION | given).optim


def peak(row) -> float:
    return 1.0 if row.adaptive or row.name == "Adadelta" else 0.03


class Quadratic:
    """Two matrices, a group each, that are to become others."""

    def __init__(self, row, arguments: dict | None = None) -> None:
        torch.manual_seed(0)
        self.goals = [2 * torch.randn(64, 64) for _ in range(2)]
        self.parameters = [torch.nn.Parameter(torch.randn(64, 64)) for _ in range(2)]
        self.peak = peak(row)
        groups = [{"params": [parameter], "lr": self.peak} for parameter in self.parameters]
        self.optimizer = make_optimizer(row.name.upper(), groups, arguments or {})

    def loss(self) -> torch.Tensor:
        return sum(((now - goal) ** 2).sum() for now, goal in zip(self.parameters, self.goals, strict=True))

    def step(self, rate: float) -> None:
        set_rates(self.optimizer, [rate, rate])
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()


@pytest.mark.parametrize("row", USABLE, ids=lambda row: row.name)
def test_an_optimizer_lowers_a_quadratic_through_warm_up_and_pauses(row) -> None:
    check_optimizer(row.name, {})
    problem = Quadratic(row)
    start = float(problem.loss().detach())
    for step in range(200):
        # The rate 0 comes up, at the first step and within a run.
        rests = row.rests and step in (0, 50)
        problem.step(0.0 if rests else problem.peak * min(1, (step + 1) / 5))
    with at_rest(problem.optimizer):
        end = float(problem.loss().detach())
    assert end < LEFT.get(row.name, 1.0 if row.name == "Adadelta" else 0.2) * start
    assert all(math.isfinite(rate) and rate > 0 for rate in effective_rates(problem.optimizer))


@pytest.mark.parametrize("row", USABLE, ids=lambda row: row.name)
def test_a_state_that_was_kept_goes_on_to_the_same_numbers(row) -> None:
    one, other = Quadratic(row), Quadratic(row)
    for _ in range(5):
        one.step(one.peak)
    other.optimizer.load_state_dict(copy.deepcopy(one.optimizer.state_dict()))
    with torch.no_grad():
        for ours, theirs in zip(other.parameters, one.parameters, strict=True):
            ours.copy_(theirs)
    for problem in (one, other):
        for _ in range(3):
            problem.step(problem.peak)
    moved = [not torch.equal(p, Quadratic(row).parameters[i]) for i, p in enumerate(one.parameters)]
    assert all(moved)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters, other.parameters, strict=True))


@pytest.mark.parametrize("name", USELESS)
def test_optimizers_that_need_more_than_a_gradient_are_refused_in_words(name) -> None:
    with pytest.raises(UserError, match=f"{name} cannot take a step with these: .*(closure|dense)"):
        check_optimizer(name, {})


def test_each_name_is_the_class_that_users_mean() -> None:
    classes = {row.name: f"{row.module}.{row.cls}" for row in ROWS}
    assert classes["DAdaptation"] == classes["DAdaptAdamPreprint"] == "dadaptation.experimental.DAdaptAdamPreprint"
    assert classes["SGDNesterov"] == "torch.optim.SGD" and classes["Lion"] == "lion_pytorch.Lion"
    own = {name for name in dir(torch.optim) if isinstance(getattr(torch.optim, name), type)} - {"Optimizer"}
    assert {name.lower() for name in own} <= {row.name.lower() for row in ROWS} and not {*USELESS} & {*NAMES}
    for row in USABLE:
        assert type(Quadratic(row).optimizer).__name__ == row.cls
    nesterov = Quadratic(find_row("sgdnesterov")).optimizer.param_groups[0]
    assert (nesterov["nesterov"], nesterov["momentum"]) == (True, 0.9)
    given = Quadratic(find_row("sgdnesterov"), {"momentum": 0.5}).optimizer.param_groups[0]
    assert (given["nesterov"], given["momentum"]) == (True, 0.5)


def test_any_class_of_an_installed_package_can_be_named() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.ones(4, 4))], "lr": 1e-3}]
    assert isinstance(make_optimizer("torch.optim.Adafactor", groups, {}), torch.optim.Adafactor)
    found = make_optimizer("bitsandbytes.optim.AdEMAMix8bit", groups, {"weight_decay": "0.5"})
    assert type(found).__name__ == "AdEMAMix8bit" and found.param_groups[0]["weight_decay"] == 0.5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torch.optim.AdaDelt", "optimizer_type: torch.optim has no optimizer AdaDelt; did you mean Adadelta"),
        ("os.path", "optimizer_type: os is not in an installed package"),
        ("torch.nn.Linear", "optimizer_type: torch.nn has no optimizer Linear"),
        ("prodigyplus.ProdigyPlusScheduleFree", "optimizer_type: .*`pip install prodigyplus`"),
        ("Prodogy", "optimizer_type: Prodogy is no optimizer; did you mean Prodigy"),
    ],
)
def test_a_class_that_is_not_there_is_named(name, message) -> None:
    with pytest.raises(UserError, match=message):
        check_optimizer(name, {})


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("adamw8bit", "bitsandbytes", "bitsandbytes"),
        ("Lion", "lion_pytorch", "lion-pytorch"),
        ("DAdaptAdam", "dadaptation", "dadaptation"),
        ("DAdaptation", "dadaptation", "dadaptation"),
        ("Prodigy", "prodigyopt", "prodigyopt"),
        ("AdamWScheduleFree", "schedulefree", "schedulefree"),
    ],
)
def test_a_missing_package_is_named_as_pip_knows_it(name, module, package, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for loaded in [each for each in sys.modules if each.startswith(f"{module}.")]:
        monkeypatch.setitem(sys.modules, loaded, None)
    with pytest.raises(UserError, match=f"optimizer_type: .*`pip install {package}`"):
        check_optimizer(name, {})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer_type": "Prodogy"}, 'optimizer_type: "Prodogy" is no optimizer.*did you mean Prodigy'),
        ({"optimizer_type": "x"}, "optimizer_type: .*known are AdamW, AdamW8bit"),
        ({"optimizer_type": "my module.Thing"}, "optimizer_type: .*is no optimizer"),
        ({"use_8bit_adam": True, "use_lion_optimizer": True}, "use_lion_optimizer: cannot be set together"),
        ({"use_8bit_adam": True, "optimizer_type": "Lion"}, "use_8bit_adam: contradicts optimizer_type"),
        ({"optimizer_type": "DAdaptAdam", "unet_lr": 1.0, "text_encoder_lr": 0.5}, "text_encoder_lr: DAdaptAdam finds"),
        (
            {"optimizer_type": "Prodigy", "learning_rate": 1.0, "unet_lr": 0.5},
            "unet_lr: Prodigy finds one rate.* 0.5, 1",
        ),
    ],
)
def test_a_wrong_optimizer_is_refused_by_the_config(given, message) -> None:
    with pytest.raises(ConfigError, match=message):
        options(**given)


def test_names_come_in_any_case_and_from_old_flags() -> None:
    assert options(optimizer_type="dadaptadam").optimizer == "DAdaptAdam"
    assert options(optimizer_type="").optimizer == options().optimizer == "AdamW"
    assert options(optimizer_type="my.own.Thing").optimizer == "my.own.Thing"
    assert options(use_8bit_adam=True).optimizer == "AdamW8bit"
    assert options(use_lion_optimizer=True).optimizer == "Lion"


def test_rates_of_parts_that_are_not_trained_do_not_count_for_one_that_finds_its_own() -> None:
    given = {"optimizer_type": "Prodigy", "learning_rate": 1.0}
    for fine in (
        {"unet_lr": 0.5, "network_train_unet_only": True},
        {"text_encoder_lr": 0.5, "network_train_text_encoder_only": True},
        {"text_encoder_lr": 0.0},
        {"unet_lr": 0.5, "text_encoder_lr": [0.5, 0.5]},
    ):
        assert options(**given, **fine).optimizer == "Prodigy"
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in (1.0, 0.5)]
    with pytest.raises(UserError, match="unet_lr: DAdaptLion finds one rate"):
        make_optimizer("DAdaptLion", groups, {})


def test_what_a_user_should_know_is_told_in_one_line() -> None:
    assert notes(options(), True) == notes(options(optimizer_type="Prodigy", learning_rate=1.0), True) == []
    assert notes(options(optimizer_type="Prodigy", unet_lr=1.0, text_encoder_lr=1.0), True) == []
    (low,) = notes(options(optimizer_type="DAdaptAdam", learning_rate=1e-4), True)
    assert "DAdaptAdam finds the rate by itself" in low and "10,000 times slower" in low
    (own,) = notes(options(optimizer_type="AdaFactor"), True)
    assert "relative_step=False" in own
    assert notes(options(optimizer_type="AdaFactor", optimizer_args=["relative_step=false"]), True) == []
    assert notes(options(optimizer_type="PagedLion8bit"), True) == []
    assert "without a GPU" in notes(options(optimizer_type="PagedLion8bit"), False)[0]


def test_an_optimizer_that_divides_by_the_rate_is_not_given_a_rate_of_0() -> None:
    given = {"optimizer_type": "DAdaptSGD", "learning_rate": 1.0, "lr_scheduler": "linear"}
    warm = make_rates(options(**given, lr_warmup_steps=3), 10, [1.0])
    with pytest.raises(UserError, match="lr_scheduler: has the rate 0 at step 1, where DAdaptSGD"):
        check_rates("DAdaptSGD", warm, 10)
    check_rates("DAdaptSGD", make_rates(options(**given), 10, [1.0]), 10)
    check_rates("Prodigy", warm, 10)
    problem = Quadratic(find_row("DAdaptSGD"))
    with pytest.raises((ArithmeticError, NameError)):
        problem.step(0.0)


def test_adafactor_works_out_its_rates_unless_told_not_to() -> None:
    group = {"params": [torch.nn.Parameter(torch.ones(4, 4))], "lr": 5e-3}
    own = make_optimizer("adafactor", [group], {})
    assert own.param_groups[0]["relative_step"] and own.param_groups[0]["lr"] is None
    told = make_optimizer("AdaFactor", [group], {"relative_step": "False", "scale_parameter": "False"})
    moved = []
    for optimizer in (own, told):
        for rate in (1e-3, 1e3):
            before = group["params"][0].detach().clone()
            set_rates(optimizer, [rate])
            group["params"][0].grad = torch.ones(4, 4)
            optimizer.step()
            moved.append(float((group["params"][0].detach() - before).abs().max()))
    # The rate is 0.01 of the weights' size, or what it is told.
    assert moved[0] == pytest.approx(0.01, rel=1e-3) and moved[1] == pytest.approx(0.0099, rel=1e-3)
    assert moved[2] == pytest.approx(1e-3, rel=1e-3) and moved[3] == pytest.approx(1e3, rel=1e-3)
    assert effective_rates(own) == [0.01] and effective_rates(told) == [1e3]
    with pytest.raises(UserError, match="optimizer_args: AdaFactor does not take these: .*warmup_init"):
        make_optimizer("AdaFactor", [group], {"relative_step": False, "warmup_init": True})


def test_effective_rates_are_those_of_the_step() -> None:
    problem = Quadratic(find_row("Prodigy"))
    for _ in range(10):
        problem.step(0.5)
    group = problem.optimizer.param_groups[0]
    assert effective_rates(problem.optimizer) == [group["d"] * 0.5] * 2 != [0.5] * 2
    warm = Quadratic(find_row("AdamWScheduleFree"), {"warmup_steps": 10})
    warm.step(0.03)
    assert effective_rates(warm.optimizer) == pytest.approx([0.003] * 2)
    slow = Quadratic(find_row("AdaFactor"), {"warmup_init": True})
    for _ in range(4):
        slow.step(1.0)
    assert effective_rates(slow.optimizer) == pytest.approx([4e-6] * 2)
    plain = Quadratic(find_row("SGD"))
    plain.step(0.03)
    assert effective_rates(plain.optimizer) == [0.03] * 2


@pytest.mark.parametrize("name", SCHEDULE_FREE)
def test_a_look_at_averaged_weights_leaves_training_as_it_was(name) -> None:
    looked, other = Quadratic(find_row(name)), Quadratic(find_row(name))
    for _ in range(12):
        looked.step(0.03)
        other.step(0.03)
        at_work = [parameter.detach().clone() for parameter in looked.parameters]
        with at_rest(looked.optimizer):
            resting = [parameter.detach().clone() for parameter in looked.parameters]
        assert all(torch.equal(a, b) for a, b in zip(at_work, looked.parameters, strict=True))
    assert not torch.equal(resting[0], at_work[0])
    assert all(torch.equal(a, b) for a, b in zip(looked.parameters, other.parameters, strict=True))
    other.optimizer.eval()
    assert all(torch.equal(a, b) for a, b in zip(resting, other.parameters, strict=True))


def test_a_schedule_free_run_saves_the_averaged_weights(run_of, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(events.VARIABLE, str(tmp_path / "events.jsonl"))
    given = {"optimizer_type": "AdamWScheduleFree", "optimizer_args": ["warmup_steps=2"], "max_train_steps": 4}
    run = run_of(**given, learning_rate=1e-2, save_every_n_steps=2)
    train(run)
    network = {name: value.clone() for name, value in run.network.state_dict().items()}
    saved = _factors(run.outputs.final)
    assert any(not torch.equal(saved[key], network[key]) for key in saved)
    with at_rest(run.optimizer):
        resting = run.network.state_dict()
        assert all(torch.equal(saved[key], resting[key]) for key in saved)
    told, _ = events.read(tmp_path / "events.jsonl")
    assert [e for e in told if e["event"] == "progress"][-1]["lr"] == {"text_encoder": 1e-2, "unet": 1e-2}
    # Saving in the middle has changed nothing.
    plain = run_of(**given, learning_rate=1e-2)
    train(plain)
    assert all(torch.equal(value, network[name]) for name, value in plain.network.state_dict().items())


@pytest.mark.parametrize(("name", "rate"), [("Prodigy", 1.0), ("AdaFactor", 1e-3), ("AdamWScheduleFree", 1e-2)])
def test_an_optimizer_learns_a_fixed_batch_on_the_tiny_model(name, rate, run_of, dataset) -> None:
    given = {"optimizer_args": ["d0=1e-3"]} if name == "Prodigy" else {}
    data = str(dataset(count=1, batch_size=1))
    run = run_of(optimizer_type=name, learning_rate=rate, network_alpha=4, dataset_config=data, **given)
    fed = list(run.feed(run.training_set.epoch_batches(run.seed, 0)))
    # The same noise again and again: the draws are those of step 0.
    losses = [float(training_step(run, 0, fed)) for _ in range(10)]
    assert losses[-1] < 0.999 * losses[0]
    rates = current_rates(run)
    assert set(rates) == {"text_encoder", "unet"} and all(value > 0 for value in rates.values())
    assert (set(rates.values()) == {rate}) == (name == "AdamWScheduleFree")


def _factors(path) -> dict[str, torch.Tensor]:
    return {
        f"{key}.lora_{part}.weight": value
        for key, layer in read_lora(path).layers.items()
        for part, value in (("up", layer.up), ("down", layer.down))
    }


def test_each_group_keeps_its_own_rate_and_its_parameters() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in (1e-3, 5e-4)]
    optimizer = make_optimizer("AdamW", groups, {"weight_decay": "0.25", "betas": (0.8, 0.9)})
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0.25]
    assert [group["betas"] for group in optimizer.param_groups] == [(0.8, 0.9)] * 2
    set_rates(optimizer, [5e-4, 2.5e-4])
    assert [group["lr"] for group in optimizer.param_groups] == [5e-4, 2.5e-4]
    assert "betas" not in groups[0]  # what was passed in is not changed


def test_arguments_that_the_optimizer_does_not_take_are_refused_by_name() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": 1e-3}]
    with pytest.raises(UserError, match="optimizer_args: .*wieght_decay"):
        make_optimizer("AdamW", groups, {"wieght_decay": 0.1})
    with pytest.raises(UserError, match="optimizer_args: .*learning_rate"):
        make_optimizer("AdamW", groups, {"lr": 0.1})


@pytest.mark.parametrize(("name", "plain"), [("AdamW8bit", "AdamW"), ("PagedAdamW8bit", "AdamW"), ("Lion8bit", "Lion")])
def test_an_8_bit_optimizer_keeps_8_bit_states_and_steps_like_the_plain_one(name, plain) -> None:
    start, gradient = torch.randn(64, 128), torch.randn(64, 128)
    moved = {}
    for each in (plain, name):
        parameter = torch.nn.Parameter(start.clone())
        optimizer = make_optimizer(each, [{"params": [parameter], "lr": 1e-2}], {"weight_decay": 0.0})
        for _ in range(3):
            parameter.grad = gradient.clone()
            optimizer.step()
        moved[each] = parameter.detach() - start
    assert optimizer.state[parameter]["state1"].dtype == torch.uint8
    assert (moved[name] - moved[plain]).norm() < 0.05 * moved[plain].norm()


def test_another_implementation_takes_the_place_of_the_fused_one() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": 1e-3}]
    assert make_optimizer("AdamW", groups, {}).param_groups[0]["fused"]
    assert not make_optimizer("AdamW", groups, {"foreach": "True"}).param_groups[0]["fused"]
    check_optimizer("AdamW", {"foreach": "True", "betas": "0.8,0.9"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"betas": "0.9,0.99,0.9"}, "cannot take a step with these: too many values"),
        ({"differentiable": "True"}, "cannot take a step with these: .*leaf"),
        ({"foreach": "True", "fused": "True"}, "does not take these: .*fused"),
        ({"eps": "small"}, "AdamW does not take these|cannot take a step"),
    ],
)
def test_arguments_that_would_fail_at_the_first_step_are_refused_before(given, message) -> None:
    with pytest.raises(UserError, match=f"optimizer_args: AdamW {message}" if "|" not in message else message):
        check_optimizer("AdamW", given)
