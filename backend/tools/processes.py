"""Work on many things by several processes, a few at a time, with the results in order."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

import cv2

from backend.errors import UserError

AHEAD = 2  # what is given out per process, so that none waits for the next

T = TypeVar("T")
R = TypeVar("R")


def in_order(
    function: Callable[[T], R], items: Iterable[T], workers: int, weigh: Callable[[T], int], most: int
) -> Iterator[R]:
    """The function of every item, in the items' order, whichever is ready first.

    When it is closed, or an error or an interrupt ends it, what has begun is finished and the rest never begins.

    Args:
        function: runs in processes that import its module; with one worker, in this one.
        items: taken as they are needed.
        workers: processes; OpenCV gets one thread in each.
        weigh: what an item takes, in the unit of `most`.
        most: items given out at a time weigh no more together, unless a single one does.

    Raises:
        UserError: a process was ended from outside.
        Whatever the function raises.
    """
    if workers == 1:
        with _one_thread():
            yield from map(function, items)
        return
    # Started afresh: a copy of this process would have its locks but not the threads that hold them.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _begin_worker)
    try:
        yield from _in_order(pool, function, items, AHEAD * workers, weigh, most)
    except BrokenProcessPool:
        raise UserError(
            "a process was ended from outside, most likely because the machine's memory is full; free some"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor,
    function: Callable[[T], R],
    items: Iterable[T],
    count: int,
    weigh: Callable[[T], int],
    most: int,
) -> Iterator[R]:
    pending: deque[tuple[Future[R], int]] = deque()
    for item in items:
        weight = weigh(item)
        while pending and (len(pending) >= count or weight + sum(each for _, each in pending) > most):
            yield pending.popleft()[0].result()
        pending.append((_submit(pool, function, item), weight))
    while pending:
        yield pending.popleft()[0].result()


def _submit(pool: ProcessPoolExecutor, function: Callable[[T], R], item: T) -> "Future[R]":
    # A process that this starts inherits the mask: Ctrl-C reaches the whole group, but only this process acts on it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(function, item)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # One that was killed closes no pipe to its workers, since they hold both ends.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
