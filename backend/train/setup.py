"""Everything a run needs before its first step, made once from the config."""

import random
import time
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from backend import events
from backend.config.base import resolved_toml
from backend.config.dataset import DatasetConfig
from backend.config.train import TrainNetwork
from backend.data.dataset import TrainingSet
from backend.errors import UserError
from backend.families.base import LoadOptions, load_model, model_hashes
from backend.families.model import Model
from backend.lora.file import read_lora
from backend.terminal import say, warn
from backend.train.build import make_network
from backend.train.device import make_accelerator, place_model
from backend.train.feed import Feed, make_feed, validation_feed
from backend.train.logs import Logs, check_logs, make_logs
from backend.train.noise import Diffusion, diffusion_of
from backend.train.optim import Schedule, check_optimizer, make_optimizer, make_schedule
from backend.train.outputs import Outputs, write_text
from backend.train.samples import Sampling, make_sampling, wanted
from backend.train.text import CaptionEncoder, KnownCaptions, encode_all
from backend.train.validation import Validation, check_validation, make_validation, split_of

VAE_FIELDS = {"sd_model_name": "vae_name", "sd_model_hash": "vae_hash", "new_sd_model_hash": "new_vae_hash"}


@dataclass
class Run:
    """One training run: the parts that the step is made of, and how long it goes on.

    Attributes:
        encode_captions: captions to conditioning.
        feed: batches to (batch, latents).
        peaks: the peak learning rate of each of the optimizer's parameter groups, named by `group_names`.
        total_steps, epochs: length of the run.
        started_at: unix time.
        validation: what is looked at of the held out pictures, and when.
        logs: what curves are written to.
        gradient_norm: of the newest step, before clipping, still on the device.
    """

    config: TrainNetwork
    seed: int
    accelerator: Accelerator
    training_set: TrainingSet
    model: Model
    network: nn.Module
    diffusion: Diffusion
    encode_captions: CaptionEncoder | KnownCaptions
    feed: Feed
    optimizer: Optimizer
    group_names: tuple[str, ...]
    peaks: tuple[float, ...]
    schedule: Schedule
    sampling: Sampling
    outputs: Outputs
    total_steps: int
    epochs: int
    started_at: float
    validation: Validation
    logs: Logs
    gradient_norm: Tensor | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @cached_property
    def base_hashes(self) -> dict[str, str]:
        """Names and hashes of the base model, and of a VAE in place of its own; computed once for all files."""
        vae = self.config.model.vae
        other = {} if vae is None else {VAE_FIELDS[name]: value for name, value in model_hashes(vae).items()}
        return model_hashes(self.model.source) | other


def prepare(config: TrainNetwork) -> Run:
    """Check, load and build, cheapest first, so that a mistake shows before a model has been loaded.

    Raises:
        UserError: anything in the config, the dataset, the model or the outputs that cannot work.
    """
    started_at = time.time()
    outputs = Outputs(config.save.output_dir, config.save.output_name, config.save.save_model_as)
    outputs.prepare(config.save.overwrite)
    config, seed = with_seed(config)
    dataset = DatasetConfig.load(config.data.dataset_config)
    training_set = TrainingSet.scan(dataset, split_of(config.validation, seed))
    check_validation(config.validation, training_set)
    check_logs(config.logs)
    wanted(config.samples)
    check_optimizer(config.optim.optimizer_type, config.optim.optimizer_args)
    for path in (config.network.network_weights, *config.network.base_weights):
        if path is not None:
            read_lora(path)
    for warning in training_set.warnings:
        warn(warning)
    check_captions(config, training_set)
    total_steps, epochs = length(config, training_set.batches_per_epoch())
    schedule = make_schedule(config.optim.lr_scheduler, config.optim.lr_warmup_steps, total_steps)

    accelerator, dtype = make_accelerator(config.speed.mixed_precision)
    events.emit("phase", name="loading", step=0, total=1)
    say(f"Loading {config.model.pretrained_model_name_or_path}")
    source = config.model.pretrained_model_name_or_path
    model = load_model(source, config.model.revision, LoadOptions.of(config.model), dtype=None)
    for note in model.notes:
        warn(note)
    sampling = make_sampling(config.samples, model, outputs, seed)
    place_model(model, config, accelerator.device, dtype)
    # Before the latents, which take time: a network that does not fit the model is refused here.
    network = make_network(config, model, seed, accelerator.device)
    feed = make_feed(config.data, training_set, model, accelerator.device)
    if config.data.cache_latents and not sampling.requests:
        model.vae = nn.Module()  # nothing needs it any more, so its memory is given back

    optim = config.optim
    groups = network.parameter_groups(optim.text_encoder_lr or None, optim.unet_lr, optim.learning_rate)
    network.train_only(groups)
    parameters = [{"params": group.params, "lr": group.lr} for group in groups]
    optimizer = accelerator.prepare(make_optimizer(optim.optimizer_type, parameters, optim.optimizer_args))
    encode_captions = CaptionEncoder(model, trained=any(group.name.startswith("text_encoder") for group in groups))
    if config.data.cache_text_encoder_outputs:
        with accelerator.autocast():
            encode_captions = drop_text_encoders(model, training_set, sampling, seed, accelerator.device)
        sampling = replace(sampling, encode=encode_captions)
    apart = validation_feed(feed, config.data, model)
    # An encoder of its own, which remembers nothing: what training finds remembered must not hang on validation.
    encode = encode_captions if isinstance(encode_captions, KnownCaptions) else CaptionEncoder(model, trained=True)
    validation = make_validation(config.validation, training_set, seed, apart, encode)
    write_text(outputs.config, resolved_toml(config))
    return Run(
        config=config,
        seed=seed,
        accelerator=accelerator,
        training_set=training_set,
        model=model,
        network=network,
        diffusion=diffusion_of(model.scheduler),
        encode_captions=encode_captions,
        feed=feed,
        optimizer=optimizer,
        group_names=tuple(group.name for group in groups),
        peaks=tuple(group.lr for group in groups),
        schedule=schedule,
        sampling=sampling,
        outputs=outputs,
        total_steps=total_steps,
        epochs=epochs,
        started_at=started_at,
        validation=validation,
        logs=make_logs(config, started_at),
    )


def check_captions(config: TrainNetwork, training_set: TrainingSet) -> None:
    """See that captions that are to be encoded once stay the same in every epoch.

    Raises:
        UserError: they are shuffled or dropped.
    """
    if not config.data.cache_text_encoder_outputs:
        return
    for subset in (subset for dataset in training_set.datasets for subset in dataset.subsets):
        changing = [name for name in ("shuffle_caption", "caption_dropout_rate") if getattr(subset, name)]
        if changing:
            message = f"needs captions that stay the same, but {subset.image_dir} has {changing[0]}; leave one out"
            raise UserError(message, field="cache_text_encoder_outputs")


def drop_text_encoders(
    model: Model, training_set: TrainingSet, sampling: Sampling, seed: int, device: torch.device
) -> KnownCaptions:
    """Encode every caption and sample prompt, and give the text encoders' memory back."""

    def report(done: int, total: int) -> None:
        events.emit("phase", name="encoding captions", step=done, total=total)

    batches = (*training_set.epoch_batches(seed, 0), *training_set.validation_batches(seed))
    captions = [item.caption for batch in batches for item in batch.items]
    known = encode_all(model, [*captions, *sampling.texts], device, report)
    model.text_encoders = []
    return known


def with_seed(config: TrainNetwork) -> tuple[TrainNetwork, int]:
    """The config with its seed, drawn and shown if it has none."""
    if config.optim.seed is not None:
        return config, config.optim.seed
    seed = random.SystemRandom().randrange(2**32)
    say(f"Seed: {seed}")
    return config.model_copy(update={"optim": config.optim.model_copy(update={"seed": seed})}), seed


def length(config: TrainNetwork, batches_per_epoch: int) -> tuple[int, int]:
    """Steps and epochs of the run; `max_train_epochs` overrides `max_train_steps`.

    Accumulation does not reach over the end of an epoch: its last step takes the micro-batches that are left.
    """
    steps_per_epoch = -(-batches_per_epoch // config.optim.gradient_accumulation_steps)
    if config.optim.max_train_epochs is not None:
        return steps_per_epoch * config.optim.max_train_epochs, config.optim.max_train_epochs
    return config.optim.max_train_steps, -(-config.optim.max_train_steps // steps_per_epoch)
