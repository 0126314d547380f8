"""Options of train_network: several devices, on this machine and on others."""

import shlex
from typing import Annotated

from pydantic import Field, model_validator

from backend.config.declare import Option, Section, reject

ADVANCED = Option(advanced=True)
HERE = Option(of_this_machine=True)
# Where processes meet when nothing else is said, as torch and accelerate have it.
PORT = 29500
COMMAND = ("python", "-m", "backend", "train_network")


class Devices(Section):
    """Several devices."""

    num_processes: int | None = Field(None, ge=1)
    """Processes that train together, one for each GPU, on all machines together; each takes train_batch_size pictures
    in a step. Left out, one, or as many as torchrun or accelerate have launched."""

    num_machines: Annotated[int, HERE] = Field(1, ge=1)
    """Machines that train together. The run is started on each of them, with the same options but for machine_rank."""

    machine_rank: Annotated[int, HERE] = Field(0, ge=0)
    """Which of the machines this is, from 0. Files are written on machine 0."""

    main_process_ip: Annotated[str | None, HERE] = Field(None, min_length=1)
    """Address of machine 0, under which the others reach it."""

    main_process_port: Annotated[int | None, HERE] = Field(None, ge=1, le=65535)
    """Port at which the processes meet; left out, a free one, or 29500 with several machines."""

    ddp_timeout: Annotated[int | None, ADVANCED] = Field(None, ge=1)
    """Minutes that a process waits for the others, which also wait while pictures are drawn and files are saved, before
    it takes them for lost; left out, 720."""

    @model_validator(mode="after")
    def _machines_that_find_each_other(self) -> "Devices":
        if self.num_machines == 1:
            for name in ("machine_rank", "main_process_ip"):
                if getattr(self, name):
                    reject(name, "has no effect with one machine; set num_machines, or leave it out")
            return self
        if self.num_processes is None:
            reject("num_processes", "is required with several machines: of all of them together, one for each GPU")
        if self.num_processes % self.num_machines:
            message = f"is {self.num_processes}, which {self.num_machines} machines cannot share; each has as many"
            reject("num_processes", message)
        if self.machine_rank >= self.num_machines:
            reject("machine_rank", f"must be below num_machines, which is {self.num_machines}: it counts from 0")
        if self.main_process_ip is None:
            reject("main_process_ip", "is required with several machines: the address of machine 0")
        return self

    @property
    def local_processes(self) -> int:
        """Processes on this machine."""
        return (self.num_processes or 1) // self.num_machines

    @property
    def port(self) -> int:
        """Where several machines meet."""
        return self.main_process_port or PORT

    @property
    def first_rank(self) -> int:
        """The number of this machine's first process."""
        return self.machine_rank * self.local_processes


def launch_lines(devices: Devices, options: list[str]) -> list[str]:
    """What is typed on each machine, from machine 0 on, for the same run.

    Args:
        devices: of any of the machines.
        options: the command line's words behind the command; what they say of devices is left out by the caller.
    """
    flags = [] if devices.num_processes is None else ["--num_processes", str(devices.num_processes)]
    if devices.num_machines == 1:
        return [shlex.join([*COMMAND, *options, *flags])]
    flags += ["--num_machines", str(devices.num_machines), "--main_process_ip", str(devices.main_process_ip)]
    flags += ["--main_process_port", str(devices.port)]
    ranks = range(devices.num_machines)
    return [shlex.join([*COMMAND, *options, *flags, "--machine_rank", str(rank)]) for rank in ranks]
