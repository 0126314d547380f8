"""However the tests are started, what they start has the signals that a program of a terminal has."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
CHILD = "import signal; print([signal.getsignal(n) is signal.SIG_DFL for n in (1, 15)], signal.getsignal(2).__name__)"


def test_a_child_has_default_signals() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[True, True] default_int_handler"
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGINT, signal.SIGHUP, signal.SIGTERM}


@pytest.mark.parametrize("processes", ["0", "2"])
def test_tests_that_were_started_to_ignore_signals_pass(processes: str) -> None:
    """As `nohup ./test.sh &` from a script starts them, and with the signals blocked on top."""
    code = f"""
import os, signal, sys
for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.execv(sys.executable, [sys.executable, "-m", "pytest", "-q", "-n", "{processes}", "-p", "no:cacheprovider",
                          "tests/test_started.py::test_a_child_has_default_signals",
                          "tests/train/test_launch.py::test_a_request_that_comes_twice_at_once_is_one_request"])
"""
    environment = {name: value for name, value in os.environ.items() if name != "LORALOOM_TESTS_IGNORE"}
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "[100%]" in done.stdout, done.stdout + done.stderr
