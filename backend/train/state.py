"""A run's state on disk, from which it goes on exactly: what the steps so far have made, and nothing else.

Every draw of training is a function of the seed and the step (backend/draws.py), schedules are functions of the step,
and an epoch's batches are a function of the epoch. So a state is the number of steps, the network, the optimizer and
the loss scaler; there are no generator states and no places in a data loader.
"""

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.optim import Optimizer

from backend.data.dataset import TrainingSet
from backend.errors import UserError
from backend.families.storage import write_tensors
from backend.lora.pickled import save_pickled
from backend.replacing import replacing_folder
from backend.states import NETWORK, OPTIMIZER, POSITION, Position


def fingerprint(training_set: TrainingSet) -> str:
    """A short text that differs where a set would be dealt into other batches: pictures, repeats, sizes, captions."""
    told = [(p.path.name, p.size, p.bucket, p.caption, p.repeats, p.is_reg) for p in training_set.pictures]
    sizes = [dataset.batch_size * training_set.processes for dataset in training_set.datasets]
    return hashlib.blake2b(repr((told, sizes)).encode(), digest_size=8).hexdigest()


def write_state(
    folder: Path, position: Position, network: nn.Module, optimizer: Optimizer, scaler: Mapping[str, Any] | None
) -> None:
    """Write a state folder, whole or not at all: under a hidden name first, which is then renamed.

    Args:
        folder: a state that is there already is replaced.
        position: where the run is.
        network, optimizer: as they are after the step.
        scaler: the state of the loss scaler; None or empty where there is none.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    told = {"kind": type(optimizer).__name__, "optimizer": optimizer.state_dict(), "scaler": dict(scaler or {})}
    with replacing_folder(folder) as hidden:
        write_tensors(hidden / NETWORK, tensors, None, {})
        save_pickled(told, hidden / OPTIMIZER)
        (hidden / POSITION).write_text(json.dumps(asdict(position)) + "\n", encoding="utf-8")


def load_state(folder: Path, network: nn.Module, optimizer: Optimizer) -> Mapping[str, Any]:
    """Put a state into the network and the optimizer of a prepared run; returns the state of the loss scaler.

    Raises:
        UserError: the files cannot be read, or were written by a run of another network or optimizer.
    """
    try:
        tensors = load_file(folder / NETWORK)
        saved = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"the state in {folder} cannot be read ({reason})", field="resume") from None
    own = network.state_dict()
    if own.keys() != tensors.keys() or any(own[name].shape != tensors[name].shape for name in own):
        message = "was written by a run of another network; resume with that run's network options"
        raise UserError(f"the state in {folder} {message}", field="resume")
    inner = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(saved, dict) or not {"kind", "optimizer", "scaler"} <= saved.keys():
        raise UserError(f"the state in {folder} cannot be read ({OPTIMIZER} holds something else)", field="resume")
    if saved["kind"] != type(inner).__name__:
        message = f"was written by {saved['kind']}, not by {type(inner).__name__}; resume with that run's optimizer"
        raise UserError(f"the state in {folder} {message}", field="resume")
    network.load_state_dict(tensors)
    try:
        optimizer.load_state_dict(saved["optimizer"])
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        message = f"was written by a run of other rates or parts ({reason}); resume with that run's options"
        raise UserError(f"the state in {folder} {message}", field="resume") from None
    return saved["scaler"]
