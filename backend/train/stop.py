"""Stopping on request: Ctrl-C and SIGTERM let the step in hand finish."""

import math
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Of several processes each may get one request twice: from the terminal, and from what launched them. Seconds.
ECHO = 3.0


class StopRequest:
    """While entered, the first SIGINT or SIGTERM only sets `asked`; a second one does what it did before.

    Args:
        echo: a signal within so many seconds of the first is taken for the same request.
    """

    def __init__(self, echo: float = 0.0) -> None:
        self.asked = False
        self._echo = echo
        self._asked_at = math.inf
        self._before: dict[signal.Signals, object] = {}

    @property
    def seconds_ago(self) -> float:
        """When it was asked for; negative where it was not."""
        return time.monotonic() - self._asked_at

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked, self._asked_at = True, time.monotonic()
            if not self._echo:
                self._restore()
        elif self.seconds_ago > self._echo:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
