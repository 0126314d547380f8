"""Resuming as people really do it: in odd folders, with other lengths and pictures, on full disks."""

import errno
import os
import shlex
from pathlib import Path

import pytest
import torch

from backend.config.base import from_argv
from backend.config.train import TrainNetwork
from backend.errors import UserError
from backend.replacing import hidden_name
from backend.states import POSITION, read_position
from backend.train import saving
from backend.train.loop import train
from tests.train.test_resume import LORA, stopped_after, weights

EVERY = {"save_every_n_steps": 2, "save_state": True}


def names(folder: Path) -> list[str]:
    """What lies in a folder, hidden things too, without what all names begin with."""
    return sorted(path.name.removeprefix("test-") for path in folder.iterdir() if "config" not in path.name)


def test_limits_go_on_after_a_stop_at_an_odd_step(run_of, tmp_path, monkeypatch) -> None:
    limited = {**EVERY, "max_train_steps": 6, "save_last_n_steps": 2, "output_dir": str(tmp_path / "größe 1")}
    folder = stopped_after(3, run_of(**limited), monkeypatch)
    assert names(folder.parent) == [f"step0000000{step}{end}" for step in (2, 3) for end in ("-state", ".safetensors")]
    run = run_of(**limited, overwrite=False, resume=str(folder))
    train(run)
    kept = [f"step0000000{step}{end}" for step in (4, 6) for end in ("-state", ".safetensors")]
    assert names(folder.parent) == ["state", *kept, "test.safetensors"]


def test_a_run_that_goes_on_elsewhere_leaves_what_was_before(run_of, tmp_path, monkeypatch, capsys) -> None:
    limited = {**EVERY, "max_train_steps": 4, "save_last_n_steps": 1}
    folder = stopped_after(2, run_of(**limited, output_dir=str(tmp_path / "before")), monkeypatch)
    before = names(folder.parent)
    capsys.readouterr()
    train(run_of(**limited, output_dir=str(tmp_path / "after"), resume=str(folder)))
    assert names(folder.parent) == before
    assert "Removed" not in capsys.readouterr().out


def test_the_end_of_a_run_is_done_again_where_its_state_is_all_there_is(run_of) -> None:
    whole = run_of(max_train_epochs=2, save_state_on_train_end=True)
    train(whole)
    whole.outputs.final.unlink()
    train(run_of(max_train_epochs=2, resume=str(whole.outputs.final_state)))
    assert whole.outputs.final.is_file()


def test_epochs_of_another_length_are_counted_anew(run_of, dataset, tmp_path, monkeypatch) -> None:
    options = {"save_every_n_epochs": 1, "max_train_steps": 6}
    data = str(dataset(4, batch_size=1))
    folder = stopped_after(4, run_of(**options, dataset_config=data), monkeypatch)
    assert read_position(folder).epochs_done == 0
    # Of two steps to an epoch: four steps are two of them, and the third has the two that are left.
    for index in (2, 3):
        (tmp_path / "pictures" / f"{index:02d}.png").unlink()
    run = run_of(**options, dataset_config=data, output_dir=str(tmp_path / "other"), resume=str(folder))
    assert len(train(run).losses) == 2
    assert names(run.outputs.folder) == ["test.safetensors"]


def test_what_a_killed_run_left_behind_goes_with_the_next_of_its_name(run_of, tmp_path) -> None:
    folder = tmp_path / "output"
    folder.mkdir()
    for name in ("test-step00000002-state", "test-000001-state", "other-state"):
        hidden_name(folder / name).mkdir()
    for name in ("test.safetensors", "test-step00000002.safetensors", "test.config.toml", "test2.safetensors"):
        hidden_name(folder / name).write_text("half")
    run_of()
    left = sorted(path.name.split(".")[1] for path in folder.iterdir() if path.name.startswith("."))
    assert left == ["other-state", "test2"]


def test_of_several_processes_the_first_alone_clears_up(run_of, tmp_path, monkeypatch) -> None:
    (tmp_path / "output").mkdir()
    path = hidden_name(tmp_path / "output" / "test.safetensors")
    path.write_text("being written by the first")
    monkeypatch.setenv("RANK", "1")
    run_of().outputs.prepare(overwrite=True)
    assert path.exists()


def test_the_shell_is_told_how_to_go_on(run_of, tmp_path, monkeypatch, capsys) -> None:
    options = {"max_train_steps": 4, "output_dir": str(tmp_path / "my 'größe' out"), "output_name": "das ist"}
    folder = stopped_after(1, run_of(**options), monkeypatch)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("To go on from here: "))
    words = shlex.split(line.removeprefix("To go on from here: "))
    assert words[:4] == ["python", "-m", "backend", "train_network"]
    config = from_argv(TrainNetwork, words[4:])
    assert config.state.resume == folder and config.optim.max_train_steps == 4
    with pytest.raises(UserError, match="exists already; .* or go on from where it ended with --resume '") as caught:
        run_of(**options, overwrite=False)
    assert shlex.quote(str(folder)) in str(caught.value)
    (folder / POSITION).unlink()
    with pytest.raises(UserError, match="choose another name$"):
        run_of(**options, overwrite=False)


def test_a_stop_keeps_the_network_where_the_state_finds_no_room(run_of, monkeypatch) -> None:
    run = run_of(max_train_steps=4)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run.outputs.folder))

    monkeypatch.setattr(saving, "write_state", full)
    with pytest.raises(OSError):
        saving.save_stopped(run, 1, 1)
    assert run.outputs.step(1).is_file()


def test_a_broken_state_is_told_before_a_model_is_loaded(run_of, monkeypatch) -> None:
    folder = stopped_after(1, run_of(max_train_steps=4), monkeypatch)
    data = (folder / "optimizer.pt").read_bytes()
    (folder / "optimizer.pt").write_bytes(data[: len(data) // 2])
    monkeypatch.setattr("backend.train.setup.load", lambda *_: pytest.fail("was loaded"))
    with pytest.raises(UserError, match="optimizer.pt: File is not a zip file"):
        run_of(max_train_steps=4, resume=str(folder))


def test_a_resumed_run_is_resumed_again(run_of, dataset, tmp_path, monkeypatch) -> None:
    options = {**LORA, "dataset_config": str(dataset(3, 1, 2)), "max_train_steps": 5}
    whole = run_of(**options, output_dir=str(tmp_path / "whole"))
    train(whole)
    folder = stopped_after(1, run_of(**options), monkeypatch)
    folder = stopped_after(3, run_of(**options, resume=str(folder)), monkeypatch)
    rest = run_of(**options, resume=str(folder))
    train(rest)
    own = weights(whole)
    assert all(torch.equal(value, own[name]) for name, value in weights(rest).items())
