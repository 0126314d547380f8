"""Reading a safetensors file's header: names, shapes and metadata without the tensors. Knows no torch."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from backend.errors import UserError

LENGTH_BYTES = 8
# The format's own limit on the header; a longer one is a broken or hostile file.
MAX_HEADER_BYTES = 100_000_000
METADATA_KEY = "__metadata__"


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
        raise UserError("is no safetensors file, or is cut off; download or save it again", field=field)
    try:
        raw = json.loads(data[LENGTH_BYTES:size])
        metadata = {str(key): str(value) for key, value in raw.pop(METADATA_KEY, {}).items()}
        tensors = {
            name: TensorInfo(info["dtype"], tuple(info["shape"]), *info["data_offsets"]) for name, info in raw.items()
        }
        end = max((info.end for info in tensors.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise UserError("has a broken safetensors header; download or save it again", field=field) from error
    if size + end != total:
        raise UserError(f"should have {size + end} bytes and has {total}; download or save it again", field=field)
    return Header(metadata, tensors, size, raw)


def read_header(path: str | Path) -> Header:
    """The header of a safetensors file; the tensors are not read.

    Raises:
        UserError: the file is missing or is no complete safetensors file.
    """
    try:
        with open(path, "rb") as file:
            total = os.fstat(file.fileno()).st_size
            start = file.read(LENGTH_BYTES)
            length = int.from_bytes(start, "little")
            data = start + file.read(min(length, MAX_HEADER_BYTES))
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", field=str(path)) from error
    return parse_header(data, total, str(path))
