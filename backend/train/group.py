"""The processes that train one network together: they add up a step's gradients, agree on what all must know, and
notice when one of them is gone.

Modules are not wrapped in DistributedDataParallel, whose forward pass nothing here calls. After the micro-batches of a
step all gradients, the loss and what must be agreed on are one vector, which is summed over the processes; losses are
shares of the whole step's mean (loss.py), so the sum of the gradients is the gradient of the step.
"""

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from backend.errors import UserError
from backend.processes import Place
from backend.train.stop import StopRequest
from backend.train.wire import LIMIT, Stranger, pack, stranger, unpack

T = TypeVar("T")
# A GPU that waits for another one is asked so often; seconds.
POLL = 0.0005
# So long after a request to stop the first process waits for the others before it takes them for lost.
PATIENCE = 15.0
# Survivors wait so long for one another's sign of life.
SIGN_OF_LIFE = 3.0
# What a process leaves word of when another one is gone, and when it ends by an error that it tells itself.
NOTES = ("alive", "ended")


class LostProcess(UserError):
    """Another process is gone, or does not answer."""


class Group:
    """The processes of a run; a single one has nothing to add up and nobody to agree with.

    Args:
        place: this process among them.
        device: where its gradients are.

    Attributes:
        stop: whom the user asks to stop this process; None where nobody listens.
    """

    def __init__(self, place: Place | None = None, device: torch.device | None = None) -> None:
        self.place = place or Place()
        self.device = device or torch.device("cpu")
        self.stop: StopRequest | None = None
        self._all_stop = False
        self._has_lost = False

    @property
    def rank(self) -> int:
        """This process's number, from 0."""
        return self.place.rank

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self.place.size

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    @property
    def keeps_caches(self) -> bool:
        """Whether this process is the one of its machine that writes to the disk cache."""
        return self.place.local_rank == 0

    @property
    def is_stopping(self) -> bool:
        """Whether to end after this step: as asked for, with several processes as all have agreed in the step."""
        return self._all_stop if self.size > 1 else self.stop is not None and self.stop.asked

    def add_up(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
        """Sum the gradients over the processes, in place; returns the sum of the losses.

        A process whose share of the step was empty adds nothing. A parameter that no process has a gradient of still
        has none afterwards, since optimizers pass over such parameters.

        Args:
            parameters: those that are trained, in an order that is the same everywhere.
            loss: this process's share, a scalar.

        Raises:
            LostProcess: not every process has come to this step.
        """
        if self.size == 1:
            return loss
        asked = self.stop is not None and self.stop.asked
        told = [float(asked), *(float(one.grad is not None) for one in parameters)]
        signs = torch.tensor(told).to(self.device)
        gradients = [
            torch.zeros(one.numel(), device=self.device) if one.grad is None else one.grad.flatten().float()
            for one in parameters
        ]
        total = torch.cat([signs, loss.detach().float().reshape(1), *gradients])
        self._sum(total)
        head, loss, rest = total.split([len(told), 1, len(total) - len(told) - 1])
        stop, *has_gradient = head.tolist()
        self._all_stop = stop > 0
        for parameter, here, values in zip(
            parameters, has_gradient, rest.split([one.numel() for one in parameters]), strict=True
        ):
            if here and parameter.grad is None:
                parameter.grad = values.view_as(parameter).to(parameter.dtype)
            elif here:
                parameter.grad.copy_(values.view_as(parameter))
        return loss[0]

    def gather(self, value: T, problem: str | None = None, read: Callable[[Any], T] | None = None) -> list[T]:
        """Every process's value, by rank.

        Args:
            value: this process's; what `wire.pack` takes.
            problem: why it cannot go on; all end then.
            read: makes the value of what another process told, lists in place of tuples; raises ValueError where it
                is none. Left out, nothing but None is taken.

        Raises:
            UserError: with the problem of the first process that has one; another process sent what is no value.
            LostProcess: a process is gone.
        """
        if self.size == 1:
            return [value]
        found = [self._told(rank, data) for rank, data in enumerate(self._exchange(pack([problem, host(), value])))]
        for rank, (reason, name, _) in enumerate(found):
            if reason is not None:
                where = "" if rank == 0 else f"process {rank} of {self.size}, on {name}: "
                raise Agreed(where + reason, told=not self.is_first)
        values = []
        for rank, (_, _, told) in enumerate(found):
            try:
                values.append(value if rank == self.rank else (read or _nothing)(told))
            except (ValueError, TypeError) as error:
                raise stranger(self._name(rank), str(error)) from error
        return values

    def _exchange(self, message: bytes) -> list[bytes]:
        """Every process's message, by rank: first their lengths, then all as long as the longest.

        Raises:
            UserError: another process announces more than any of ours would.
            LostProcess: a process is gone.
        """
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with self._noticing():
            dist.all_gather(lengths, torch.tensor([len(message)]))
        sizes = [int(length) for length in lengths]
        for rank, size in enumerate(sizes):
            if not 0 < size <= LIMIT:
                raise stranger(self._name(rank), f"it announces {size} bytes")
        own = torch.zeros(max(sizes), dtype=torch.uint8)
        own[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        parts = [torch.zeros_like(own) for _ in range(self.size)]
        with self._noticing():
            dist.all_gather(parts, own)
        return [part[:size].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]

    def _told(self, rank: int, data: bytes) -> tuple[str | None, str, Any]:
        """A process's problem, host and value.

        Raises:
            UserError: it sent none.
        """
        told = unpack(data, self._name(rank))
        if not isinstance(told, list) or len(told) != 3 or not isinstance(told[1], str):
            raise stranger(self._name(rank), "it says no problem, host and value")
        if not (told[0] is None or isinstance(told[0], str)):
            raise stranger(self._name(rank), "its problem is no text")
        return told[0], told[1], told[2]

    def _name(self, rank: int) -> str:
        return f"process {rank} of {self.size}"

    def of_first(self, value: int) -> int:
        """The first process's whole number."""
        return self.gather(value, read=_whole)[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within it a mistake that one process finds ends all of them, and is told once."""
        try:
            yield
        except (Agreed, LostProcess, Stranger):
            raise
        except UserError as error:
            try:
                self.gather(None, str(error))
            except Agreed:
                if not self.is_first:
                    raise
            raise
        self.gather(None)

    @contextmanager
    def one_after_another(self) -> Iterator[None]:
        """Within it the process of each machine that writes to the disk cache goes first, and the others follow."""
        if not self.keeps_caches:
            self.gather(None)
        yield
        if self.keeps_caches:
            self.gather(None)

    def tell_of_loss(self, when: str, remedy: Callable[[bool], str]) -> UserError:
        """What to say when a process is gone, for one of those that are left to say it.

        Args:
            when: where in the run it was noticed.
            remedy: what the user can do, given whether the first process is still there.
        """
        self._has_lost = True
        alive, ended = self._survivors()
        missing = [rank for rank in range(self.size) if rank not in alive]
        how = "ended with an error" if missing and set(missing) <= set(ended) else "was lost"
        named = " and ".join(str(rank) for rank in missing)
        who = f"process {named} of {self.size} {how}" if missing else "a process does not answer: the run ended"
        told = self.rank != min(alive) or 0 in ended
        return UserError(f"{who} {when}; {remedy(0 in alive)}", told=told, status=1)

    def note_survival(self) -> None:
        """Let the others know that this process has noticed and is still there."""
        self._note("alive")

    def leave(self) -> None:
        """End of the run for this process, in peace."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def leave_with_error(self) -> None:
        """End of the run for this process, which tells its own error; the others notice at once."""
        if self.size == 1 or not dist.is_initialized():
            return
        store = _store()
        self._note("ended")
        if self.device.type == "cpu":
            dist.destroy_process_group()
        else:
            # What waits on the GPU for a process that is gone would keep this one from ending.
            dist.distributed_c10d._abort_process_group()
        if not self._has_lost:
            # The first process may be the one that keeps the notes.
            self._wait_for_notes(store)

    def _sum(self, values: Tensor) -> None:
        """Sum a vector over the processes, in place, and wait for it: nothing is learnt from a step that is not whole.

        A CPU's connections break when a process dies. GPUs of one machine would wait for ever, so they are asked again
        and again, which leaves Python free to hear that the launcher ends the run.
        """
        with self._noticing():
            work = dist.all_reduce(values, async_op=True)
            while self.device.type != "cpu" and not work.is_completed():
                if self.stop is not None and self.stop.seconds_ago > PATIENCE:
                    self._look_for_others()
                time.sleep(POLL)
            work.wait()

    def _look_for_others(self) -> None:
        """Raises LostProcess where the others cannot come any more; nobody but the first lets the others wait."""
        if self.is_first:
            raise LostProcess("the other processes do not come to this step any more")
        _store().check(["alive"])

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            message = "another process of the run is gone or does not answer; what it said stands above"
            raise LostProcess(message, status=1) from error

    def _note(self, what: str) -> None:
        store = _store()
        try:
            if store is not None:
                store.set(f"{what}/{self.rank}", "1")
        except RuntimeError:
            return

    def _survivors(self) -> tuple[list[int], list[int]]:
        """The processes that are still there, this one among them, and those that told an error of their own."""
        store = _store()
        self._wait_for_notes(store)
        try:
            noted = {
                what: [rank for rank in range(self.size) if store.check([f"{what}/{rank}"])]
                for what in ("alive", "ended")
            }
        except (RuntimeError, AttributeError):
            # The first process keeps the notes, unless torchrun does.
            return list(range(min(1, self.rank), self.size)), []
        return sorted({*noted["alive"], self.rank}), noted["ended"]

    def _wait_for_notes(self, store: Any) -> None:
        """Wait a little for every process to leave a note."""
        end = time.monotonic() + SIGN_OF_LIFE
        missing = set(range(self.size)) - {self.rank}
        try:
            while store is not None and missing and time.monotonic() < end:
                missing = {rank for rank in missing if not any(store.check([f"{note}/{rank}"]) for note in NOTES)}
                time.sleep(0.05)
        except RuntimeError:
            return


def host() -> str:
    """This machine's name."""
    return socket.gethostname()


def _nothing(told: Any) -> Any:
    if told is not None:
        raise ValueError("nothing was to be told")
    return None


def _whole(told: Any) -> int:
    if type(told) is not int or told < 0:
        raise ValueError("that is no whole number")
    return told


class Agreed(UserError):
    """A mistake that all processes know of."""


def _store() -> Any:
    """Where processes leave notes; None where there is none any more."""
    try:
        return dist.distributed_c10d._get_default_store()
    except (RuntimeError, ValueError):
        return None


def wait_limit(minutes: int) -> timedelta:
    """`ddp_timeout` as torch takes it."""
    return timedelta(minutes=minutes)
