"""How the processes of a run find each other, and what they compare before they train together."""

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from torch.distributed import PrefixStore

from backend.config.base import leaves, values
from backend.config.train import TrainNetwork
from backend.config.training.devices import Devices
from backend.data.dataset import TrainingSet
from backend.errors import UserError
from backend.processes import Place, is_launched, place
from backend.train.group import Agreed, Group, wait_limit
from backend.train.meeting import make_store, prepare
from backend.train.state import fingerprint

# Minutes: longer than any pictures take that are drawn on the way.
LONGEST_WAIT = 720
# Options that are a machine's own, beside all paths.
OWN = {"pretrained_model_name_or_path", "vae", "machine_rank", "main_process_ip", "max_data_loader_n_workers"}
# Numbers that are looked at of each of a model's tensors.
LOOKED_AT = 64


@contextmanager
def joined(devices: Devices) -> Iterator[Group]:
    """The processes of this run, which have found each other; they part at its end.

    Raises:
        UserError: this process was launched in a way that does not fit the options or the machine, or does not find
            the others.
    """
    own = place()
    check_launch(devices, own, os.environ)
    if own.size == 1:
        yield Group()
        return
    group = Group(own, meet(devices, own))
    try:
        yield group
    except (Agreed, KeyboardInterrupt):
        group.leave()
        raise
    except BaseException:
        group.leave_with_error()
        raise
    group.leave()


def check_launch(devices: Devices, own: Place, environment: Mapping[str, str]) -> None:
    """See that as many processes were launched as are wanted.

    Raises:
        UserError: they were not.
    """
    if not is_launched(environment):
        # Accelerate's launcher says where several processes meet, and starts one where it finds no GPU.
        if "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment:
            message = (
                "accelerate's launcher was asked for several processes and has started one, as it does without GPUs; "
                "leave it out and set num_processes, or use `ACCELERATE_USE_CPU=true torchrun --nproc_per_node ...`"
            )
            raise UserError(message, "num_processes")
        return
    if devices.num_processes not in (None, own.size):
        message = (
            f"is {devices.num_processes}, but {own.size} were launched (WORLD_SIZE); leave it out, or launch as many"
        )
        raise UserError(message, "num_processes", told=own.local_rank > 0)


def meet(devices: Devices, own: Place) -> torch.device:
    """Find the other processes; returns the device that this one computes on.

    Raises:
        UserError: there are fewer GPUs than processes, or the others do not come.
    """
    count, told = torch.cuda.device_count() if torch.cuda.is_available() else 0, own.local_rank > 0
    if count and own.local_size > count and not _wants_cpu():
        message = f"{own.local_size} processes on this machine need as many GPUs, and there are {count}; launch fewer"
        raise UserError(message, "num_processes", told=told)
    if not count and devices.num_processes:
        # Wanted by an option of ours, which says nothing of GPUs.
        os.environ["ACCELERATE_USE_CPU"] = "true"
    cpu = _wants_cpu()
    prepare(own)
    # An error of a GPU's connection is ours to tell; nothing else may end the process for it.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
    options: dict[str, Any] = {} if cpu or not count else {"backend": "cpu:gloo,cuda:nccl"}
    wait = wait_limit(devices.ddp_timeout or LONGEST_WAIT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Where it finds neither, accelerate makes no group, which is told below.
            store = make_store(own, os.environ, wait) if cpu or count else None
            if store is not None:
                options |= {"store": PrefixStore("default_pg", store), "rank": own.rank, "world_size": own.size}
            state = PartialState(cpu=cpu, timeout=wait, **options)
    except UserError as error:
        raise UserError(error.message, error.field, told=told) from error
    except (RuntimeError, ValueError, KeyError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        message = (
            f"the processes do not find each other at {where} ({reason}); see main_process_ip and main_process_port"
        )
        raise UserError(message, told=told) from None
    if state.num_processes != own.size:
        message = (
            f"{own.size} processes were launched (WORLD_SIZE), but accelerate makes {state.num_processes} of them; "
            "without GPUs set ACCELERATE_USE_CPU=true in the environment, or num_processes"
        )
        raise UserError(message, "num_processes", told=told)
    return state.device


def _wants_cpu() -> bool:
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def compare(group: Group, config: TrainNetwork, training_set: TrainingSet, models: Mapping[str, nn.Module]) -> None:
    """See that all processes are about to do the same.

    Args:
        group: the processes.
        config: this one's, with its seed.
        training_set: this one's.
        models: what computes and learns, by what it is called.

    Raises:
        UserError: one of them has other options, pictures or weights.
    """
    if group.size == 1:
        return
    kinds = leaves(TrainNetwork)
    given = {name: str(value) for name, value in values(config).items() if kinds[name].kind != "path"}
    told = {f"the option {name}": value for name, value in given.items() if name not in OWN}
    told["the training pictures and captions"] = fingerprint(training_set)
    told |= {f"the weights of the {name}": checksum(module) for name, module in models.items()}
    everyone = group.gather(told, read=_compared)
    for rank, other in enumerate(everyone):
        for what, value in other.items():
            first = everyone[0].get(what)
            if value != first:
                shown = f" ({value}, not {first})" if what.startswith("the option") else ""
                message = f"differs between process 0 and process {rank}{shown}; all have to train the same"
                raise Agreed(f"{what} {message}", told=not group.is_first)


def _compared(told: Any) -> dict[str, str]:
    if not isinstance(told, dict) or not all(isinstance(value, str) for value in told.values()):
        raise ValueError("what is compared are texts by name")
    return told


def checksum(module: nn.Module) -> str:
    """A hash of a few numbers of each tensor of a module: enough to tell two models apart."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(module.state_dict().items()):
        flat = tensor.detach().flatten()
        few = flat[:: max(1, flat.numel() // LOOKED_AT)].to("cpu", torch.float64)
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + few.numpy().tobytes())
    return digest.hexdigest()
