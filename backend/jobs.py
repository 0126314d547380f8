"""Jobs: folders in the workspace, run one after the other by detached processes.

Nothing about a job is kept in memory (see `backend.job`), so it survives the browser, the web process and a reboot, and
several web processes see the same.
"""

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from backend import events
from backend.bounded import open_regular, split_lines
from backend.errors import ConfigError, UserError, workspace_errors
from backend.job import JOB_ID, Job, read_job, read_pid
from backend.job_runner import NO_COMMAND, reserve, write_exit
from backend.workspace import PROJECT, Workspace

TAIL_BYTES = 64 * 1024

_CLAIM_SECONDS = 60.0
# As toml writes it, or as it is.
_NO_TEXT = re.compile("\0|[\ud800-\udfff]|(?<!\\\\)(?:\\\\\\\\)*\\\\(?:u0000|U00000000|x00)")


def backend_argv(job: Job) -> list[str]:
    """The command line of a job: what a shell would run."""
    return [sys.executable, "-m", "backend", job.command, "--config_file", str(job.config)]


def check_config(command: str, path: Path) -> None:
    """Validate a job's config as the command itself will.

    Raises:
        UserError: for an unknown command.
        ConfigError: naming the wrong fields, and those that name files which are not there.
    """
    # Imported when a job is made: this module itself needs the standard library only.
    from backend import commands, preflight
    from backend.config import base

    config_class = commands.find(command).config_class()
    config = base.resolve(config_class, base.read_toml(config_class, path))
    wrong = preflight.problems(config_class, base.values(config))
    if wrong:
        raise ConfigError(list(wrong.items()))


class Jobs:
    """The jobs of a workspace.

    Args:
        workspace: where they live.
        argv: gives a job's command line.
        check: raises when a config is wrong; called with the command's name and the file.
        release: gives what is entered while a job is started, to have the device given back.
    """

    def __init__(
        self,
        workspace: Workspace,
        argv: Callable[[Job], list[str]] = backend_argv,
        check: Callable[[str, Path], None] = check_config,
        release: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        self.workspace = workspace
        self._argv = argv
        self._check = check
        self._release = release
        self._runners: list[subprocess.Popen[bytes]] = []
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._dispatching = threading.Lock()

    # Asking

    def start(
        self,
        command: str,
        config_toml: str | Callable[[Path], str],
        title: str = "",
        fill: Callable[[Path, Path], dict[str, object]] | None = None,
    ) -> Job:
        """Put a job into the queue; the dispatcher starts it when it is its turn.

        Args:
            command: a name of `backend.commands.COMMANDS`.
            config_toml: the config's text, or a function that makes it from the job's output folder.
            title: shown to the user.
            fill: puts into the job's folder what it begins with, given that and the name which it will have; returns
                what more there is to be known of the job.

        Raises:
            ConfigError: naming the wrong fields; no job is made.
            UserError: for an unknown command or a full disk.
        """
        job_id = time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(4)
        folder = self.workspace.jobs / job_id
        # Made beside its place and moved there whole: no list ever shows half a job.
        making = self.workspace.jobs / f".new-{job_id}"
        try:
            with workspace_errors("workspace"):
                (making / "output").mkdir(parents=True)
                text = config_toml if isinstance(config_toml, str) else config_toml(folder / "output")
                _check_characters(text)
                (making / "config.toml").write_text(text, encoding="utf-8")
                self._check(command, making / "config.toml")
                named = (title or command).encode("utf-8", "replace").decode("utf-8")
                request = {"command": command, "title": named, "created": time.time()}
                request |= fill(making, folder) if fill is not None else {}
                (making / "job.json").write_text(json.dumps(request), encoding="utf-8")
                reserve(making)
                os.rename(making, folder)
        finally:
            shutil.rmtree(making, ignore_errors=True)
        self._wake.set()
        return self.get(job_id)

    def get(self, job_id: str) -> Job:
        """The job with this id.

        Raises:
            UserError: when there is none.
        """
        job = read_job(self.workspace.jobs / job_id) if JOB_ID.fullmatch(job_id) else None
        if job is None:
            raise UserError(f"there is no job {job_id[:40]!r}", "job")
        return job

    def stop(self, job_id: str) -> Job:
        """Ask a job to end: a queued one is taken out, a running one gets SIGTERM; asked again, its group is killed."""
        with self._lock():
            job = self.get(job_id)
            if not job.active:
                return job
            mark = job.folder / "stop"
            again = mark.exists()
            with contextlib.suppress(OSError):
                # A full disk must not keep a job from being stopped.
                mark.touch()
            if job.state == "running":
                self._signal(job, again)
        return self.get(job_id)

    def delete(self, job_id: str) -> None:
        """Remove a job and everything it has written.

        Raises:
            UserError: while it runs or waits.
        """
        with workspace_errors("job"), self._lock():
            job = self.get(job_id)
            if job.active:
                raise UserError("it has not ended; stop it first", "job")
            grave = self.workspace.jobs / f".deleted-{job_id}"
            os.rename(job.folder, grave)
        shutil.rmtree(grave, ignore_errors=True)

    def tail(self, job_id: str, offset: int = 0, limit: int = TAIL_BYTES) -> tuple[str, int]:
        """Read on in a job's log.

        Args:
            job_id: the job.
            offset: where the last call ended, in bytes.
            limit: the most bytes to give; older ones are passed over.

        Returns:
            New text (whole UTF-8 characters) and the offset to go on from.
        """
        try:
            with open_regular(self.get(job_id).log) as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(offset, end - limit, 0) if offset <= end else max(end - limit, 0))
                start = file.tell()
                data = file.read(limit)
        except OSError:
            return "", 0
        keep = len(data) - _unfinished(data)
        return data[:keep].decode("utf-8", "replace"), start + keep

    def events(self, job_id: str, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Read on in a job's events, as `backend.events.read` does."""
        return events.read(self.get(job_id).events, offset)

    def reason(self, job_id: str) -> str:
        """Why a job failed, in one line: its last error event, else the last line of its log; empty when it did not."""
        job = self.get(job_id)
        if job.state != "failed":
            return "the machine or the process ended before the job did" if job.state == "interrupted" else ""
        errors = events.read_errors(job.events)
        if errors:
            field, message = errors[-1].get("field"), str(errors[-1].get("message", ""))
            return f"{field}: {message}" if field and not message.startswith(f"{field}:") else message
        lines = [line for line in split_lines(self.tail(job_id)[0]) if line.strip()]
        if lines:
            return lines[-1].strip()
        return "ended" if job.exit_code is None else f"ended with exit code {job.exit_code}"

    # Running

    def reconcile(self) -> None:
        """Clear up what a killed web process left half made; call once at start-up, before `run`."""
        with self._lock():
            for path in self.workspace.jobs.glob(".deleted-*"):
                shutil.rmtree(path, ignore_errors=True)
            for path in self.workspace.jobs.glob(".new-*"):
                # Another web process may be at work in a fresh one.
                if time.time() - path.stat().st_mtime > _CLAIM_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)

    def busy(self) -> bool:
        """Whether a job runs."""
        return any(job.state == "running" for job in self.list())

    def dispatch(self) -> Job | None:
        """Start the oldest queued job if none runs.

        Returns:
            The job that was started.
        """
        with self._dispatching:
            self._runners = [runner for runner in self._runners if runner.poll() is None]
            if self._next() is None:
                return None
            # Kept until the job is known to run, so that the device is nobody else's in between.
            with self._release(), self._lock():
                # Looked up again: another process may have been quicker.
                job = self._next()
                if job is None:
                    return None
                self._launch(job)
                return self.get(job.id)

    def run(self, interval: float = 1.0) -> None:
        """Dispatch from a thread of this process until `close`, whether or not a browser is open."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(interval,), name="dispatcher", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the dispatcher's thread. Jobs run on."""
        self._closed.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, interval: float) -> None:
        while not self._closed.is_set():
            try:
                self.dispatch()
            except (OSError, UserError, ValueError) as error:
                # A full disk or a vanished volume may come back; the queue must not die of it.
                print(f"cannot start the next job: {error}", file=sys.stderr)
            self._wake.wait(interval)
            self._wake.clear()

    def _next(self) -> Job | None:
        jobs = self.list()
        if any(job.state == "running" for job in jobs):
            return None
        return next((job for job in reversed(jobs) if job.state == "queued"), None)

    def _launch(self, job: Job) -> None:
        try:
            runner = self._run_job(job)
        except (OSError, ValueError) as error:
            # Otherwise it would be the next one for ever, and keep all others waiting.
            write_exit(job.folder, NO_COMMAND)
            raise UserError(f"the run in {job.folder} cannot be started: {error}", "job") from error
        self._runners.append(runner)
        deadline = time.monotonic() + _CLAIM_SECONDS
        while not (job.folder / "pid").exists() and runner.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if not (job.folder / "pid").exists():
            runner.kill()
            code = runner.wait()
            if not (job.folder / "exit").exists():
                write_exit(job.folder, code)

    def _run_job(self, job: Job) -> subprocess.Popen[bytes]:
        # A FIFO in its place would wait for somebody who reads it.
        descriptor = os.open(job.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
        with open(descriptor, "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "backend.job_runner", str(job.folder), *self._argv(job)],
                cwd=PROJECT,
                env={**self.workspace.environment(), events.VARIABLE: str(job.events)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _signal(self, job: Job, kill: bool) -> None:
        pid, _ = read_pid(job.folder)
        with contextlib.suppress(ProcessLookupError):
            if kill:
                os.killpg(pid, signal.SIGKILL)
            else:
                # The runner hands it on to the command.
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 2.0
        while kill and self.get(job.id).state == "running" and time.monotonic() < deadline:
            time.sleep(0.02)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Keeps other threads and other web processes on this workspace from starting or stopping at the same time."""
        with (self.workspace.jobs / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def list(self) -> Sequence[Job]:
        """All jobs, newest first."""
        folders = [path for path in self.workspace.jobs.iterdir() if JOB_ID.fullmatch(path.name)]
        jobs = [job for job in map(read_job, folders) if job is not None]
        return sorted(jobs, key=lambda job: (job.created, job.id), reverse=True)


def _check_characters(text: str) -> None:
    """See that a config can be written, and that no command line or path is cut short by a NUL.

    Raises:
        UserError: naming the field.
    """
    found = next((line for line in split_lines(text) if _NO_TEXT.search(line)), None)
    if found is not None:
        name = found.partition("=")[0].strip() or None
        raise UserError("has a NUL character or half of a surrogate pair; type it anew", name)


def _unfinished(data: bytes) -> int:
    """How many bytes at the end belong to a UTF-8 character that is not complete yet."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            return back if back < (2 + (byte >= 0xE0) + (byte >= 0xF0)) else 0
        if byte < 0x80:
            return 0
    return 0
