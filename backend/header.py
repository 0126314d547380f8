"""Reading a safetensors file's header: names, shapes and metadata without the tensors. Knows no torch."""

import json
import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.errors import UserError

LENGTH_BYTES = 8
# The format's own limit on the header; a longer one is a broken or hostile file.
MAX_HEADER_BYTES = 100_000_000
METADATA_KEY = "__metadata__"
# No weight of any model has more dimensions, and torch computes with no more than 64.
MAX_DIMENSIONS = 8
BITS: Mapping[str, int] = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}  # fmt: skip
NO_SAFETENSORS = "is no safetensors file, or is cut off; download or save it again"
BROKEN = "has a broken safetensors header; download or save it again"
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        dtype: as the format spells it ("F32", "F16", "BF16", "I64"...).
        shape: its dimensions.
        start, end: where its bytes are, counted from the end of the header.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What stands before the tensors.

    Attributes:
        metadata: the file's own text fields.
        tensors: by name, in the order of the header.
        size: bytes up to the first tensor.
        entries: what the header says of each tensor, as it stands there.
    """

    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]
    size: int
    entries: dict[str, object]


def pack_header(raw: dict[str, object]) -> bytes:
    """A safetensors header with its length in front, padded so that the tensors start at a multiple of 8 bytes.

    What UTF-8 cannot hold, such as half a surrogate pair out of a hostile file, becomes a question mark.
    """
    text = json.dumps(raw, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def parse_header(data: bytes, total: int, field: str) -> Header:
    """The header from a file's first bytes.

    Args:
        data: the beginning of the file, at least up to the end of the header.
        total: size of the whole file in bytes.
        field: the name under which errors are reported.

    Raises:
        UserError: this is no complete safetensors file.
    """
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    size = LENGTH_BYTES + length
    if len(data) < LENGTH_BYTES or length > MAX_HEADER_BYTES or size > total:
        raise UserError(NO_SAFETENSORS, field=field)
    try:
        raw = json.loads(data[LENGTH_BYTES:size])
        metadata = {str(key): str(value) for key, value in raw.pop(METADATA_KEY, {}).items()}
        tensors = {name: _tensor(info) for name, info in raw.items()}
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise UserError(BROKEN, field=field) from error
    # JSON can spell half of a surrogate pair, which no file, terminal or page can hold.
    if any(_SURROGATE.search(text) for text in (*tensors, *metadata, *metadata.values())):
        raise UserError(f"{BROKEN} (half of a surrogate pair in a name)", field=field)
    end = 0
    for info in sorted(tensors.values(), key=lambda info: (info.start, info.end)):
        if info.start != end:
            raise UserError(f"{BROKEN} (tensors that overlap, or holes between them)", field=field)
        end = info.end
    if size + end != total:
        message = f"is cut off or broken: it should have {size + end} bytes and has {total}"
        raise UserError(f"{message}; download or save it again", field=field)
    return Header(metadata, tensors, size, raw)


def _tensor(info: Any) -> TensorInfo:
    """One entry of a header.

    Raises:
        ValueError, KeyError, TypeError: it contradicts itself, or is none.
    """
    dtype, shape, (start, end) = info["dtype"], info["shape"], info["data_offsets"]
    numbers = (*shape, start, end)
    if not isinstance(dtype, str) or not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise ValueError("no dtype, or no shape")
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers) or start > end:
        raise ValueError("no numbers from 0")
    if math.prod(max(1, size) for size in shape) >= 2**63:
        raise ValueError("more numbers than can be counted")
    if dtype in BITS and (end - start) * 8 != math.prod(shape) * BITS[dtype]:
        raise ValueError("as many bytes as the shape has")
    return TensorInfo(dtype, tuple(shape), start, end)


def read_header(path: str | Path) -> Header:
    """The header of a safetensors file; the tensors are not read.

    Raises:
        UserError: the file is missing or is no complete safetensors file.
    """
    try:
        # A pipe would wait for its other end, were it not for O_NONBLOCK.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UserError("is a folder, a device or a pipe; name a file", field=str(path))
            with open(descriptor, "rb", closefd=False) as file:
                start = file.read(LENGTH_BYTES)
                length = int.from_bytes(start, "little")
                data = start + file.read(min(length, MAX_HEADER_BYTES))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", field=str(path)) from error
    except ValueError as error:
        raise UserError("is no name of a file", field=repr(str(path))) from error
    return parse_header(data, status.st_size, str(path))
