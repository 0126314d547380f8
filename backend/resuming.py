"""Letting a run go on that has ended early: a new job of the same options, from the newest state that can be read.

The new job's folder has all it needs: the state and the sample pictures as second names of the same files, and the
events up to the state's step, so that its curve is that of the whole run. Either of the two can be deleted.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from backend import events
from backend.errors import UserError
from backend.job import Job
from backend.jobs import Jobs
from backend.states import Position, check_state

NO_STATE = "no state was saved"
BROKEN = "its states are gone or broken"
RESUMED = "a run goes on from it"
UNENDED = "it has not ended"
FINISHED = "it is finished"

# Of what a run has told, what still holds for the one that goes on from it.
_KEPT = ("progress", "validation")


@dataclass(frozen=True)
class Point:
    """Where a run can go on from.

    Attributes:
        folder: of the state.
        position: that it was taken at.
    """

    folder: Path
    position: Position


def states_of(told: Iterable[dict[str, Any]]) -> list[tuple[int, str]]:
    """The states that a run has saved, by its events: step and folder."""
    return [
        (event["step"], event["path"])
        for event in told
        if event.get("event") == "state" and isinstance(event.get("step"), int) and _is_path(event.get("path"))
    ]


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def outlook(job: Job, jobs: Sequence[Job], states: Iterable[tuple[int, str]]) -> Point | str:
    """Where a run can go on from, or in a few words why it cannot.

    Args:
        job: the run.
        jobs: all there are.
        states: what it has saved, as `states_of` gives it.
    """
    if job.active or job.state == "finished":
        return UNENDED if job.active else FINISHED
    if any(other.active and other.resumes == job.id for other in jobs):
        return RESUMED
    found = sorted(set(states), reverse=True)
    for _, folder in found:
        try:
            return Point(Path(folder), check_state(Path(folder)))
        except UserError:
            continue
    return BROKEN if found else NO_STATE


def resume(jobs: Jobs, job_id: str) -> Job:
    """Put a job into the queue that goes on where another has ended.

    Raises:
        UserError: there is no such job, it cannot be resumed, or the disk is full.
        ConfigError: its options are no longer valid.
    """
    job = jobs.get(job_id)
    point = outlook(job, jobs.list(), states_of(events.every(job.events)))
    if isinstance(point, str):
        raise UserError(f"the run cannot be resumed: {point}", "job")
    return jobs.start(job.command, partial(_config, job, point), job.title, partial(_carry_over, job, point))


def _config(job: Job, point: Point, output: Path) -> str:
    """The job's options as it had resolved them, for a run into another folder that begins with the state."""
    # Imported when a job is made, as jobs.py does.
    from backend import commands
    from backend.config import base

    kind = commands.find(job.command).config_class()
    given = base.resolve(kind, base.read_toml(kind, job.config))
    resolved = job.output / f"{base.values(given)['output_name']}.config.toml"
    if resolved.is_file():
        given = base.resolve(kind, base.read_toml(kind, resolved))
    changes = {"output_dir": str(output), "resume": str(output / point.folder.name)}
    return base.to_toml(base.values(base.resolve(kind, base.values(given), changes), changed_only=True), kind)


def _carry_over(job: Job, point: Point, making: Path, folder: Path) -> dict[str, object]:
    """Put into a new job's folder what it begins with; gives what is to be known of it.

    Args:
        job: which it goes on from.
        point: where.
        making: the new job's folder.
        folder: what that will be called.
    """
    step, state = point.position.step, point.folder.name
    (making / "output" / state).mkdir()
    for file in point.folder.iterdir():
        _second_name(file, making / "output" / state / file.name)
    newest: dict[str, Any] = {}
    with (making / "events.jsonl").open("w", encoding="utf-8") as file:
        for event in _told_up_to(job, step, making, folder):
            file.write(json.dumps(event, ensure_ascii=False) + "\n")
            if event["event"] == "progress":
                newest = event
        told = {name: newest[name] for name in ("time", "epoch", "epochs", "lr") if name in newest}
        told |= {"event": "progress", "step": step, "total": point.position.total_steps, "resumed": True}
        file.write(json.dumps(told) + "\n")
        told = {"event": "state", "step": step, "path": str(folder / "output" / state)}
        file.write(json.dumps(told) + "\n")
    return {"resumes": job.id, "first_step": step}


def _told_up_to(job: Job, step: int, making: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """A run's events up to a step; sample pictures are given second names in the new job's folder."""
    for event in events.every(job.events):
        if not isinstance(event.get("step"), int) or event["step"] > step or event.get("resumed"):
            continue
        if event.get("event") in _KEPT:
            yield event
        elif event.get("event") == "sample":
            # The job's own pictures alone, as where they are shown.
            if not _is_path(event.get("path")):
                continue
            path, home = Path(os.path.realpath(event["path"])), job.folder.resolve()
            if path.is_relative_to(home / "output") and path.is_file():
                own = path.relative_to(home)
                (making / own).parent.mkdir(parents=True, exist_ok=True)
                _second_name(path, making / own)
                yield {**event, "path": str(folder / own)}


def _second_name(file: Path, name: Path) -> None:
    """Another name of a file, or a copy where the disk knows no second names."""
    try:
        os.link(file, name)
    except FileExistsError:
        return
    except OSError:
        shutil.copyfile(file, name)
