"""One job as a value, read from the files of its folder.

job.json (what was asked), config.toml (snapshot), pid (who runs it), log.txt, events.jsonl, stop (asked to end), exit
(how it ended), output/. The state is never stored, it follows from these.
"""

import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from backend.job_runner import boot, identity, process_fields
from backend.workspace import WEIGHTS

STATES = ("queued", "running", "finished", "failed", "interrupted", "stopped")
PARTIAL = re.compile(r"-(\d{6}|step\d{8})$")
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
    """The job in a folder; None when there is none."""
    try:
        request = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        command, title, created = str(request["command"]), str(request["title"]), float(request["created"])
        resumes, first = str(request.get("resumes", "")), int(request.get("first_step", 0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    # In this order: a job that begins or ends between two looks must not seem interrupted.
    asked = (folder / "stop").exists()
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


def read_pid(folder: Path) -> tuple[int, str]:
    """The process that runs a job, the leader of its group, and its identity.

    Raises:
        OSError, ValueError: when none is written down.
    """
    number, _, known = (folder / "pid").read_text().strip().partition(" ")
    return int(number), known


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
        with (folder / "exit").open() as file:
            ended = os.fstat(file.fileno()).st_mtime
            return int(file.read()), ended
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError):
        return None, time.time()
