"""Options of train_network: the network that is trained."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from backend.config.choices import NETWORK_SPELLINGS, NetworkModule
from backend.config.declare import Option, Section, reject, reject_all
from backend.config.network import NETWORK_ARGS, rank_problems, read_network_args

ADVANCED = Option(advanced=True)


class Network(Section):
    """Network."""

    network_module: Annotated[NetworkModule, Option(spellings=NETWORK_SPELLINGS)] = "networks.lora"
    """Kind of network to train."""

    network_dim: Annotated[int, Option(aliases=("networkdim",))] = Field(4, ge=1)
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

    allow_unmatched: Annotated[bool, ADVANCED] = False
    """Leave out layers of base_weights and network_weights that match nothing, with a warning, instead of refusing the
    file."""

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
