"""Following a pickle without ever running what it holds.

A pickle is a program: it names functions and says what to call them with. Here the program is only followed. A name
becomes a `Named`, a call becomes a note of what would have been called, and nothing is imported. So objects of other
programs (numpy, pathlib, Lightning, OmegaConf) beside the weights do no harm and need no package, and what notes a
tensor is made one by pickled.py.
"""

import pickle
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import IO, Any

import torch

_MOST_DIMENSIONS = 16
_LARGEST = 1 << 62

_STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
    "TypedStorage": torch.uint8,
    "UntypedStorage": torch.uint8,
}
# Of Python's own library, what people's settings are made of. All else of it that is called is refused by name: it may
# start programs or open files, and where it would not, it has no place beside weights.
_PLAIN = frozenset(
    {
        "_codecs.encode",
        "argparse.Namespace",
        "builtins.bool",
        "builtins.bytearray",
        "builtins.bytes",
        "builtins.complex",
        "builtins.dict",
        "builtins.float",
        "builtins.frozenset",
        "builtins.int",
        "builtins.list",
        "builtins.object",
        "builtins.range",
        "builtins.set",
        "builtins.slice",
        "builtins.str",
        "builtins.tuple",
        "collections.ChainMap",
        "collections.Counter",
        "collections.OrderedDict",
        "collections.UserDict",
        "collections.UserList",
        "collections.defaultdict",
        "collections.deque",
        "copyreg.__newobj__",
        "copyreg._reconstructor",
        "datetime.date",
        "datetime.datetime",
        "datetime.time",
        "datetime.timedelta",
        "datetime.timezone",
        "decimal.Decimal",
        "fractions.Fraction",
        "functools.partial",
        "random.Random",
        "re._compile",
        "types.SimpleNamespace",
        "uuid.SafeUUID",
        "uuid.UUID",
    }
)
_PLAIN_MODULES = ("pathlib", "typing")
_DICTS = ("collections.OrderedDict", "collections.defaultdict", "builtins.dict", "collections.Counter")
# Functions of numpy and torch that make values; every class of another package is taken for one as well.
_FUNCTIONS = frozenset(
    {
        "torch.device",
        "torch.serialization._get_layout",
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",
        "torch._utils._rebuild_device_tensor_from_numpy",
        "torch._utils._rebuild_meta_tensor_no_storage",
        "torch._utils._rebuild_nested_tensor",
        "torch._utils._rebuild_qtensor",
        "torch._utils._rebuild_sparse_tensor",
        "torch._utils._rebuild_wrapper_subclass",
    }
)
_NUMPY = (
    "scalar",
    "_reconstruct",
    "_frombuffer",
    "__randomstate_ctor",
    "__generator_ctor",
    "__bit_generator_ctor",
    "bool",
    "bool_",
    "dtype",
    "float16",
    "float32",
    "float64",
    "int32",
    "int64",
    "matrix",
    "ndarray",
    "str_",
)


class Called(pickle.UnpicklingError):
    """The pickle would call something that is no plain value."""


class Named:
    """A class or function that the pickle names; it is never looked up."""

    def __init__(self, name: str) -> None:
        self.name = name


class Noted(dict):
    """An object of another program: what made it, and its items; what it was told of its state is kept beside it."""

    def __init__(self, name: str, arguments: object = ()) -> None:
        super().__init__()
        self.name = name
        self.arguments = arguments
        self.state: object = None


@dataclass(frozen=True)
class Storage:
    """Numbers that lie beside the pickle.

    Attributes:
        key: where.
        dtype: of one number.
        first, count: which numbers of those under the key.
    """

    key: str
    dtype: torch.dtype
    first: int
    count: int


@dataclass(frozen=True)
class Shaped:
    """A tensor that is still to be made. A type of its own counts in place of the storage's."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


def _is_plain(name: str) -> bool:
    """Whether calling this could do no more than make a value, in the program that wrote it."""
    module, _, last = name.rpartition(".")
    package = name.split(".")[0]
    if name in _PLAIN or module.split(".")[0] in _PLAIN_MODULES and last.lstrip("_")[:1].isupper():
        return True
    if package == "builtins" or package in sys.stdlib_module_names:
        return False
    if package == "numpy" and (last in _NUMPY or last.startswith("__pyx_unpickle_")):
        return True
    return name in _FUNCTIONS or last.lstrip("_")[:1].isupper()


def _called(function: object, arguments: object) -> object:
    """What a call makes.

    Raises:
        Called: it is more than a value.
        UnpicklingError, ValueError: the call makes no sense.
    """
    if not isinstance(function, Named) or not isinstance(arguments, tuple):
        raise pickle.UnpicklingError("calls what is no function")
    name = function.name
    if name in _DICTS:
        pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
        return {key: value for key, value in pairs if _is_key(key)}
    if name == "torch.Size":
        return tuple(arguments[0])
    if name == "_codecs.encode" and isinstance(arguments[0], str):
        return arguments[0].encode("latin-1")
    made = _REBUILT.get(name)
    if made is not None:
        return made(*arguments)
    if not _is_plain(name):
        raise Called(name)
    if name in ("copyreg._reconstructor", "copyreg.__newobj__"):
        return _called(arguments[0], ())
    return [] if name == "collections.deque" else Noted(name, arguments)


def _tensor(storage: object, offset: object, size: object, stride: object, *rest: object) -> object:
    return _shaped(storage, offset, size, stride, None)


def _tensor_of_type(storage: object, offset: object, size: object, stride: object, *rest: object) -> object:
    kind = rest[2]
    name = kind.name.removeprefix("torch.") if isinstance(kind, Named) else ""
    dtype = getattr(torch, name, None) if name.isidentifier() else None
    if not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError("a tensor is of an unknown type")
    return _shaped(storage, offset, size, stride, dtype)


def _shaped(storage: object, offset: object, size: object, stride: object, dtype: torch.dtype | None) -> Shaped:
    if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise pickle.UnpicklingError("a tensor is not what tensors are")
    numbers = (offset, *size, *stride)
    if not all(map(_is_count, numbers)) or len(size) != len(stride):
        raise pickle.UnpicklingError("a tensor's shape is no shape")
    if len(size) > _MOST_DIMENSIONS:
        raise pickle.UnpicklingError("a tensor has too many dimensions")
    return Shaped(storage, offset, size, stride, dtype or storage.dtype)


_REBUILT: Mapping[str, Callable[..., object]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_type,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": lambda function, _kind, arguments, *_: _called(function, arguments),
}


def _is_count(number: object) -> bool:
    return type(number) is int and 0 <= number < _LARGEST


def _is_key(key: object) -> bool:
    # A tuple of tuples of tuples would be hashed by recursion, to the end of the stack.
    flat = key if isinstance(key, tuple) else (key,)
    return all(isinstance(one, str | int | float | bytes | Named | None) for one in flat)


class Reader(pickle._Unpickler):  # the one in Python, whose every step can be told what to do
    """Follows a pickle and calls nothing."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self._names: dict[str, Named] = {}
        # Of the numbers under each key, as the tensors that use them say.
        self.types: dict[str, torch.dtype] = {}

    def find_class(self, module: str, name: str) -> Named:
        """The name itself."""
        # Protocol 2 has the names of Python 2: `commands` for `subprocess`, say.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = f"{module}.{name}"
        return self._names.setdefault(full, Named(full))

    def persistent_load(self, pid: object) -> object:
        """The numbers that a tensor is made of."""
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "module":
            return pid[1]
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], Named):
            raise pickle.UnpicklingError("refers to something beside itself that is no tensor")
        _, kind, key, _, count, *view = pid
        dtype, first = _STORAGES.get(kind.name.rpartition(".")[2]), 0
        if view and view[0] is not None:
            _, first, count = view[0]
        if dtype is None or not isinstance(key, str) or not all(map(_is_count, (first, count))):
            raise pickle.UnpicklingError("has numbers of an unknown type")
        self.types[key] = dtype
        return Storage(key, dtype, first, count)

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _called(self.stack[-1], arguments)

    def _new(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _called(self.stack[-1], arguments)

    def _new_with_names(self) -> None:
        self.stack.pop()
        self._new()

    def _instance(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        self.append(_called(self.find_class(module, name), tuple(self.pop_mark())))

    def _object(self) -> None:
        kind, *arguments = self.pop_mark()
        self.append(_called(kind, tuple(arguments)))

    def _build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Noted):
            self.stack[-1].state = state

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._keep([key, value])

    def _set_items(self) -> None:
        self._keep(self.pop_mark())

    def _keep(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update({key: value for key, value in zip(items[::2], items[1::2], strict=True) if _is_key(key)})

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._keep(items)

    def _append(self) -> None:
        value = self.stack.pop()
        if isinstance(self.stack[-1], list):
            self.stack[-1].append(value)

    def _extend(self) -> None:
        items = self.pop_mark()
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def _no_set(self) -> None:
        self.append(Noted("builtins.set"))

    def _no_items(self) -> None:
        self.pop_mark()

    def _frozen_set(self) -> None:
        self.pop_mark()
        self._no_set()

    def _byte_array(self) -> None:
        # As many as there are, where Python's own makes room for as many as are announced.
        size = int.from_bytes(self.read(8), "little")
        self.append(self.read(min(size, sys.maxsize)))

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("has what no file of tensors has")


_STEPS = {
    pickle.REDUCE[0]: Reader._reduce,
    pickle.NEWOBJ[0]: Reader._new,
    pickle.NEWOBJ_EX[0]: Reader._new_with_names,
    pickle.INST[0]: Reader._instance,
    pickle.OBJ[0]: Reader._object,
    pickle.BUILD[0]: Reader._build,
    pickle.SETITEM[0]: Reader._set_item,
    pickle.SETITEMS[0]: Reader._set_items,
    pickle.DICT[0]: Reader._dict,
    pickle.APPEND[0]: Reader._append,
    pickle.APPENDS[0]: Reader._extend,
    pickle.EMPTY_SET[0]: Reader._no_set,
    pickle.ADDITEMS[0]: Reader._no_items,
    pickle.FROZENSET[0]: Reader._frozen_set,
    pickle.BYTEARRAY8[0]: Reader._byte_array,
}
_CODES = (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID)
_REFUSED = {code[0]: Reader._refuse for code in _CODES}
Reader.dispatch = MappingProxyType(dict(pickle._Unpickler.dispatch) | _STEPS | _REFUSED)
