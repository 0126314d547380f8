"""A run that ended early and goes on ends bit for bit as one that never did."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from backend import events
from backend.__main__ import main
from backend.errors import UserError
from backend.states import POSITION, read_position
from backend.train import loop
from backend.train.loop import train
from backend.train.setup import Run

STEPS = 5
LORA = {"network_dim": 8, "network_alpha": 8, "learning_rate": 1e-2}
KINDS = {
    "plain": {},
    "text encoder at rest": {"network_train_unet_only": True},
    "accumulation": {"gradient_accumulation_steps": 2},
    "workers": {"cache_latents": False, "max_data_loader_n_workers": 1, "persistent_data_loader_workers": True},
    "DyLoRA": {"network_module": "networks.dylora", "network_args": ["unit=2"]},
    "dropouts": {"network_dropout": 0.3, "network_args": ["rank_dropout=0.2", "module_dropout=0.2"]},
    "schedule": {"lr_scheduler": "cosine", "scale_weight_norms": 0.05, "min_snr_gamma": 5.0, "noise_offset": 0.1},
    "8 bits": {"optimizer_type": "AdamW8bit", "network_dim": 64},
    "schedule-free": {"optimizer_type": "AdamWScheduleFree"},
    "Prodigy": {"optimizer_type": "Prodigy", "learning_rate": 1.0},
    "AdaFactor": {"optimizer_type": "AdaFactor"},
    "bf16 throughout": {"mixed_precision": "bf16", "full_bf16": True},
}
# Those that run without --long.
SHORT = ("plain", "accumulation", "DyLoRA", "dropouts", "schedule-free", "8 bits")
DATA = 'caption_dropout_rate = 0.3\nshuffle_caption = true\ncaption_separator = " "\nflip_aug = true'


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.network.state_dict().items()}


def stopped_after(step: int, run: Run, monkeypatch) -> Path:
    """Train until a stop is asked for in step `step`; gives the folder of the state."""
    original = loop.training_step

    def watched(run: Run, done: int, micro_batches: list) -> torch.Tensor:
        if done + 1 == step:
            stop.asked = True
        return original(run, done, micro_batches)

    class Stop(loop.StopRequest):
        def __enter__(self) -> "Stop":
            nonlocal stop
            stop = self
            return self

    stop = None
    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", watched)
        patch.setattr(loop, "StopRequest", Stop)
        with pytest.raises(KeyboardInterrupt):
            train(run)
    return run.outputs.step_state(step)


# Of three steps to an epoch, or two with accumulation: some stop within one, some at its end.
@pytest.mark.parametrize(
    ("name", "step"),
    [
        pytest.param(name, 2 + number % 2, marks=[] if name in SHORT else pytest.mark.long)
        for number, name in enumerate(KINDS)
    ],
)
def test_a_resumed_run_ends_bit_for_bit_as_one_that_went_through(
    run_of, dataset, tmp_path, monkeypatch, name, step
) -> None:
    options = {**LORA, **KINDS[name], "max_train_steps": STEPS, "dataset_config": str(dataset(3, 1, 2, DATA))}
    whole = run_of(**options, output_dir=str(tmp_path / "whole"))
    expected = train(whole).losses
    folder = stopped_after(step, run_of(**options, output_dir=str(tmp_path / "cut")), monkeypatch)
    rest = run_of(**options, output_dir=str(tmp_path / "cut"), overwrite=False, resume=str(folder))
    assert train(rest).losses == expected[step:]
    own, others = weights(whole), weights(rest)
    assert own.keys() == others.keys() and all(torch.equal(own[key], others[key]) for key in own)


def test_states_go_with_the_files_and_old_ones_are_removed(run_of, dataset, tmp_path) -> None:
    data = str(dataset(count=2, batch_size=1))
    options = {"save_every_n_epochs": 1, "save_every_n_steps": 1, "save_state": True, "save_last_n_epochs_state": 1}
    run = run_of(dataset_config=data, max_train_epochs=3, save_last_n_steps_state=2, **options)
    train(run)
    found = sorted(path.name for path in run.outputs.folder.iterdir() if path.is_dir())
    steps = [f"test-step0000000{step}-state" for step in (4, 5, 6)]
    assert found == ["test-000002-state", "test-state", *steps]
    assert [path for path in run.outputs.folder.iterdir() if path.name.startswith(".")] == []


def test_every_state_of_a_run_leads_to_the_same_end(run_of, dataset, tmp_path) -> None:
    data = str(dataset(count=3, batch_size=1))
    options = {**LORA, "dataset_config": data, "max_train_steps": 5, "save_every_n_steps": 1, "save_every_n_epochs": 1}
    whole = run_of(**options, save_state=True)
    train(whole)
    own = weights(whole)
    files = {path.name for path in whole.outputs.folder.glob("*.safetensors")}
    for state in sorted(whole.outputs.folder.glob("*-state")):
        target = tmp_path / f"from {state.name}"
        shutil.copytree(state, target / state.name)
        rest = run_of(**options, output_dir=str(target), resume=str(target / state.name))
        train(rest)
        assert all(torch.equal(value, own[key]) for key, value in weights(rest).items()), state.name
        step = read_position(state).step
        later = {name for name in files if (found := re.search(r"step(\d+)", name)) is None or int(found[1]) > step}
        later -= {"test-000001.safetensors"} if step > 3 or "-000001" in state.name else set()
        assert {path.name for path in target.glob("*.safetensors")} == later, state.name


def test_a_finished_run_can_be_made_longer(run_of) -> None:
    whole = run_of(**LORA, max_train_steps=4)
    train(whole)
    short = run_of(**LORA, max_train_steps=2, save_state_on_train_end=True)
    train(short)
    longer = run_of(**LORA, max_train_steps=4, resume=str(short.outputs.final_state))
    train(longer)
    own = weights(whole)
    assert all(torch.equal(value, own[key]) for key, value in weights(longer).items())


def test_the_seed_is_that_of_the_state(run_of, monkeypatch) -> None:
    folder = stopped_after(1, run_of(seed=None, max_train_steps=2), monkeypatch)
    seed = read_position(folder).seed
    assert run_of(seed=None, max_train_steps=2, resume=str(folder)).seed == seed
    with pytest.raises(UserError, match=f"the state was made with {seed}; leave seed out") as caught:
        run_of(seed=(seed + 1) % 2**32, max_train_steps=2, resume=str(folder))
    assert caught.value.field == "seed"


def test_the_true_step_is_told(run_of, tmp_path, monkeypatch) -> None:
    folder = stopped_after(2, run_of(max_train_steps=4), monkeypatch)
    monkeypatch.setenv(events.VARIABLE, str(tmp_path / "events.jsonl"))
    train(run_of(max_train_steps=4, resume=str(folder)))
    told, _ = events.read(tmp_path / "events.jsonl")
    steps = [event["step"] for event in told if event["event"] == "progress" and event["phase"] == "training"]
    assert steps[0] == 3 and steps[-1] == 4
    assert [event["step"] for event in told if event.get("name") == "training"][0] == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / POSITION).unlink(), "there is no state in"),
        (lambda folder: (folder / POSITION).write_text("{"), "cannot be read"),
        (lambda folder: (folder / POSITION).write_text(json.dumps({"step": 1})), "cannot be read"),
        (lambda folder: (folder / "network.safetensors").write_bytes(b"x" * 20), "cannot be read"),
        (lambda folder: (folder / "optimizer.pt").write_bytes(b"x" * 20), "cannot be read"),
        (lambda folder: (folder / "optimizer.pt").unlink(), "cannot be read"),
    ],
)
def test_a_damaged_state_is_one_line(run_of, monkeypatch, damage, message) -> None:
    folder = stopped_after(1, run_of(max_train_steps=2), monkeypatch)
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        run_of(max_train_steps=2, resume=str(folder))
    assert caught.value.field == "resume"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network_dim": 8}, "another network"),
        ({"optimizer_type": "SGDNesterov"}, "was written by AdamW, not by SGD"),
        ({"max_train_steps": 1}, "the state is at step 2, and this run ends at 1; make it longer"),
    ],
)
def test_a_state_of_another_run_is_told(run_of, monkeypatch, options, message) -> None:
    folder = stopped_after(2, run_of(max_train_steps=4), monkeypatch)
    with pytest.raises(UserError, match=message):
        train(run_of(**{"max_train_steps": 4, "resume": str(folder), **options}))


def test_other_pictures_are_told(run_of, dataset, monkeypatch, capsys) -> None:
    folder = stopped_after(1, run_of(max_train_steps=4), monkeypatch)
    run_of(max_train_steps=4, resume=str(folder), dataset_config=str(dataset(count=5)))
    assert "the state was made with other pictures" in capsys.readouterr().out


def test_options_of_states_that_would_do_nothing_are_refused(capsys) -> None:
    required = ["--pretrained_model_name_or_path=m", "--dataset_config=d", "--output_dir=o"]
    assert main(["train_network", *required, "--save_last_n_steps_state=2"]) == 2
    assert "save_last_n_steps_state: has no effect without save_state" in capsys.readouterr().err
