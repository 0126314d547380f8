"""Going through many small matrices with every core."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import torch

from backend.terminal import warn
from backend.threads import cpu_count

T = TypeVar("T")
R = TypeVar("R")


def choose_device(name: str) -> torch.device:
    """The device of this name; a GPU that is not here is replaced by the CPU, with a line that says so."""
    device = torch.device(name)
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        warn(f"{name} is not here, so the CPU computes")
        return torch.device("cpu")
    return device


@contextmanager
def one_core_free() -> Iterator[None]:
    """Leave a core to the thread that writes: torch's threads would keep it busy with waiting for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, cpu_count() - 1)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def each(work: Callable[[T], R], items: Iterable[T], device: torch.device, ahead: int = 2) -> Iterator[R]:
    """The results of a function for each item, in order.

    On a CPU one thread per core takes whole items: matrices of a LoRA's size are too small to be shared out well, and
    torch lets go of Python while it computes. On a GPU one does them all.

    Args:
        ahead: items per thread that may be done or in work before their turn, which bounds the memory they hold.
    """
    threads = cpu_count() if device.type == "cpu" else 1
    if threads == 1:
        yield from map(work, items)
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    rest = iter(items)
    pool = ThreadPoolExecutor(threads)
    try:
        waiting: list[Future[R]] = [pool.submit(work, item) for item in islice(rest, threads * ahead)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(work, item) for item in islice(rest, 1)]
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
