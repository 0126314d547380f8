"""Files of a run as a browser may have them, without a copy: a second name in the folder that Gradio serves from.

Gradio copies whatever lies elsewhere, which for a merged checkpoint takes minutes and the room of another checkpoint.
"""

import contextlib
import os
import shutil
from pathlib import Path

import gradio as gr

from backend.job import Job


def offered(job: Job, path: Path) -> Path:
    """The name under which a file of a run is served; its own where the disk knows no second names."""
    link = _folder(job.id) / path.name
    try:
        if link.exists() and not link.samefile(path):
            # The run has written it anew.
            link.unlink()
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, link)
    except OSError:
        return path
    return link


def forget(job_id: str) -> None:
    """Give up the second names of a deleted run's files, which would keep the disk full."""
    with contextlib.suppress(OSError):
        shutil.rmtree(_folder(job_id))


def forget_file(job_id: str, name: str) -> None:
    """Give up the second name of a single file of a run."""
    with contextlib.suppress(OSError):
        (_folder(job_id) / name).unlink()


def _folder(job_id: str) -> Path:
    return Path(os.environ.get("GRADIO_TEMP_DIR") or gr.utils.get_upload_folder()) / "runs" / job_id
