"""Curves for TensorBoard and Weights & Biases, and what a run tells of itself step by step."""

import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from backend import events
from backend.__main__ import main
from backend.config.base import resolve
from backend.config.train import TrainNetwork
from backend.errors import ConfigError, UserError
from backend.train import progress as progress_module
from backend.train.feed import grouped
from backend.train.logs import Logs, make_logs
from backend.train.loop import train, training_step
from backend.train.progress import Done, Gauges, Progress
from backend.train.readings import memory, weight_norms
from backend.train.setup import prepare


def curves_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads of a folder: (step, value) by curve."""
    read = EventAccumulator(str(folder))
    read.Reload()
    return {name: [(event.step, event.value) for event in read.Scalars(name)] for name in read.Tags()["scalars"]}


def test_tensorboard_reads_the_run_back(run_of, dataset, tmp_path) -> None:
    data = str(dataset(count=6, batch_size=2))
    arguments = tmp_path / "trackers.toml"
    arguments.write_text("[tensorboard]\nflush_secs = 1\nfilename_suffix = '.mine'\n", encoding="utf-8")
    options = {"unet_lr": 3e-4, "text_encoder_lr": 1e-5, "learning_rate": 1e-3, "max_train_steps": 4}
    options |= {"logging_dir": str(tmp_path / "logs"), "log_prefix": "try-", "log_tracker_name": "mine"}
    options |= {"validation_split": 0.34, "log_config": True, "log_tracker_config": str(arguments)}
    run = run_of(dataset_config=data, **options)
    losses = train(run).losses
    (folder,) = (tmp_path / "logs").iterdir()
    assert folder.name.startswith("try-2") and [path.name for path in folder.iterdir()] == ["mine"]
    (file,) = (folder / "mine").iterdir()
    assert file.name.endswith(".mine")
    found = curves_of(folder / "mine")
    assert [step for step, _ in found["loss/current"]] == [1, 2, 3, 4]
    assert [loss for _, loss in found["loss/current"]] == pytest.approx(losses, rel=1e-6)
    # An epoch has two steps.
    average = [losses[0], *(sum(losses[at - 1 : at + 1]) / 2 for at in (1, 2, 3))]
    assert [loss for _, loss in found["loss/average"]] == pytest.approx(average, rel=1e-6)
    assert found["loss/epoch_average"] == [(step, pytest.approx(average[step - 1], rel=1e-6)) for step in (2, 4)]
    assert found["lr/unet"] == [(step, pytest.approx(3e-4)) for step in (1, 2, 3, 4)]
    assert found["lr/textencoder"] == [(step, pytest.approx(1e-5)) for step in (1, 2, 3, 4)]
    assert {name for name in found if name.startswith("lr/")} == {"lr/unet", "lr/textencoder"}
    held = run.validation.loss(run.model, run.network, run.objective.diffusion, run.accelerator)
    assert [step for step, _ in found["loss/validation/average"]] == [2, 4]
    assert found["loss/validation/average"][-1][1] == pytest.approx(held.loss, rel=1e-6)
    assert found["loss/validation/timestep_800"][-1][1] == pytest.approx(held.by_timestep[800], rel=1e-6)
    norms = [float(adapter.norm().detach()) for adapter in run.network.adapters()]
    assert found["norm/avg_key_norm"][-1] == (4, pytest.approx(sum(norms) / len(norms), rel=1e-5))
    assert found["norm/max_key_norm"][-1] == (4, pytest.approx(max(norms), rel=1e-5))
    assert len(found["norm/grad_norm"]) == 4 and found["speed/pictures_per_second"][-1][1] > 0
    read = EventAccumulator(str(folder / "mine"))
    read.Reload()
    assert b"learning_rate = 0.001" in read.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


def test_the_line_that_shows_the_curves_can_be_copied(config_of, tmp_path, capsys) -> None:
    make_logs(config_of(logging_dir=str(tmp_path / "my logs")), 0.0).close()
    assert f"tensorboard --logdir '{tmp_path / 'my logs'}'" in capsys.readouterr().out


def test_logging_changes_no_loss(run_of, tmp_path) -> None:
    plain = train(run_of(max_train_steps=2)).losses
    assert train(run_of(max_train_steps=2, logging_dir=str(tmp_path / "logs"))).losses == plain


@pytest.mark.parametrize("limit", [0.0, 1e-3, 1e9])
def test_the_gradients_norm_is_told_as_it_was_before_clipping(run_of, limit: float) -> None:
    run = run_of(max_grad_norm=limit)
    found = []
    run.optimizer.step = lambda: found.extend(p.grad.clone() for p in run.parameters if p.grad is not None)
    training_step(run, 0, next(grouped(run.feed(run.training_set.epoch_batches(run.seed, 0)), 1)))
    norm = float(torch.cat([gradient.flatten() for gradient in found]).norm())
    told = float(run.gradient_norm)
    assert norm == pytest.approx(min(told, limit) if limit else told, rel=1e-3) and told > 2e-3


def test_norms_of_weights_are_those_of_the_changes_they_make(run_of) -> None:
    run = run_of()
    train(run)
    deltas = [float(adapter.delta().detach().norm()) for adapter in run.network.adapters()]
    mean, largest = weight_norms(run.network.adapters()).tolist()
    assert mean == pytest.approx(sum(deltas) / len(deltas), rel=1e-4) and largest == pytest.approx(
        max(deltas), rel=1e-4
    )
    assert largest > mean > 0


def test_memory_is_that_of_this_process() -> None:
    held = bytearray(os.urandom(1)) * (200 << 20)
    before = memory(torch.device("cpu"))["process"]
    del held
    assert before > 200 << 20 and before - memory(torch.device("cpu"))["process"] > 150 << 20


def told_by(tmp_path: Path, kind: str = "progress") -> list[dict]:
    return [event for event in events.read(tmp_path / "events.jsonl")[0] if event["event"] == kind]


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """A clock that stands still unless it is moved."""
    now = SimpleNamespace(value=100.0)
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now.value)
    return now


def test_an_event_says_all_there_is(tmp_path, monkeypatch, clock) -> None:
    monkeypatch.setenv(events.VARIABLE, str(tmp_path / "events.jsonl"))
    norms = iter([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0]), torch.tensor([7.0, 8.0])])
    progress = Progress(3, 1, 2, gauges=Gauges(lambda: next(norms), lambda: {"process": 7}))
    for step, loss in ((1, 4.0), (2, 2.0), (3, 1.0)):
        clock.value += 0.5
        progress.step(Done(step, 1, torch.tensor(loss), {"unet": 0.1}, torch.tensor(loss * 10), 4))
    progress.close()
    first, second, last = told_by(tmp_path)
    assert (last["loss"], last["loss_average"], last["gradient_norm"]) == (1.0, 1.5, 10.0)
    assert last["weight_norm"] == {"mean": 7.0, "max": 8.0} and last["memory"] == {"process": 7}
    assert (last["seconds_per_step"], last["pictures_per_second"], last["seconds_left"]) == (0.5, 8.0, 0.0)
    # Norms of weights are read one report after they have been asked for, except for the last.
    assert "weight_norm" not in first and second["weight_norm"] == {"mean": 1.0, "max": 2.0}


def test_a_long_run_tells_less_often(tmp_path, monkeypatch, clock) -> None:
    monkeypatch.setenv(events.VARIABLE, str(tmp_path / "events.jsonl"))
    progress = Progress(100_000, 1)
    loss = torch.tensor(1.0)
    for step in range(1, 30_001):
        clock.value += 0.1
        progress.step(Done(step, 1, loss))
    progress.close()
    moments = [event["step"] / 10 for event in told_by(tmp_path)]
    gaps = [after - before for before, after in zip(moments, moments[1:], strict=False)]
    assert gaps[5] == pytest.approx(0.2, abs=0.11) and max(gaps[-5:]) == pytest.approx(2.0, abs=0.11)
    assert len(moments) < 3000  # of 15,000 without


def fake_wandb(monkeypatch, **behaviour: object) -> list[tuple]:
    """A module in wandb's place; gives the list of what it is told."""
    calls: list[tuple] = []
    run = SimpleNamespace(
        log=lambda values: calls.append(("log", values)),
        finish=lambda: calls.append(("finish",)),
        define_metric=lambda *names, **options: calls.append(("metric", names, options)),
    )

    def init(**options: object) -> SimpleNamespace:
        calls.append(("init", options))
        return run

    class Error(Exception):
        pass

    fake = SimpleNamespace(init=init, Error=Error, **behaviour)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return calls


def test_wandb_is_told_the_same_curves(run_of, tmp_path, monkeypatch) -> None:
    calls = fake_wandb(monkeypatch)
    arguments = tmp_path / "trackers.toml"
    arguments.write_text("[wandb]\nentity = 'me'\n", encoding="utf-8")
    options = {"log_with": "wandb", "wandb_run_name": "first", "log_tracker_config": str(arguments), "log_config": True}
    run = run_of(max_train_steps=2, **options)
    losses = train(run).losses
    name, given = calls[0]
    config = given.pop("config")
    assert (name, given) == ("init", {"project": "network_train", "name": "first", "entity": "me"})
    assert config["max_train_steps"] == 2 and json.dumps(config) and config["output_dir"] == str(run.outputs.folder)
    assert calls[1] == ("metric", ("*",), {"step_metric": "global_step"}) and calls[-1] == ("finish",)
    logged = [values for kind, *rest in calls if kind == "log" for values in rest]
    found = {values["global_step"]: values["loss/current"] for values in logged if "loss/current" in values}
    assert found == dict(enumerate(losses, start=1))


def test_wandb_that_does_not_let_us_in_is_one_line(run_of, monkeypatch) -> None:
    fake_wandb(monkeypatch)
    wandb = sys.modules["wandb"]

    def refuse(**options: object) -> None:
        raise wandb.Error("api_key not configured (no-tty)\nmore")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match=r"log_with: \[wandb\] cannot be begun: api_key not configured \(no-tty\)$"):
        run_of(log_with="wandb")


def test_a_tracker_that_fails_costs_a_warning_and_not_the_run(capsys) -> None:
    written = []

    class Broken:
        failures = (KeyError,)

        def write(self, *what: object) -> None:
            written.append(what)
            raise KeyError("gone") if len(written) > 1 else OSError("full")

        def close(self) -> None:
            written.append("closed")

    for _ in range(2):
        logs = Logs({"broken": Broken()})
        logs.write({"a": 1.0}, 1, 1)
        logs.write({"a": 1.0}, 2, 1)
        logs.close()
    assert len(written) == 2
    assert capsys.readouterr().out.count("nothing more is logged to broken") == 2


@pytest.mark.parametrize(
    ("options", "field", "message"),
    [
        ({"log_with": "tensorboard"}, "logging_dir", "is required with log_with"),
        ({"log_with": "all"}, "logging_dir", "is required with log_with"),
        ({"log_config": True}, "log_config", "has no effect without logging_dir or log_with"),
        ({"log_prefix": "a"}, "log_prefix", "has no effect"),
        ({"log_with": "wandb", "log_prefix": "a"}, "log_prefix", "has no effect without logging_dir"),
        ({"log_tracker_name": "a"}, "log_tracker_name", "has no effect"),
        ({"logging_dir": "x", "log_tracker_name": "../a"}, "log_tracker_name", "plain name"),
        ({"logging_dir": "x", "wandb_run_name": "a"}, "wandb_run_name", "has no effect without log_with"),
        ({"wandb_api_key": "0123"}, "wandb_api_key", "set WANDB_API_KEY in the environment"),
    ],
)
def test_options_that_cannot_work_are_refused(config_of, options: dict, field: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(**options)
    assert len(caught.value.problems) == 1 and caught.value.field == field
    assert message in caught.value.message and "0123" not in str(caught.value)


def test_a_key_on_the_command_line_is_refused_with_its_remedy(capsys) -> None:
    assert main(["train_network", "--wandb_api_key", "0123"]) == 2
    said = "".join(capsys.readouterr())
    assert "--wandb_api_key: is not an option; secrets are never written" in said and "0123" not in said


def test_logging_dir_alone_means_tensorboard(config_of) -> None:
    assert config_of(logging_dir="x").logs.kinds == ("tensorboard",)
    assert config_of(logging_dir="x", log_with="all").logs.kinds == ("tensorboard", "wandb")
    assert config_of().logs.kinds == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log_with": "wandb"}, "log_with: wandb needs a package that is not here .*`pip install wandb`"),
        ({"logging_dir": "LOGS"}, "log_with: tensorboard needs a package .*`pip install tensorboard`"),
        ({"logging_dir": "FILE/logs", "log_with": "wandb"}, "log_with: wandb needs|logging_dir: .*choose another"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_loaded(config_of, tmp_path, monkeypatch, options, message) -> None:
    (tmp_path / "file").write_text("")
    places = {"LOGS": str(tmp_path / "logs"), "FILE/logs": str(tmp_path / "file" / "logs")}
    options = {name: places.get(value, value) for name, value in options.items()}
    monkeypatch.setattr("backend.train.setup.load_model", None)
    for name in ("wandb", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=message):
        prepare(config_of(**options))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "log_tracker_config: there is no file"),
        ("[wandb]\n", r"log_tracker_config: has wandb, but takes the table \[tensorboard\] alone"),
        ("[tensorboard]\nno_such = 1\n", r"log_tracker_config: \[tensorboard\] cannot be begun: .*no_such"),
    ],
)
def test_a_faulty_tracker_toml_is_named(run_of, tmp_path, text, message) -> None:
    path = tmp_path / "trackers.toml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        run_of(logging_dir=str(tmp_path / "logs"), log_tracker_config=str(path))


def test_losses_that_are_not_finite_still_end_the_run() -> None:
    progress = Progress(5, 1)
    with pytest.raises(UserError, match="loss became nan at step 1"):
        progress.step(Done(1, 1, torch.tensor(math.nan)))
        progress.settle()
    progress.close()


def test_options_have_no_say_in_the_config_while_they_are_off() -> None:
    needed = {"pretrained_model_name_or_path": "a", "dataset_config": "b", "output_dir": "c"}
    config = resolve(TrainNetwork, needed)
    assert (config.validation.validation_split, config.logs.log_with, config.logs.logging_dir) == (0.0, None, None)
