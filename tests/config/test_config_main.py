"""`python -m backend`: choosing the command, and what is said and returned when something goes wrong."""

import errno
import json
import subprocess
import sys

import pytest

from backend import __main__ as program
from backend import commands
from backend.errors import ConfigError, UserError
from backend.workspace import PROJECT

CONVERT = ["convert_diffusers20_original_sd", "a", "b"]


def run(monkeypatch, function, argv=CONVERT):
    monkeypatch.setattr(commands.Entry, "function", lambda *_: function)
    return program.main(argv)


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


def test_the_config_reaches_the_command(monkeypatch):
    seen = []
    assert run(monkeypatch, seen.append, [*CONVERT, "--overwrite"]) == 0
    (config,) = seen
    assert (str(config.convert.src), str(config.convert.dst), config.convert.overwrite) == ("a", "b", True)


@pytest.mark.parametrize("name", ["gen_img_diffusers", "gen-img", "gen_img.py"])
def test_aliases_name_the_same_command(name):
    assert commands.find(name) is commands.COMMANDS["gen_img"]


def test_an_unknown_command_is_named_with_the_nearest(capsys):
    assert program.main(["train_netwrok"]) == 2
    assert capsys.readouterr().err == "there is no command train_netwrok; did you mean train_network?\n"


def test_without_a_command_the_commands_are_listed(capsys):
    assert program.main([]) == 2
    listed = capsys.readouterr().out
    assert program.main(["--help"]) == 0
    assert capsys.readouterr().out == listed
    for name in commands.COMMANDS:
        assert name in listed


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("there is no model x; name one that exists", "ckpt"), 2, "ckpt: there is no model x"),
        (ConfigError([("a", "is wrong"), ("b", "is wrong too")]), 2, "a: is wrong\nb: is wrong too\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/out/x"), 2, "/out/x: the disk is full; free some space"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "the disk is full; free some space"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.txt"), 2, "x.txt: no such file or directory"),
        (OutOfMemoryError("CUDA out of memory. Tried to ..."), 2, "the GPU's memory is full; try a smaller batch"),
        (MemoryError(), 2, "the machine's memory is full"),
        (KeyboardInterrupt(), 130, "stopped by an interrupt\n"),
    ],
)
def test_what_a_user_can_mend_is_told_without_a_traceback(monkeypatch, capsys, error, status, said):
    def fail(config):
        raise error

    assert run(monkeypatch, fail) == status
    shown = capsys.readouterr().err
    assert shown.startswith(said)
    assert "Traceback" not in shown
    assert len(shown.splitlines()) == len(said.rstrip("\n").splitlines())


def test_a_fault_of_ours_shows_its_line_and_then_where_it_was(monkeypatch, capsys):
    def fail(config):
        raise KeyError("lost")

    assert run(monkeypatch, fail) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("unexpected KeyError: 'lost'\nTraceback")
    assert 'raise KeyError("lost")' in shown


def test_errors_reach_the_web_side_as_events(monkeypatch, tmp_path):
    monkeypatch.setenv("LORALOOM_EVENTS", str(tmp_path / "events.jsonl"))
    assert program.main(["train_network", "--lerning_rate", "3", "--pretrained_model_name_or_path=m"]) == 2
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(event["event"], event["field"]) for event in events] == [
        ("error", "--lerning_rate"),
        ("error", "dataset_config"),
        ("error", "output_dir"),
    ]


def test_a_wrong_config_from_the_shell_is_exit_status_2_and_one_line():
    argv = ["gen_img", "--ckpt", "m", "--outdir", "o", "--prompt", "p", "--step", "3"]
    done = subprocess.run([sys.executable, "-m", "backend", *argv], cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "--step: is not an option; did you mean --steps?\n")
