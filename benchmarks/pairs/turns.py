"""Two processes that do the same work in turns, so that a busy machine disturbs both alike."""

import importlib
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SPAWN = multiprocessing.get_context("spawn")
# Seconds for a side to be built, and for a turn.
PATIENCE = 1200
# Seconds that a side may take to end.
GRACE = 10


class SideFailed(Exception):
    """A side could not do what it was asked; the message is the last line that it wrote."""


@dataclass(frozen=True)
class Turn:
    """What a side has done in one turn.

    Attributes:
        count: steps.
        wall, processor: seconds in all; processor time is that of all of the process's threads.
        numbers: what the side has to tell of each step, such as its loss.
    """

    count: int
    wall: float
    processor: float
    numbers: tuple[float, ...]


@dataclass(frozen=True)
class Peaks:
    """Bytes in use at most: over the turns, and over the side's whole life, which includes being built."""

    turns: int
    life: int


def serve(connection: Connection, where: str, settings: Any, log: Path) -> None:
    """A child process: build a side, then do as the parent says.

    Args:
        connection: takes (name of a method, arguments) and gives back what it returned.
        where: `module:class` of the side.
        settings: what the class is made with; has `device` and `threads`.
        log: file for all that is printed.
    """
    with log.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch  # the parent, which reads this file too, needs it late or not at all

    from benchmarks.pairs.memory import Meter

    torch.set_num_threads(settings.threads)
    meter = Meter(settings.device)
    module, name = where.split(":")
    side = getattr(importlib.import_module(module), name)(settings)
    connection.send(side.size)
    while True:
        method, arguments = connection.recv()
        if method == "end":
            return
        if method == "turn":
            connection.send(take_turn(side, *arguments))
        elif method == "peaks":
            connection.send(Peaks(meter.peak, meter.life))
        elif method == "restart":
            meter.restart()
            connection.send(None)
        else:
            connection.send(getattr(side, method)(*arguments))


def take_turn(side: Any, count: int) -> Turn:
    """Let a side do `count` steps, timed from a quiet device to a quiet device."""
    import torch  # see serve

    quiet = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    side.get_ready(count)
    quiet()
    wall, processor = time.perf_counter(), time.process_time()
    numbers = side.steps(count)
    quiet()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return Turn(count, wall, processor, tuple(float(number) for number in numbers))


class Child:
    """A side in a process of its own; building it begins at once, and `ready` waits for its end.

    Args:
        name: for messages.
        where, settings: see `serve`.
        folder: where the log of what it prints goes.
    """

    def __init__(self, name: str, where: str, settings: Any, folder: Path) -> None:
        self.name, self._log = name, folder / f"{name}.log"
        self._connection, theirs = SPAWN.Pipe()
        arguments = (theirs, where, settings, self._log)
        self._process = SPAWN.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def ready(self) -> int:
        """Wait until it is built; returns its size, the count of numbers that it trains.

        Raises:
            SideFailed: it could not be built.
        """
        return self._receive()

    def ask(self, method: str, *arguments: Any) -> Any:
        """What the side's method returns.

        Raises:
            SideFailed: it failed.
        """
        try:
            self._connection.send((method, arguments))
        except OSError:
            raise self._failure() from None
        return self._receive()

    def end(self) -> None:
        """Let the process go, and wait until it has."""
        try:
            self._connection.send(("end", ()))
        except OSError:
            pass  # it has gone already
        self._process.join(GRACE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self) -> Any:
        try:
            if self._connection.poll(PATIENCE):
                return self._connection.recv()
        except (EOFError, OSError):
            raise self._failure() from None
        raise SideFailed(f"{self.name}: no answer in {PATIENCE} s")

    def _failure(self) -> SideFailed:
        self._process.join(GRACE)
        code = self._process.exitcode
        if code is not None and code < 0:
            return SideFailed(f"{self.name}: killed by {signal.Signals(-code).name}; too little memory, perhaps")
        text = self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""
        lines = [line for line in text.splitlines() if line.strip()]
        return SideFailed(f"{self.name}: {lines[-1].strip() if lines else f'ended with {code}'}")


def take_turns(sides: Sequence[Child], pairs: int, count: int) -> Iterator[list[Turn]]:
    """Pairs of turns of `count` steps, in the order of `sides`; who goes first changes from pair to pair.

    The second of a pair would otherwise always find the machine as the first has left it.
    """
    for pair in range(pairs):
        order = list(range(len(sides)))
        done = {which: sides[which].ask("turn", count) for which in (order if pair % 2 == 0 else reversed(order))}
        yield [done[which] for which in order]


@dataclass(frozen=True)
class Ratio:
    """The middle of some ratios, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Ratio":
        """From at least one ratio."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f}-{self.high:.3f})"


def on_one_line(error: SideFailed) -> str:
    """A failure for a table."""
    text = " ".join(str(error).split()).replace("|", "/")
    return text if len(text) <= 160 else text[:157] + "..."


def tell(line: str) -> None:
    """Print at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
