"""Torch's own format, .ckpt, .pt, .pth and .bin: read without running what it holds, and written.

The pickle in the file is followed by unpickler.py, which calls nothing; what notes a tensor is made one here, from the
numbers that lie beside the pickle.
"""

import errno
import math
import mmap
import pickle
import struct
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from backend.errors import UserError
from backend.lora.unpickler import Called, Noted, Reader, Shaped, Storage

# What reading raises on a file that is cut off, altered or something else altogether.
_BROKEN = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
)
_MAGIC = 0x1950A86A20F9469CFC6C
# A pickle holds names and shapes, a few hundred bytes a tensor; the numbers lie beside it.
_MOST_PICKLE = 1 << 28
# An expanded tensor repeats its numbers; beyond this it is a small file that would fill the memory.
_MOST_EXPANDED = 1 << 20
# How deep tables of tensors are looked for: the file, a `state_dict` in it, a part of that.
_DEPTH = 4
_LOCAL_HEADER = 30
_ARRAYS = {
    "b1": torch.bool,
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
}

# All numbers under a key and of a type.
Numbers = Callable[[str, torch.dtype], Tensor]


def load_pickled(path: Path, mapped: bool = False) -> Any:
    """What a file of torch's holds, on the CPU: tables of tensors, and plain values.

    Objects of other programs come out as tables with what items they have. Tables are looked for in tables, not in
    lists, so that the states of an optimizer cost nothing.

    Args:
        mapped: leave the tensors in the file until they are used, where its format allows that. Changes to them do not
            reach the file.

    Raises:
        UserError: the file is cut off, altered, or has code in it, none of which is run.
        OSError: it cannot be opened.
    """
    try:
        with path.open("rb") as file:
            found, numbers = (_read_zip if zipfile.is_zipfile(file) else _read_old)(file, mapped)
            return _resolved(found, _Maker(numbers), _DEPTH, {})
    except Called as error:
        message = f"holds more than tensors: it would call {str(error)[:160]!a}, which is not done; "
        raise UserError(f"{message}use a .safetensors file", field=str(path)) from None
    except (*_BROKEN, OSError) as error:
        # A file that is cut off can also make the reader seek to where there is nothing.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        message = "is no file of tensors, or is cut off, or holds more than tensors; use a .safetensors file"
        raise UserError(message, field=str(path)) from None


def _read_zip(file: IO[bytes], mapped: bool) -> tuple[object, Numbers]:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
    root = min(name.removesuffix("data.pkl") for name in entries if name.count("/") == 1 and name.endswith("/data.pkl"))

    def place(name: str) -> tuple[int, int]:
        entry = entries[root + name]
        file.seek(entry.header_offset)
        head = file.read(_LOCAL_HEADER)
        if entry.compress_type != zipfile.ZIP_STORED or head[:4] != b"PK\x03\x04":
            raise zipfile.BadZipFile("is compressed")
        return entry.header_offset + _LOCAL_HEADER + sum(struct.unpack("<HH", head[26:])), entry.file_size

    def stored(name: str, most: int) -> bytes:
        start, size = place(name)
        if size > most:
            raise ValueError(f"{name} is too large")
        file.seek(start)
        return file.read(size)

    if f"{root}byteorder" in entries and stored("byteorder", 16) != b"little":
        raise ValueError("its numbers are in another order of bytes")
    found = Reader(BytesIO(stored("data.pkl", _MOST_PICKLE))).load()
    whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if mapped else None

    def numbers(key: str, dtype: torch.dtype) -> Tensor:
        start, size = place(f"data/{key}")
        if size == 0:
            return torch.empty(0, dtype=dtype)
        if whole is not None and start % dtype.itemsize == 0:
            return torch.frombuffer(whole, dtype=dtype, count=size // dtype.itemsize, offset=start)
        return _flat(stored(f"data/{key}", size), dtype)

    return found, numbers


def _read_old(file: IO[bytes], _mapped: bool) -> tuple[object, Numbers]:
    """The format before torch 1.6: pickles one after another, then the numbers."""
    file.seek(0)
    if Reader(file).load() != _MAGIC or Reader(file).load() != 1001:
        raise ValueError("is none of torch's")
    told = Reader(file).load()
    if not isinstance(told, dict) or told.get("little_endian") is not True:
        raise ValueError("its numbers are in another order of bytes")
    reader = Reader(file)
    found, flat = reader.load(), {}
    keys = Reader(file).load()
    if not isinstance(keys, list):
        raise ValueError("does not say where its numbers are")
    for key in keys:
        dtype = reader.types[key]
        size = struct.unpack("<Q", file.read(8))[0] * dtype.itemsize
        data = file.read(size)
        if len(data) != size:
            raise EOFError
        flat[key] = _flat(data, dtype)
    return found, lambda key, _: flat[key]


def _flat(data: bytes, dtype: torch.dtype) -> Tensor:
    if not data:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype, count=len(data) // dtype.itemsize)


class _Maker:
    """Makes tensors; those that share numbers in the file share them here too."""

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers
        self._made: dict[tuple[str, torch.dtype], Tensor] = {}

    def __call__(self, shaped: Shaped) -> Tensor:
        flat = self._of(shaped.storage)
        if shaped.dtype != flat.dtype:
            flat = flat.view(shaped.dtype)
        extent = sum((length - 1) * step for length, step in zip(shaped.size, shaped.stride)) + 1
        count = math.prod(shaped.size)
        if count and shaped.offset + extent > len(flat) or count > max(len(flat), _MOST_EXPANDED):
            raise ValueError("a tensor has more numbers than there are")
        # Of no numbers at all, where they begin is all the same.
        return flat.as_strided(shaped.size, shaped.stride, shaped.offset if count else 0)

    def _of(self, storage: Storage) -> Tensor:
        place = storage.key, storage.dtype
        if place not in self._made:
            self._made[place] = self._numbers(*place)
        found = self._made[place]
        if storage.first + storage.count > len(found):
            raise ValueError("numbers are missing")
        return found[storage.first : storage.first + storage.count]


def _resolved(value: object, make: _Maker, depth: int, done: dict[int, dict]) -> Any:
    if isinstance(value, Shaped):
        return make(value)
    if isinstance(value, Noted) and not value:
        array = _array(value)
        return value if array is None else array
    if not isinstance(value, dict) or not depth:
        return value
    if id(value) not in done:
        found = done[id(value)] = {}
        found.update({key: _resolved(one, make, depth - 1, done) for key, one in value.items()})
    return done[id(value)]


def _array(noted: Noted) -> Tensor | None:
    """An array or a number of numpy's as a tensor; None for anything else."""
    if noted.name.split(".")[0] != "numpy":
        return None
    name, arguments, fortran = noted.name.rpartition(".")[2], noted.arguments, False
    if name == "_reconstruct" and isinstance(noted.state, tuple):
        _, shape, kind, fortran, data = noted.state
    elif name == "_frombuffer":
        data, kind, shape, order = arguments
        fortran = order == "F"
    elif name == "scalar":
        (kind, data), shape = arguments, ()
    else:
        return None
    code = kind.arguments[0] if isinstance(kind, Noted) and kind.name == "numpy.dtype" else None
    little = code and (code[1:] == "1" or (isinstance(kind.state, tuple) and kind.state[1] == "<"))
    if code not in _ARRAYS or not little or not isinstance(data, bytes | bytearray):
        return None
    flat, shape = _flat(bytes(data), _ARRAYS[code]), tuple(shape)
    return flat.reshape(shape[::-1]).permute(*range(len(shape))[::-1]) if fortran else flat.reshape(shape)


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
