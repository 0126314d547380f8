"""A full disk: one clear line, exit status 2, and nothing left behind, wherever it strikes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backend import __main__ as program
from backend import events
from backend.errors import UserError
from backend.families.storage import write_tensors
from backend.job_runner import claim
from backend.jobs import Jobs
from backend.lora.file import write_lora
from backend.terminal import say
from backend.workspace import PROJECT, Workspace
from tests.disks import fill, small_disk
from tests.jobs.conftest import script_argv, wait_for


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_log_does_not_change_the_exit_status(tmp_path: Path, unbuffered: str) -> None:
    environment = {"PYTHONUNBUFFERED": unbuffered, events.VARIABLE: str(tmp_path / "events.jsonl")}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "backend", "nonsense"], cwd=PROJECT, env=environment, stdout=full, stderr=full
        )
    assert done.returncode == 2
    (error,) = events.read_errors(tmp_path / "events.jsonl")
    assert error["message"].startswith("there is no command nonsense")


def test_a_run_goes_on_when_its_log_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        say("step 1")
        monkeypatch.undo()
        with pytest.raises(OSError):
            full.flush()
        # Closing tries once more.
        with pytest.raises(OSError):
            full.close()


def test_an_error_is_told_in_its_reserve_where_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "events.jsonl"
    target.symlink_to("/dev/full")
    monkeypatch.setenv(events.VARIABLE, str(target))
    events.emit("error", message="lost, as there is no reserve")
    events.reserve(target)
    size = events.reserve_of(target).stat().st_size
    events.emit(step=1)
    for message in ("one", "two", "x" * 9000):
        events.emit("error", message=message)
    assert [record["message"] for record in events.read(events.reserve_of(target))[0]] == ["one", "two"]
    assert events.reserve_of(target).stat().st_size == size == events.RESERVE_BYTES


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".safetensors"])
@pytest.mark.parametrize("write", [write_lora, lambda path, tensors: write_tensors(path, tensors, None, {})])
def test_weights_that_do_not_fit_are_one_line(tmp_path: Path, suffix: str, write, monkeypatch, capsys) -> None:
    from backend import commands

    names = [f"lora_unet_x.lora_{part}.weight" for part in ("down", "up")]
    with small_disk(tmp_path / "disk") as disk:
        target = disk / f"model{suffix}"
        job = lambda _config: write(target, {name: torch.ones(300, 300) for name in names})  # noqa: E731
        monkeypatch.setattr(commands.Entry, "function", lambda *_: job)
        assert program.main(["convert_diffusers20_original_sd", "a", "b"]) == 2
        line = f"{target}: the disk is full; free some space or choose another output folder\n"
        assert capsys.readouterr().err == line
        assert list(disk.iterdir()) == []


def test_a_job_that_fills_the_disk_still_tells_why_it_failed(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 512) as disk:
        jobs = Jobs(Workspace(disk / "w"), argv=script_argv, check=lambda *_: None)
        script = f"""
from pathlib import Path
from tests.disks import fill
from backend import __main__ as program, commands
from backend.errors import UserError
fill(Path({str(disk)!r}))
def fail(_config):
    raise UserError("became nan", "loss")
commands.Entry.function = lambda *_: fail
raise SystemExit(program.main(["convert_diffusers20_original_sd", "a", "b"]))
"""
        job = jobs.start("c", script)
        jobs.dispatch()
        wait_for(lambda: not jobs.get(job.id).active)
        assert (jobs.get(job.id).state, jobs.get(job.id).exit_code) == ("failed", 2)
        assert jobs.reason(job.id) == "loss: became nan"
        jobs.close()


def test_a_job_is_refused_while_the_disk_is_full_and_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 512) as disk:
        jobs = Jobs(Workspace(disk / "w"), argv=script_argv, check=lambda *_: None)
        fill(disk)
        with pytest.raises(UserError, match="workspace: the workspace's disk is full; delete old jobs or files"):
            jobs.start("c", "")
        assert list((disk / "w" / "jobs").iterdir()) == []


def test_a_job_that_finds_no_room_to_start_says_so(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 512) as disk:
        jobs = Jobs(Workspace(disk / "w"), argv=script_argv, check=lambda *_: None)
        job = jobs.start("c", "print(1)")
        fill(disk)
        jobs.dispatch()
        assert jobs.get(job.id).state == "failed"
        assert jobs.reason(job.id).startswith("the run cannot be started: No space left on device; free some space")
        assert list(job.folder.glob("pid*")) == []
        with pytest.raises(OSError):
            claim(job.folder)
        assert list(job.folder.glob("pid*")) == []
