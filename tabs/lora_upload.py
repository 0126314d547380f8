"""Takes a LoRA file that came through the browser into the workspace's folder `loras`."""

import contextlib
import filecmp
import os
import shutil
from pathlib import Path

from backend.errors import UserError, workspace_errors
from backend.header import read_header
from backend.workspace import CHECKPOINT, WEIGHTS, Workspace, kind_of, make_slug

FIELD = "upload"
# Left on the disk for whatever else goes on.
SPARE_BYTES = 64 * 1024**2


def take_lora(workspace: Workspace, file: Path) -> Path:
    """Move an uploaded file to `loras`, under a safe name; one that is there already is not taken twice.

    What is in a .ckpt or .pt is not looked at here: it may hold code, and only the tools know how to read it safely.

    Args:
        workspace: whose `loras`.
        file: what the browser has sent, already on disk; it is gone afterwards.

    Returns:
        Where it lies now.

    Raises:
        UserError: it is no LoRA, or the disk is full.
    """
    with workspace_errors(FIELD):
        try:
            _judge(file)
            folder = workspace.resolve(workspace.loras, field=FIELD)
            folder.mkdir(parents=True, exist_ok=True)
            suffix = file.suffix.lower()
            stem = make_slug(file.name[: -len(suffix)], "lora")
            target, number = folder / f"{stem}{suffix}", 1
            while target.exists():
                if filecmp.cmp(file, target, shallow=False):
                    return target
                number += 1
                target = folder / f"{stem}-{number}{suffix}"
            _move(file, target)
        finally:
            file.unlink(missing_ok=True)
    return target


def _judge(file: Path) -> None:
    """Refuse what cannot be a LoRA.

    Raises:
        UserError: saying why.
    """
    suffix = file.suffix.lower()
    if suffix not in WEIGHTS:
        raise UserError(f"{file.name} is no LoRA file; send one that ends in {', '.join(WEIGHTS)}", FIELD)
    if not file.stat().st_size:
        raise UserError(f"{file.name} is empty; save it again", FIELD)
    if suffix == ".safetensors":
        try:
            names = read_header(file).tensors
        except UserError as error:
            raise UserError(f"{file.name} {error.message}", FIELD) from error
        if kind_of(file) == CHECKPOINT:
            raise UserError(f"{file.name} is a whole model and no LoRA; put it into the folder models", FIELD)
        if not names:
            raise UserError(f"{file.name} holds nothing", FIELD)


def _move(file: Path, target: Path) -> None:
    """Put a file there whole or not at all; one that has come there meanwhile stays."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with contextlib.suppress(OSError):
            # On the same disk nothing is copied.
            os.rename(file, temporary)
        if not temporary.exists():
            free = shutil.disk_usage(target.parent).free
            if free < file.stat().st_size + SPARE_BYTES:
                raise UserError("the workspace's disk is full; delete old jobs or files", FIELD)
            shutil.copyfile(file, temporary)
        try:
            os.link(temporary, target)
        except FileExistsError as error:
            raise UserError(f"{target.name} has just been made by another; send it again", FIELD) from error
        except OSError:
            # A disk without links.
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
