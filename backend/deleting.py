"""Deleting single files of the workspace: LoRAs, what runs have made, pictures that were drawn. Knows no torch."""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.bounded import read_toml
from backend.errors import UserError, workspace_errors
from backend.job import JOB_ID, Job
from backend.jobs import Jobs
from backend.workspace import PROJECT, WEIGHTS, Workspace

LORA, MADE, PICTURE = "LoRA", "made by a run", "picture"
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
FIELD = "file"


@dataclass(frozen=True)
class Item:
    """A file that can be deleted.

    Attributes:
        path: of the file.
        kind: LORA, MADE or PICTURE.
        name: as it is called within its folder; of what a run has made, with the run's id before it.
        size: in bytes.
        changed: unix seconds.
    """

    path: Path
    kind: str
    name: str
    size: int
    changed: float

    @property
    def job_id(self) -> str:
        """The run that made it, "" if none did."""
        return self.path.parent.parent.name if self.kind == MADE else ""


def items(workspace: Workspace) -> list[Item]:
    """Everything that can be deleted by itself: the LoRAs, what runs have made, the pictures; each newest first."""
    found = [
        *_found(workspace.loras, workspace.loras.rglob("*"), LORA),
        *_found(workspace.jobs, workspace.jobs.glob("[0-9]*/output/*"), MADE),
        *_found(workspace.outputs, workspace.outputs.rglob("*"), PICTURE),
    ]
    order = {LORA: 0, MADE: 1, PICTURE: 2}
    return sorted(found, key=lambda item: (order[item.kind], -item.changed, item.name))


def _found(folder: Path, paths: Iterator[Path], kind: str) -> Iterator[Item]:
    endings = PICTURES if kind == PICTURE else WEIGHTS
    for path in paths:
        place = path.relative_to(folder)
        if any(part.startswith(".") for part in place.parts) or path.suffix.lower() not in endings:
            continue
        if kind == MADE and not JOB_ID.fullmatch(place.parts[0]):
            continue
        try:
            if not path.is_file() or not path.parent.resolve().is_relative_to(folder.resolve()):
                continue
            status = path.stat()
        except OSError:
            continue
        name = f"{place.parts[0]}/{place.name}" if kind == MADE else str(place)
        yield Item(path, kind, name, status.st_size, status.st_mtime)


def delete(jobs: Jobs, chosen: Collection[Path], drawn_with: Collection[str] = ()) -> list[Item]:
    """Delete files for good: all of them, or none where one is in use.

    Args:
        jobs: of the workspace.
        chosen: their paths, as `items` gives them.
        drawn_with: paths of the LoRAs and the model that a picture is being drawn with.

    Returns:
        What was deleted.

    Raises:
        UserError: one is in use or none of `items`, or the disk refuses.
    """
    known = {item.path: item for item in items(jobs.workspace)}
    active = [job for job in jobs.list() if job.active]
    for path in chosen:
        if path not in known:
            raise UserError(f"{path.name} is not there any more; choose again", FIELD)
        reason = use_of(path, active, drawn_with)
        if reason:
            raise UserError(f"{path.name} {reason}", FIELD)
    deleted = []
    with workspace_errors(FIELD):
        for path in chosen:
            path.unlink(missing_ok=True)
            deleted.append(known[path])
    return deleted


def use_of(path: Path, active: Collection[Job], drawn_with: Collection[str]) -> str:
    """What a file is in use for and what to do; "" where it is not.

    Args:
        path: of the file.
        active: the jobs that run or wait.
        drawn_with: paths that a picture is being drawn with.
    """
    for job in active:
        if path.is_relative_to(job.folder):
            return f"belongs to the run {job.title}, which has not ended; stop it or wait"
        if any(_names(text, path) for text in _texts(_config(job))):
            return f"is used by the run {job.title}, which has not ended; stop it or wait"
    if any(_names(text, path) for text in drawn_with):
        return "is used for a picture that is being drawn; cancel it or wait"
    return ""


def _config(job: Job) -> Mapping[str, Any]:
    try:
        return read_toml(job.config, None)
    except UserError:
        return {}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def _names(text: str, path: Path) -> bool:
    """Whether a text of a config is the path of a file or of a folder that it lies in."""
    if "/" not in text and os.sep not in text:
        return False
    try:
        named = (PROJECT / Path(text).expanduser()).resolve()
        return path.resolve().is_relative_to(named)
    except (OSError, ValueError, RuntimeError):
        return False
