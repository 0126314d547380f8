"""What uploads have left behind in the workspace goes: at the start, and every hour."""

import contextlib
import fcntl
import os
import shutil
import threading
import time
from pathlib import Path

from backend.bodies import Uploads

EVERY_SECONDS, AGE_SECONDS = 3600.0, 24 * 3600.0
LOCK = ".lock"


class Sweeper:
    """Keeps the folder of Gradio's copies clear of what nobody needs any more.

    Args:
        uploads: with that folder, which is made.
    """

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads
        self._folder = uploads.folder
        self._folder.mkdir(exist_ok=True)
        self._started = time.time()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        # Kept as long as this process lives, so that another one on the same workspace knows.
        self._lock = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def start(self) -> None:
        """Remove everything that is left of servers that are gone, and go on every hour until `close`.

        Where another server works in the same workspace, only what is old goes.
        """
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.sweep()
        else:
            self._remove(before=float("inf"))
        with contextlib.suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)
        self._thread.start()

    def sweep(self) -> None:
        """Remove what was copied more than a day ago and before this start, and halves of uploads."""
        self._remove(before=min(self._started, time.time() - AGE_SECONDS))
        self._uploads.sweep()

    def close(self) -> None:
        """End the hourly sweep."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        os.close(self._lock)

    def _run(self) -> None:
        while not self._closed.wait(EVERY_SECONDS):
            self.sweep()

    def _remove(self, before: float) -> None:
        try:
            found = [path for path in self._folder.iterdir() if path.name != LOCK]
        except OSError:
            return
        for path in found:
            if _newest(path) >= before:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()


def _newest(path: Path) -> float:
    """When something in a folder last changed; a file that has gone by now is old."""
    newest = 0.0
    for one in (path, *(path.rglob("*") if path.is_dir() and not path.is_symlink() else ())):
        with contextlib.suppress(OSError):
            newest = max(newest, one.lstat().st_ctime)
    return newest
