"""The web side of the generate worker: a long-lived process that keeps a pipeline hot and answers over a pipe."""

import atexit
import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backend.errors import UserError
from backend.workspace import PROJECT, Workspace

LOG_BYTES = 1024 * 1024
TURN_SECONDS = 0.1
IDLE_SECONDS = 900.0
STOP_SECONDS = 3.0
RELEASE_SECONDS = 60.0


def worker_argv() -> list[str]:
    """The command line of the worker: what a shell would run."""
    return [sys.executable, "-m", "backend.generate"]


def new_number() -> str:
    """A number for a request, by which it can be cancelled."""
    return uuid.uuid4().hex


def has_gpu() -> bool:
    """Whether this machine has a GPU (NVIDIA's, AMD's, or Windows' own under it), as far as its device files tell."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or any(Path("/dev", name).exists() for name in ("kfd", "dxg"))


class Cancelled(UserError):
    """A request that `GenerateWorker.cancel` has ended."""


class GenerateWorker:
    """Starts the worker when it is first asked for something, and again when it has died.

    One request is answered at a time; others wait their turn. A request can be cancelled from another thread:

        number = new_number()
        worker.request(fields, on_progress, number)   # raises Cancelled ...
        worker.cancel(number)                         # ... within a step of this

    Args:
        workspace: its worker.log takes what the worker says on stderr.
        argv: gives the worker's command line.
        idle_seconds: after so long without a request the worker is ended, and its memory is free again.
        busy: whether a job has the device at this moment; requests are refused then.
    """

    def __init__(
        self,
        workspace: Workspace,
        argv: Callable[[], list[str]] = worker_argv,
        idle_seconds: float = IDLE_SECONDS,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self.log = workspace.root / "worker.log"
        self._workspace = workspace
        self._argv = argv
        self._idle_seconds = idle_seconds
        self._busy = busy
        self._turn = threading.Lock()
        self._writing = threading.Lock()  # guards the worker's stdin and the numbers
        self._open: set[str] = set()
        self._unwanted: set[str] = set()
        self._process: subprocess.Popen[str] | None = None
        self._timer: threading.Timer | None = None
        self._taken = threading.Event()
        self._closed = threading.Event()
        atexit.register(self.stop)

    @property
    def running(self) -> bool:
        """Whether there is a worker process, which may hold the device."""
        return self._process is not None and self._process.poll() is None

    def request(
        self,
        fields: dict[str, Any],
        on_progress: Callable[[dict[str, Any]], None] | None = None,
        number: str | None = None,
    ) -> dict[str, Any]:
        """Ask the worker for something and wait for its answer.

        Args:
            fields: the request as `backend.generate.worker` documents it: at least `op`.
            on_progress: called with every progress event.
            number: by which `cancel` finds the request, of `new_number`.

        Returns:
            The worker's `done` event.

        Raises:
            Cancelled: `cancel` was called for this request.
            UserError: what the worker complains about, that it has ended, or that a job has the device.
        """
        number = number or new_number()
        with self._writing:
            self._open.add(number)
        try:
            self._await_turn(number)
            try:
                return self._take_turn(fields, on_progress, number)
            finally:
                self._turn.release()
        finally:
            with self._writing:
                self._open.discard(number)
                self._unwanted.discard(number)

    def _await_turn(self, number: str) -> None:
        while not self._turn.acquire(timeout=TURN_SECONDS):
            if number in self._unwanted:
                raise Cancelled("cancelled")

    def _take_turn(
        self, fields: dict[str, Any], on_progress: Callable[[dict[str, Any]], None] | None, number: str
    ) -> dict[str, Any]:
        if self._closed.is_set():
            raise UserError("the server is ending")
        # Asked within the turn, which a starting job holds until it runs: no request slips in between.
        if self._busy():
            raise UserError("a run is using the GPU; wait until it has ended, or stop it in its tab")
        self._cancel_timer()
        self._taken.clear()
        try:
            return self._exchange(fields, on_progress, number)
        finally:
            self._start_timer()

    def cancel(self, number: str | None = None) -> bool:
        """End a request within a step of its drawing; the worker keeps its model, and `request` raises `Cancelled`.

        A request that still waits for its turn ends at once. While a model is being loaded, it ends when that is done.

        Args:
            number: of the request; left out, all that are being answered or wait.

        Returns:
            Whether there was such a request.
        """
        with self._writing:
            found = set(self._open) if number is None else self._open & {number}
            process = self._process
            for each in found:
                self._unwanted.add(each)
                # One that still waits is unknown to the worker, which passes it over.
                if process is not None:
                    self._send(process, {"op": "cancel", "id": each})
        return bool(found)

    @staticmethod
    def _send(process: "subprocess.Popen[str]", message: dict[str, Any]) -> bool:
        """Write a message to the worker; whether it has arrived."""
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(message, default=str) + "\n")
            process.stdin.flush()
        except (OSError, ValueError):  # its end is broken, or ours is closed
            return False
        return True

    @contextmanager
    def released(self) -> Iterator[None]:
        """While entered, the device is given back and no request is taken.

        The worker is ended once its present request is answered, or after a minute in any case.
        """
        if not self._turn.acquire(timeout=RELEASE_SECONDS):
            while True:
                self._taken.set()
                self.stop()
                if self._turn.acquire(timeout=1.0):
                    break
        try:
            self._end()
            yield
        finally:
            self._turn.release()

    def close(self) -> None:
        """End the worker at once and for good, so that nobody has to wait for it."""
        self._closed.set()
        self.stop()

    def stop(self) -> None:
        """End the worker at once, whatever it does; a waiting request fails."""
        self._cancel_timer()
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()

    def _exchange(
        self, fields: dict[str, Any], on_progress: Callable[[dict[str, Any]], None] | None, number: str
    ) -> dict[str, Any]:
        process = self._ensure()
        with self._writing:
            if number in self._unwanted:
                raise Cancelled("cancelled")
            sent = self._send(process, {**fields, "id": number})
        if not sent:
            raise self._ended(process)
        assert process.stdout is not None
        for line in process.stdout:
            answer = _parse(line)
            if answer.get("id") != number:
                continue
            event = answer.get("event")
            if event == "done":
                return answer
            if event == "cancelled":
                raise Cancelled("cancelled")
            if event == "error":
                raise UserError(str(answer.get("message", "the worker failed")), answer.get("field"))
            if event == "progress" and on_progress is not None:
                on_progress(answer)
        raise self._ended(process)

    def _ensure(self) -> "subprocess.Popen[str]":
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        fresh = not self.log.exists() or self.log.stat().st_size > LOG_BYTES
        with self.log.open("wb" if fresh else "ab") as log:
            self._process = subprocess.Popen(
                self._argv(),
                cwd=PROJECT,
                env=self._workspace.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                errors="replace",
                # Ctrl-C in the server's terminal is the server's to handle; the worker ends when its stdin does.
                start_new_session=True,
            )
        return self._process

    def _end(self) -> None:
        process = self._process
        self._process = None
        if process is None:
            return
        try:
            if process.stdin is not None:
                process.stdin.close()
        except OSError:
            process.kill()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def _ended(self, process: "subprocess.Popen[str]") -> UserError:
        code = process.wait()
        if self._taken.is_set():
            return UserError("a job has taken the device; try again when it has ended")
        last = _last_line(self.log)
        return UserError(f"the generate worker ended (exit code {code}){f': {last}' if last else ''}; see worker.log")

    def _start_timer(self) -> None:
        if self.running and self._idle_seconds > 0:
            self._timer = threading.Timer(self._idle_seconds, self._idle)
            self._timer.daemon = True
            self._timer.start()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _idle(self) -> None:
        # A request that has just come in keeps the worker.
        if self._turn.acquire(blocking=False):
            try:
                self._end()
            finally:
                self._turn.release()


def _parse(line: str) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _last_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
