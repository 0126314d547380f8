"""Starting several processes and looking after them; what they run is a stand-in."""

import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from backend.config.base import resolve
from backend.config.train import TrainNetwork
from backend.config.training.devices import Devices
from backend.errors import ConfigError, UserError
from backend.processes import Place
from backend.train import joining, launch, meeting
from backend.train.stop import StopRequest

NEEDED = {"pretrained_model_name_or_path": "m", "dataset_config": "d", "output_dir": "o", "output_name": "n"}
TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def shell(text: str) -> subprocess.Popen:
    return subprocess.Popen(["sh", "-c", text])


@pytest.mark.parametrize(
    ("texts", "status"),
    [
        (["exit 0", "exit 0"], 0),
        (["exit 2", "exit 3"], 2),
        (["exit 0", "exit 3"], 3),
        (["exit 130", "exit 130"], 130),
        (["exit 1", "kill -9 $$"], 1),
        (["kill -9 $$", "exit 1"], 137),
    ],
)
def test_the_status_is_the_first_ones(texts, status) -> None:
    assert launch.look_after([shell(text) for text in texts]) == status


@pytest.mark.parametrize("last", ["exec sleep 60", "trap '' TERM; while :; do sleep 0.1; done"])
def test_what_does_not_notice_that_another_is_gone_is_ended(last, monkeypatch) -> None:
    monkeypatch.setattr(launch, "NOTICE", 0.2)
    monkeypatch.setattr(launch, "END", 0.5)
    children = [shell("exit 4"), shell(last)]
    assert launch.look_after(children) == 4
    assert -children[1].returncode == (signal.SIGTERM if "exec" in last else signal.SIGKILL)


@pytest.fixture
def stand_in(tmp_path, monkeypatch) -> Path:
    """What is started in place of python: leaves a file of what it was told, and ends with 130 at SIGTERM."""
    script = tmp_path / "python"
    told = " ".join(f"${name}" for name in TOLD)
    script.write_text(
        "#!/bin/sh\ntrap 'exit 130' TERM\n"
        f'echo "{told} $*" > "{tmp_path}/told.$RANK.new"; mv "{tmp_path}/told.$RANK.new" "{tmp_path}/told.$RANK"\n'
        f'while [ -f "{tmp_path}/wait" ]; do sleep 0.05; done\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    return tmp_path


def test_each_process_is_told_its_place(stand_in) -> None:
    near = Devices(num_processes=2)
    assert launch.launch(near, ["train_network", "--x", "1"]) == 0
    told = [(stand_in / f"told.{rank}").read_text().split() for rank in (0, 1)]
    assert [words[:5] for words in told] == [[str(rank), "2", str(rank), "2", "127.0.0.1"] for rank in (0, 1)]
    assert told[0][5] == told[1][5] and int(told[0][5]) > 1023
    assert told[0][6:] == ["-m", "backend", "train_network", "--x", "1"]
    far = Devices(num_processes=4, num_machines=2, machine_rank=1, main_process_ip="10.0.0.1")
    assert launch.launch(far, []) == 0
    assert (stand_in / "told.3").read_text().split()[:6] == ["3", "4", "1", "2", "10.0.0.1", "29500"]


@pytest.mark.usefixtures("default_signals")
def test_a_stop_is_handed_on_to_all(stand_in) -> None:
    (stand_in / "wait").touch()

    def stop() -> None:
        while not all((stand_in / f"told.{rank}").exists() for rank in (0, 1)):
            time.sleep(0.02)
        signal.raise_signal(signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    assert launch.launch(Devices(num_processes=2), []) == 130
    thread.join()


def test_the_lines_of_other_machines_are_told(capsys) -> None:
    devices = Devices(num_processes=4, num_machines=2, main_process_ip="10.0.0.1", main_process_port=99)
    launch.tell(
        devices, ["train_network", "--seed", "3", "--num_processes=4", "--machine_rank", "0", "--ddp_timeout", "5"]
    )
    first, _, other = capsys.readouterr().out.strip().splitlines()
    torchrun = "torchrun --nproc_per_node 2 --nnodes 2 --node_rank 0 --master_addr 10.0.0.1 --master_port 99"
    assert f"{torchrun} -m backend train_network --seed 3" in first
    place = "--num_processes 4 --num_machines 2 --main_process_ip 10.0.0.1 --main_process_port 99 --machine_rank 1"
    assert other.strip() == f"on machine 1: python -m backend train_network --seed 3 --ddp_timeout 5 {place}"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"num_processes": 0}, "num_processes"),
        ({"num_machines": 2}, "num_processes"),
        ({"num_machines": 2, "num_processes": 3, "main_process_ip": "a"}, "num_processes"),
        ({"num_machines": 2, "num_processes": 4}, "main_process_ip"),
        ({"num_machines": 2, "num_processes": 4, "main_process_ip": "a", "machine_rank": 2}, "machine_rank"),
        ({"num_processes": 2, "machine_rank": 1}, "machine_rank"),
        ({"num_processes": 2, "main_process_ip": "a"}, "main_process_ip"),
        ({"num_processes": 2, "main_process_port": 65536}, "main_process_port"),
        ({"num_processes": 2, "ddp_timeout": 0}, "ddp_timeout"),
    ],
)
def test_machines_that_cannot_meet_are_refused(options, field) -> None:
    with pytest.raises(ConfigError) as refused:
        resolve(TrainNetwork, NEEDED | options)
    assert [name for name, _ in refused.value.problems] == [field]
    resolve(TrainNetwork, NEEDED | {"num_machines": 2, "num_processes": 4, "main_process_ip": "a", "machine_rank": 1})


def test_who_does_not_come_in_time_is_taken_for_lost(monkeypatch) -> None:
    given = []

    def soon(minutes: int) -> timedelta:
        given.append(minutes)
        return timedelta(seconds=1)

    monkeypatch.setattr(joining, "wait_limit", soon)
    for name, value in zip(TOLD, ("0", "2", "0", "2", "127.0.0.1", str(free_port())), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for devices in (Devices(ddp_timeout=3), Devices()):
        with pytest.raises(UserError, match="do not find each other at 127.0.0.1:"):
            joining.meet(devices, Place(0, 2, 0, 2))
        monkeypatch.setenv("MASTER_PORT", str(free_port()))
        AcceleratorState._reset_state(True)
    assert given == [3, 720]


@pytest.mark.usefixtures("default_signals")
def test_a_request_that_comes_twice_at_once_is_one_request() -> None:
    with StopRequest(echo=60) as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        assert stop.asked
    with pytest.raises(KeyboardInterrupt), StopRequest(echo=0.01) as stop:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)


def test_the_interface_to_an_address_is_that_of_its_route() -> None:
    assert meeting.interface_to("127.0.0.1") == "lo"
    assert meeting.interface_to("no address") is None
