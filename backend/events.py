"""What a running command tells the web side: one JSON object a line, in the file that LORALOOM_EVENTS names.

Beside that file may lie a reserve, room that was taken before the command began: there an error is told when the disk
is full, so that the reason of a failure is known however it came about.
"""

import json
import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backend.bounded import open_regular, parse_json
from backend.errors import UserError
from backend.processes import is_first

VARIABLE = "LORALOOM_EVENTS"
RESERVE_BYTES = 4096
# The largest event is a report with a row for each module of a network.
LINE_BYTES, READ_BYTES = 8 * 2**20, 32 * 2**20
ERRORS = 16


def emit(event: str = "progress", **fields: Any) -> None:
    """Append one event; does nothing when no file is named by the environment.

    An event is news, not data: where it cannot be written (a full disk, a removed job) the work goes on without it.
    Only an error then goes into the reserve. Of several processes that train together the first one emits, and one
    that has an error of its own.

    Args:
        event: progress, phase, sample, file, warning or error.
        fields: JSON values; a path is written as its string. `time` (unix seconds) is added.
    """
    target = os.environ.get(VARIABLE)
    if not target or not (is_first() or event == "error"):
        return
    record = {"event": event, "time": time.time(), **fields}
    line = (json.dumps(record, ensure_ascii=False, default=str) + "\n").encode("utf-8", "replace")
    if not _append(target, line) and event == "error":
        _use_reserve(reserve_of(target), line)


def _append(target: str, line: bytes) -> bool:
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError:
        return False
    try:
        # One write, so that lines of several processes do not interleave.
        return os.write(descriptor, line) == len(line)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def reserve_of(target: str | os.PathLike[str]) -> Path:
    """The file beside an events file in which there is room for an error."""
    return Path(f"{os.fspath(target)}.reserve")


def reserve(target: str | os.PathLike[str]) -> None:
    """Take that room.

    Raises:
        OSError: there is none.
    """
    reserve_of(target).write_bytes(b" " * (RESERVE_BYTES - 1) + b"\n")


def _use_reserve(path: Path, line: bytes) -> None:
    # In place: what is there already takes no more of the disk.
    try:
        with path.open("r+b") as file:
            begin = len(file.read(RESERVE_BYTES).rstrip())
            begin += begin > 0
            file.seek(begin)
            file.write(b"\n" * (begin > 0) + line[: RESERVE_BYTES - begin - 1])
    except OSError:
        return


def read_errors(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The last error events of a file and of its reserve."""
    told = deque((record for record in every(path) if record.get("event") == "error"), maxlen=ERRORS)
    return [*told, *(record for record in every(reserve_of(path)) if record.get("event") == "error")]


def every(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """All events of a file, read piece by piece; see `read`."""
    offset, before = 0, -1
    while offset != before:
        before = offset
        events, offset = read(path, offset)
        yield from events


def read(path: str | os.PathLike[str], offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Read the complete lines behind a byte offset, up to `READ_BYTES` of them.

    Lines that are not a JSON object (a write cut short by a full disk, say), or one that nothing of ours writes (nested
    too deep, a number too large, longer than `LINE_BYTES`), are passed over.

    Args:
        path: the events file; a missing one, and what is no regular file, has no events.
        offset: where the last call ended, in bytes.

    Returns:
        The events in order, and the offset to go on from.
    """
    try:
        with open_regular(Path(path)) as file:
            file.seek(offset)
            data = file.read(READ_BYTES)
    except (OSError, ValueError):
        return [], offset
    end = data.rfind(b"\n") + 1
    if not end and len(data) == READ_BYTES:
        # One line without an end: its rest is no event either.
        end = len(data)
    found = (_event(line) for line in data[:end].split(b"\n") if 0 < len(line) <= LINE_BYTES)
    return [record for record in found if record is not None], offset + end


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        record = parse_json(line.decode("utf-8"), "the line", None)
    except (UserError, UnicodeDecodeError):
        return None
    return record if isinstance(record, dict) else None
