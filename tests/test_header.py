"""Headers of safetensors files: right ones are read, all others end in one line; LoRA files are read by them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from backend.errors import UserError
from backend.header import METADATA_KEY, parse_header, read_header
from backend.lora.file import read_lora
from backend.lora.source import read_tensors

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
NAME = "lora_unet_x.lora_down.weight"


def packed(raw: object, body: bytes = b"\0" * 8) -> bytes:
    text = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
    return len(text).to_bytes(8, "little") + text + body


BROKEN: dict[str, object] = {
    "100 dimensions": {NAME: GOOD | {"shape": [1] * 99 + [2]}},
    "huge": {NAME: GOOD | {"shape": [2**62, 2**62]}},
    "huge and empty": {NAME: {"dtype": "F32", "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}},
    "negative shape": {NAME: GOOD | {"shape": [-1, -2]}},
    "negative offset": {NAME: GOOD | {"data_offsets": [-8, 0]}},
    "backwards": {NAME: GOOD | {"data_offsets": [8, 0]}},
    "beyond": {NAME: GOOD | {"data_offsets": [0, 2**70]}},
    "no number": {NAME: GOOD | {"shape": ["2"]}},
    "a fraction": {NAME: GOOD | {"shape": [2.0]}},
    "true": {NAME: GOOD | {"shape": [True, 2]}},
    "too few bytes": {NAME: GOOD | {"shape": [3]}},
    "three offsets": {NAME: GOOD | {"data_offsets": [0, 4, 8]}},
    "no table": {NAME: 3},
    "overlap": {NAME: GOOD, "b": GOOD},
    "hole": {NAME: {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}},
    "surrogate": b'{"\\ud800": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
    "surrogate in metadata": b'{"__metadata__": {"a": "\\udfff"}}',
    "deep": b'{"__metadata__": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "metadata is a list": {METADATA_KEY: [1], NAME: GOOD},
    "metadata is null": {METADATA_KEY: None, NAME: GOOD},
    "a list": [1],
    "digits": b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 8]}}',
    "not UTF-8": b'{"\xff": 1}',
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_header_is_one_line(tmp_path: Path, case: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(packed(BROKEN[case]))
    for read in (read_header, read_lora):
        with pytest.raises(UserError, match="a.safetensors: ") as caught:
            read(path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_types_that_no_lora_has_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(packed({NAME: {"dtype": "F4", "shape": [16], "data_offsets": [0, 8]}}))
    with pytest.raises(UserError, match="F4"):
        read_lora(path)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.safetensors")
    for path in (tmp_path / "a.safetensors", tmp_path, tmp_path / "a\0.safetensors"):
        with pytest.raises(UserError, match="pipe|no name of a file"):
            read_header(path)


def test_a_file_is_read_as_the_formats_own_library_does_whatever_its_name(tmp_path: Path) -> None:
    tensors = {
        f"lora_unet_x{n}.lora_down.weight": torch.arange(6).reshape(2, 3).to(dtype)
        for n, dtype in enumerate((torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool,
                                   torch.float8_e4m3fn, torch.uint8))
    } | {"empty": torch.ones(0, 3), "scalar": torch.tensor(2.5)}  # fmt: skip
    save_file(tensors, tmp_path / "a.safetensors", {"ss_a": "ä"})
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/l\xe9.safetensors"))
    strange.write_bytes((tmp_path / "a.safetensors").read_bytes())
    wanted = load_file(tmp_path / "a.safetensors")
    found, metadata = read_tensors(strange)
    assert metadata == {"ss_a": "ä"} and found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(found[name].view(torch.uint8) if tensor.ndim else found[name],
                           tensor.view(torch.uint8) if tensor.ndim else tensor)  # fmt: skip


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = LEAVES | st.lists(LEAVES, max_size=4) | st.dictionaries(st.text(max_size=8), LEAVES, max_size=4)
INFOS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "U8", "X"]) | VALUES,
        "shape": st.lists(st.integers(-2, 4), max_size=9) | VALUES,
        "data_offsets": st.lists(st.integers(-4, 40), min_size=2, max_size=2) | VALUES,
    }
)


@unhurried
@given(VALUES | st.dictionaries(st.text(max_size=9), INFOS | VALUES, max_size=3), st.binary(max_size=40))
def test_any_header_is_a_value_or_one_line(raw: Any, body: bytes) -> None:
    data = packed(raw, body)
    try:
        header = parse_header(data, len(data), "file")
        assert header.size + max((info.end for info in header.tensors.values()), default=0) == len(data)
    except UserError as error:
        assert "\n" not in str(error)


@unhurried
@given(data=st.data())
def test_any_bytes_are_a_lora_or_one_line(tmp_path: Path, data: st.DataObject) -> None:
    good = save({NAME: torch.ones(2, 4), NAME.replace("down", "up"): torch.ones(3, 2)}, {"ss_a": "b"})
    first = data.draw(st.integers(0, len(good)))
    changed = good[:first] + data.draw(st.binary(max_size=12)) + good[data.draw(st.integers(first, len(good))) :]
    for suffix in (".safetensors", ".pt"):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(changed)
        try:
            assert read_lora(path).layers
        except UserError as error:
            assert "\n" not in str(error)
