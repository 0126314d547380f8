"""One job as a value, read from the files of its folder.

job.json (what was asked), config.toml (snapshot), pid (who runs it), log.txt, events.jsonl, stop (asked to end), exit
(how it ended), output/. The state is never stored, it follows from these.
"""

import os
import re
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from backend.bounded import open_regular, parse_json, read_text
from backend.errors import UserError
from backend.job_runner import boot, identity, process_fields
from backend.workspace import WEIGHTS

STATES = ("queued", "running", "finished", "failed", "interrupted", "stopped")
PARTIAL = re.compile(r"-(\d{6}|step\d{8})$")
COMMAND = re.compile(r"[A-Za-z0-9_]{1,100}")
# Of job.json; pid and exit are a few words.
REQUEST_BYTES, SHORT = 2**20, 256
# The year 9999, which dates still have.
LATEST = 253402300799.0
JOB_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")


@dataclass(frozen=True)
class Job:
    """A job as its files show it at one moment.

    Args:
        id: its folder's name; sorts by time.
        folder: where everything about it lies.
        command: a name of `backend.commands.COMMANDS`.
        title: what the user called it; any text.
        state: one of STATES.
        created: unix seconds, as `started` and `ended`.
        exit_code: the command's, negative for a signal; None while it has not ended or if nobody saw it end.
        stopping: it was asked to end and has not yet.
        resumes: the id of the job that it goes on from; "" for one that begins anew.
        first_step: the step at which it does so.
    """

    id: str
    folder: Path
    command: str
    title: str
    state: str
    created: float
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    stopping: bool = False
    resumes: str = ""
    first_step: int = 0

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def events(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def output(self) -> Path:
        return self.folder / "output"

    @property
    def active(self) -> bool:
        """Whether it still runs or will run."""
        return self.state in ("queued", "running")


def read_job(folder: Path) -> Job | None:
    """The job in a folder; None when there is none.

    One whose job.json cannot be read is passed over, which is said once: it must not hide the others.
    """
    # A folder that may not be looked into is none either, and must not hide the others.
    if not os.path.exists(folder / "job.json"):
        return None
    try:
        request = parse_json(read_text(folder / "job.json", None, "JSON", REQUEST_BYTES), "job.json", None)
        command, title, created = _request(request)
        resumes, first = str(request.get("resumes", "")), int(request.get("first_step", 0))
    except (UserError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        _complain(str(folder), str(error) if isinstance(error, UserError) else f"job.json is broken: {error}")
        return None
    # In this order: a job that begins or ends between two looks must not seem interrupted.
    asked = os.path.exists(folder / "stop")
    started = _modified(folder / "pid")
    alive = is_alive(folder)
    code, ended = _read_exit(folder)
    if ended is not None:
        # A stop that came too late to change anything is not what ended the job.
        whole = code == 0 and (not asked or _has_final_file(folder))
        state = "finished" if whole else "stopped" if asked else "failed"
    elif alive:
        state = "running"
    elif asked:
        state = "stopped"
    else:
        state = "interrupted" if started is not None else "queued"
    stopping = asked and state == "running"
    return Job(folder.name, folder, command, title, state, created, started, ended, code, stopping, resumes, first)


def _request(request: Any) -> tuple[str, str, float]:
    """Command, title and time of what was asked for.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: one of them is none.
    """
    command, title, created = request["command"], request["title"], float(request["created"])
    if not isinstance(command, str) or not COMMAND.fullmatch(command):
        raise ValueError("command is none")
    if not isinstance(title, str):
        raise TypeError("title is no text")
    if not 0 <= created < LATEST:
        raise ValueError("created is no time")
    return command, title, created


@lru_cache(maxsize=1024)
def _complain(folder: str, reason: str) -> None:
    """Said once for each folder and reason, although the list is read every second."""
    print(f"the run in {folder} is passed over: {' '.join(reason.split())[:300]}", file=sys.stderr, flush=True)


def read_pid(folder: Path) -> tuple[int, str]:
    """The process that runs a job, the leader of its group, and its identity.

    Raises:
        OSError, ValueError: when none is written down.
    """
    with open_regular(folder / "pid") as file:
        number, _, known = file.read(SHORT).decode("ascii").strip().partition(" ")
    pid = int(number)
    # 0 and -1 would mean our own group and everybody.
    if not 1 < pid < 2**22:
        raise ValueError(f"{pid} is no process")
    return pid, known


def is_alive(folder: Path) -> bool:
    """Whether a job's process, or one that it left behind in its group, still runs."""
    try:
        pid, known = read_pid(folder)
    except (OSError, ValueError):
        return False
    now = identity(pid)
    if now is not None:
        return now == known
    return known.endswith(boot()) and _group_lives(pid)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    # Something of that group exists; remains that nobody has reaped do not count.
    for entry in Path("/proc").iterdir():
        fields = process_fields(int(entry.name)) if entry.name.isdigit() else None
        if fields is not None and fields[2] == str(group):
            return True
    return False


def _has_final_file(folder: Path) -> bool:
    """Whether weights lie there that are not those of an epoch or of the step at which a run was stopped."""
    try:
        files = list((folder / "output").iterdir())
    except OSError:
        return False
    return any(path.suffix in WEIGHTS and path.name[0] != "." and not PARTIAL.search(path.stem) for path in files)


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _read_exit(folder: Path) -> tuple[int | None, float | None]:
    try:
        with open_regular(folder / "exit") as file:
            ended = os.fstat(file.fileno()).st_mtime
            return int(file.read(SHORT)), ended
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError):
        return None, time.time()
