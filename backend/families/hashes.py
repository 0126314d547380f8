"""Names and hashes of a base model, as training writes them into a LoRA's metadata."""

import contextlib
import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from backend.replacing import replacing

_LEGACY_OFFSET, _LEGACY_LENGTH = 0x100000, 0x10000
# Read at once: large, so that a thread that hashes gigabytes seldom asks for the interpreter's lock.
_BLOCK = 1 << 22
_DIGITS = {"sd_model_hash": 8, "new_sd_model_hash": 64}
# Steps of "nice": it gets a tenth of a core that others want, and all of one that is idle.
NICENESS = 10


class Hashing:
    """`model_hashes` of some models, taken by a thread in the background; `result` waits for it.

    The thread has a low priority where the system knows one for threads, and does not keep the process alive.

    Args:
        sources: as for `model_hashes`.
    """

    def __init__(self, sources: Sequence[str | Path]) -> None:
        self._sources = tuple(sources)
        self._found: list[dict[str, str]] | None = None
        self._thread = threading.Thread(target=self._take, name="hashing", daemon=True)
        self._thread.start()

    def result(self) -> list[dict[str, str]]:
        """Names and hashes of each model, in their order."""
        self._thread.join()
        if self._found is None:  # the thread came to grief; here it shows
            self._found = [model_hashes(source) for source in self._sources]
        return self._found

    def _take(self) -> None:
        if sys.platform == "linux":
            # Linux alone has a priority of its own for each thread; elsewhere the number would name a process.
            this = os.PRIO_PROCESS, threading.get_native_id()
            with contextlib.suppress(OSError):
                os.setpriority(*this, max(NICENESS, os.getpriority(*this)))
        self._found = [model_hashes(source) for source in self._sources]


def file_hashes(path: Path) -> dict[str, str]:
    """`sd_model_hash` (8 hex digits over 64 KiB at 1 MiB, the web UI's old hash) and `new_sd_model_hash` (SHA-256).

    Raises:
        OSError: the file cannot be read.
    """
    digest, block = hashlib.sha256(), memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        file.seek(_LEGACY_OFFSET)
        legacy = hashlib.sha256(file.read(_LEGACY_LENGTH)).hexdigest()[:8]
        file.seek(0)
        while size := file.readinto(block):
            digest.update(block[:size])
    return {"sd_model_hash": legacy, "new_sd_model_hash": digest.hexdigest()}


def model_hashes(source: str | Path) -> dict[str, str]:
    """`sd_model_name`, and for a single file its two hashes, remembered by path, size and time of change.

    A folder or a hub name has no hash of its own, so only its name is returned; the same goes for a file that cannot be
    read (any more).
    """
    path = Path(source)
    if not path.is_file():
        return {"sd_model_name": path.name if path.exists() else str(source)}
    name = {"sd_model_name": path.name}
    try:
        key = _stamp(path)
        known = _read_cache().get(key)
        if not _whole(known):
            known = file_hashes(path)
            # A file that changed meanwhile is not the one that the key names.
            if _stamp(path) == key:
                _remember(key, known)
    except OSError:
        return name
    return name | known


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"


def _path_of(key: str) -> str:
    return key.rsplit("|", 2)[0]


def _whole(entry: object) -> bool:
    """Whether an entry of the cache is what `file_hashes` makes."""
    return (
        isinstance(entry, dict)
        and entry.keys() == _DIGITS.keys()
        and all(re.fullmatch(f"[0-9a-f]{{{count}}}", str(entry[name])) for name, count in _DIGITS.items())
    )


def _cache_file() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "lora-loom" / "model_hashes.json"


def _read_cache() -> dict[str, object]:
    """What is remembered; nothing where the file is missing, damaged or somebody else's."""
    try:
        content = json.loads(_cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: there is no home directory
        return {}
    return content if isinstance(content, dict) else {}


def _remember(key: str, found: dict[str, str]) -> None:
    """Add an entry, in place of those of the same path.

    Two processes may write at once: the file is whole in any case, and an entry that is lost is made again.
    """
    kept = {other: entry for other, entry in _read_cache().items() if _path_of(other) != _path_of(key)}
    try:
        with replacing(_cache_file()) as temporary:
            temporary.write_text(json.dumps(kept | {key: found}), encoding="utf-8")
    except (OSError, RuntimeError):
        # Without a writable place the hash is simply taken again next time.
        return
