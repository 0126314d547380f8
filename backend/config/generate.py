"""Options of `gen_img`."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from backend.config.choices import NETWORK_SPELLINGS, SAMPLER_SPELLINGS, NetworkModule, Sampler
from backend.config.declare import Command, Option, Section, reject
from backend.config.model import ModelOptions

ADVANCED = Option(advanced=True)


class Checkpoint(ModelOptions):
    """Model."""

    ckpt: Annotated[str, Option(widget="model", aliases=("pretrained_model_name_or_path",))] = Field(min_length=1)
    """Model to generate with: a .safetensors or .ckpt file, a Diffusers folder, or a hub name (org/repo, or
    org/repo/file.safetensors)."""


class Prompt(Section):
    """Prompt."""

    prompt: Annotated[str | None, Option(widget="text")] = None
    """What to draw; may end in --w --h --s (steps) --l (guidance) --d (seed) --n (negative). (word:1.3), (word) and
    [word] weigh words, BREAK begins a new chunk of 75 tokens, <lora:name:0.8> applies a LoRA of the workspace or from
    beside the files of network_weights."""

    from_file: Annotated[Path | None, Option(widget="file")] = None
    """File of prompts: text with one a line, or a .toml or .json file as sd-scripts has them."""

    negative_prompt: Annotated[str, Option(widget="text")] = ""
    """What to steer away from, where a prompt has no --n of its own."""

    max_embeddings_multiples: Annotated[int, ADVANCED] = Field(3, ge=1, le=20)
    """Most chunks of 75 tokens that a prompt can have; its rest is cut. As many are used as the prompts need."""

    @model_validator(mode="after")
    def _one_source(self) -> "Prompt":
        if self.prompt is None and self.from_file is None:
            reject("prompt", "is required: give prompt, or from_file with one prompt a line")
        if self.prompt is not None and self.from_file is not None:
            reject("from_file", "cannot be given together with prompt; choose one")
        return self


class Image(Section):
    """Picture."""

    W: int | None = Field(None, ge=64, le=8192, multiple_of=8)
    """Width in pixels; left out, what the model was made for."""

    H: int | None = Field(None, ge=64, le=8192, multiple_of=8)
    """Height in pixels; left out, what the model was made for."""

    steps: int = Field(30, ge=1, le=1000)
    """Sampling steps."""

    scale: float = Field(7.5, ge=0)
    """Guidance scale: how strongly the prompt is followed."""

    sampler: Annotated[Sampler, Option(spellings=SAMPLER_SPELLINGS)] = "ddim"
    """Sampler."""

    seed: int | None = Field(None, ge=0, le=2**63 - 1)
    """Seed of the first picture; left out, one is drawn and written into the file."""

    images_per_prompt: int = Field(1, ge=1)
    """Pictures for each prompt."""

    n_iter: Annotated[int, ADVANCED] = Field(1, ge=1)
    """How often all prompts are drawn; each time with seeds of its own, which go on where those of the last time end
    (or are drawn anew, where no seed is given)."""

    batch_size: Annotated[int, ADVANCED] = Field(1, ge=1)
    """Pictures that are drawn at a time."""


class Networks(Section):
    """LoRA."""

    network_module: Annotated[tuple[NetworkModule, ...], Option(advanced=True, spellings=NETWORK_SPELLINGS)] = ()
    """Kind of each network; left out, it is read from the file."""

    network_weights: Annotated[tuple[Path, ...], Option(widget="file")] = ()
    """LoRA files to apply, one after the other; or folders of PEFT adapters."""

    network_mul: tuple[float, ...] = ()
    """Multiplier of each file; missing ones repeat the last, and are 1 when none is given."""

    network_merge: Annotated[bool, ADVANCED] = False
    """Merge all LoRA files into the model before drawing, at their multipliers; --am of a prompt does not reach
    them then."""

    network_merge_n_models: Annotated[int | None, ADVANCED] = Field(None, ge=1)
    """Merge so many of the LoRA files, the first ones."""

    allow_unmatched: Annotated[bool, ADVANCED] = False
    """Leave out layers that match nothing, with a warning, instead of refusing the file."""

    @model_validator(mode="after")
    def _one_each(self) -> "Networks":
        for name in ("network_module", "network_mul"):
            given, files = len(getattr(self, name)), len(self.network_weights)
            if given > files and not (name == "network_module" and given == 1):
                reject(name, f"has {given} values for {files} files in network_weights")
        if self.network_merge and not self.network_weights:
            reject("network_merge", "has nothing to merge; name the files in network_weights")
        if (self.network_merge_n_models or 0) > len(self.network_weights):
            message = f"is {self.network_merge_n_models}, but network_weights has {len(self.network_weights)} files"
            reject("network_merge_n_models", message)
        return self

    @property
    def merged(self) -> int:
        """How many of the files are merged into the model, the first ones."""
        return len(self.network_weights) if self.network_merge else self.network_merge_n_models or 0

    def loras(self) -> tuple[tuple[Path, float], ...]:
        """Each LoRA file with its multiplier."""
        last = self.network_mul[-1] if self.network_mul else 1.0
        multipliers = [*self.network_mul, *[last] * len(self.network_weights)]
        return tuple(zip(self.network_weights, multipliers, strict=False))


class Output(Section):
    """Output."""

    outdir: Annotated[Path, Option(widget="folder")]
    """Folder for the pictures."""


class Device(Section):
    """Precision and device."""

    fp16: bool = False
    """Compute in float16."""

    bf16: bool = False
    """Compute in bfloat16."""

    xformers: bool = False
    """Memory-efficient attention from xformers, where a GPU can run it."""

    sdpa: Annotated[bool, ADVANCED] = False
    """PyTorch's own scaled dot product attention."""

    device: Annotated[str | None, ADVANCED] = Field(None, min_length=1)
    """Where to compute: cpu, cuda, cuda:1; left out, the GPU if there is one."""

    @model_validator(mode="after")
    def _one_precision(self) -> "Device":
        if self.fp16 and self.bf16:
            reject("bf16", "cannot be set together with fp16; choose one")
        return self


class GenImg(Command):
    """Generate pictures."""

    command: ClassVar[str] = "gen_img"

    model: Checkpoint
    prompting: Prompt
    image: Image
    network: Networks
    output: Output
    speed: Device

    def packages(self) -> tuple[str, ...]:
        """See `Command.packages`."""
        return ("xformers",) if self.speed.xformers else ()
