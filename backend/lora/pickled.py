"""Reading and writing torch's own format: nothing but tensors is loaded, and a full disk is known as one."""

import errno
import pickle
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from backend.errors import UserError

# What loading raises on a file that is cut off, altered or something else altogether.
_BROKEN = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    struct.error,
    zipfile.BadZipFile,
)


class _Placeholder(dict):
    """Stands for another program's own object: takes any state and does nothing."""

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        super().__init__()


def load_pickled(path: Path, inert: Sequence[str] = (), mapped: bool = False) -> Any:
    """`torch.load` of nothing but plain values and tensors, on the CPU.

    Args:
        inert: names of other programs' classes whose objects are to be read as empty.
        mapped: leave the tensors in the file until they are used, where its format allows that.

    Raises:
        UserError: the file is cut off, altered, or has code in it.
        OSError: it cannot be opened.
    """
    try:
        with torch.serialization.safe_globals([(_Placeholder, name) for name in inert]):
            mapped = mapped and zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (*_BROKEN, OSError) as error:
        # A file that is cut off can also make the reader seek to where there is nothing.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        message = "is no file of tensors, or is cut off, or holds more than tensors; use a .safetensors file"
        raise UserError(message, field=str(path)) from error


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
