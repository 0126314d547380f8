"""What a run tells while it trains: a bar on the terminal, events for the web side, logs, and an eye on the loss."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from backend import events
from backend.errors import UserError
from backend.processes import is_first
from backend.terminal import EVENT_INTERVAL, no_bar, say
from backend.train.logs import Logs, no_logs
from backend.train.validation import Held

SPEED_WINDOW = 50
LOG_LINES = 20
# Events come fast at first, to be watched, and more slowly in a long run, whose record has to stay small.
SLOWEST, GROWTH = 2.0, 1 / 500
# Norms of weights take at most this share of the time.
NORM_SHARE = 0.005


@dataclass(frozen=True)
class Done:
    """One step as it has been queued.

    Attributes:
        step, epoch: its number and its epoch's, from 1.
        loss: still on the device.
        rates: the learning rate of each parameter group, by name.
        gradient_norm: before clipping, still on the device.
        pictures: how many it learnt from.
    """

    step: int
    epoch: int
    loss: Tensor
    rates: Mapping[str, float] = field(default_factory=dict)
    gradient_norm: Tensor | None = None
    pictures: int = 0


@dataclass(frozen=True)
class Gauges:
    """What is measured now and then, beside what every step brings.

    Attributes:
        weight_norms: mean and maximum norm of the network's changes, [2], on the device.
        memory: bytes in use, by name.
    """

    weight_norms: Callable[[], Tensor] | None = None
    memory: Callable[[], dict[str, int]] = dict


class Progress:
    """Follows the steps of a run.

    Numbers of a step are read only when the next one has been queued: reading waits for the device, and one step
    later it has nothing left to wait for.

    Args:
        total: steps of the run.
        epochs: epochs of the run.
        window: steps that `loss_average` is the mean of, those of an epoch.
        logs: what the curves are written to.
        gauges: what is measured now and then.
        first: steps done before, by a run that this one goes on from.
    """

    def __init__(
        self,
        total: int,
        epochs: int,
        window: int = 100,
        logs: Logs | None = None,
        gauges: Gauges | None = None,
        first: int = 0,
    ) -> None:
        self.total = total
        self.epochs = epochs
        self.losses: list[float] = []
        self._logs = logs or no_logs()
        self._gauges = gauges or Gauges()
        self._pending: Done | None = None
        self._unreported: list[float] = []
        self._recent: deque[float] = deque(maxlen=window)
        self._gradient_norm: float | None = None
        self._weight_norms: Tensor | None = None
        self._norms_due = -math.inf
        self._begun = time.monotonic()
        self._times: deque[float] = deque([self._begun], maxlen=SPEED_WINDOW)
        self._pictures: deque[int] = deque([0], maxlen=SPEED_WINDOW)
        self._last_event = -math.inf
        # Without a terminal there is no bar but a line now and then, so that a log stays readable.
        self._bar = tqdm(total=total, initial=first, desc="training", unit="step", dynamic_ncols=True, disable=no_bar())
        self._lines_every = max(1, total // LOG_LINES) if self._bar.disable else None

    def step(self, done: Done) -> None:
        """A step has been queued.

        Raises:
            UserError: the loss of the step before was not finite.
        """
        self.settle()
        self._pending = done
        self._times.append(time.monotonic())
        self._pictures.append(done.pictures)
        self._bar.update()
        line_due = self._lines_every is not None and done.step % self._lines_every == 0
        if done.step == self.total or line_due or self._times[-1] - self._last_event >= self._interval:
            if done.step == self.total or not self._unreported:
                self.settle()
            loss = self._report(done)
            if line_due:
                say(f"step {done.step}/{self.total}, epoch {done.epoch}/{self.epochs}, loss {loss:.4f}")

    def settle(self) -> None:
        """Read the numbers of the newest step, before something is made of its weights.

        Raises:
            UserError: its loss was not finite.
        """
        if self._pending is None:
            return
        done, self._pending = self._pending, None
        loss = float(done.loss)
        if not math.isfinite(loss):
            raise _not_finite(f"the loss became {loss} at step {done.step}")
        self.losses.append(loss)
        self._unreported.append(loss)
        self._recent.append(loss)
        curves = {"loss/current": loss, "loss/average": self.loss_average}
        curves |= {f"lr/{name.replace('text_encoder', 'textencoder')}": rate for name, rate in done.rates.items()}
        if done.gradient_norm is not None:
            self._gradient_norm = curves["norm/grad_norm"] = float(done.gradient_norm)
        self._logs.write(curves, done.step, done.epoch)

    def epoch_done(self, step: int, epoch: int) -> None:
        """An epoch has ended with step `step`; its numbers are read."""
        self.settle()
        if self._recent:
            self._logs.write({"loss/epoch_average": self.loss_average}, step, epoch)

    def validated(self, found: Held, step: int, epoch: int) -> None:
        """Tell the loss on the held out pictures after `step` steps, in epoch `epoch`.

        Raises:
            UserError: it is not finite.
        """
        if not math.isfinite(found.loss):
            raise _not_finite(f"the validation loss became {found.loss} after step {step}")
        by_timestep = {str(time): loss for time, loss in found.by_timestep.items()}
        events.emit("validation", step=step, epoch=epoch, loss=found.loss, by_timestep=by_timestep)
        curves = {"loss/validation/average": found.loss}
        curves |= {f"loss/validation/timestep_{time}": loss for time, loss in by_timestep.items()}
        self._logs.write(curves, step, epoch)
        listed = ", ".join(f"{loss:.4f} at {time}" for time, loss in by_timestep.items())
        say(f"validation loss {found.loss:.4f} after step {step} ({listed})")

    @property
    def loss_average(self) -> float:
        """Mean over the steps of the last epoch's length."""
        return math.fsum(self._recent) / len(self._recent)

    @property
    def seconds_per_step(self) -> float:
        """Mean over the last steps; 0 before the first."""
        return (self._times[-1] - self._times[0]) / max(1, len(self._times) - 1)

    @property
    def pictures_per_second(self) -> float:
        """Mean over the last steps; 0 before the first."""
        seconds = self._times[-1] - self._times[0]
        return sum(list(self._pictures)[1:]) / seconds if seconds > 0 else 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time spent inside is no step's."""
        begin = time.monotonic()
        yield
        gap = time.monotonic() - begin
        self._times = deque((moment + gap for moment in self._times), maxlen=SPEED_WINDOW)

    @property
    def _interval(self) -> float:
        return min(SLOWEST, max(EVENT_INTERVAL, (time.monotonic() - self._begun) * GROWTH))

    def _report(self, done: Done) -> float:
        """Tell where the run stands; returns the mean loss since the last report."""
        self._last_event = time.monotonic()
        loss = sum(self._unreported) / len(self._unreported)
        self._unreported = []
        self._bar.set_postfix(loss=f"{loss:.4f}", epoch=f"{done.epoch}/{self.epochs}")
        speed = {"seconds_per_step": self.seconds_per_step, "pictures_per_second": self.pictures_per_second}
        memory = self._gauges.memory()
        norms = self._read_norms(last=done.step == self.total)
        events.emit(
            "progress",
            phase="training",
            step=done.step,
            total=self.total,
            epoch=done.epoch,
            epochs=self.epochs,
            loss=loss,
            loss_average=self.loss_average,
            lr=done.rates,
            **({} if self._gradient_norm is None else {"gradient_norm": self._gradient_norm}),
            **({"weight_norm": norms} if norms else {}),
            **speed,
            seconds_left=self.seconds_per_step * (self.total - done.step),
            **({"memory": memory} if memory else {}),
        )
        curves = {"speed/pictures_per_second": speed["pictures_per_second"]}
        if speed["seconds_per_step"] > 0:
            curves["speed/steps_per_second"] = 1 / speed["seconds_per_step"]
        curves |= {f"memory/{name}_gb": size / 1e9 for name, size in memory.items()}
        if norms:
            curves |= {"norm/avg_key_norm": norms["mean"], "norm/max_key_norm": norms["max"]}
        self._logs.write(curves, done.step, done.epoch)
        return loss

    def _read_norms(self, last: bool) -> dict[str, float]:
        """The norms of weights that were queued at the last report, by now computed; queues new ones where due."""
        ready, self._weight_norms = self._weight_norms, None
        if self._gauges.weight_norms is not None and (last or time.monotonic() >= self._norms_due):
            begin = time.monotonic()
            self._weight_norms = self._gauges.weight_norms()
            took = time.monotonic() - begin
            self._norms_due = begin + max(EVENT_INTERVAL, took / NORM_SHARE)
            if last:
                ready, self._weight_norms = self._weight_norms, None
        return {} if ready is None else dict(zip(("mean", "max"), ready.tolist(), strict=True))

    def close(self) -> None:
        """Take the bar down and close the logs."""
        self._bar.close()
        self._logs.close()


def _not_finite(what: str) -> UserError:
    return UserError(
        f"{what}, so training was stopped; files saved before are good. Try a lower learning_rate, or mixed_precision "
        "bf16 or no",
        told=not is_first(),  # all processes see the same
    )


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether every number of every tensor is finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
