"""Jobs whose command is a few lines of Python instead of a training."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from backend.errors import ConfigError
from backend.job import Job
from backend.jobs import Jobs
from backend.workspace import Workspace


def script_argv(job: Job) -> list[str]:
    """The config's text is the script."""
    return [sys.executable, "-c", job.config.read_text()]


def accept_all_but_misspelt(_command, path) -> None:
    if "lerning_rate" in path.read_text():
        raise ConfigError([("lerning_rate", "is not an option; did you mean learning_rate?")])


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def jobs(workspace) -> Iterator[Jobs]:
    jobs = Jobs(workspace, argv=script_argv, check=accept_all_but_misspelt)
    yield jobs
    jobs.close()
    for job in jobs.list():
        if job.state == "running":
            os.killpg(int((job.folder / "pid").read_text().split()[0]), signal.SIGKILL)


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Until it holds; fails when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def until() -> Callable[..., None]:
    return wait_for
