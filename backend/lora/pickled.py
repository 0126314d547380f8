"""Writing torch's own format, so that a full disk is known as one."""

from pathlib import Path
from typing import Any

import torch


def save_pickled(content: Any, path: Path) -> None:
    """`torch.save`, with a full disk as the OSError that it is.

    Torch closes its archive after a failed write and fails at that with an accident of its own, which hides what went
    wrong; where it writes into a file of Python's, the first error is kept as the context of the second.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
