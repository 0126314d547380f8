"""Files of torch's own format: what torch wrote comes out as torch reads it, and nothing that stands there is run."""

import argparse
import collections
import datetime
import io
import pathlib
import pickle
import pickletools
import subprocess
import sys
import tempfile
import types
import uuid
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.errors import UserError
from backend.families.storage import read_tensors
from backend.lora.pickled import load_pickled

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool,
          torch.float8_e4m3fn, torch.float8_e5m2)  # fmt: skip
RAN: list[object] = []


def trap(*arguments: object) -> None:
    """What a hostile file calls; it must never come here."""
    RAN.append(arguments)


class Call:
    """Pickles as a call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


class Told:
    """Another program's class that does something when its state is set."""

    def __setstate__(self, state: object) -> None:
        trap(state)

    def __getstate__(self) -> dict:
        return {"a": torch.ones(2)}


def saved(path: Path, content: object, **options: object) -> Path:
    torch.save(content, path, **options)
    return path


@st.composite
def tables(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Tables of tensors, some of them views of one another."""
    table: dict[str, torch.Tensor] = {}
    for number in range(draw(st.integers(1, 4))):
        shape, dtype = draw(st.lists(st.integers(0, 3), max_size=3)), draw(st.sampled_from(DTYPES))
        tensor = (torch.rand(shape) * 4).to(dtype)
        table[f"t{number}"] = tensor
        if tensor.dim() and len(tensor) and draw(st.booleans()):
            table[f"v{number}"] = tensor[draw(st.integers(0, len(tensor) - 1)) :]
            table[f"w{number}"] = tensor.transpose(0, -1)
    return table


@settings(deadline=None)
@given(tables(), st.booleans(), st.booleans(), st.integers(2, 5))
def test_tensors_are_read_as_torch_reads_them(table: dict, zipped: bool, mapped: bool, protocol: int) -> None:
    file = Path(tempfile.mkdtemp()) / "t.pt"
    torch.save({"state_dict": table}, file, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    try:
        found = load_pickled(file, mapped=mapped)["state_dict"]
        assert found.keys() == table.keys()
        for name, tensor in table.items():
            assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
            assert torch.equal(found[name].float(), tensor.float())
    finally:
        file.unlink()
        file.parent.rmdir()


def test_a_mapped_file_is_never_changed(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.pt", {"a": torch.zeros(64)})
    before = file.read_bytes()
    load_pickled(file, mapped=True)["a"].add_(1)
    assert file.read_bytes() == before


def leftovers() -> dict[str, object]:
    """What training programs leave beside weights."""
    omega = types.ModuleType("omegaconf.dictconfig")
    omega.DictConfig = type("DictConfig", (), {"__module__": "omegaconf.dictconfig"})
    light = types.ModuleType("pytorch_lightning.utilities.parsing")
    light.AttributeDict = type("AttributeDict", (dict,), {"__module__": "pytorch_lightning.utilities.parsing"})
    sys.modules.update({"omegaconf": omega, omega.__name__: omega, "pytorch_lightning": light})
    sys.modules.update({"pytorch_lightning.utilities": light, light.__name__: light})
    node = omega.DictConfig()
    node.content = {"x": 1}
    return {
        "scalar": numpy.float64(0.1),
        "array": numpy.arange(6, dtype="f4").reshape(2, 3),
        "fortran": numpy.asfortranarray(numpy.arange(6, dtype="i8").reshape(2, 3)),
        "objects": numpy.array([None, "x"], dtype=object),
        "random": numpy.random.default_rng(0).bit_generator.state,
        "legacy": numpy.random.RandomState(0),
        "default": collections.defaultdict(list, a=[1]),
        "ordered": collections.OrderedDict(a=1),
        "counter": collections.Counter("aab"),
        "queue": collections.deque([1, 2]),
        "path": pathlib.PurePosixPath("a/b"),
        "here": pathlib.Path("a/b"),
        "windows": pathlib.PureWindowsPath("c:/a"),
        "namespace": argparse.Namespace(lr=1e-4, path=pathlib.Path("x")),
        "simple": types.SimpleNamespace(a=1),
        "time": datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
        "id": uuid.UUID(int=5),
        "set": {1, 2},
        "frozen": frozenset("ab"),
        "bytes": b"\x00\xff",
        "complex": 1 + 2j,
        "omega": node,
        "attributes": light.AttributeDict(a=torch.ones(1)),
        "size": torch.Size([2]),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "version": torch.torch_version.TorchVersion("2.13.0"),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "function": torch.nn.functional.gelu,
        "kind": torch.optim.AdamW,
    }


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_what_training_programs_leave_is_passed_over(tmp_path: Path, zipped: bool, protocol: int) -> None:
    modules = dict(sys.modules)
    try:
        content = {"state_dict": {"a": torch.ones(2)}, "hyper_parameters": leftovers()}
        options = {"_use_new_zipfile_serialization": zipped, "pickle_protocol": protocol}
        file = saved(tmp_path / "a.ckpt", content, **options)
    finally:
        for name in sys.modules.keys() - modules.keys():
            if name.startswith(("omegaconf", "pytorch_lightning")):
                del sys.modules[name]
    assert read_tensors(file)[0].keys() == {"a"}
    found = load_pickled(file)["hyper_parameters"]
    assert found["default"] == {"a": [1]} and found["ordered"] == {"a": 1} and found["queue"] == [1, 2]
    assert torch.equal(found["array"], torch.arange(6.0).reshape(2, 3))
    assert torch.equal(found["fortran"], torch.arange(6).reshape(2, 3))
    assert float(found["scalar"]) == 0.1 and torch.equal(found["parameter"], torch.ones(2))
    assert torch.equal(found["attributes"]["a"], torch.ones(1))
    assert "omegaconf" not in sys.modules


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_arrays_of_either_numpy_are_weights(tmp_path: Path, module: str) -> None:
    """Numpy 2 moved what numpy 1 wrote."""
    buffer = io.BytesIO()
    torch.save({"w": numpy.arange(3, dtype="f2")}, buffer)
    source = zipfile.ZipFile(buffer)
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in data
                data = data.replace(b"numpy._core.multiarray", module.encode())
            target.writestr(entry.filename, data)
    assert read_tensors(tmp_path / "a.pt")[0]["w"].tolist() == [0, 1, 2]


CALLS = {
    "a function of a test": Call(trap, 1),
    "os.system": Call(__import__("os").system, "echo never"),
    "subprocess": Call(subprocess.Popen, ["true"]),
    "eval": Call(eval, "1"),
    "getattr": Call(getattr, Path("a"), "touch"),
    "open": Call(open, "never", "w"),
    "torch.load": Call(torch.load, "x"),
    "torch.hub": Call(torch.hub.load, "a/b", "c"),
    "numpy": Call(numpy.load, "x"),
    "a module": Call(__import__, "antigravity"),
    "within a partial": Call(__import__("functools").reduce, trap, [1, 2]),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("name", CALLS)
def test_no_call_is_ever_made(tmp_path: Path, name: str, zipped: bool) -> None:
    file = tmp_path / "bad.ckpt"
    content = {"state_dict": {"a": torch.ones(1)}, "extra": CALLS[name]}
    saved(file, content, _use_new_zipfile_serialization=zipped)
    RAN.clear()
    with pytest.raises(UserError, match="holds more than tensors: it would call .*which is not done") as error:
        load_pickled(file)
    assert not RAN and "\n" not in str(error.value) and "weights_only" not in str(error.value)


def test_no_state_is_ever_set_and_no_object_made(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.ckpt", {"state_dict": {"a": torch.ones(1)}, "x": Told()})
    RAN.clear()
    assert read_tensors(file)[0].keys() == {"a"} and not RAN
    model = saved(tmp_path / "model.pt", torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match="holds no named tensors"):
        read_tensors(model)


def hostile(opcodes: bytes, tmp_path: Path) -> object:
    """A file whose pickle is these operations."""
    with zipfile.ZipFile(tmp_path / "h.pt", "w") as archive:
        archive.writestr("h/data.pkl", opcodes)
        archive.writestr("h/data/0", bytes(16))
    return load_pickled(tmp_path / "h.pt")


def storage(count: int = 4) -> bytes:
    """Operations that put a storage of floats onto the stack."""
    head = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuJ"
    return head + count.to_bytes(4, "little") + b"tQ"


def rebuilt(offset: int, size: bytes, stride: bytes) -> bytes:
    head = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage()
    return head + b"J" + offset.to_bytes(4, "little") + size + stride + b"\x89}tR."


def test_tensors_that_cannot_be_are_refused(tmp_path: Path) -> None:
    good = hostile(rebuilt(0, b"(K\x02K\x02t", b"(K\x02K\x01t"), tmp_path)
    assert good.tolist() == [[0, 0], [0, 0]]
    for offset, size, stride in (
        (1, b"(K\x02K\x02t", b"(K\x02K\x01t"),
        (0, b"(K\x02t", b"(K\x09t"),
        (0, b"(J\xff\xff\xff\x7ft", b"(K\0t"),
        (0, b"(J\xff\xff\xff\xfft", b"(K\x01t"),
        (0, b"(K\x02t", b"(t"),
        (0, b"K\x02", b"K\x01"),
    ):
        with pytest.raises(UserError, match="is no file of tensors"):
            hostile(rebuilt(offset, size, stride), tmp_path)
    for broken in (b"(" * 9, b"\x85" * 9, b"Qa.", b"}(NNu"):
        with pytest.raises(UserError, match="is no file of tensors"):
            hostile(b"\x80\x02" + broken, tmp_path)
    # As a key, a tuple in a tuple in a tuple would be hashed to the end of the stack.
    assert hostile(b"\x80\x02}N" + b"\x85" * 200_000 + b"Ns.", tmp_path) == {}
    # A place in the memo that would ask for gigabytes.
    assert hostile(b"\x80\x02Nr\xff\xff\xff\xff.", tmp_path) is None


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_as_a_pickle_are_a_value_or_one_line(data: bytes) -> None:
    _checked(b"\x80\x02" + data)


OPCODES = st.sampled_from([one.code.encode("latin-1") for one in pickletools.opcodes])
NAMES = ("os.system", "torch.FloatStorage", "collections.OrderedDict", "tests.lora.test_pickled.trap", "numpy.dtype")
WORDS = st.sampled_from(
    [b"c" + "\n".join(name.rsplit(".", 1)).encode() + b"\n" for name in NAMES]
    + [b"ctorch._utils\n_rebuild_tensor_v2\n", b"K\x01", b"X\x01\0\0\0a", b"(t", storage()]
)


@settings(deadline=None)
@given(st.lists(OPCODES | WORDS, max_size=40))
def test_any_operations_are_a_value_or_one_line(pieces: list[bytes]) -> None:
    _checked(b"\x80\x02" + b"".join(pieces) + b".")


@settings(deadline=None)
@given(st.data())
def test_a_mutated_file_is_a_value_or_one_line(data: st.DataObject) -> None:
    content = bytearray(pickle.dumps({"a": [1, "x", (2.5, None)], "b": collections.OrderedDict(c=b"d")}, 2))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    _checked(bytes(content))


def _checked(opcodes: bytes) -> None:
    """Both formats; nothing is run, and what is refused is refused in one line."""
    folder = Path(tempfile.mkdtemp())
    head = b"".join(pickle.dumps(one, 2) for one in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    old = folder / "old.pt"
    old.write_bytes(head + opcodes + pickle.dumps([], 2))
    RAN.clear()
    try:
        for read in (lambda: hostile(opcodes, folder), lambda: load_pickled(old)):
            try:
                read()
            except UserError as error:
                assert len(str(error).splitlines()) == 1 and "weights_only" not in str(error)
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    assert not RAN
