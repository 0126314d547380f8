"""Runs webui.py with its real tabs over jobs and a worker that stand in: `python -m tests.ui.fake_server [flags]`."""

import functools
import sys

import webui
from backend.job import Job


def job_argv(job: Job) -> list[str]:
    """The command line of a job that only pretends."""
    return [sys.executable, "-m", "tests.ui.fake_job", str(job.folder)]


def worker_argv() -> list[str]:
    """The command line of a worker that only pretends."""
    return [sys.executable, "-m", "tests.ui.fake_worker"]


def main(argv: list[str]) -> int:
    webui.Jobs = functools.partial(webui.Jobs, argv=job_argv)  # type: ignore[misc]
    webui.GenerateWorker = functools.partial(webui.GenerateWorker, argv=worker_argv)  # type: ignore[misc]
    return webui.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
