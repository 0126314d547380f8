"""Options of the tools that make LoRA files and merge them."""

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from backend.config.declare import Command, Option, Section, reject

ADVANCED = Option(advanced=True)
Precision = Literal["float", "fp16", "bf16"]
LARGEST = 1e6
DEVICE = r"(cpu|cuda|mps|xpu)(:\d{1,2})?"
WEIGHTS = (".safetensors", ".ckpt", ".pt")


class Result(Section):
    """Result"""

    overwrite: bool = False
    """Replace a file of this name."""

    dry_run: bool = False
    """Show what would be written, with sizes and errors, and write nothing."""


class LoraResult(Result):
    """Result"""

    save_to: Annotated[Path, Option(widget="result")]
    """File to write: .safetensors, .ckpt or .pt."""

    no_metadata: Annotated[bool, ADVANCED] = False
    """Write only the metadata that readers need."""

    @field_validator("save_to")
    @classmethod
    def _known_ending(cls, value: Path) -> Path:
        if value.suffix.lower() not in WEIGHTS:
            raise ValueError(f'must end in {", ".join(WEIGHTS)}, got "{value}"')
        return value


class Mixture(Section):
    """LoRAs"""

    models: Annotated[tuple[Path, ...], Option(widget="loras")]
    """LoRA files: .safetensors, .ckpt, .pt or .bin; or folders of PEFT adapters."""

    ratios: Annotated[tuple[float, ...], Option(widget="ratios")] = ()
    """How much of each file, of any sign; left out, 1 for each."""

    allow_unmatched: Annotated[bool, ADVANCED] = False
    """Leave out layers that match nothing, with a warning, instead of refusing the file."""

    @model_validator(mode="after")
    def _a_ratio_for_each(self) -> "Mixture":
        if not self.models:
            reject("models", "names no file; give at least one LoRA")
        if self.ratios and len(self.ratios) != len(self.models):
            given, files = len(self.ratios), len(self.models)
            reject("ratios", f"has {given} values for {files} files in models; give one for each")
        if any(abs(ratio) > LARGEST for ratio in self.ratios):
            reject("ratios", f"must lie between -{LARGEST:g} and {LARGEST:g}")
        if self.ratios and not any(self.ratios):
            reject("ratios", "are all 0, so nothing would be left; give one that is not")
        return self

    @property
    def weights(self) -> tuple[float, ...]:
        """A ratio for each file."""
        return self.ratios or (1.0,) * len(self.models)


def known_device(value: str) -> str:
    """The name of a device, if it is one.

    Raises:
        ValueError: it is none.
    """
    if not re.fullmatch(DEVICE, value):
        raise ValueError(f'must be cpu or cuda, got "{value}"')
    return value


class DyLoraExtraction(Section):
    """DyLoRA"""

    model: Annotated[Path, Option(widget="lora")]
    """DyLoRA file to cut into one LoRA per rank."""

    unit: int | None = Field(None, ge=1)
    """Step between the ranks that are written; left out, the unit that the file was trained with."""

    force: bool = False
    """Cut a file that says it is no DyLoRA all the same; the first ranks of another LoRA do nothing in particular."""

    allow_unmatched: Annotated[bool, ADVANCED] = False
    """Leave out layers that match nothing, with a warning, instead of refusing the file."""


class ExtractDyLora(Command):
    """Cut a DyLoRA into one LoRA file per rank."""

    command: ClassVar[str] = "extract_lora_from_dylora"

    dylora: DyLoraExtraction
    result: LoraResult


class Base(Section):
    """Checkpoint"""

    sd_model: Annotated[str | None, Option(widget="checkpoint")] = Field(None, min_length=1)
    """Checkpoint to merge the LoRAs into: a .safetensors or .ckpt file, or a Diffusers folder. Left out, the LoRAs are
    merged into one LoRA."""

    v2: Annotated[bool, ADVANCED] = False
    """The files are for Stable Diffusion 2. They are recognised without it; others are refused."""


class Sum(Section):
    """How they are added"""

    method: Literal["exact", "add"] = "exact"
    """LoRA and LoRA: exact keeps the sum of the changes whole, its rank is the sum of the ranks. add is what sd-scripts
    does without --concat: the sum of the factors, each times its ratio, of the same rank. Its error is reported, and a
    ratio counts squared; it needs equal ranks."""

    concat: Annotated[bool, ADVANCED] = False
    """The same as method exact."""

    shuffle: Annotated[bool, ADVANCED] = False
    """Put the ranks of each layer in a random order, which changes nothing of what the file does."""

    new_rank: int | None = Field(None, ge=1)
    """Reduce the result to this rank, by the best approximation there is; see svd_merge_lora."""

    new_conv_rank: Annotated[int | None, ADVANCED] = Field(None, ge=1)
    """The same for 3x3 convolutions; left out, as new_rank."""

    precision: Annotated[Precision, ADVANCED] = "float"
    """Precision in which a checkpoint's weights are added; LoRAs' factors are rounded to it before they are."""

    save_precision: Precision | None = None
    """Precision of the saved numbers; left out, a checkpoint's own, and float for a LoRA."""

    @model_validator(mode="after")
    def _fits_together(self) -> "Sum":
        if self.concat and self.method == "add":
            reject("concat", "contradicts method add; leave one out")
        if self.new_conv_rank is not None and self.new_rank is None:
            reject("new_conv_rank", "needs new_rank")
        return self


class MergeLora(Command):
    """Merge LoRAs into a checkpoint, or into one LoRA."""

    command: ClassVar[str] = "merge_lora"

    base: Base
    mixture: Mixture
    sum: Sum
    result: LoraResult

    @model_validator(mode="after")
    def _only_for_loras(self) -> "MergeLora":
        if self.base.sd_model is not None:
            asked = [name for name in ("concat", "shuffle", "new_rank") if getattr(self.sum, name)]
            asked += ["method"] if self.sum.method != "exact" else []
            if asked:
                reject(asked[0], "is about merging LoRAs into one LoRA; leave it out or leave out sd_model")
        return self


class Svd(Section):
    """Rank"""

    new_rank: int | None = Field(None, ge=1)
    """Rank of the result, 4 when left out; with dynamic, the largest that a layer may have, and when left out as large
    as it takes."""

    new_conv_rank: int | None = Field(None, ge=1)
    """The same for 3x3 convolutions; left out, as new_rank."""

    dynamic: str | None = None
    """Choose each layer's rank so that it keeps a share of the change: "energy=0.95" keeps 95 % of the sum of the
    squared singular values."""

    clamp_quantile: Annotated[float | None, ADVANCED] = Field(None, gt=0, lt=1)
    """Cut off the largest numbers of each factor at this quantile. Left out, nothing is cut off."""

    device: Annotated[str, ADVANCED] = "cpu"
    """Where to compute: cpu, or cuda. A GPU that is not there is replaced by the CPU."""

    precision: Annotated[Precision, ADVANCED] = "float"
    """Precision to which the factors are rounded before they are added."""

    save_precision: Precision | None = None
    """Precision of the saved numbers; left out, as precision."""

    _device = field_validator("device")(known_device)

    @field_validator("dynamic")
    @classmethod
    def _a_share(cls, value: str | None) -> str | None:
        if value is not None and share_of(value) is None:
            raise ValueError(f'must be "energy=" and a number above 0 and up to 1, got "{value}"')
        return value

    @property
    def saved(self) -> Precision:
        """The precision of the saved numbers."""
        return self.save_precision or self.precision

    @property
    def rank(self) -> int | None:
        """The largest rank of a layer; None where the share alone decides."""
        return self.new_rank or (None if self.dynamic else 4)

    @property
    def energy(self) -> float | None:
        """The share of the change to be kept, if it is chosen by that."""
        return None if self.dynamic is None else share_of(self.dynamic)


def share_of(text: str) -> float | None:
    """The number in "energy=0.95"; None where there is none from above 0 to 1."""
    match = re.fullmatch(r"\s*energy\s*=\s*(\d*\.?\d+)\s*", text)
    return float(match[1]) if match and 0 < float(match[1]) <= 1 else None


class SvdMixture(Mixture):
    """LoRAs"""

    models: Annotated[tuple[Path, ...], Option(widget="loras", aliases=("model",))]
    """LoRA files: .safetensors, .ckpt or .pt."""


class SvdMergeLora(Command):
    """Merge LoRAs of any ranks into one of a given rank, or reduce the rank of one."""

    command: ClassVar[str] = "svd_merge_lora"

    mixture: SvdMixture
    svd: Svd
    result: LoraResult


class Models(Section):
    """Models"""

    model_org: Annotated[str, Option(widget="checkpoint")] = Field(min_length=1)
    """The original model: a .safetensors or .ckpt file, or a Diffusers folder."""

    model_tuned: Annotated[str, Option(widget="checkpoint")] = Field(min_length=1)
    """The fine-tuned model, whose difference from the original becomes the LoRA."""

    v2: Annotated[bool, ADVANCED] = False
    """The models are Stable Diffusion 2. They are recognised without it; others are refused."""

    sdxl: Annotated[bool, ADVANCED] = False
    """The models are Stable Diffusion XL. They are recognised without it; others are refused."""

    v_parameterization: Annotated[bool, ADVANCED] = False
    """The models predict v, where their files do not say so."""


class Difference(Section):
    """Difference"""

    dim: int = Field(4, ge=1)
    """Rank of the LoRA."""

    conv_dim: int | None = Field(None, ge=1)
    """Rank for 3x3 convolutions; left out, they are not extracted."""

    min_diff: Annotated[float | None, ADVANCED] = Field(None, ge=0)
    """A text encoder in which no number differs by more than this is left out. When this is left out, one that differs
    by rounding alone is."""

    clamp_quantile: Annotated[float | None, ADVANCED] = Field(None, gt=0, lt=1)
    """Cut off the largest numbers of each factor at this quantile. Left out, nothing is cut off."""

    device: Annotated[str, ADVANCED] = "cpu"
    """Where to compute: cpu, or cuda. A GPU that is not there is replaced by the CPU."""

    load_precision: Annotated[Precision | None, ADVANCED] = None
    """Precision to which both models' numbers are rounded first; left out, they are taken as they are."""

    save_precision: Precision = "float"
    """Precision of the saved numbers."""

    _device = field_validator("device")(known_device)


class ExtractLora(Command):
    """Extract the difference of two models as a LoRA."""

    command: ClassVar[str] = "extract_lora_from_models"

    models: Models
    difference: Difference
    result: LoraResult
