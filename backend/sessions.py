"""Sessions of the page give their memory back: a page that is closed is forgotten, and one that is open costs little.

Gradio keeps for each session a copy of the page's whole config, for links to a page's state that this page does not
offer, and keeps it after the page is gone. What is here works on the objects of its app, and so imports nothing of it.
"""

import ctypes
import os
import sys
from collections import Counter
from datetime import datetime
from typing import Any

HEARTBEAT = "/gradio_api/heartbeat/"
# A page that lost its line, or was closed by mistake and restored, finds its session: of so many, for so long.
GONE, GONE_SECONDS = 20, 3600.0
EVERY_SECONDS = 60.0
CAPACITY = 500  # sessions at a time; those that were used last stay


class Sessions:
    """The sessions of Gradio's app, and which of their pages are open.

    Args:
        app: Gradio's; its `state_holder` is replaced by one whose sessions are lean.
    """

    def __init__(self, app: Any) -> None:
        old = app.state_holder
        module = sys.modules[type(old).__module__]
        self._app = app
        self._holder = _lean_holder(type(old), module.SessionState)()
        self._holder.set_blocks(old.blocks)
        self._holder.capacity = CAPACITY
        app.state_holder = self._holder
        self._open: Counter[str] = Counter()

    def opened(self, name: str) -> None:
        """The page of a session has begun to listen."""
        self._open[name] += 1

    def closed(self, name: str) -> None:
        """It listens no more: closed, or without a line for now."""
        self._open[name] -= 1
        if self._open[name] <= 0:
            del self._open[name]
            if name in self._holder.session_data:
                self._holder.time_last_used[name] = datetime.now()
            self.free()

    def free(self) -> int:
        """Forget the sessions whose page is gone (or that never had one, as those of scripts) but for the last ones.

        Returns:
            How many were forgotten.
        """
        now, used = datetime.now(), self._holder.time_last_used
        gone = [name for name in list(self._holder.session_data) if name not in self._open and not self._is_busy(name)]
        gone.sort(key=lambda name: used.get(name, now), reverse=True)
        kept = sum((now - used.get(name, now)).total_seconds() < GONE_SECONDS for name in gone[:GONE])
        for name in gone[kept:]:
            self._holder.delete_state(name)
            self._holder.session_data.pop(name, None)
            used.pop(name, None)
        if gone[kept:]:
            _trim()
        return len(gone) - kept

    def _is_busy(self, name: str) -> bool:
        """Whether something that the session has asked for is still being worked on."""
        return bool(self._app.get_blocks()._queue.pending_event_ids_session.get(name))


def session_of(path: str) -> str | None:
    """The session whose page listens at a path; None for other paths."""
    name = path.removeprefix(HEARTBEAT)
    return name if name != path and "/" not in name else None


class _Page:
    """What of Gradio's Blocks a session is made of, without the components whose config it would copy."""

    def __init__(self, blocks: Any) -> None:
        self.default_config = blocks.default_config
        self.blocks: dict[int, Any] = {}


class _Nothing(dict[int, Any]):
    """Takes configs and keeps none."""

    def __setitem__(self, key: int, value: Any) -> None:
        return


def _lean_holder(holder: type[Any], session: type[Any]) -> type[Any]:
    """Gradio's classes of all sessions and of one, without copies of the page's config."""

    class LeanSession(session):  # type: ignore[misc]
        def __init__(self, blocks: Any) -> None:
            super().__init__(_Page(blocks))
            self.config_values = _Nothing()

        def _update_config(self, key: int) -> None:
            return

        def _update_value_in_config(self, key: int, value: Any) -> None:
            return

    class LeanHolder(holder):  # type: ignore[misc]
        def __getitem__(self, name: str) -> Any:
            if name not in self.session_data:
                self.session_data[name] = LeanSession(self.blocks)
            return super().__getitem__(name)

    return LeanHolder


def _trim() -> None:
    """Return to the system what has become free in the C library's hands, where that can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
