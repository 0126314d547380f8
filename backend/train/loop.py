"""Training: `run` prepares, `train` goes through epochs and steps, `training_step` is one optimizer step, whole.

Run it with `python -m backend train_network --config_file FILE [--flag ...]`.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from backend import events
from backend.config.train import TrainNetwork
from backend.terminal import say
from backend.train.checkpointing import with_room
from backend.train.feed import MicroBatch, grouped
from backend.train.joining import joined
from backend.train.listing import list_samples
from backend.train.loss import masked, per_sample, sample_weights, weighted_share
from backend.train.noise import disturbed, draw_timesteps, training_noise
from backend.train.optimizers import at_rest, effective_rates, set_rates
from backend.train.progress import Done, Gauges, Progress
from backend.train.readings import limit_gradients, memory, weight_norms
from backend.train.saving import (
    save_epoch,
    save_epoch_state,
    save_network,
    save_state,
    save_step,
    save_step_state,
    save_stopped,
    state_kept,
)
from backend.train.setup import Run, prepare
from backend.train.stop import ECHO, StopRequest


def run(config: TrainNetwork) -> None:
    """Train a network as the config says, or with `debug_dataset` only list what it would be trained on.

    Raises:
        UserError: something cannot work, or the loss stopped being finite.
        KeyboardInterrupt: the run was stopped; what it had learnt is saved.
    """
    if config.data.debug_dataset:
        list_samples(config)
    else:
        with joined(config.devices) as group:
            train(prepare(config, group))


def training_step(run: Run, step: int, micro_batches: Sequence[MicroBatch]) -> Tensor:
    """One optimizer step over its micro-batches; returns its loss, detached and still on the device.

    Every draw hangs on the seed, the step and the sample's index in the step, so nothing depends on how the step is
    cut into micro-batches, and these into shares of several processes.

    Args:
        run: what is trained, and with what.
        step: steps done before.
        micro_batches: what the step learns from, of each this process's share.

    Raises:
        LostProcess: another process is gone; the network is as before the step.
    """
    set_rates(run.optimizer, run.rates(step))
    forward_and_back = partial(add_gradients, run, step, micro_batches)
    loss = with_room(run.model, run.config, forward_and_back, run.optimizer.zero_grad)
    run.network.set_multiplier(1.0)
    loss = run.group.add_up(run.parameters, loss)
    run.gradient_norm = limit_gradients(run.accelerator, run.parameters, run.config.optim.max_grad_norm)
    run.optimizer.step()
    run.optimizer.zero_grad()
    if run.config.network.scale_weight_norms:
        run.network.scale_weight_norms(run.config.network.scale_weight_norms)
    return loss


def add_gradients(run: Run, step: int, micro_batches: Sequence[MicroBatch]) -> Tensor:
    """Forward and backward passes of one step, over this process's share; returns its share of the loss.

    Args:
        run, step, micro_batches: as for `training_step`.
    """
    model, device, objective, options = run.model, run.accelerator.device, run.objective, run.config.noise
    samples = sum(batch.global_size for batch, _, _ in micro_batches)
    loss = torch.zeros((), device=device)
    first = 0
    for batch, latents, masks in micro_batches:
        indices = range(first + batch.offset, first + batch.offset + len(batch.items))
        first += batch.global_size
        if not indices:
            continue
        run.network.begin_step(run.seed, step, indices)
        run.network.set_multiplier(batch.multiplier)

        # The forward process: noise of a random strength is added.
        noise = training_noise(options, run.seed, step, indices, latents)
        timesteps = draw_timesteps(run.seed, step, indices, objective.times.stop, objective.times.start)
        noisy = objective.diffusion.noisy(latents, disturbed(options, run.seed, step, indices, noise), timesteps)
        target = objective.diffusion.target(latents, noise, timesteps)
        weights = sample_weights([item.picture.is_reg for item in batch.items], run.config.data.prior_loss_weight)
        weights = weights * objective.weights[timesteps]
        # All that comes from the CPU is sent before the model runs, so that a GPU never waits for it in between.
        times, weights = timesteps.to(device), weights.to(device)

        # The model, frozen but for the network in it, says what was added.
        with run.accelerator.autocast():
            conditioning = run.encode_captions([item.caption for item in batch.items])
            conditioning = model.family.with_sizes(conditioning, [item.sizes for item in batch.items])
            predicted = model.family.predict(model, noisy, times, conditioning)

        errors = masked(objective.errors(predicted, target, timesteps), masks)
        share = weighted_share(per_sample(errors), weights, samples)
        run.accelerator.backward(share)
        loss += share.detach()
    return loss


def train(run: Run) -> Progress:
    """All steps of the run, with samples and saving in between; returns its record of losses.

    Raises:
        UserError: the loss stopped being finite, a file could not be written, or another process was lost.
        KeyboardInterrupt: SIGINT or SIGTERM came; the step in hand was finished and the network saved.
    """
    step = run.position.step if run.position else 0
    # With no step left the end of the last epoch is done again: the run may have been killed before its file was there.
    epochs_done = min(run.position.epochs_over(run.steps_per_epoch), run.epochs - 1) if run.position else 0
    events.emit("phase", name="training", step=step, total=run.total_steps)
    progress = follow(run, step)
    try:
        with StopRequest(ECHO if run.group.size > 1 else 0.0) as run.group.stop:
            if run.sampling.at_first and not step:
                with progress.paused(), at_rest(run.optimizer):
                    run.sampling.draw(run.model, run.network, run.accelerator, step, "000000")
            for epoch in range(epochs_done, run.epochs):
                fed = run.feed(run.batches_left(step, epoch))
                for micro_batches in grouped(fed, run.config.optim.gradient_accumulation_steps):
                    with state_kept(run, step, epoch):
                        loss = training_step(run, step, micro_batches)
                    step += 1
                    pictures = sum(batch.global_size for batch, *_ in micro_batches)
                    progress.step(Done(step, epoch + 1, loss, current_rates(run), run.gradient_norm, pictures))
                    after_step(run, progress, step, epoch + 1)
                    if step == run.total_steps:
                        break
                    if run.group.is_stopping:
                        stop_early(run, progress, step, epoch)
                progress.epoch_done(step, epoch + 1)
                if run.validation.after_epoch(epoch + 1, step, step == run.total_steps):
                    validate(run, progress, step, epoch + 1)
                with progress.paused():
                    after_epoch(run, progress, step, epoch + 1)
            if run.config.state.save_state or run.config.state.save_state_on_train_end:
                save_state(run, run.outputs.final_state, step, step // run.steps_per_epoch)
    finally:
        progress.close()
    return progress


def after_step(run: Run, progress: Progress, step: int, epoch: int) -> None:
    """Save and sample where it is time for that after `step` steps, in epoch `epoch`."""
    if run.validation.after_step(step):
        validate(run, progress, step, epoch)
    saving, sampling = run.saves.after_step(step), run.sampling.after_step(step)
    if not (saving or sampling):
        return
    with progress.paused():
        with at_rest(run.optimizer):
            if saving:
                progress.settle()
                save_step(run, step, epoch)
            if sampling:
                run.sampling.draw(run.model, run.network, run.accelerator, step, f"{step:06d}")
        if saving and run.saves.states:
            save_step_state(run, step, epoch)


def follow(run: Run, first: int) -> Progress:
    """What tells how the run goes, which begins after `first` steps."""
    gauges = Gauges(lambda: weight_norms(run.network.adapters()), lambda: memory(run.accelerator.device))
    return Progress(run.total_steps, run.epochs, run.steps_per_epoch, run.logs, gauges, first)


def validate(run: Run, progress: Progress, step: int, epoch: int) -> None:
    """Take the loss on the held out pictures after `step` steps, in epoch `epoch`, and tell it."""
    progress.settle()
    with progress.paused(), at_rest(run.optimizer):
        events.emit("phase", name="validating", step=step, total=run.total_steps)
        found = run.validation.loss(run.model, run.network, run.objective.diffusion, run.accelerator)
        progress.validated(found, step, epoch)
        events.emit("phase", name="training", step=step, total=run.total_steps)


def after_epoch(run: Run, progress: Progress, step: int, epoch: int) -> None:
    """Save and sample after `epoch` epochs; the last one is saved under the final name only, as users know it."""
    progress.settle()
    saving = run.saves.after_epoch(epoch) and step < run.total_steps
    with at_rest(run.optimizer):
        if step == run.total_steps:
            save_network(run, run.outputs.final, step, epoch, final=True)
        elif saving:
            save_epoch(run, step, epoch)
        if run.sampling.after_epoch(epoch):
            run.sampling.draw(run.model, run.network, run.accelerator, step, f"e{epoch:06d}")
    if saving and run.saves.states:
        save_epoch_state(run, step, epoch)


def stop_early(run: Run, progress: Progress, step: int, epoch: int) -> None:
    """Keep what was learnt so far, and end.

    Raises:
        KeyboardInterrupt: always.
    """
    progress.settle()
    save_stopped(run, step, epoch + 1)
    say(f"Stopped after step {step} of {run.total_steps}; the network so far is {run.outputs.step(step)}")
    say(f"To go on from here: {run.outputs.command_to_resume(run.outputs.step_state(step))}")
    raise KeyboardInterrupt


def current_rates(run: Run) -> dict[str, float]:
    """The learning rate of each parameter group by name, as the optimizer has it after the step."""
    inner = getattr(run.optimizer, "optimizer", run.optimizer)
    return dict(zip(run.group_names, effective_rates(inner), strict=True))
