"""Schedules against diffusers', optimizers and what is wrong with their arguments."""

import sys

import pytest
import torch
from diffusers.optimization import get_scheduler

from backend.errors import UserError
from backend.train.optim import check_optimizer, make_optimizer, make_schedule, set_rates


@pytest.mark.parametrize(
    ("name", "warmup"), [("constant", 0), ("constant_with_warmup", 7), ("cosine", 0), ("cosine", 9)]
)
def test_schedules_equal_those_of_diffusers(name, warmup) -> None:
    total = 40
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    ours = make_schedule(name, warmup, total)
    for step in range(total):
        assert ours(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_a_warmup_below_one_is_a_ratio_of_all_steps() -> None:
    assert make_schedule("cosine", 0.25, 40)(5) == make_schedule("cosine", 10, 40)(5) == 0.5


@pytest.mark.parametrize(("name", "warmup"), [("constant", 5), ("cosine", 41)])
def test_a_warmup_that_cannot_be_is_refused(name, warmup) -> None:
    with pytest.raises(UserError, match="lr_warmup_steps"):
        make_schedule(name, warmup, 40)


def test_each_group_keeps_its_own_rate_and_its_parameters() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in (1e-3, 5e-4)]
    optimizer = make_optimizer("AdamW", groups, {"weight_decay": "0.25", "betas": (0.8, 0.9)})
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0.25]
    assert [group["betas"] for group in optimizer.param_groups] == [(0.8, 0.9)] * 2
    set_rates(optimizer, [1e-3, 5e-4], 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [5e-4, 2.5e-4]
    assert "betas" not in groups[0]  # what was passed in is not changed


def test_arguments_that_the_optimizer_does_not_take_are_refused_by_name() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": 1e-3}]
    with pytest.raises(UserError, match="optimizer_args: .*wieght_decay"):
        make_optimizer("AdamW", groups, {"wieght_decay": 0.1})
    with pytest.raises(UserError, match="optimizer_args: .*learning_rate"):
        make_optimizer("AdamW", groups, {"lr": 0.1})


def test_adamw8bit_names_its_package_where_it_is_missing(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="optimizer_type: .*pip install bitsandbytes"):
        make_optimizer("adamw8bit", [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": 1e-3}], {})


def test_adamw8bit_keeps_8_bit_states_and_steps_like_adamw() -> None:
    start, gradient = torch.randn(64, 128), torch.randn(64, 128)
    moved = {}
    for name in ("AdamW", "AdamW8bit"):
        parameter = torch.nn.Parameter(start.clone())
        optimizer = make_optimizer(name, [{"params": [parameter], "lr": 1e-2}], {"weight_decay": 0.0})
        for _ in range(3):
            parameter.grad = gradient.clone()
            optimizer.step()
        moved[name] = parameter.detach() - start
    state = optimizer.state[parameter]
    assert state["state1"].dtype == state["state2"].dtype == torch.uint8
    assert (moved["AdamW8bit"] - moved["AdamW"]).norm() < 0.05 * moved["AdamW"].norm()


def test_another_implementation_takes_the_place_of_the_fused_one() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": 1e-3}]
    assert make_optimizer("AdamW", groups, {}).param_groups[0]["fused"]
    assert not make_optimizer("AdamW", groups, {"foreach": "True"}).param_groups[0]["fused"]
    check_optimizer("AdamW", {"foreach": "True", "betas": "0.8,0.9"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"betas": "0.9,0.99,0.9"}, "cannot take a step with these: too many values"),
        ({"differentiable": "True"}, "cannot take a step with these: .*leaf"),
        ({"foreach": "True", "fused": "True"}, "does not take these: .*fused"),
        ({"eps": "small"}, "AdamW does not take these|cannot take a step"),
    ],
)
def test_arguments_that_would_fail_at_the_first_step_are_refused_before(options, message) -> None:
    with pytest.raises(UserError, match=f"optimizer_args: AdamW {message}" if "|" not in message else message):
        check_optimizer("AdamW", options)
