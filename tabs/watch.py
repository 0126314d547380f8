"""What a browser has seen of a job: its events and log, read on from where the last look ended."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.job import Job
from backend.jobs import Jobs
from backend.resuming import states_of
from backend.workspace import WEIGHTS

LOG_CHARACTERS = 24_000
LOG_LINES = 250
KEPT_LOSSES = 20_000
PLOTTED = 300
KEPT_POINTS = 2_000
COLUMNS = 60
DIGITS = 5
WARNINGS = 3
PHASES = 5
SMOOTHING = 0.95


@dataclass(frozen=True)
class Sample:
    """A sample picture.

    Attributes:
        path: of the file.
        prompt: what it shows.
        seed: it was drawn with, "" where the event does not say.
    """

    path: str
    prompt: str
    seed: str


@dataclass
class Watch:
    """The state of one browser that looks at one job.

    Attributes:
        job_id: empty while there is none.
        losses: pairs of step and loss, thinned out when there are very many.
        validation: pairs of step and loss on held out pictures.
        curves: further pairs of step and value by kind ("learning rate", "gradient norm", "weight norm") and series.
        samples: sample pictures by the index of their prompt and their step.
        progress: the newest progress event, if any.
        phase: the newest phase event, if any.
        phases: the newest event of each phase, in the order in which they came.
        report: the newest report event, if any.
        states: step and folder of each state that the run has saved.
        seen: what was shown last, by part; what has not changed since is not sent again.
    """

    job_id: str = ""
    events_offset: int = 0
    log_offset: int = 0
    log: str = ""
    losses: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    curves: dict[str, dict[str, list[tuple[int, float]]]] = field(default_factory=dict)
    samples: dict[int, dict[int, Sample]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    progress: dict[str, Any] = field(default_factory=dict)
    phase: dict[str, Any] = field(default_factory=dict)
    phases: dict[str, dict[str, Any]] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    states: list[tuple[int, str]] = field(default_factory=list)
    seen: dict[str, Any] = field(default_factory=dict)

    def changed(self, part: str, value: Any) -> bool:
        """Whether a part differs from what was shown last; notes it as shown."""
        if part in self.seen and self.seen[part] == value:
            return False
        self.seen[part] = value
        return True

    def look_at(self, job_id: str) -> None:
        """Turn to another job."""
        if job_id != self.job_id:
            fresh = Watch(job_id, seen={"jobs": self.seen.get("jobs")})
            self.__dict__.update(fresh.__dict__)


def follow(jobs: Jobs, watch: Watch, job: Job) -> None:
    """Read on in the job's log and events."""
    news, watch.log_offset = jobs.tail(job.id, watch.log_offset)
    if news:
        watch.log = last_lines(watch.log + news)
    events, watch.events_offset = jobs.events(job.id, watch.events_offset)
    for event in events:
        _fold(watch, job, event)
    watch.states += states_of(events)
    if len(watch.losses) > KEPT_LOSSES:
        watch.losses = thin(watch.losses, KEPT_LOSSES // 2)
    for series in watch.curves.values():
        series |= {name: thin(points, KEPT_POINTS // 2) for name, points in series.items() if len(points) > KEPT_POINTS}


def last_lines(text: str) -> str:
    """The end of a log; a line that a progress bar has rewritten counts as what it was last."""
    lines = text[-LOG_CHARACTERS:].split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines[-LOG_LINES:])


def thin(points: Sequence[tuple[int, float]], count: int) -> list[tuple[int, float]]:
    """At most `count` points: runs of neighbours become their mean at their last step."""
    if len(points) <= count:
        return list(points)
    size = -(-len(points) // count)
    runs = (points[start : start + size] for start in range(0, len(points), size))
    return [(run[-1][0], sum(loss for _, loss in run) / len(run)) for run in runs]


def smooth(points: Sequence[tuple[int, float]], keep: float = SMOOTHING) -> list[tuple[int, float]]:
    """Exponential moving average, corrected for its start (Kingma and Ba 2015, section 3)."""
    average, weight, curve = 0.0, 0.0, []
    for step, loss in points:
        average = keep * average + (1 - keep) * loss
        weight = keep * weight + (1 - keep)
        curve.append((step, average / weight))
    return curve


def loss_curves(watch: Watch) -> dict[str, list[Any]]:
    """The columns of the loss plot: step, loss, series."""
    shown = {
        "loss": thin(watch.losses, PLOTTED),
        "average": thin(smooth(watch.losses), PLOTTED),
        "validation": thin(watch.validation, PLOTTED),
    }
    rows = [(step, rounded(loss), name) for name, points in shown.items() for step, loss in points]
    steps, losses, series = zip(*rows) if rows else ((), (), ())
    return {"step": list(steps), "loss": list(losses), "series": list(series)}


def rounded(value: float) -> float:
    """A number with as many digits as a plot can show: fewer bytes to send."""
    return float(f"{value:.{DIGITS}g}")


def outputs(job: Job) -> list[Path]:
    """The files a job has made for its user, newest first: weights, then the config that made them."""
    try:
        found = [path for path in job.output.iterdir() if path.is_file() and not path.name.startswith(".")]
        weights = sorted(
            (path for path in found if path.suffix in WEIGHTS), key=lambda path: path.stat().st_mtime, reverse=True
        )
    except OSError:
        return []
    return weights + sorted(path for path in found if path.suffix == ".toml")


def _fold(watch: Watch, job: Job, event: dict[str, Any]) -> None:
    kind = event.get("event")
    if kind == "progress":
        watch.progress = event
        _fold_numbers(watch, event)
    elif kind == "validation":
        step, loss = event.get("step"), event.get("loss")
        if isinstance(step, int) and _is_number(loss):
            watch.validation.append((step, float(loss)))
    elif kind == "phase":
        name = str(event.get("name", ""))
        if name != str(watch.phase.get("name", "")):
            watch.phases.pop(name, None)
        watch.phase = watch.phases[name] = event
        for oldest in list(watch.phases)[:-PHASES]:
            del watch.phases[oldest]
    elif kind == "report":
        watch.report = event
    elif kind == "warning":
        watch.warnings = [*watch.warnings, str(event.get("message", ""))][-WARNINGS:]
    elif kind == "sample":
        path = Path(str(event.get("path", "")))
        # Events are written by the job alone, but only its own pictures are shown.
        if _is_own(path, job.output):
            found = Sample(str(path), str(event.get("prompt", "")), str(event.get("seed", "")))
            row = watch.samples.setdefault(_whole(event.get("index")), {})
            row[_whole(event.get("step"))] = found


def _is_own(path: Path, folder: Path) -> bool:
    """Whether there is such a file in the folder; a path that the system refuses, too long say, is none."""
    try:
        return path.is_file() and path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):
        return False


def _fold_numbers(watch: Watch, event: dict[str, Any]) -> None:
    step = event.get("step")
    if not isinstance(step, int):
        return
    if _is_number(event.get("loss")):
        watch.losses.append((step, float(event["loss"])))
    series = {"gradient norm": {"gradients": event.get("gradient_norm")}}
    series |= {kind: event.get(name) for kind, name in (("learning rate", "lr"), ("weight norm", "weight_norm"))}
    for kind, values in series.items():
        for name, value in values.items() if isinstance(values, dict) else ():
            if _is_number(value):
                watch.curves.setdefault(kind, {}).setdefault(str(name), []).append((step, float(value)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0
