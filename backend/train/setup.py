"""Everything a run needs before its first step, made once from the config."""

import importlib
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import ModuleType

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from torch import nn
from torch.optim import Optimizer

from backend import events
from backend.config.base import resolved_toml
from backend.config.dataset import DatasetConfig
from backend.config.train import Network as NetworkOptions
from backend.config.train import TrainNetwork
from backend.data.dataset import TrainingSet
from backend.draws import draw_key
from backend.errors import UserError
from backend.families.base import LoadOptions, load_model, model_hashes
from backend.families.model import Model
from backend.generate.attention import set_attention
from backend.generate.pipeline import place
from backend.lora.file import layers_of, read_lora, read_tensors, tensors_of
from backend.lora.fit import check_fit, check_keys
from backend.networks.base import add_to_weight
from backend.networks.modules import FoundModule, find_modules, shapes_of
from backend.terminal import say, warn
from backend.train.feed import Feed, make_feed
from backend.train.noise import Diffusion, diffusion_of
from backend.train.optim import Schedule, check_optimizer, make_optimizer, make_schedule
from backend.train.outputs import Outputs, write_text
from backend.train.samples import Sampling, make_sampling, wanted
from backend.train.text import CaptionEncoder, KnownCaptions, encode_all

VAE_FIELDS = {"sd_model_name": "vae_name", "sd_model_hash": "vae_hash", "new_sd_model_hash": "new_vae_hash"}
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class Run:
    """One training run: the parts that the step is made of, and how long it goes on.

    Attributes:
        encode_captions: captions to conditioning.
        feed: batches to (batch, latents).
        peaks: the peak learning rate of each of the optimizer's parameter groups, named by `group_names`.
        total_steps, epochs: length of the run.
        started_at: unix time.
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
    training_set = TrainingSet.scan(DatasetConfig.load(config.data.dataset_config))
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

    captions = [item.caption for batch in training_set.epoch_batches(seed, 0) for item in batch.items]
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


def make_accelerator(mixed_precision: str) -> tuple[Accelerator, torch.dtype]:
    """Accelerate's handle on device and precision, and the dtype of the frozen model.

    Raises:
        UserError: the device cannot compute in this precision, or several processes were launched.
    """
    try:
        # The plugin, as the plain argument would give way to an environment variable that our step does not follow.
        accelerator = Accelerator(
            mixed_precision=mixed_precision, gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1)
        )
    except ValueError as error:
        raise UserError(f"{error}; choose another or no", field="mixed_precision") from None
    if accelerator.num_processes > 1:
        raise UserError(
            f"training runs in one process, but {accelerator.num_processes} were launched; launch one, such as with "
            "`accelerate launch --num_processes 1`"
        )
    if mixed_precision == "fp16" and not accelerator.native_amp:
        warn("mixed_precision fp16 needs a GPU; there is none here, so float32 is used")
        return accelerator, torch.float32
    return accelerator, DTYPES[mixed_precision]


def place_model(model: Model, config: TrainNetwork, device: torch.device, dtype: torch.dtype) -> None:
    """Move the frozen model to the device in the precision of the run; set attention and checkpointing.

    The VAE stays in float32: it is not trained, and in half precision it can overflow and give NaN latents.
    """
    trains_text = not config.network.network_train_unet_only
    place(model.vae, torch.device("cpu"), torch.float32)
    for module in (model.unet, *model.text_encoders):
        place(module, device, dtype)
    message = set_attention(model.unet, config.speed.xformers, config.speed.sdpa, device)
    if message:
        warn(message)
    if config.speed.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
        # transformers checkpoints in training mode only; CLIP has no dropout that the mode would switch on.
        for encoder in model.text_encoders if trains_text else ():
            encoder.activation_checkpointing_enable()
            encoder.train()


def make_network(config: TrainNetwork, model: Model, seed: int, device: torch.device) -> nn.Module:
    """The network, initialised from the seed in float32 on the CPU, applied to the model and moved to its device."""
    options = config.network
    merge_base_weights(options, model)
    module: ModuleType = importlib.import_module(f"backend.{options.network_module}")
    parts = (model.vae, model.text_encoders, model.unet)
    generator = torch.Generator().manual_seed(draw_key(seed, "network"))
    further = {"dropout": options.network_dropout, **options.network_args}
    if options.dim_from_weights:
        network, _ = module.create_network_from_weights(1.0, options.network_weights, *parts, **further)
    else:
        size = (options.network_dim, options.network_alpha)
        network = module.create_network(1.0, *size, *parts, generator=generator, **further)
    network.apply_to(
        model.text_encoders,
        model.unet,
        apply_text_encoder=not options.network_train_unet_only,
        apply_unet=not options.network_train_text_encoder_only,
    )
    if options.network_weights is not None and not options.dim_from_weights:
        continue_from(network, options, find_modules(model.text_encoders, model.unet))
    network.to(device, dtype=torch.float32)
    network.requires_grad_(True).train()
    return network


def merge_base_weights(options: NetworkOptions, model: Model) -> None:
    """Add the LoRA files of `base_weights` to the model's weights, which are trained on as they are then.

    Raises:
        UserError: a file is broken or made for another model.
    """
    multipliers = [*options.base_weights_multiplier, *[1.0] * len(options.base_weights)]
    for path, multiplier in zip(options.base_weights, multipliers, strict=False):
        layers = read_lora(path).layers
        modules = find_modules(model.text_encoders, model.unet)
        check_fit(layers, shapes_of(modules), str(path))
        for key, layer in layers.items():
            add_to_weight(modules[key].module, layer.delta(), multiplier)
        say(f"Merged {path} at {multiplier:g}")


def continue_from(network: nn.Module, options: NetworkOptions, modules: Mapping[str, FoundModule]) -> None:
    """Load `network_weights` into a network of the same ranks; what the file does not have starts from nothing.

    Args:
        modules: the model's, by key.

    Raises:
        UserError: the file is broken, made for another model, or has other ranks or modules.
    """
    path = options.network_weights
    tensors, metadata = read_tensors(path)
    layers = layers_of(tensors, metadata, str(path))
    only = {"lora_unet_": options.network_train_unet_only, "lora_te": options.network_train_text_encoder_only}
    check_fit(layers, shapes_of(modules), str(path))
    kept = {key: layer for key, layer in layers.items() if all(key.startswith(part) for part in only if only[part])}
    if len(kept) < len(layers):
        warn(f"{len(layers) - len(kept)} modules of {path} belong to the part that is not trained and are left out")
    check_keys(kept, {adapter.lora_name: adapter for adapter in network.adapters()}, str(path))
    missing = len(network.adapters()) - len(kept)
    if missing:
        warn(f"{path} has no weights for {missing} of the network's modules, which start from nothing")
    try:
        network.load_state_dict(tensors_of(kept), strict=False)
    except UserError as error:
        message = f"{error.message}; set dim_from_weights to take the file's ranks"
        raise UserError(message, field=str(path)) from None
