"""Curves of a run for TensorBoard and Weights & Biases, both imported only where they are asked for."""

import importlib
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from backend.config.base import read_table, resolved_toml, values
from backend.config.train import TrainNetwork
from backend.config.training.logs import Logs as LogOptions
from backend.errors import UserError
from backend.terminal import say, warn

MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}


class Tracker(Protocol):
    """One program that curves are written for; `failures` is what it raises beside errors of the system."""

    failures: tuple[type[Exception], ...]

    def write(self, curves: Mapping[str, float], step: int, epoch: int) -> None:
        """Values of curves by name, after `step` steps, in epoch `epoch`."""

    def close(self) -> None:
        """Nothing more will come."""


class Logs:
    """All trackers of a run. One that fails later on, for want of disk or network say, costs a warning and not the run.

    Args:
        trackers: what is written to, by name.
    """

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self._trackers = dict(trackers)

    def write(self, curves: Mapping[str, float], step: int, epoch: int) -> None:
        """See `Tracker.write`."""
        for name, tracker in list(self._trackers.items()):
            with self._spared(name, tracker):
                tracker.write(curves, step, epoch)

    def close(self) -> None:
        """See `Tracker.close`."""
        for name, tracker in list(self._trackers.items()):
            with self._spared(name, tracker):
                tracker.close()
        self._trackers = {}

    @contextmanager
    def _spared(self, name: str, tracker: Tracker) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, ValueError, *tracker.failures) as error:
            self._trackers.pop(name, None)
            warn(f"nothing more is logged to {name}: {_gist(error)}")


class TensorBoard:
    """Writes the files that `tensorboard --logdir` shows.

    Args:
        folder: of this run.
        arguments: further ones of SummaryWriter.
        text: the run's options, to be kept beside the curves.
    """

    def __init__(self, folder: Path, arguments: Mapping[str, Any], text: str | None = None) -> None:
        self.failures: tuple[type[Exception], ...] = ()
        writer = _load("tensorboard").SummaryWriter
        with _refused("[tensorboard]"):
            self._writer = writer(str(folder), **arguments)
        if text is not None:
            self._writer.add_text("config", f"```\n{text}\n```")

    def write(self, curves: Mapping[str, float], step: int, epoch: int) -> None:
        """See `Tracker.write`."""
        for name, value in curves.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See `Tracker.close`."""
        self._writer.close()


class WeightsAndBiases:
    """Sends curves to wandb; its key is that of the environment or of an earlier `wandb login`.

    Args:
        project, name: of the run; None has wandb name it.
        folder: for wandb's own files, None is its default.
        arguments: further ones of wandb.init.
        options: the run's, to be kept beside the curves.
    """

    def __init__(
        self,
        project: str,
        name: str | None,
        folder: Path | None,
        arguments: Mapping[str, Any],
        options: Mapping[str, Any] | None = None,
    ) -> None:
        wandb = _load("wandb")
        self.failures = (wandb.Error,)
        given = {"project": project, "name": name, "dir": folder and str(folder), "config": options}
        with _refused("[wandb]", *self.failures):
            self._run = wandb.init(**{key: value for key, value in given.items() if value is not None} | arguments)
        self._run.define_metric("*", step_metric="global_step")

    def write(self, curves: Mapping[str, float], step: int, epoch: int) -> None:
        """See `Tracker.write`."""
        self._run.log({**curves, "global_step": step, "epoch": epoch})

    def close(self) -> None:
        """See `Tracker.close`."""
        self._run.finish()


def no_logs() -> Logs:
    """Logs that nobody reads."""
    return Logs({})


def check_logs(options: LogOptions) -> None:
    """See that everything that is asked for is there, before a model is loaded.

    Raises:
        UserError: a package is missing, the folder cannot be written to, or the tracker's toml is faulty.
    """
    for kind in options.kinds:
        _load(kind)
    tracker_arguments(options)
    if options.logging_dir is not None and options.kinds:
        try:
            options.logging_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or str(error)
            message = f"{options.logging_dir} cannot be made ({reason}); choose another"
            raise UserError(message, field="logging_dir") from None


def make_logs(config: TrainNetwork, started_at: float) -> Logs:
    """What the run's curves are written to.

    Args:
        config: the run's, with its seed.
        started_at: unix time, which names the run's folder.

    Raises:
        UserError: a tracker does not take its arguments, or does not let us in.
    """
    options, arguments = config.logs, tracker_arguments(config.logs)
    trackers: dict[str, Tracker] = {}
    folder = None
    if options.logging_dir is not None:
        stamp = time.strftime("%Y%m%d%H%M%S", time.localtime(started_at))
        folder = options.logging_dir / f"{options.log_prefix or ''}{stamp}"
    if "tensorboard" in options.kinds and folder is not None:
        text = resolved_toml(config) if options.log_config else None
        own = folder / options.log_tracker_name
        trackers["tensorboard"] = TensorBoard(own, arguments.get("tensorboard", {}), text)
        say(f"Logging to {own}; look at it with: tensorboard --logdir {shlex.quote(str(options.logging_dir))}")
    if "wandb" in options.kinds:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        logged = {name: _plain(value) for name, value in values(config).items()} if options.log_config else None
        trackers["wandb"] = WeightsAndBiases(
            options.log_tracker_name, options.wandb_run_name, folder, arguments.get("wandb", {}), logged
        )
    return Logs(trackers)


def tracker_arguments(options: LogOptions) -> dict[str, dict[str, Any]]:
    """The tables of `log_tracker_config` by tracker.

    Raises:
        UserError: the file is missing or not toml, or has a table of no tracker that is used.
    """
    if options.log_tracker_config is None:
        return {}
    tables = read_table(options.log_tracker_config, "log_tracker_config")
    for name, table in tables.items():
        if name not in options.kinds or not isinstance(table, dict):
            known = " and ".join(f"[{kind}]" for kind in options.kinds)
            raise UserError(f"has {name}, but takes the table {known} alone", field="log_tracker_config")
    return tables


def _load(kind: str) -> ModuleType:
    """The module of a tracker.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(MODULES[kind])
    except ImportError as error:
        message = f"{kind} needs a package that is not here ({_gist(error)}); `pip install {kind}`, or leave it out"
        raise UserError(message, field="log_with") from None


@contextmanager
def _refused(table: str, *errors: type[Exception]) -> Iterator[None]:
    """Turns what a tracker says to its arguments into one line."""
    try:
        yield
    except (TypeError, ValueError, OSError, *errors) as error:
        field = "log_tracker_config" if isinstance(error, TypeError) else "log_with"
        raise UserError(f"{table} cannot be begun: {_gist(error)}", field=field) from None


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _gist(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
