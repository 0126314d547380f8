"""Tensor files: safetensors mapped into memory and written as a stream, pickles through weights-only loading."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from backend.errors import UserError
from backend.header import METADATA_KEY, pack_header
from backend.lora.pickled import load_pickled, save_pickled
from backend.lora.stream import bytes_of, entries_of, pour
from backend.replacing import replacing

SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")

# What the library and torch raise on a header that says what cannot be.
_UNREADABLE = (SafetensorError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, OverflowError)
# Names under which training programs keep their tables of weights.
_TABLES = ("state_dict", "model_state_dict", "model", "module", "net", "vae", "params_ema", "params", "weights")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by name, and its metadata (none in a pickle); on the CPU, mapped from the file.

    Raises:
        UserError: the file is missing, damaged, of another format, or a pickle that holds code.
    """
    if not path.is_file():
        what = "is a folder, a device or a pipe, not a model file" if path.exists() else "there is no such file"
        raise UserError(what, field=str(path))
    if path.suffix.lower() in SAFETENSORS_SUFFIXES:
        return _read_safetensors(path)
    if path.suffix.lower() in PICKLE_SUFFIXES:
        return _read_pickle(path), {}
    if path.suffix.lower() == ".gguf":
        raise UserError("is a GGUF file, whose weights are quantised; use a .safetensors file", field=str(path))
    raise UserError("not a model file; expected one that ends in .safetensors or .ckpt", field=str(path))


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except _UNREADABLE as error:
        words = " ".join(str(error).split())[:200]
        raise UserError(f"not a readable safetensors file ({words}); download or save it again", str(path)) from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    content = load_pickled(path, mapped=True)
    tensors = _named(content)
    for _ in _TABLES:
        if not isinstance(content, Mapping):
            break
        inner = next((content[name] for name in _TABLES if isinstance(content.get(name), Mapping)), None)
        if _named(inner):
            tensors = _named(inner)
        content = inner
    if not tensors:
        raise UserError("holds no named tensors, so it is not a model", field=str(path))
    return tensors


def _named(content: object) -> dict[str, Tensor]:
    items = content.items() if isinstance(content, Mapping) else ()
    return {name: value for name, value in items if isinstance(name, str) and isinstance(value, Tensor)}


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder whose files get to `path` when the block ends well; other files that are there stay."""
    here = path if path.is_dir() else path.parent
    here.mkdir(parents=True, exist_ok=True)
    temporary = here / f".{path.name}.{os.getpid()}.tmp"
    try:
        temporary.mkdir()
        yield temporary
        if not path.exists():
            os.rename(temporary, path)
            return
        for folder, _, names in os.walk(temporary):
            target = path / Path(folder).relative_to(temporary)
            target.mkdir(exist_ok=True)
            for name in names:
                os.replace(Path(folder, name), target / name)
    except OSError as error:
        if error.filename is None or Path(error.filename).is_relative_to(temporary):
            error.filename = str(path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[torch.dtype, Iterable[int]]],
    tensor: Callable[[str], Tensor | Iterator[Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file one tensor at a time, so that no second copy of a model is ever in memory.

    Args:
        path: file to replace; written to a temporary name first.
        shapes: type and shape of each tensor.
        tensor: called once per name, in the file's order; the whole tensor, or blocks of its rows one after another.
            They must fit what `shapes` says.
        metadata: strings for the header.
    """
    entries = entries_of(shapes)
    head: dict[str, object] = {METADATA_KEY: dict(metadata)} if metadata else {}

    def pieces() -> Iterator[memoryview]:
        for name in entries:
            value, count = tensor(name), 0
            dtype, shape = shapes[name][0], torch.Size(shapes[name][1])
            if isinstance(value, Tensor) and value.shape != shape:
                raise ValueError(f"{name} is {tuple(value.shape)}, announced as {tuple(shape)}")
            for block in [value] if isinstance(value, Tensor) else value:
                count += block.numel()
                if block.dtype != dtype or count > shape.numel():
                    raise ValueError(f"{name} has {count} numbers of {block.dtype}, announced as {shape} {dtype}")
                yield bytes_of(block)
            if count != shape.numel():
                raise ValueError(f"{name} has {count} numbers, announced as {tuple(shape)}")

    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(pack_header(head | entries))
        pour(file, pieces())


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None, metadata: Mapping[str, str]
) -> None:
    """Write tensors as `.safetensors`, or as `.ckpt`/`.pt`/`.bin` (then without metadata), by the file's name.

    Args:
        dtype: cast floating-point tensors to this type; None keeps each as it is.

    Raises:
        UserError: the name ends in something else.
    """

    def cast(value: Tensor) -> Tensor:
        return value.to(dtype) if dtype is not None and value.is_floating_point() else value

    def cast_type(value: Tensor) -> torch.dtype:
        return dtype if dtype is not None and value.is_floating_point() else value.dtype

    suffix = path.suffix.lower()
    if suffix in SAFETENSORS_SUFFIXES:
        shapes = {name: (cast_type(value), value.shape) for name, value in tensors.items()}
        write_safetensors(path, shapes, lambda name: cast(tensors[name]), metadata)
    elif suffix in PICKLE_SUFFIXES:
        # clone: a view or a mapped tensor would drag its whole storage into the pickle.
        content = {name: cast(value).detach().cpu().clone() for name, value in tensors.items()}
        with replacing(path) as temporary:
            save_pickled({"state_dict": content} if suffix == ".ckpt" else content, temporary)
    else:
        raise UserError("a model is saved as .safetensors or .ckpt; name the file so", field=str(path))
