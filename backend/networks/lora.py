"""LoRA (Hu et al. 2021): LoRA-LierLa on linear layers and 1x1 convolutions, LoRA-C3Lier on 3x3 convolutions too."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backend.errors import UserError
from backend.lora.file import layers_of, read_tensors, tensors_of
from backend.lora.layer import LoraLayer
from backend.networks.base import Network, check_keys
from backend.networks.modules import FoundModule, TextEncoders, find_modules

DEFAULT_DIM = 4
DEFAULT_CONV_ALPHA = 1.0


class LoRAModule(nn.Module):
    """The adapter of one module: out + up(down(x)) * alpha / rank * multiplier.

    It acts through a forward hook of the module it is applied to, so the module's own parameters and class stay as they
    are; several can sit on one module. `up` starts at zero, so a new adapter changes nothing.

    Args:
        lora_name: its key in a LoRA file.
        org_module: a linear layer or convolution, for its shapes; it may be on the meta device and is not kept.
        multiplier: how strongly it acts.
        lora_dim: the rank.
        alpha: the scale is alpha / rank; 0 or None means the rank.
        generator: what `down` is drawn with; None draws from torch's own state.
    """

    def __init__(
        self,
        lora_name: str,
        org_module: nn.Module,
        multiplier: float = 1.0,
        lora_dim: int = DEFAULT_DIM,
        alpha: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.lora_name = lora_name
        self.lora_dim = int(lora_dim)
        self.alpha = float(alpha or self.lora_dim)
        self.multiplier = float(multiplier)
        self.lora_down, self.lora_up = _factors(org_module, self.lora_dim)
        self._hook: torch.utils.hooks.RemovableHandle | None = None
        if not self.lora_down.weight.is_meta:
            nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5), generator=generator)
            nn.init.zeros_(self.lora_up.weight)

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.lora_dim

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """The module's output with the adapter's contribution added; in the output's dtype.

        Args:
            x: input of the module.
            output: what the module, and any adapter before this one, made of it.
        """
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.lora_down.weight.dtype)
        change = self.lora_up(self.lora_down(x))
        return torch.add(output, change, alpha=self.scale * self.multiplier).to(output.dtype)

    def apply_to(self, module: nn.Module) -> None:
        """Add this adapter's contribution to what a module gives out, until `remove`."""
        self.remove()
        self._hook = module.register_forward_hook(self._after_forward)

    def remove(self) -> None:
        """Give the module back as it was."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def delta(self) -> Tensor:
        """The change of the module's weight at multiplier 1."""
        return LoraLayer(self.lora_down.weight, self.lora_up.weight, self.alpha).delta()

    def _after_forward(self, _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        return self(inputs[0], output) if self.multiplier else None

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Alpha is a Python number here and a tensor in files."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}alpha"] = torch.tensor(self.alpha, dtype=torch.float32)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, _metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        _missing, unexpected, _messages = lists
        super()._load_from_state_dict(state_dict, prefix, _metadata, strict, *lists)
        name = f"{prefix}alpha"
        if name in state_dict:
            self.alpha = float(state_dict[name])
        if name in unexpected:
            unexpected.remove(name)


def _factors(module: nn.Module, rank: int) -> tuple[nn.Module, nn.Module]:
    """The two layers whose product has the module's shape, not initialised."""
    if isinstance(module, nn.Conv2d):
        if module.groups != 1 or module.padding_mode != "zeros":
            raise UserError("a LoRA on a grouped convolution or one with circular padding is not supported")
        inner = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
        down = _empty(nn.Conv2d, module.in_channels, rank, module.kernel_size, **inner)
        return down, _empty(nn.Conv2d, rank, module.out_channels, 1)
    if isinstance(module, nn.Linear):
        return _empty(nn.Linear, module.in_features, rank), _empty(nn.Linear, rank, module.out_features)
    raise UserError(f"a LoRA on a module of type {type(module).__name__} is not supported")


def _empty(kind: type[nn.Module], *sizes: Any, **options: Any) -> nn.Module:
    """A layer without bias and with undefined weights: its own initialisation would use up torch's random state."""
    layer = kind(*sizes, bias=False, device="meta", **options)
    layer.weight = nn.Parameter(torch.empty(layer.weight.shape))
    return layer


@dataclass(frozen=True)
class LoraOptions:
    """The network's own options (`network_args`).

    Attributes:
        conv_dim: rank on 3x3 convolutions; None leaves them and everything outside the attentions alone (LierLa).
        conv_alpha: alpha on them; 1 if not given, 0 means conv_dim.
    """

    conv_dim: int | None = None
    conv_alpha: float | None = None

    @classmethod
    def parse(cls, network_args: Mapping[str, Any]) -> "LoraOptions":
        """Options from keyword arguments, whose values may be text as on a command line.

        Raises:
            UserError: naming the option that is unknown or wrong.
        """
        known = [option.name for option in fields(cls)]
        for name in network_args:
            if name not in known:
                raise UserError(f"is no option of this network; it has {', '.join(known)}", field=name)
        options = cls(
            conv_dim=_whole("conv_dim", network_args.get("conv_dim")),
            conv_alpha=_real("conv_alpha", network_args.get("conv_alpha")),
        )
        if options.conv_dim is None and options.conv_alpha is not None:
            raise UserError("has no effect without conv_dim; give both or neither", field="conv_alpha")
        return options


def _whole(name: str, value: Any) -> int | None:
    """A whole number from 1, given as itself or as text."""
    number = _real(name, value)
    if number is not None and (number < 1 or number != int(number)):
        raise UserError(f"must be a whole number from 1, not {value!r}", field=name)
    return None if number is None else int(number)


def _real(name: str, value: Any) -> float | None:
    """A number from 0, given as itself or as text."""
    try:
        number = None if value is None else float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"must be a number, not {value!r}", field=name) from error
    if number is not None and not 0 <= number < math.inf:
        raise UserError(f"must be a number from 0, not {value!r}", field=name)
    return number


def create_network(
    multiplier: float,
    network_dim: int | None,
    network_alpha: float | None,
    vae: Any,
    text_encoder: TextEncoders,
    unet: nn.Module | None,
    *,
    generator: torch.Generator | None = None,
    **network_args: Any,
) -> Network:
    """A new network for a model; it changes nothing until it is applied and trained.

    Args:
        multiplier: how strongly it acts.
        network_dim: the rank; None means 4.
        network_alpha: its scale is alpha / rank; 0 or None means the rank.
        vae: not used.
        text_encoder, unet: the model, for its shapes; on any device, meta too.
        generator: what the weights are drawn with and then depend on alone; None draws from torch's own state.
        network_args: see `LoraOptions`.

    Raises:
        UserError: naming the option that is unknown or wrong, or the model is of an unknown family.
    """
    options = LoraOptions.parse(network_args)
    dim = _whole("network_dim", network_dim) or DEFAULT_DIM
    alpha = _real("network_alpha", network_alpha)
    conv_alpha = DEFAULT_CONV_ALPHA if options.conv_alpha is None else options.conv_alpha
    adapters = []
    for key, found in find_modules(text_encoder, unet).items():
        if found.target.conv_only and options.conv_dim is None:
            continue
        size = (options.conv_dim, conv_alpha) if _is_wide(found) else (dim, alpha)
        adapters.append((LoRAModule(key, found.module, multiplier, *size, generator), found.in_text_encoder))
    return Network(adapters, multiplier)


def _is_wide(found: FoundModule) -> bool:
    """Whether the rank and alpha of convolutions apply: to 3x3 alone, not to the 1x1 and linear layers around them."""
    return found.target.kind == "conv3x3"


def create_network_from_weights(
    multiplier: float,
    file: str | Path | None,
    vae: Any,
    text_encoder: TextEncoders,
    unet: nn.Module | None,
    weights_sd: Mapping[str, Tensor] | None = None,
) -> tuple[Network, dict[str, Tensor]]:
    """The network that is in a LoRA file, with its weights loaded.

    Args:
        multiplier: how strongly it acts.
        file: path of a LoRA file; read only if `weights_sd` is None.
        vae: not used.
        text_encoder, unet: the model, for its shapes.
        weights_sd: the tensors of a LoRA file in any spelling.

    Returns:
        The network, and the file's tensors under the names that the network's `state_dict` has.

    Raises:
        UserError: the file is broken, or a key in it matches no module of the model.
    """
    metadata: dict[str, str] = {}
    if weights_sd is None:
        if file is None:
            raise UserError("give a file, or its tensors as weights_sd", field="file")
        weights_sd, metadata = read_tensors(file)
    field = "weights_sd" if file is None else str(file)
    layers, found = layers_of(weights_sd, metadata, field), find_modules(text_encoder, unet)
    check_keys(layers, found, field)
    adapters = [
        (_adapter_of(key, layers[key], where, multiplier), where.in_text_encoder)
        for key, where in found.items()
        if key in layers
    ]
    network, tensors = Network(adapters, multiplier), tensors_of(layers)
    network.load_state_dict(tensors)
    return network, tensors


def _adapter_of(key: str, layer: LoraLayer, found: FoundModule, multiplier: float) -> LoRAModule:
    # The weights are about to be replaced, so the seed is any: what matters is that torch's own state is left alone.
    generator = torch.Generator().manual_seed(0)
    return LoRAModule(key, found.module, multiplier, layer.rank, layer.alpha, generator)
