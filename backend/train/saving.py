"""Writing the network with what a reader of the file wants to know about its training."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from backend import events
from backend.config.base import values
from backend.config.training.network import Network as NetworkOptions
from backend.config.training.optim import Optim
from backend.errors import UserError
from backend.lora.metadata import TrainingFacts, minimum_metadata, modelspec, training_metadata
from backend.processes import is_first
from backend.replacing import remove_folder
from backend.states import POSITION, Position
from backend.tables.optimizers import find_row, sets_own_rates
from backend.terminal import say, warn
from backend.train.group import LostProcess
from backend.train.optimizers import at_rest
from backend.train.outputs import old_epochs, old_steps
from backend.train.progress import all_finite
from backend.train.setup import Run
from backend.train.state import fingerprint, write_state

PRECISIONS = {None: None, "float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def save_network(run: Run, path: Path, step: int, epoch: int, final: bool) -> None:
    """Write the network to `path`, by rename, and tell. As everywhere here, the first process alone writes.

    Raises:
        UserError: a number of the network is not finite.
    """
    if not all_finite(list(run.network.state_dict().values())):
        raise UserError(
            f"the network has numbers that are not finite after step {step}, so it was not saved; files saved before "
            "are good. Try a lower learning_rate, or mixed_precision bf16 or no",
            told=not run.group.is_first,
        )
    if not run.group.is_first:
        return
    events.emit("phase", name="saving", step=step, total=run.total_steps)
    run.network.save_weights(path, PRECISIONS[run.config.save.save_precision], metadata(run, path, step, epoch))
    events.emit("file", path=str(path), step=step, epoch=epoch, final=final)
    say(f"Saved {path}")


def save_epoch(run: Run, step: int, epoch: int) -> None:
    """Save after `epoch` epochs, then remove this run's files of epochs that are not to be kept."""
    save_network(run, run.outputs.epoch(epoch), step, epoch, final=False)
    note(run.saved.epochs, epoch)
    for old in old_epochs(run.saved.epochs, run.saves.last_epochs):
        run.saved.epochs.remove(old)
        remove(run.outputs.epoch(old))


def save_step(run: Run, step: int, epoch: int) -> None:
    """Save after `step` steps, then remove this run's files of steps that are not to be kept."""
    save_network(run, run.outputs.step(step), step, epoch, final=False)
    note(run.saved.steps, step)
    for old in old_steps(run.saved.steps, run.saves.last_steps):
        run.saved.steps.remove(old)
        remove(run.outputs.step(old))


def save_state(run: Run, folder: Path, step: int, epochs_done: int) -> None:
    """Write the state of the run after `step` steps and the ends of `epochs_done` epochs, and tell."""
    if not run.group.is_first:
        return
    saved = {name: list(numbers) for name, numbers in vars(run.saved).items()}
    position = Position(step, epochs_done, run.total_steps, run.seed, fingerprint(run.training_set), saved)
    events.emit("phase", name="saving", step=step, total=run.total_steps)
    optimizer = getattr(run.optimizer, "optimizer", run.optimizer)
    scaler = run.accelerator.scaler
    write_state(folder, position, run.network, optimizer, scaler.state_dict() if scaler is not None else None)
    events.emit("state", path=str(folder), step=step)
    say(f"Saved the state in {folder}")


def save_epoch_state(run: Run, step: int, epoch: int) -> None:
    """Save the state after `epoch` epochs, then remove this run's states of epochs that are not to be kept."""
    note(run.saved.epoch_states, epoch)
    save_state(run, run.outputs.epoch_state(epoch), step, epoch)
    # The state has those that go now among its own: should the run be killed here, one that goes on removes them.
    for one in old_epochs(run.saved.epoch_states, run.saves.last_epoch_states):
        run.saved.epoch_states.remove(one)
        remove(run.outputs.epoch_state(one))


def save_step_state(run: Run, step: int, epoch: int) -> None:
    """Save the state after `step` steps, within epoch `epoch`, and remove this run's that are not to be kept."""
    note(run.saved.step_states, step)
    save_state(run, run.outputs.step_state(step), step, epoch - 1)
    for one in old_steps(run.saved.step_states, run.saves.last_step_states):
        run.saved.step_states.remove(one)
        remove(run.outputs.step_state(one))


def save_stopped(run: Run, step: int, epoch: int) -> None:
    """Save the state and the network of a run that ends early after `step` steps, within epoch `epoch`.

    Raises:
        OSError: the disk had no room for the state; the network may be saved nevertheless.
    """
    # As those of other steps, so that they go in their time once the run has gone on.
    for numbers in (run.saved.steps, run.saved.step_states):
        note(numbers, step)
    failed = None
    try:
        save_state(run, run.outputs.step_state(step), step, epoch - 1)
    except OSError as error:
        failed = error
    with at_rest(run.optimizer):
        save_network(run, run.outputs.step(step), step, epoch, final=False)
    if failed is not None:
        raise failed


def note(numbers: list[int], number: int) -> None:
    """Add a number once."""
    if number not in numbers:
        numbers.append(number)


@contextmanager
def state_kept(run: Run, step: int, epochs_done: int) -> Iterator[None]:
    """Should another process be lost within a step, keep the state after the last one, and say how to go on.

    Raises:
        UserError: it was.
    """
    try:
        yield
    except LostProcess:
        run.group.note_survival()
        folder = run.outputs.step_state(step)
        save_state(run, folder, step, epochs_done)

        def remedy(first_lives: bool) -> str:
            if first_lives:
                return f"the state after step {step} is saved: --resume {folder} goes on from there"
            newest = newest_state(run)
            if newest is None:
                return "no state was saved before; save_state with save_every_n_steps keeps one"
            return f"the newest state is {newest}: --resume goes on from there"

        raise run.group.tell_of_loss(f"in step {step + 1} of {run.total_steps}", remedy) from None


def newest_state(run: Run) -> Path | None:
    """The state that this run has saved last, of those that are kept."""
    steps = {step: run.outputs.step_state(step) for step in run.saved.step_states}
    epochs = {epoch * run.steps_per_epoch: run.outputs.epoch_state(epoch) for epoch in run.saved.epoch_states}
    states = steps | epochs
    return states[max(states)] if states else None


def remove(path: Path) -> None:
    """Remove a file that was saved earlier, or a state; one that cannot be removed costs a warning and not the run.

    It need not be there: a run that goes on in another folder leaves what lies in the folder of before.
    """
    if not is_first():
        return
    try:
        if (path / POSITION).exists():
            remove_folder(path)
        elif path.exists():
            path.unlink()
        else:
            return
    except OSError as error:
        warn(f"{path} could not be removed ({error.strerror or error})")
    else:
        say(f"Removed {path}")


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
    changes |= rate_facts(run.config.optim)
    found = training_metadata(values(run.config), facts, changes)
    found |= run.training_set.info
    if run.config.save.no_metadata:
        found = minimum_metadata(found)
    resolution = run.training_set.datasets[0].resolution
    prediction_type = {"epsilon": "epsilon", "v_prediction": "v"}[run.objective.diffusion.prediction_type]
    architecture = family.architecture(run.model.predicts_v)
    described = {"encoder_layer": run.config.model.clip_skip, "timestep_range": timestep_range(run), **run.description}
    return found | modelspec(
        architecture, path.stem, resolution, now, prediction_type, family.implementation, described
    )


def timestep_range(run: Run) -> str | None:
    """The times that were trained on, as ModelSpec wants them; None where all were."""
    times, count = run.objective.times, len(run.objective.diffusion.alphas_cumprod)
    return None if (times.start, times.stop) == (0, count) else f"{times.start},{times.stop}"


def network_facts(options: NetworkOptions, network: Any) -> dict[str, object]:
    """What a network that was read from a file knows better than the options: its rank and alpha."""
    if options.network_weights is None:
        return {}
    ranks, alphas = ({getattr(one, name) for one in network.adapters()} for name in ("lora_dim", "alpha"))
    return {
        name: next(iter(found)) if len(found) == 1 else "Dynamic"
        for name, found in (("network_dim", ranks), ("network_alpha", alphas))
    }


def rate_facts(options: Optim) -> dict[str, object]:
    """What says more of the rates than the options that stand by their names, as readers know it."""
    if sets_own_rates(options.optimizer, options.optimizer_args):
        rates = dict.fromkeys(("learning_rate", "unet_lr", "text_encoder_lr"))
        return {**rates, "lr_scheduler": f"adafactor:{options.learning_rate}"}
    return {"lr_scheduler": options.lr_scheduler_type} if options.lr_scheduler_type else {}


def optimizer_name(run: Run) -> str:
    """The optimizer's class, with its arguments in brackets where they are not the class's own."""
    inner = run.optimizer.optimizer
    row = find_row(run.config.optim.optimizer)
    arguments = {**dict(row.options), **run.config.optim.optimizer_args}
    listed = ",".join(f"{key}={value}" for key, value in arguments.items())
    return f"{type(inner).__module__}.{type(inner).__name__}" + (f"({listed})" if listed else "")
