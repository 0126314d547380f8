"""What a running command tells the web side: one JSON object a line, in the file that LORALOOM_EVENTS names."""

import json
import os
import time
from pathlib import Path
from typing import Any

VARIABLE = "LORALOOM_EVENTS"


def emit(event: str = "progress", **fields: Any) -> None:
    """Append one event; does nothing when no file is named by the environment.

    An event is news, not data: where it cannot be written (a full disk, a removed job) the work goes on without it.

    Args:
        event: progress, phase, sample, file, warning or error.
        fields: JSON values; a path is written as its string. `time` (unix seconds) is added.
    """
    target = os.environ.get(VARIABLE)
    if not target:
        return
    record = {"event": event, "time": time.time(), **fields}
    line = (json.dumps(record, ensure_ascii=False, default=str) + "\n").encode("utf-8", "replace")
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError:
        return
    try:
        # One write, so that lines of several processes do not interleave.
        os.write(descriptor, line)
    except OSError:
        return
    finally:
        os.close(descriptor)


def read(path: str | os.PathLike[str], offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Read the complete lines behind a byte offset.

    Lines that are not a JSON object (a write cut short by a full disk) are passed over.

    Args:
        path: the events file; a missing one has no events.
        offset: where the last call ended, in bytes.

    Returns:
        The events in order, and the offset to go on from.
    """
    try:
        with Path(path).open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    events = []
    for line in data[:end].splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            events.append(record)
    return events, offset + end
