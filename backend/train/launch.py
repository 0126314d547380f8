"""`train_network` in several processes, which this one starts and looks after.

Knows no torch: the process that looks after the others only waits. What it starts are command lines like its own, told
by the environment which of them they are, as torchrun would tell them.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from backend.config.base import leaves
from backend.config.train import TrainNetwork
from backend.config.training.devices import COMMAND, Devices, launch_lines
from backend.errors import UserError
from backend.processes import MEETING
from backend.terminal import say
from backend.threads import cpu_count

# So long the other processes have to notice that one is gone, and then to end when they are told to; seconds.
NOTICE, END = 60.0, 600.0
POLL = 0.1
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOOPBACK = "127.0.0.1"
FOREIGN = ("TORCHELASTIC_USE_AGENT_STORE", MEETING)


def run(config: TrainNetwork) -> None:
    """Train in several processes, of which this one is none.

    Raises:
        SystemExit: not all of them ended well.
    """
    status = launch(config.devices, sys.argv[1:])
    if status:
        raise SystemExit(status)


def launch(devices: Devices, words: Sequence[str]) -> int:
    """Start this machine's processes and wait for them; returns the exit status of the run.

    Args:
        devices: how many, and where the others are.
        words: of the command line, from the command on.
    """
    count = devices.local_processes
    meeting = None if devices.num_machines > 1 else listener(devices.main_process_port or 0)
    port = devices.port if meeting is None else meeting.getsockname()[1]
    tell(devices, words)
    # What a launcher around this one said is not meant for processes that are ours.
    inherited = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    shared = {
        **inherited,
        "MASTER_ADDR": devices.main_process_ip or LOOPBACK,
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(devices.num_processes),
        "LOCAL_WORLD_SIZE": str(count),
    }
    # What the library says of a broken connection is said by us, in a line.
    shared.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    # Each would take all cores otherwise.
    shared.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // count)))
    received: list[int] = []
    children: list[subprocess.Popen[bytes]] = []

    def hand_on(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        for child in children:
            child.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in SIGNALS}
    try:
        for local in range(count):
            own = {"RANK": str(devices.first_rank + local), "LOCAL_RANK": str(local)}
            handed = [meeting.fileno()] if meeting is not None and local == 0 else []
            own |= {MEETING: str(handed[0])} if handed else {}
            line = [sys.executable, "-m", "backend", *words]
            children.append(subprocess.Popen(line, env=shared | own, pass_fds=handed))
        if meeting is not None:
            meeting.close()  # the first process has it now; nobody else keeps the port
        for number in received:
            for child in children:
                child.send_signal(number)
        return look_after(children)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def look_after(children: Sequence["subprocess.Popen[bytes]"]) -> int:
    """Wait for the processes. Should one fail, the others have some time to notice, and are ended after that.

    Returns:
        The first one's exit status, or another one's where that is 0; of one that a signal has ended as shells say it.
    """
    failed_at, told = None, False
    while any(child.poll() is None for child in children):
        if failed_at is None and any(child.poll() for child in children):
            failed_at = time.monotonic()
        if failed_at is not None:
            passed = time.monotonic() - failed_at
            for child in children:
                if child.poll() is None and passed > NOTICE + END:
                    child.kill()
                elif child.poll() is None and passed > NOTICE and not told:
                    child.terminate()
            told = passed > NOTICE
        time.sleep(POLL)
    codes = [child.returncode for child in children]
    code = next((code for code in codes if code), 0)
    return 128 - code if code < 0 else code


def tell(devices: Devices, words: Sequence[str]) -> None:
    """Say what is started, and what is to be typed on other machines."""
    count = devices.local_processes
    torchrun = ["torchrun", "--nproc_per_node", str(count)]
    if devices.num_machines > 1:
        torchrun += ["--nnodes", str(devices.num_machines), "--node_rank", str(devices.machine_rank)]
        torchrun += ["--master_addr", str(devices.main_process_ip), "--master_port", str(devices.port)]
    line = shlex.join([*torchrun, *COMMAND[1:3], *words])
    say(f"Starting {count} process{'es' if count > 1 else ''} on this machine, as this would: {line}")
    lines = launch_lines(devices, without_devices(words[1:]))
    if len(lines) > 1 and devices.machine_rank == 0:
        say("The run begins when the other machines have started theirs:")
        for rank, other in enumerate(lines[1:], 1):
            say(f"  on machine {rank}: {other}")


def without_devices(words: Sequence[str]) -> list[str]:
    """The words of a command line but for the flags that say which machine this is and what the others are."""
    names = {name for name, leaf in leaves(TrainNetwork).items() if leaf.section == "devices"} - {"ddp_timeout"}
    kept, skip = [], False
    for word in words:
        name = word.lstrip("-").partition("=")[0].replace("-", "_") if word.startswith("-") else ""
        if name in names:
            skip = "=" not in word
        elif skip:
            skip = False
        else:
            kept.append(word)
    return kept


def listener(port: int) -> socket.socket:
    """A socket that listens on loopback alone, for the first process: no other program can take its port in between.

    Args:
        port: where; 0 for a free one.

    Raises:
        UserError: the port is taken.
    """
    made = socket.socket()
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((LOOPBACK, port))
        made.listen()
    except OSError as error:
        made.close()
        reason = f"port {port} cannot be had ({error.strerror}); name another one, or leave it out"
        raise UserError(reason, "main_process_port") from error
    return made
