"""What is said reaches every terminal: names and prompts of any script, in any encoding, one line each."""

import io
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend import terminal
from backend.errors import ConfigError, UserError, one_line
from backend.workspace import PROJECT

ENCODINGS = ("ascii", "cp1252", "utf-8", "utf-16", "shift_jis", "latin-1")


@settings(deadline=None)
@given(st.text(), st.sampled_from(ENCODINGS))
def test_any_text_is_said_in_any_encoding(text, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        terminal.say(text)
        terminal.warn(text)
    stream.seek(0)
    said = stream.read()
    assert "Warning: " in said and said.count("Warning: ") >= 1
    # A warning is one line, whatever it names.
    assert said.rstrip("\n").rpartition("Warning: ")[2].count("\n") == 0


@settings(deadline=None)
@given(st.text())
def test_one_line_is_one_line_and_stays_so(text):
    line = one_line(text)
    assert one_line(line) == line and len(line.splitlines()) <= 1
    line.encode("utf-8")


def test_errors_are_one_line_whatever_they_name():
    assert str(UserError("a\nb\0", "x\r\udce9")) == "x\\r\\udce9: a\\nb\\x00"
    error = ConfigError([("a\nb", "c\td"), ("e", "f")])
    assert error.problems == [("a\\nb", "c\\td"), ("e", "f")] and str(error).count("\n") == 1


@pytest.mark.parametrize("name", ["\u753b\u50cf.safetensors", "caf\udce9.safetensors", "two\nlines.safetensors"])
@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "cp1252"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C.UTF-8"},
    ],
    ids=["ascii", "cp1252", "C", "utf-8"],
)
def test_no_command_fails_at_a_name(name, environment, tmp_path):
    words = [sys.executable, "-m", "backend", "inspect_lora", f"{tmp_path}/{name}"]
    raw = [os.fsencode(word) for word in words]
    given_environment = {"PATH": os.environ["PATH"], **environment}
    done = subprocess.run(raw, cwd=PROJECT, env=given_environment, capture_output=True)
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1 and b".safetensors" in done.stderr


def test_the_overview_is_shown_on_an_ascii_terminal():
    environment = {"PATH": os.environ["PATH"], "PYTHONIOENCODING": "ascii"}
    for words in (["--help"], ["train_network", "--help"], ["nothing"]):
        done = subprocess.run(
            [sys.executable, "-m", "backend", *words], cwd=PROJECT, env=environment, capture_output=True
        )
        assert b"Traceback" not in done.stderr and done.returncode in (0, 2)
