"""What a command tells whoever started it: lines and bars on the terminal, and the same as events for the web side."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TypeVar

from tqdm import tqdm

from backend import events
from backend.errors import one_line
from backend.processes import is_first

EVENT_INTERVAL = 0.2

T = TypeVar("T")


def say(message: str) -> None:
    """One line to the reader of the log, at once, above the bar if there is one; no run ends for a log that is full.

    Of several processes that train together the first one says it.
    """
    if not is_first():
        return
    with suppress(OSError):
        tqdm.write(said(message))
        sys.stdout.flush()


def said(text: str) -> str:
    """A text as the terminal can show it: what its encoding lacks as Python escapes it, and no other control characters
    than line breaks."""
    lines = "\n".join(one_line(line) for line in text.split("\n"))
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return lines.encode(encoding, "backslashreplace").decode(encoding)


def warn(message: str) -> None:
    """One line that something is not as asked for, in the log and as an event."""
    message = one_line(message)
    say(f"Warning: {message}")
    events.emit("warning", message=message)


def no_bar() -> bool | None:
    """What tqdm calls `disable`: None, which draws a bar on a terminal alone, for the process that tells something."""
    return None if is_first() else True


def track(items: Iterable[T], name: str, total: int) -> Iterator[T]:
    """The items, with a bar on the terminal and a phase event now and then that say how many are done.

    Args:
        items: gone through as they are asked for.
        name: what is done with them, such as "merging".
        total: how many there are.
    """
    told = -EVENT_INTERVAL
    with tqdm(total=total, desc=name, dynamic_ncols=True, disable=no_bar(), leave=False) as bar:
        for done, item in enumerate(items):
            if time.monotonic() - told >= EVENT_INTERVAL:
                told = time.monotonic()
                events.emit("phase", name=name, step=done, total=total)
            yield item
            bar.update()
    events.emit("phase", name=name, step=total, total=total)


@contextmanager
def bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A function to be told (done, in all), which draws a bar on the terminal and emits a phase event now and then.

    Args:
        name: what is done, such as "caching latents".
    """
    told = -EVENT_INTERVAL
    with tqdm(desc=name, dynamic_ncols=True, disable=no_bar(), leave=False) as drawn:

        def report(done: int, total: int) -> None:
            nonlocal told
            drawn.total = total
            drawn.update(done - drawn.n)
            if done == total or time.monotonic() - told >= EVENT_INTERVAL:
                told = time.monotonic()
                events.emit("phase", name=name, step=done, total=total)

        yield report


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP do what Ctrl-C does, so that nothing half-written is left behind.

    One that is ignored, as `nohup` has it, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None]
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is signal.SIG_DFL:
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is signal.SIG_DFL:
                signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
