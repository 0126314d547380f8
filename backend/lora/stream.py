"""Writing safetensors files tensor by tensor, without a second copy of what is written."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

import torch
from torch import Tensor

Shapes = Mapping[str, tuple[torch.dtype, Iterable[int]]]

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.complex64: "C64",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.bool: "BOOL",
}
# Tensors that may wait to be written.
QUEUED = 2


def entries_of(shapes: Shapes) -> dict[str, object]:
    """What the header says of each tensor, in the order of the file.

    Widest type first keeps every tensor aligned, as the format's own library orders them.
    """
    entries: dict[str, object] = {}
    end = 0
    for name in sorted(shapes, key=lambda name: (-shapes[name][0].itemsize, name)):
        dtype, shape = shapes[name][0], list(shapes[name][1])
        start, end = end, end + dtype.itemsize * torch.Size(shape).numel()
        entries[name] = {"dtype": DTYPE_NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    return entries


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's numbers as they stand in a file; a view where that is possible."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def pour(file: BinaryIO, pieces: Iterator[memoryview]) -> None:
    """Write pieces one after another; while one is written the next is made, by a thread of its own."""
    with ThreadPoolExecutor(1) as writer:
        pending: deque[Future[int]] = deque()
        for piece in pieces:
            pending.append(writer.submit(file.write, piece))
            if len(pending) > QUEUED:
                pending.popleft().result()
        for written in pending:
            written.result()
