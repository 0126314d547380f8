"""`debug_dataset`: what a run would be trained on, sample by sample, without a model and without training."""

from dataclasses import replace

from backend.config.dataset_folders import dataset_of
from backend.config.train import TrainNetwork
from backend.data.batches import Batch, Pace
from backend.data.dataset import TrainingSet
from backend.processes import place
from backend.terminal import say, warn
from backend.train.feed import check_pixels
from backend.train.setup import check_captions, length, with_seed
from backend.train.validation import check_validation, split_of


def list_samples(config: TrainNetwork) -> None:
    """Print every sample of the first epoch, or of `max_train_epochs`, in the order of training.

    Raises:
        UserError: the dataset cannot be used.
    """
    config, seed = with_seed(config)
    datasets = dataset_of(config.data, config.dataset_defaults.keys())
    check_pixels(config.data, datasets)
    training_set = TrainingSet.scan(datasets, split=split_of(config.validation, seed))
    training_set = replace(training_set, processes=config.devices.num_processes or place().size)
    check_validation(config.validation, training_set)
    for warning in training_set.warnings:
        warn(warning)
    check_captions(config, training_set)
    batches = training_set.batches_per_epoch()
    total_steps, _ = length(config, batches)
    accumulation = config.optim.gradient_accumulation_steps
    training_set = replace(training_set, pace=Pace(accumulation, total_steps))
    say(f"{training_set.num_train_images} training pictures in an epoch with their repeats, {batches} batches")
    for epoch in range(config.optim.max_train_epochs or 1):
        for position, batch in enumerate(training_set.epoch_batches(seed, epoch)):
            step = training_set.pace.moment(epoch, position, batches).step + 1
            for line in describe(batch):
                say(f"epoch {epoch + 1}, step {step}, batch {position + 1}: {line}")


def describe(batch: Batch) -> list[str]:
    """One line for every sample of a batch: picture, sizes, how often it is shown, caption."""
    lines = []
    for item in batch.items:
        picture = item.picture
        words = [
            "x".join(str(side) for side in picture.size) + " in bucket " + "x".join(str(side) for side in batch.bucket),
            f"{picture.repeats} times an epoch",
            *(["regularisation"] if picture.is_reg else []),
            *(["mirrored"] if item.flip else []),
            *([f"network at {batch.multiplier:g}"] if batch.multiplier != 1 else []),
        ]
        lines.append(f'{picture.path} ({", ".join(words)}) "{item.caption}"')
    return lines
