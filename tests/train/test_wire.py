"""What processes of a run tell each other is read as values: whatever a stranger sends, none of it is run."""

import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from backend.errors import UserError
from backend.processes import Place
from backend.train import group as groups
from backend.train.group import Group
from backend.train.wire import MARK, pack, unpack

PROJECT = Path(__file__).parents[2]
# What anybody may tell: texts of all kinds but halves of surrogates, which are written out.
PLAIN = some.recursive(
    some.none() | some.booleans() | some.integers(-(2**64), 2**64) | some.floats(allow_nan=False)
    | some.text(some.characters(exclude_categories=("Cs",))),
    lambda below: some.lists(below, max_size=4)
    | some.dictionaries(some.text(some.characters(exclude_categories=("Cs",)), max_size=4), below, max_size=4),
    max_leaves=12,
)  # fmt: skip


def same(left: object, right: object) -> bool:
    """Equal in value and type, tensors too."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, list | tuple):
        return isinstance(right, list) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    return type(left) is type(right) and left == right


@given(PLAIN)
def test_a_value_comes_back(value) -> None:
    assert same(value, unpack(pack(value), "process 1"))


def test_tensors_come_back() -> None:
    base = torch.randn(4, 3, 2)
    value = [(1, [base[0], None]), (2, [base.to(torch.bfloat16), base[0]]), {"tensor": base[:, 1], "table": [base]}]
    assert same(value, unpack(pack(value), "process 1"))


def test_half_of_a_surrogate_pair_is_written_out() -> None:
    assert unpack(pack("a\udcff.png"), "process 1") == "a\\udcff.png"


def test_what_is_no_value_is_not_told() -> None:
    with pytest.raises(TypeError, match="Path cannot be told"):
        pack([Path("x")])


@given(some.binary(max_size=200) | some.tuples(some.integers(0, 2**64 - 1), some.binary(max_size=200)))
def test_any_bytes_are_a_value_or_one_line(told) -> None:
    data = told if isinstance(told, bytes) else MARK + struct.pack("<Q", told[0]) + told[1]
    _value_or_line(data)


@given(PLAIN, some.data())
def test_a_message_with_a_fault_is_a_value_or_one_line(value, draw) -> None:
    data = bytearray(pack([value, torch.arange(3)]))
    for _ in range(draw.draw(some.integers(1, 3))):
        data[draw.draw(some.integers(0, len(data) - 1))] = draw.draw(some.integers(0, 255))
    _value_or_line(bytes(data[: draw.draw(some.integers(0, len(data)))]))
    _value_or_line(bytes(data))


@given(PLAIN)
def test_any_json_is_a_value_or_one_line(value) -> None:
    text = json.dumps(value).encode()
    _value_or_line(MARK + struct.pack("<Q", len(text)) + text + pack(None)[len(MARK) + 8 + 4 :])


def _value_or_line(data: bytes) -> None:
    try:
        unpack(data, "process 1 of 2")
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
        assert error.message.startswith("process 1 of 2 sent what is no message of this run")


class Payload:
    """What a pickle of a stranger would run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_is_not_read(tmp_path) -> None:
    payload = Payload(tmp_path / "ran")
    for data in (pickle.dumps(payload), MARK + pickle.dumps(payload), pickle.dumps(payload, protocol=0)):
        with pytest.raises(UserError, match="no message of this run"):
            unpack(data, "process 0")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("bad", [5, "text", [1, 2, 3], {"value": 1}, [None, "host"], [1, "host", None], [None, 2, 3]])
def test_a_message_without_problem_host_and_value_is_refused(bad, monkeypatch) -> None:
    group = Group(Place(0, 2, 0, 1))
    monkeypatch.setattr(group, "_exchange", lambda own: [own, pack(bad)])
    with pytest.raises(UserError, match="process 1 of 2 sent what is no message"):
        group.gather(None)


@pytest.mark.parametrize("bad", ["text", -1, 1.5, True, None, [1]])
def test_a_seed_that_is_no_number_is_refused(bad, monkeypatch) -> None:
    group = Group(Place(1, 2, 0, 1))
    monkeypatch.setattr(group, "_exchange", lambda own: [pack([None, "host", bad]), own])
    with pytest.raises(UserError, match="process 0 of 2 sent what is no message"):
        group.of_first(3)


@pytest.mark.parametrize("size", [-1, 0, 2**62])
def test_no_room_is_made_for_what_is_announced(size, monkeypatch) -> None:
    def announce(lengths: list[torch.Tensor], _own: torch.Tensor) -> None:
        lengths[1].fill_(size)
        lengths[0].fill_(5)

    monkeypatch.setattr(groups.dist, "all_gather", announce)
    with pytest.raises(UserError, match=f"it announces {size} bytes"):
        Group(Place(0, 2, 0, 1)).gather(None)


# The first process of a run, as somebody else would write it: it sends a pickle where values are exchanged.
STRANGER = r"""
import os, pickle, sys, time
from datetime import timedelta
import torch, torch.distributed as dist
class Payload:
    def __reduce__(self):
        return exec, (f"import os; os.mkdir({sys.argv[1]!r})",)
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
store = dist.TCPStore("127.0.0.1", 0, 2, True, timedelta(seconds=120), wait_for_workers=False)
print(store.port, flush=True)
store = dist.PrefixStore("default_pg", store)
dist.init_process_group("gloo", store=store, rank=0, world_size=2, timeout=timedelta(seconds=120))
told = pickle.dumps((None, Payload(), "host"))
sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(2)]
dist.all_gather(sizes, torch.tensor([len(told)]))
own = torch.zeros(max(map(int, sizes)), dtype=torch.uint8)
own[: len(told)] = torch.tensor(list(told), dtype=torch.uint8)
dist.all_gather([torch.zeros_like(own) for _ in range(2)], own)
time.sleep(120)
"""


def test_a_strangers_pickle_is_not_run(tmp_path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(PROJECT)}
    mark = tmp_path / "ran"
    line = [sys.executable, "-c", STRANGER, str(mark)]
    with subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as other:
        try:
            port = int(other.stdout.readline())
            config = tmp_path / "theirs.toml"
            config.write_text(
                'pretrained_model_name_or_path = "backend/demo/model"\n'
                'dataset_config = "backend/demo/dataset/dataset.toml"\n'
                f'output_dir = "{tmp_path / "out"}"\noutput_name = "x"\nnum_processes = 2\nnum_machines = 2\n'
                f'machine_rank = 1\nmain_process_ip = "127.0.0.1"\nmain_process_port = {port}\n'
            )
            words = ["-m", "backend", "train_network", "--config_file", str(config)]
            done = subprocess.run(
                [sys.executable, *words],
                cwd=PROJECT,
                env=env,
                capture_output=True,
                text=True,
                timeout=300,
            )
        finally:
            other.kill()
    assert not mark.exists()
    assert done.returncode == 2
    assert "process 0 of 2 sent what is no message of this run (it speaks another language)" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
