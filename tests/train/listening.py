"""Where processes listen, as Linux tells it."""

import contextlib
import os
import re
from pathlib import Path


def children(parent: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    try:
        own = [int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    except OSError:
        return []
    return own + [below for child in own for below in children(child)]


def listening(pids: list[int]) -> set[str]:
    """The addresses and ports (hexadecimal, of /proc/net) at which these processes wait for callers."""
    sockets = set()
    for entry in [entry for pid in pids for entry in Path(f"/proc/{pid}/fd").iterdir()]:
        # What has been closed by now listens no more.
        with contextlib.suppress(OSError):
            found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(entry))
            sockets |= {found[1]} if found else set()
    lines = [line for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().split("\n")[1:-1]]
    rows = [line.split() for line in lines]
    return {row[1] for row in rows if row[3] == "0A" and row[9] in sockets}


def listening_below(parent: int) -> set[str]:
    """As `listening`, of a process and all that it has started."""
    return listening([parent, *children(parent)])


def is_loopback(address: str) -> bool:
    """Whether an address of /proc/net is 127.0.0.1 or ::1."""
    return address.split(":")[0] in ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
