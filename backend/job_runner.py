"""Runs one job's command and writes down how it ended, whether or not the web process is still there to see it.

`python -m backend.job_runner FOLDER COMMAND [ARGUMENT ...]`, started by `backend.jobs` as the leader of a session
of its own. Standard library only: it lives as long as the job does.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

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
    temporary.write_text(f"{os.getpid()} {identity(os.getpid())}\n")
    try:
        os.link(temporary, folder / "pid")
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


def run(folder: Path, argv: list[str]) -> int:
    """Run a command to its end, handing on a request to stop.

    Returns:
        Its exit code; negative for the signal that ended it.
    """
    # Taken now, so that the result can be written even when the job has filled the disk.
    result = folder / "exit.new"
    try:
        result.write_text(" " * 16)
    except OSError as error:
        print(f"cannot reserve room for the exit code: {error.strerror}", file=sys.stderr)
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
        print(f"cannot start {argv[0]}: {error.strerror}", file=sys.stderr)
        code = NO_COMMAND
    else:
        if received:
            child[0].send_signal(received[-1])
        code = child[0].wait()
    with result.open("r+" if result.exists() else "w") as file:
        file.write(f"{code:<16}")
    os.replace(result, folder / "exit")
    return code


def main() -> None:
    folder = Path(sys.argv[1])
    if not claim(folder):
        return
    run(folder, sys.argv[2:])
    if os.getpgid(0) == os.getpid():
        # Whatever the command left behind (data loaders of a crashed run) still holds memory. This ends us too.
        os.killpg(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
