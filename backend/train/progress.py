"""What a run tells while it trains: a bar on the terminal, events for the web side, and an eye on the loss."""

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm import tqdm

from backend import events
from backend.errors import UserError
from backend.terminal import EVENT_INTERVAL, say

SPEED_WINDOW = 50
LOG_LINES = 20


class Progress:
    """Follows the steps of a run.

    The loss of a step is read only when the next one has been queued: reading waits for the device, and one step
    later it has nothing left to wait for.

    Args:
        total: steps of the run.
        epochs: epochs of the run.
    """

    def __init__(self, total: int, epochs: int) -> None:
        self.total = total
        self.epochs = epochs
        self.losses: list[float] = []
        self._pending: tuple[int, Tensor] | None = None
        self._unreported: list[float] = []
        self._times: deque[float] = deque([time.monotonic()], maxlen=SPEED_WINDOW)
        self._last_event = -math.inf
        # Without a terminal there is no bar but a line now and then, so that a log stays readable.
        self._bar = tqdm(total=total, desc="training", unit="step", dynamic_ncols=True, disable=None)
        self._lines_every = max(1, total // LOG_LINES) if self._bar.disable else None

    def step(self, step: int, epoch: int, loss: Tensor, rates: dict[str, float]) -> None:
        """A step has been queued: its number from 1, its epoch from 1, its loss still on the device.

        Raises:
            UserError: the loss of the step before was not finite.
        """
        self.settle()
        self._pending = (step, loss)
        self._times.append(time.monotonic())
        self._bar.update()
        line_due = self._lines_every is not None and step % self._lines_every == 0
        if step == self.total or line_due or self._times[-1] - self._last_event >= EVENT_INTERVAL:
            if step == self.total or not self._unreported:
                self.settle()
            loss = self._report(step, epoch, rates)
            if line_due:
                say(f"step {step}/{self.total}, epoch {epoch}/{self.epochs}, loss {loss:.4f}")

    def settle(self) -> None:
        """Read the loss of the newest step, before something is made of its weights.

        Raises:
            UserError: it was not finite.
        """
        if self._pending is None:
            return
        step, tensor = self._pending
        self._pending = None
        loss = float(tensor)
        if not math.isfinite(loss):
            raise UserError(
                f"the loss became {loss} at step {step}, so training was stopped; files saved before are good. "
                "Try a lower learning_rate, or mixed_precision bf16 or no"
            )
        self.losses.append(loss)
        self._unreported.append(loss)

    @property
    def seconds_per_step(self) -> float:
        """Mean over the last steps; 0 before the first."""
        return (self._times[-1] - self._times[0]) / max(1, len(self._times) - 1)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time spent inside is no step's."""
        begin = time.monotonic()
        yield
        gap = time.monotonic() - begin
        self._times = deque((moment + gap for moment in self._times), maxlen=SPEED_WINDOW)

    def _report(self, step: int, epoch: int, rates: dict[str, float]) -> float:
        """Tell where the run stands; returns the mean loss since the last report."""
        self._last_event = time.monotonic()
        loss = sum(self._unreported) / len(self._unreported)
        self._unreported = []
        self._bar.set_postfix(loss=f"{loss:.4f}", epoch=f"{epoch}/{self.epochs}")
        events.emit(
            "progress",
            phase="training",
            step=step,
            total=self.total,
            epoch=epoch,
            epochs=self.epochs,
            loss=loss,
            lr=rates,
            seconds_per_step=self.seconds_per_step,
            seconds_left=self.seconds_per_step * (self.total - step),
        )
        return loss

    def close(self) -> None:
        """Take the bar down."""
        self._bar.close()


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether every number of every tensor is finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
