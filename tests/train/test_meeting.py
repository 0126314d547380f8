"""Processes of one machine meet on its loopback and nowhere else."""

import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from backend.errors import UserError
from backend.processes import MEETING, Place
from backend.train import launch, meeting
from tests.train.listening import children, is_loopback, listening

PROJECT = Path(__file__).parents[2]
WAIT = timedelta(seconds=60)
# A process of a run that has met the others, and waits until its input ends.
MEMBER = """
import os, sys
from backend.config.training.devices import Devices
from backend.processes import place
from backend.train.joining import meet
os.environ["ACCELERATE_USE_CPU"] = "true"
meet(Devices(), place())
print("met", flush=True)
sys.stdin.read()
"""


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    "told",
    [
        {"MASTER_ADDR": socket.gethostname(), "LOCAL_WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "eth0"},
        {"MASTER_ADDR": "localhost"},
    ],
    ids=["by the machine's name", "as torch says it"],
)
def test_two_processes_of_one_machine_listen_on_loopback_alone(told) -> None:
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("GLOO_", "NCCL_"))}
    shared = {**ours, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_PORT": str(free_port()), **told}
    members = [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER],
            cwd=PROJECT,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        assert [member.stdout.readline() for member in members] == ["met\n", "met\n"]
        pids = [member.pid for member in members]
        found = listening(pids + [below for pid in pids for below in children(pid)])
        assert len(found) >= 3  # where they meet, and one for each that the other calls
        assert all(map(is_loopback, found)), found
    finally:
        for member in members:
            member.kill()
            member.communicate()


def test_the_launcher_opens_the_meeting_place_itself() -> None:
    with launch.listener(0) as made:
        address, port = made.getsockname()
        assert address == "127.0.0.1" and port > 0
        with pytest.raises(UserError, match=r"port \d+ cannot be had") as refused:
            launch.listener(port)
        assert refused.value.field == "main_process_port"
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), MEETING: str(os.dup(made.fileno()))}
        store = meeting.make_store(Place(0, 1), environment, WAIT)
        store.set("told", "yes")
        assert store.port == port
        assert [word.split(":")[1] for word in listening([os.getpid()]) if is_loopback(word)].count(f"{port:04X}") == 1


@pytest.mark.parametrize("handed", ["", "none", "-1", "9999", "file", "other"])
def test_a_socket_that_is_none_is_not_taken(handed, tmp_path) -> None:
    port = free_port()
    with (tmp_path / "x").open("w") as file, launch.listener(0) as other:
        word = {"file": str(file.fileno()), "other": str(other.fileno())}.get(handed, handed)
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), MEETING: word}
        assert meeting.make_store(Place(0, 1), environment, WAIT).port == port
        assert os.fstat(file.fileno()) and other.getsockname()[1] != port


def test_a_taken_port_is_told() -> None:
    with launch.listener(0) as other:
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(other.getsockname()[1])}
        with pytest.raises(UserError, match="is taken; name another one") as refused:
            meeting.make_store(Place(0, 2, 0, 1), environment, WAIT)
    assert refused.value.field == "main_process_port"


def test_the_first_of_several_machines_listens_at_the_named_address_alone() -> None:
    before = listening([os.getpid()])
    environment = {"MASTER_ADDR": "127.0.0.2", "MASTER_PORT": str(free_port()), "LOCAL_WORLD_SIZE": "1"}
    store = meeting.make_store(Place(0, 1, 0, 1), environment, WAIT)
    assert store is not None
    assert {address.split(":")[0] for address in listening([os.getpid()]) - before} == {"0200007F"}


@pytest.mark.parametrize(
    ("told", "local"),
    [
        ({"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1"}, True),
        ({"LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}, False),
        ({"MASTER_ADDR": "10.0.0.1"}, False),
        ({"MASTER_ADDR": "127.0.0.1"}, True),
        ({"MASTER_ADDR": "127.0.0.1.evil.example"}, False),
        ({}, False),
    ],
)
def test_who_is_alone_on_the_machine_is_known(told, local) -> None:
    size = int(told.get("LOCAL_WORLD_SIZE", 2))
    assert meeting.is_local(Place(0, 2, 0, size), told) is local


@pytest.mark.parametrize("port", ["0", "65536", "-1", "x"])
def test_a_port_that_is_none_is_refused(port) -> None:
    with pytest.raises(ValueError, match="port|invalid literal"):
        meeting.make_store(Place(0, 2), {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}, WAIT)
