"""Runs one job's command and writes down how it ended, whether or not the web process is still there to see it.

`python -m backend.job_runner FOLDER COMMAND [ARGUMENT ...]`, started by `backend.jobs` as the leader of a session
of its own. Standard library only: it lives as long as the job does.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from backend import events

NO_COMMAND = 127


def process_fields(pid: int) -> list[str] | None:
    """Fields 3 and on of proc(5)'s stat (state, parent, group, ...); None for a process that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields


def boot() -> str:
    """Which boot of the machine this is."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identity(pid: int) -> str | None:
    """What tells a living process from a later one of the same number: its start (field 22) and the boot."""
    fields = process_fields(pid)
    return None if fields is None else f"{fields[19]} {boot()}"


def claim(folder: Path) -> bool:
    """Write this process down as the one that runs the job; False when another one was first."""
    temporary = folder / f"pid.{os.getpid()}"
    try:
        temporary.write_text(f"{os.getpid()} {identity(os.getpid())}\n")
        os.link(temporary, folder / "pid")
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def reserve(folder: Path) -> None:
    """Take the room in which a job's end and its reason are written: it is there when the job has filled the disk.

    Raises:
        OSError: there is none.
    """
    (folder / "exit.new").write_text(" " * 16)
    events.reserve(folder / "events.jsonl")


def write_exit(folder: Path, code: int) -> None:
    """Write down how a job ended, in the room that was taken for it."""
    result = folder / "exit.new"
    with result.open("r+" if result.exists() else "w") as file:
        file.write(f"{code:<16}")
    os.replace(result, folder / "exit")


def complain(message: str) -> None:
    """Tell why a job does not run, in its events and, where the disk has room for it, in its log."""
    events.emit("error", message=message)
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr, flush=True)


def run(folder: Path, argv: list[str]) -> int:
    """Run a command to its end, handing on a request to stop.

    Returns:
        Its exit code; negative for the signal that ended it.
    """
    received: list[int] = []
    child: list[subprocess.Popen[bytes]] = []

    def hand_on(number: int, _frame: object) -> None:
        received.append(number)
        for process in child:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, hand_on)
    try:
        child.append(subprocess.Popen(argv))
    except OSError as error:
        complain(f"cannot start {argv[0]}: {error.strerror}")
        code = NO_COMMAND
    else:
        if received:
            child[0].send_signal(received[-1])
        code = child[0].wait()
    write_exit(folder, code)
    return code


def main() -> None:
    folder = Path(sys.argv[1])
    try:
        if not claim(folder):
            return
    except OSError as error:
        complain(f"the run cannot be started: {error.strerror}; free some space and start it again")
        write_exit(folder, NO_COMMAND)
        return
    run(folder, sys.argv[2:])
    if os.getpgid(0) == os.getpid():
        # Whatever the command left behind (data loaders of a crashed run) still holds memory. This ends us too.
        os.killpg(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
