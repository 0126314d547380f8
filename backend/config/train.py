"""Options of `train_network`."""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from backend.config.choices import NETWORK_SPELLINGS, SAMPLER_SPELLINGS, NetworkModule, Sampler
from backend.config.declare import Command, Option, Section, reject, reject_all
from backend.config.model import ModelOptions
from backend.config.network import NETWORK_ARGS, rank_problems, read_network_args
from backend.config.text import read_literals

ADVANCED = Option(advanced=True)


class Model(ModelOptions):
    """Model."""

    pretrained_model_name_or_path: Annotated[str, Option(widget="model")] = Field(min_length=1)
    """Model to train on: a .safetensors or .ckpt file, a Diffusers folder, or a hub name (org/repo, or
    org/repo/file.safetensors)."""


class Data(Section):
    """Data."""

    dataset_config: Annotated[Path, Option(widget="dataset")]
    """The toml file that describes the dataset: folders of pictures, resolution, batch size, repeats, captions."""

    cache_latents: bool = False
    """Encode every picture once before training and keep the latents in memory: faster, and the VAE leaves the GPU."""

    vae_batch_size: Annotated[int, ADVANCED] = Field(1, ge=1)
    """How many pictures the VAE encodes at a time when latents are cached."""

    cache_text_encoder_outputs: bool = False
    """Encode every caption once before training and drop the text encoders from memory. Needs network_train_unet_only,
    and captions that are not shuffled or dropped."""

    prior_loss_weight: float = Field(1.0, ge=0)
    """Weight of the loss of regularisation pictures."""

    max_data_loader_n_workers: Annotated[int | None, ADVANCED] = Field(None, ge=0)
    """Processes that load pictures; left out, the smaller of 8 and the number of CPU threads less one."""

    persistent_data_loader_workers: Annotated[bool, ADVANCED] = False
    """Keep the loading processes from epoch to epoch instead of starting them again."""


class Network(Section):
    """Network."""

    network_module: Annotated[NetworkModule, Option(spellings=NETWORK_SPELLINGS)] = "networks.lora"
    """Kind of network to train."""

    network_dim: int = Field(4, ge=1)
    """Rank of the network: more dimensions hold more and make a larger file."""

    network_alpha: Annotated[float, Option(spellings=(("none", 0.0),))] = Field(1.0, ge=0)
    """Scale: changes count alpha / rank. 0 or "none" means alpha = rank."""

    network_args: Annotated[dict[str, Any], Option(widget="network_args")] = Field(default_factory=dict)
    """Further arguments of the network, as "key=value" pairs or as a table."""

    network_weights: Annotated[Path | None, Option(widget="file")] = None
    """LoRA file to go on training from. The strength it is saved with is its own, whatever network_alpha says."""

    dim_from_weights: bool = False
    """Take the ranks and alphas of every module from network_weights."""

    network_dropout: Annotated[float | None, ADVANCED] = Field(None, ge=0, lt=1)
    """Share of the activations between the network's factors that is left out in training."""

    scale_weight_norms: Annotated[float | None, ADVANCED] = Field(None, gt=0)
    """After every step, scale changes of weight with a larger norm down to this; 1 is a usual value."""

    base_weights: Annotated[tuple[Path, ...], Option(advanced=True, widget="file")] = ()
    """LoRA files to merge into the model before training."""

    base_weights_multiplier: Annotated[tuple[float, ...], ADVANCED] = ()
    """Multiplier of each file of base_weights; missing ones are 1."""

    network_train_unet_only: bool = False
    """Train the U-Net only and leave the text encoder as it is."""

    network_train_text_encoder_only: bool = False
    """Train the text encoder only and leave the U-Net as it is."""

    @field_validator("network_args", mode="before")
    @classmethod
    def _known_args(cls, value: Any, info: ValidationInfo) -> dict[str, Any]:
        module = info.data.get("network_module")
        if module not in NETWORK_ARGS:
            return {}  # a wrong module is a problem of its own, and says nothing about which arguments are right
        arguments, problems = read_network_args(module, {} if value is None else value)
        if problems:
            reject_all(problems)
        return arguments

    @model_validator(mode="after")
    def _fits_together(self) -> "Network":
        problems = (
            [] if self.dim_from_weights else rank_problems(self.network_module, self.network_dim, self.network_args)
        )
        if self.dim_from_weights and self.network_weights is None:
            problems.append(("dim_from_weights", "needs network_weights, the file that has the ranks"))
        if self.dim_from_weights:
            message = "has no effect with dim_from_weights; leave it out"
            sizes = [name for name in self.network_args if name.startswith(("conv_", "block_d", "block_a"))]
            problems += [(f"network_args.{name}", message) for name in sizes]
        if len(self.base_weights_multiplier) > len(self.base_weights):
            given, files = len(self.base_weights_multiplier), len(self.base_weights)
            problems.append(("base_weights_multiplier", f"has {given} values for {files} files in base_weights"))
        if self.network_dropout and self.network_module == "networks.loha":
            problems.append(
                (
                    "network_dropout",
                    "has no meaning for networks.loha; use rank_dropout or module_dropout in network_args",
                )
            )
        if problems:
            reject_all(problems)
        return self

    @model_validator(mode="after")
    def _one_part_only(self) -> "Network":
        if self.network_train_unet_only and self.network_train_text_encoder_only:
            reject("network_train_text_encoder_only", "cannot be set together with network_train_unet_only; choose one")
        return self


class Optim(Section):
    """Optimizer and schedule."""

    learning_rate: float = Field(1e-4, gt=0)
    """Learning rate."""

    unet_lr: float | None = Field(None, ge=0)
    """Learning rate of the U-Net's network; left out, learning_rate."""

    text_encoder_lr: tuple[float, ...] = ()
    """Learning rate of the text encoder's network, or one for each of SDXL's two; left out, learning_rate."""

    optimizer_type: Literal["AdamW", "AdamW8bit"] = "AdamW"
    """Optimizer. AdamW8bit keeps its state in 8 bits, which saves memory."""

    optimizer_args: Annotated[dict[str, Any], ADVANCED] = Field(default_factory=dict)
    """Further arguments of the optimizer, such as "weight_decay=0.01" "betas=0.9,0.99"."""

    max_grad_norm: Annotated[float, ADVANCED] = Field(1.0, ge=0)
    """Gradients are scaled down to this norm; 0 turns that off."""

    lr_scheduler: Literal["constant", "constant_with_warmup", "cosine"] = "constant"
    """How the learning rate changes over the run."""

    lr_warmup_steps: float = Field(0.0, ge=0)
    """Steps over which the learning rate rises from 0; below 1, a fraction of all steps."""

    max_train_steps: int = Field(1600, ge=1)
    """How many steps to train."""

    max_train_epochs: int | None = Field(None, ge=1)
    """How many epochs to train; overrides max_train_steps."""

    gradient_accumulation_steps: Annotated[int, ADVANCED] = Field(1, ge=1)
    """Batches whose gradients are added up for one step."""

    seed: int | None = Field(None, ge=0, le=2**63 - 1)
    """Seed of every random draw; left out, one is drawn, shown and saved."""

    @field_validator("text_encoder_lr", mode="before")
    @classmethod
    def _one_or_two_rates(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = (float(value),)
        return () if value is None else value

    @field_validator("text_encoder_lr")
    @classmethod
    def _rates_from_zero(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(value) > 2 or any(rate < 0 for rate in value):
            reject(
                "text_encoder_lr", f"must be one rate from 0, or one for each of two text encoders, got {list(value)}"
            )
        return value

    @field_validator("optimizer_args", mode="before")
    @classmethod
    def _literals(cls, value: Any) -> dict[str, Any]:
        return read_literals({} if value is None else value)

    @model_validator(mode="after")
    def _warmup(self) -> "Optim":
        steps = self.lr_warmup_steps
        if steps >= 1 and steps != int(steps):
            reject("lr_warmup_steps", f"must be a whole number of steps or a fraction below 1, got {steps:g}")
        if steps > 0 and self.lr_scheduler == "constant":
            reject("lr_warmup_steps", 'has no effect with lr_scheduler "constant"; use constant_with_warmup')
        return self


class Speed(Section):
    """Precision, memory, speed."""

    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Compute in half precision; saves memory and time on a GPU."""

    xformers: bool = False
    """Memory-efficient attention from xformers, where a GPU can run it."""

    sdpa: Annotated[bool, ADVANCED] = False
    """PyTorch's own scaled dot product attention."""

    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: slower, with much less memory."""


class Save(Section):
    """Saving."""

    output_dir: Annotated[Path, Option(widget="folder")]
    """Folder for the LoRA files and sample pictures."""

    output_name: str = "last"
    """File name of the LoRA, without folder and extension."""

    save_model_as: Literal["safetensors", "ckpt", "pt"] = "safetensors"
    """File format."""

    save_precision: Literal["float", "fp16", "bf16"] | None = None
    """Precision of the saved numbers; left out, as trained."""

    save_every_n_epochs: int | None = Field(None, ge=1)
    """Also save after every so many epochs."""

    training_comment: Annotated[str | None, ADVANCED] = None
    """A remark that is kept in the file's metadata."""

    no_metadata: Annotated[bool, ADVANCED] = False
    """Keep the training parameters out of the file, but for the few that readers need."""

    overwrite: bool = False
    """Replace existing files of the same name."""

    @field_validator("output_name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not value.strip() or value.startswith(".") or re.search(r'[/\\:*?"<>|\x00-\x1f]', value):
            raise ValueError(f'must be a plain file name without a folder, got "{value}"')
        return value


class Samples(Section):
    """Sample pictures."""

    sample_prompts: Annotated[Path | None, Option(widget="file")] = None
    """Text file with one prompt a line; each may end in --w --h --s (steps) --l (guidance) --d (seed)
    --n (negative)."""

    sample_every_n_epochs: int | None = Field(None, ge=1)
    """Draw the sample pictures after every so many epochs."""

    sample_every_n_steps: int | None = Field(None, ge=1)
    """Draw the sample pictures after every so many steps; sample_every_n_epochs wins."""

    sample_at_first: bool = False
    """Draw the sample pictures once before training too."""

    sample_sampler: Annotated[Sampler, Option(spellings=SAMPLER_SPELLINGS, advanced=True)] = "ddim"
    """Sampler of the sample pictures."""

    @model_validator(mode="after")
    def _prompts_and_times(self) -> "Samples":
        asked = [
            name for name in ("sample_every_n_epochs", "sample_every_n_steps", "sample_at_first") if getattr(self, name)
        ]
        if asked and self.sample_prompts is None:
            reject("sample_prompts", f"is required with {asked[0]}: a text file with one prompt a line")
        if self.sample_prompts is not None and not asked:
            reject(
                "sample_prompts",
                "also needs to know when: set sample_every_n_epochs, sample_every_n_steps or sample_at_first",
            )
        return self


class TrainNetwork(Command):
    """Train a LoRA."""

    command: ClassVar[str] = "train_network"

    model: Model
    data: Data
    network: Network
    optim: Optim
    speed: Speed
    save: Save
    samples: Samples

    @model_validator(mode="after")
    def _encoders_that_are_dropped_cannot_learn(self) -> "TrainNetwork":
        if self.data.cache_text_encoder_outputs and not self.network.network_train_unet_only:
            message = "needs network_train_unet_only: the text encoders are dropped, so they cannot be trained"
            reject("cache_text_encoder_outputs", message)
        return self
