"""What each kind of network takes in `network_args`: one section per network module, for form, toml and library."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator, model_validator

from backend.config.declare import Section, reject
from backend.config.merge import Problems
from backend.config.text import read_section
from backend.errors import UserError
from backend.tables.blocks import read_weights

RATES = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")


class CommonArgs(Section):
    """Arguments of every kind of network"""

    # Products of two factors that a module's change is made of.
    pairs: ClassVar[int] = 1

    down_lr_weight: str | None = None
    """Weights of the learning rate for the blocks on the way down: 12 numbers with commas between them (9 for SDXL), or
    sine, cosine, linear, reverse_linear or zeros, each with +number to add. A block with 0 is not trained."""

    mid_lr_weight: str | None = None
    """The same for the block in the middle: one number (3 for SDXL)."""

    up_lr_weight: str | None = None
    """The same for the blocks on the way up."""

    block_lr_zero_threshold: float = Field(0.0, ge=0)
    """Weights up to this count as 0."""

    rank_dropout: float | None = Field(None, ge=0, lt=1)
    """Share of the ranks that are left out, drawn for every picture and step; what is left counts more."""

    module_dropout: float | None = Field(None, ge=0, lt=1)
    """Share of the modules that are left out, drawn at every step."""

    @field_validator(*RATES, mode="before")
    @classmethod
    def _weights(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, list | tuple):
            value = ",".join(str(item) for item in value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str):
            try:
                read_weights(value)
            except ValueError as error:
                reject(str(info.field_name), str(error))
        return value

    @model_validator(mode="after")
    def _threshold_of_something(self) -> "CommonArgs":
        if self.block_lr_zero_threshold and not any(getattr(self, name) is not None for name in RATES):
            reject("block_lr_zero_threshold", f"has no effect without {', '.join(RATES)}; give one of them")
        return self


class ConvArgs(CommonArgs):
    """Arguments of networks that can sit on 3x3 convolutions"""

    conv_dim: int | None = Field(None, ge=1)
    """Rank on 3x3 convolutions, which are trained as well then (LoRA-C3Lier)."""

    conv_alpha: float | None = Field(None, ge=0)
    """Alpha on 3x3 convolutions; left out, 1; 0 means the rank."""


class BlockArgs(ConvArgs):
    """Arguments of networks whose rank can differ from block to block"""

    block_dims: tuple[int, ...] | None = None
    """Rank of every block: 25 numbers with commas between them (23 for SDXL). 0 leaves a block out."""

    block_alphas: tuple[float, ...] | None = None
    """Alpha of every block; left out, network_alpha."""

    conv_block_dims: tuple[int, ...] | None = None
    """Rank on the 3x3 convolutions of every block."""

    conv_block_alphas: tuple[float, ...] | None = None
    """Alpha on the 3x3 convolutions of every block; left out, conv_alpha."""

    @field_validator("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")
    @classmethod
    def _from_zero(cls, value: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        if any(not 0 <= item < math.inf for item in value or ()):
            reject(str(info.field_name), f"must be numbers from 0, got {list(value or ())}")
        return value

    @model_validator(mode="after")
    def _conv_alphas_of_something(self) -> "BlockArgs":
        if self.conv_dim is None and self.conv_block_dims is None:
            for name in ("conv_alpha", "conv_block_alphas"):
                if getattr(self, name) is not None:
                    reject(name, "has no effect without conv_dim or conv_block_dims; give one of them, or neither")
        return self


class PlusArgs(Section):
    """Arguments of LoRA+ (arXiv 2402.12354)"""

    loraplus_lr_ratio: float | None = Field(None, gt=0)
    """LoRA+: the learning rate of lora_up is so many times that of lora_down."""

    loraplus_unet_lr_ratio: float | None = Field(None, gt=0)
    """The same for the U-Net alone."""

    loraplus_text_encoder_lr_ratio: float | None = Field(None, gt=0)
    """The same for the text encoder alone."""


class LoraArgs(BlockArgs, PlusArgs):
    """Arguments of networks.lora"""


class DyloraArgs(ConvArgs, PlusArgs):
    """Arguments of networks.dylora"""

    unit: int = Field(1, ge=1)
    """Ranks are drawn in steps of this; it must divide network_dim."""

    @model_validator(mode="after")
    def _conv_alpha_of_something(self) -> "DyloraArgs":
        if self.conv_dim is None and self.conv_alpha is not None:
            reject("conv_alpha", "has no effect without conv_dim; give both or neither")
        return self


class LohaArgs(BlockArgs):
    """Arguments of networks.loha"""

    pairs: ClassVar[int] = 2


NETWORK_ARGS: dict[str, type[CommonArgs]] = {
    "networks.lora": LoraArgs,
    "networks.dylora": DyloraArgs,
    "networks.loha": LohaArgs,
}


def read_network_args(
    network_module: str, value: Any, from_text: bool | None = None
) -> tuple[dict[str, Any], Problems]:
    """The typed arguments that were given, checked against the network's own section, and what is wrong with them.

    Args:
        network_module: a name of `NETWORK_ARGS`.
        value: a list of "key=value", one string, or a table.
        from_text: text in a table is read by the type of its key, as in a list; else a table has typed values.
    """
    arguments, problems = read_section(NETWORK_ARGS[network_module], value, "network_args", network_module, from_text)
    own = NETWORK_ARGS[network_module].model_fields
    said = []
    for field, message in problems:
        key = field.partition(".")[2]
        others = [name for name, section in NETWORK_ARGS.items() if key in section.model_fields]
        if others and key not in own:
            message = f"has no meaning for {network_module}, only for {', '.join(others)}; leave it out"
        said.append((field, message))
    return arguments, said


def rank_problems(network_module: str, network_dim: int, arguments: Mapping[str, Any]) -> Problems:
    """What is wrong with arguments that only fit certain ranks: DyLoRA's unit and its rank on convolutions."""
    if network_module != "networks.dylora":
        return []
    problems: Problems = []
    unit, conv_dim = arguments.get("unit", 1), arguments.get("conv_dim")
    if network_dim % unit:
        problems.append(("network_args.unit", f"must divide network_dim {network_dim}, got {unit}"))
    if conv_dim is not None and conv_dim != network_dim:
        problems.append(("network_args.conv_dim", f"must be equal to network_dim {network_dim}, got {conv_dim}"))
    return problems


def network_options(network_module: str, network_dim: int, arguments: Mapping[str, Any]) -> Any:
    """The arguments of a network as its section, from keyword arguments whose values may be text.

    Raises:
        UserError: naming the first argument that is unknown or wrong.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    typed, problems = read_network_args(network_module, given, from_text=True)
    for field, message in problems or rank_problems(network_module, network_dim, typed):
        raise UserError(message, field=field.partition(".")[2] or field)
    return NETWORK_ARGS[network_module](**typed)
