"""Everything a run needs before its first step, made once from the config."""

import random
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from backend import events
from backend.config.base import resolved_toml
from backend.config.dataset_folders import dataset_of
from backend.config.train import TrainNetwork
from backend.data.batches import Batch, Pace
from backend.data.captions import CHANGING
from backend.data.dataset import TrainingSet
from backend.data.store import Caches
from backend.errors import UserError
from backend.families.base import LoadOptions, load_model
from backend.families.hashes import Hashing
from backend.families.model import Model
from backend.lora.file import read_lora
from backend.states import Position, check_state
from backend.terminal import bar, say, warn
from backend.train.build import make_network
from backend.train.caption_notes import caption_notes
from backend.train.description import describe_file
from backend.train.device import bring_unet, give_memory_back, make_accelerator, network_dtype, place_model
from backend.train.feed import Feed, check_pixels, make_feed, open_caches, validation_feed
from backend.train.group import Group
from backend.train.joining import compare
from backend.train.logs import Logs, check_logs, make_logs, no_logs
from backend.train.loss import Objective, make_objective
from backend.train.noise import diffusion_of
from backend.train.optimizers import check_optimizer, check_rates, make_optimizer, notes
from backend.train.outputs import Outputs, Saved, SavePlan, write_text
from backend.train.samples import Sampling, make_sampling, wanted
from backend.train.schedules import Rates, make_rates
from backend.train.state import fingerprint, load_state
from backend.train.text import CaptionEncoder, KnownCaptions, encode_all, stored_captions
from backend.train.validation import Validation, check_validation, make_validation, split_of

VAE_FIELDS = {"sd_model_name": "vae_name", "sd_model_hash": "vae_hash", "new_sd_model_hash": "new_vae_hash"}


@dataclass
class Run:
    """One training run: the parts that the step is made of, and how long it goes on.

    Attributes:
        encode_captions: captions to conditioning.
        feed: batches to (batch, latents).
        peaks: the peak learning rate of each of the optimizer's parameter groups, named by `group_names`.
        rates: the rate of each of these groups by the number of steps done.
        saves: when to save on the way, and what of that to keep.
        description: what the file says of itself, by ModelSpec's names.
        total_steps, epochs: length of the run.
        started_at: unix time.
        position: where it goes on from, None at the beginning.
        validation: what is looked at of the held out pictures, and when.
        logs: what curves are written to.
        group: the processes that train together.
        gradient_norm: of the newest step, before clipping, still on the device.
        saved: where this run has saved on the way, as far as the files are still there.
        hashing: takes the hashes of the base model and of a VAE in place of its own meanwhile, in the process that
            writes the files.
    """

    config: TrainNetwork
    seed: int
    accelerator: Accelerator
    training_set: TrainingSet
    model: Model
    network: nn.Module
    objective: Objective
    encode_captions: CaptionEncoder | KnownCaptions
    feed: Feed
    optimizer: Optimizer
    group_names: tuple[str, ...]
    peaks: tuple[float, ...]
    rates: Rates
    sampling: Sampling
    outputs: Outputs
    saves: SavePlan
    description: dict[str, str]
    total_steps: int
    epochs: int
    started_at: float
    validation: Validation
    logs: Logs
    hashing: Hashing
    position: Position | None = None
    group: Group = field(default_factory=Group)
    saved: Saved = field(default_factory=Saved)
    gradient_norm: Tensor | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch; its last one takes the micro-batches that are left."""
        return -(-self.training_set.batches_per_epoch() // self.config.optim.gradient_accumulation_steps)

    def batches_left(self, step: int, epoch: int) -> list[Batch]:
        """This process's share of what is to be gone through of epoch `epoch`, from 0, after `step` steps in all."""
        done = (step - epoch * self.steps_per_epoch) * self.config.optim.gradient_accumulation_steps
        left = self.training_set.epoch_batches(self.seed, epoch)[done:] if step < self.total_steps else []
        return [batch.shard(self.group.rank, self.group.size) for batch in left]

    @property
    def base_hashes(self) -> dict[str, str]:
        """Names and hashes of the base model, and of a VAE in place of its own; the first time may have to wait."""
        model, *vae = self.hashing.result()
        return model | {VAE_FIELDS[name]: value for one in vae for name, value in one.items()}


@dataclass(frozen=True)
class Checked:
    """What is known of a run before a model has been loaded."""

    config: TrainNetwork
    seed: int
    outputs: Outputs
    caches: Caches | None
    training_set: TrainingSet
    description: dict[str, str]
    total_steps: int
    epochs: int
    position: Position | None


def check(config: TrainNetwork, group: Group | None = None) -> Checked:
    """Everything that can be judged without the model, cheapest first.

    Raises:
        UserError: anything in the config, the dataset or the outputs that cannot work.
    """
    group = group or Group()
    outputs = Outputs(config.save.output_dir, config.save.output_name, config.save.save_model_as)
    position = None if config.state.resume is None else check_state(config.state.resume)
    if group.is_first:
        outputs.prepare(config.save.overwrite or position is not None)
        check_logs(config.logs)
    config, seed = with_seed(config, position, group)
    wanted(config.samples)
    description = describe_file(config.description)
    optim = config.optim
    check_optimizer(optim.optimizer, optim.optimizer_args)
    for path in (config.network.network_weights, *config.network.base_weights):
        if path is not None:
            read_lora(path, config.network.allow_unmatched)
    datasets = dataset_of(config.data, config.dataset_defaults.keys())
    check_pixels(config.data, datasets)
    caches = open_caches(config.data, group.keeps_caches)
    training_set = TrainingSet.scan(datasets, caches, split_of(config.validation, seed))
    training_set = replace(training_set, processes=group.size)
    check_validation(config.validation, training_set)
    for warning in (*training_set.warnings, *notes(optim, torch.cuda.is_available())):
        warn(warning)
    check_captions(config, training_set)
    total_steps, epochs = length(config, training_set.batches_per_epoch())
    check_rates(optim.optimizer, make_rates(optim, total_steps, [optim.learning_rate]), total_steps)
    training_set = replace(training_set, pace=Pace(optim.gradient_accumulation_steps, total_steps))
    if position is not None:
        check_position(position, training_set, total_steps)
    return Checked(config, seed, outputs, caches, training_set, description, total_steps, epochs, position)


def load(config: TrainNetwork) -> Model:
    """The base model as the options want it, its line of notes told."""
    source = config.model.pretrained_model_name_or_path
    events.emit("phase", name="loading", step=0, total=1)
    say(f"Loading {source}")
    model = load_model(source, config.model.revision, LoadOptions.of(config.model), dtype=None)
    model.weighted_captions = config.data.weighted_captions
    for note in model.notes:
        warn(note)
    if config.noise.zero_terminal_snr:
        end_in_noise(model)
    return model


def prepare(config: TrainNetwork, group: Group | None = None) -> Run:
    """Check, load and build, cheapest first, so that a mistake shows before a model has been loaded.

    Args:
        config: of the run.
        group: the processes that train together; left out, this one alone.

    Raises:
        UserError: anything in the config, the dataset, the model or the outputs that cannot work, in any process.
    """
    group = group or Group()
    started_at = time.time()
    with group.together():
        checked = check(config, group)
    with group.together():
        return build(checked, group, started_at)


def build(checked: Checked, group: Group, started_at: float) -> Run:
    """Load and build what was checked.

    Raises:
        UserError: it does not work with the model or on the machine.
    """
    config, seed, training_set, optim = checked.config, checked.seed, checked.training_set, checked.config.optim
    accelerator, dtype = make_accelerator(config.speed)
    device = accelerator.device
    model = load(config)
    for note in caption_notes(model, training_set):
        warn(note)
    objective = make_objective(config.noise, diffusion_of(model.scheduler))
    sampling = make_sampling(config.samples, model, checked.outputs, seed)
    if not group.is_first:
        sampling = replace(sampling, requests=())
    place_model(model, config, device, dtype)
    # Before the latents, which take time: a network that does not fit the model is refused here.
    network = make_network(config, model, seed)
    network.to(device, dtype=network_dtype(config.speed, dtype))
    feed = make_feed(config.data, training_set, model, device, checked.caches, group)
    if config.data.cache_latents and not sampling.requests:
        model.vae = nn.Module()  # nothing needs it any more, so its memory is given back

    groups = network.parameter_groups(optim.text_encoder_lr or None, optim.unet_lr, optim.learning_rate)
    network.train_only(groups)
    parameters = [{"params": group.params, "lr": group.lr} for group in groups]
    optimizer = accelerator.prepare(make_optimizer(optim.optimizer, parameters, optim.optimizer_args))
    encode_captions = CaptionEncoder(model, captions_vary(config, training_set, [group.name for group in groups]))
    if config.data.cache_text_encoder_outputs:
        with accelerator.autocast():
            kept = checked.caches if config.data.cache_text_encoder_outputs_to_disk else None
            with group.one_after_another() if kept else nullcontext():
                sampling = sampling.encoded(model, device)
                encode_captions = drop_text_encoders(model, training_set, seed, device, kept)
    bring_unet(model, config.speed, device, dtype)
    apart = validation_feed(feed, config.data, model)
    # An encoder of its own, which remembers nothing: what training finds remembered must not hang on validation.
    encode = encode_captions if isinstance(encode_captions, KnownCaptions) else CaptionEncoder(model, trained=True)
    if checked.position is not None:
        resume(config.state.resume, checked.position, network, optimizer, accelerator)
    encoders = nn.ModuleList(model.text_encoders)
    compare(group, config, training_set, {"network": network, "U-Net": model.unet, "text encoders": encoders})
    give_memory_back()
    if group.is_first:
        write_text(checked.outputs.config, resolved_toml(config))
    return Run(
        config=config,
        seed=seed,
        accelerator=accelerator,
        training_set=training_set,
        model=model,
        network=network,
        objective=objective,
        encode_captions=encode_captions,
        feed=feed,
        optimizer=optimizer,
        group_names=tuple(group.name for group in groups),
        peaks=tuple(group.lr for group in groups),
        rates=make_rates(optim, checked.total_steps, [group.lr for group in groups]),
        sampling=sampling,
        outputs=checked.outputs,
        saves=SavePlan.of(config.save, config.state, checked.epochs),
        description=checked.description,
        total_steps=checked.total_steps,
        epochs=checked.epochs,
        started_at=started_at,
        validation=make_validation(config.validation, training_set, seed, apart, encode, group.is_first),
        logs=make_logs(config, started_at) if group.is_first else no_logs(),
        # Gigabytes to read, for the first file that is saved; by now nothing else waits for the disk.
        hashing=Hashing([source for source in (model.source, config.model.vae) if source] if group.is_first else []),
        position=checked.position,
        group=group,
        saved=Saved(**checked.position.saved) if checked.position else Saved(),
    )


def resume(
    folder: Path, position: Position, network: nn.Module, optimizer: Optimizer, accelerator: Accelerator
) -> None:
    """Put a state into what was built anew, and tell.

    Raises:
        UserError: it does not fit.
    """
    scaler = load_state(folder, network, optimizer)
    if accelerator.scaler is not None and scaler:
        accelerator.scaler.load_state_dict(dict(scaler))
    say(f"Going on from step {position.step}")


def end_in_noise(model: Model) -> None:
    """Let the model's noise schedule end in pure noise, in training and in sample pictures."""
    model.scheduler = {**model.scheduler, "rescale_betas_zero_snr": True}
    if not model.predicts_v:
        warn("zero_terminal_snr is set, but the model predicts the noise, which tells nothing about pure noise")


def check_captions(config: TrainNetwork, training_set: TrainingSet) -> None:
    """See that captions that are to be encoded once stay the same in every epoch.

    Raises:
        UserError: an option of a subset changes them.
    """
    if not config.data.cache_text_encoder_outputs:
        return
    for subset in (subset for dataset in training_set.datasets for subset in dataset.subsets):
        changing = [name for name in CHANGING if getattr(subset, name)]
        if changing:
            message = f"needs captions that stay the same, but {subset.image_dir} has {changing[0]}; leave one out"
            raise UserError(message, field="cache_text_encoder_outputs")


def captions_vary(config: TrainNetwork, training_set: TrainingSet, groups: Sequence[str]) -> bool:
    """Whether the text encoders may say something else of a caption from batch to batch.

    They do while they are trained, and where a network sits on them that acts at several multipliers.
    """
    multipliers = any(dataset.network_multiplier != 1 for dataset in training_set.datasets)
    trained = any(name.startswith("text_encoder") for name in groups)
    return trained or (multipliers and not config.network.network_train_unet_only)


def drop_text_encoders(
    model: Model,
    training_set: TrainingSet,
    seed: int,
    device: torch.device,
    caches: Caches | None = None,
) -> KnownCaptions:
    """Encode every caption, and give the text encoders' memory back.

    With `caches` those of an earlier run are taken from beside the first picture, and new ones kept there.
    """
    batches = (*training_set.epoch_batches(seed, 0), *training_set.validation_batches(seed))
    captions = [item.caption for batch in batches for item in batch.items]
    texts = list(dict.fromkeys(captions))
    stored = None
    if caches is not None:
        folder = caches.beside(training_set.pictures[0].path)
        stored = stored_captions(model, texts, device, folder, caches.trust)
    with bar("encoding captions") as report:
        known = encode_all(model, texts, device, report, stored)
    if caches is not None:
        caches.save()
    model.text_encoders = []
    return known


def with_seed(
    config: TrainNetwork, position: Position | None = None, group: Group | None = None
) -> tuple[TrainNetwork, int]:
    """The config with its seed: that of the state it goes on from, else drawn and shown if it has none.

    Raises:
        UserError: it has another seed than the state.
    """
    given = config.optim.seed
    if position is not None and given not in (None, position.seed):
        message = f"is {given}, but the state was made with {position.seed}; leave seed out, or set it to that"
        raise UserError(message, field="seed")
    if given is not None:
        return config, given
    seed = random.SystemRandom().randrange(2**32) if position is None else position.seed
    seed = group.of_first(seed) if group is not None else seed
    if position is None:
        say(f"Seed: {seed}")
    return config.model_copy(update={"optim": config.optim.model_copy(update={"seed": seed})}), seed


def check_position(position: Position, training_set: TrainingSet, total_steps: int) -> None:
    """See that there is something to go on with.

    Raises:
        UserError: the run was longer already.
    """
    if position.step > total_steps:
        message = f"the state is at step {position.step}, and this run ends at {total_steps}; make it longer"
        raise UserError(message, field="resume")
    if position.pictures != fingerprint(training_set):
        warn("the state was made with other pictures, captions or batch sizes; the run goes on with those of now")


def length(config: TrainNetwork, batches_per_epoch: int) -> tuple[int, int]:
    """Steps and epochs of the run; `max_train_epochs` overrides `max_train_steps`.

    Accumulation does not reach over the end of an epoch: its last step takes the micro-batches that are left.
    """
    steps_per_epoch = -(-batches_per_epoch // config.optim.gradient_accumulation_steps)
    if config.optim.max_train_epochs is not None:
        return steps_per_epoch * config.optim.max_train_epochs, config.optim.max_train_epochs
    return config.optim.max_train_steps, -(-config.optim.max_train_steps // steps_per_epoch)
