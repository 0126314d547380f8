"""Writing the network with what a reader of the file wants to know about its training."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from backend import events
from backend.config.base import values
from backend.config.training.network import Network as NetworkOptions
from backend.errors import UserError
from backend.lora.metadata import TrainingFacts, minimum_metadata, modelspec, training_metadata
from backend.terminal import say
from backend.train.progress import all_finite
from backend.train.setup import Run

PRECISIONS = {None: None, "float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def save_network(run: Run, path: Path, step: int, epoch: int, final: bool) -> None:
    """Write the network to `path`, by rename, and tell.

    Raises:
        UserError: a number of the network is not finite.
    """
    if not all_finite(list(run.network.state_dict().values())):
        raise UserError(
            f"the network has numbers that are not finite after step {step}, so it was not saved; files saved before "
            "are good. Try a lower learning_rate, or mixed_precision bf16 or no"
        )
    events.emit("phase", name="saving", step=step, total=run.total_steps)
    run.network.save_weights(path, PRECISIONS[run.config.save.save_precision], metadata(run, path, step, epoch))
    events.emit("file", path=str(path), step=step, epoch=epoch, final=final)
    say(f"Saved {path}")


def metadata(run: Run, path: Path, step: int, epoch: int) -> dict[str, str]:
    """The `ss_*` and `modelspec.*` fields of a file written after `step` steps, in epoch `epoch`."""
    family, now = run.model.family, time.time()
    facts = TrainingFacts(
        base_model_version=family.base_model_version(run.model.predicts_v),
        v2=family.v2,
        network_args={**run.network.arguments, **run.config.network.network_args},
        session_id=int(run.started_at * 1000),
        training_started_at=run.started_at,
        training_finished_at=now,
        steps=step,
        epoch=epoch,
        num_epochs=run.epochs,
        num_batches_per_epoch=run.training_set.batches_per_epoch(),
        optimizer=optimizer_name(run),
        zero_terminal_snr=bool(run.model.scheduler.get("rescale_betas_zero_snr")),
        **run.base_hashes,
    )
    changes = {"max_train_steps": run.total_steps, **network_facts(run.config.network, run.network)}
    found = training_metadata(values(run.config), facts, changes)
    found |= run.training_set.info
    if run.config.save.no_metadata:
        found = minimum_metadata(found)
    resolution = run.training_set.datasets[0].resolution
    prediction_type = {"epsilon": "epsilon", "v_prediction": "v"}[run.objective.diffusion.prediction_type]
    architecture = family.architecture(run.model.predicts_v)
    layer = run.config.model.clip_skip
    return found | modelspec(architecture, path.stem, resolution, now, prediction_type, family.implementation, layer)


def network_facts(options: NetworkOptions, network: Any) -> dict[str, object]:
    """What a network that was read from a file knows better than the options: its rank and alpha."""
    if options.network_weights is None:
        return {}
    ranks, alphas = ({getattr(one, name) for one in network.adapters()} for name in ("lora_dim", "alpha"))
    return {
        name: next(iter(found)) if len(found) == 1 else "Dynamic"
        for name, found in (("network_dim", ranks), ("network_alpha", alphas))
    }


def optimizer_name(run: Run) -> str:
    """The optimizer's class, with its arguments in brackets if it was given any."""
    inner = run.optimizer.optimizer
    arguments: Mapping[str, object] = run.config.optim.optimizer_args
    listed = ",".join(f"{key}={value}" for key, value in arguments.items())
    return f"{type(inner).__module__}.{type(inner).__name__}" + (f"({listed})" if listed else "")
