"""LoRA (Hu et al. 2021): LoRA-LierLa on linear layers and 1x1 convolutions, LoRA-C3Lier on 3x3 convolutions too."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from backend.errors import UserError
from backend.lora.layer import Layer, LoraLayer
from backend.networks.base import Network, Place
from backend.networks.build import DEFAULT_DIM, Kind, build_network, load_alpha, network_from_file, save_alpha
from backend.networks.dropout import Dropout
from backend.networks.modules import TextEncoders


class LoRAModule(nn.Module):
    """The adapter of one module: out + up(down(x)) * alpha / rank * multiplier.

    `up` starts at zero, so a new adapter changes nothing.

    Args:
        lora_name: its key in a LoRA file.
        org_module: a linear layer or convolution, for its shapes; it may be on the meta device and is not kept.
        multiplier: how strongly it acts.
        lora_dim: the rank.
        alpha: the scale is alpha / rank; 0 or None means the rank.
        generator: what `down` is drawn with; None draws from torch's own state.
        place: where in a model it sits.

    Attributes:
        rows: use the first so many ranks alone, with scale alpha / rows; None uses all. See dylora.py.
    """

    def __init__(
        self,
        lora_name: str,
        org_module: nn.Module,
        multiplier: float = 1.0,
        lora_dim: int = DEFAULT_DIM,
        alpha: float | None = None,
        generator: torch.Generator | None = None,
        place: Place = Place(),  # noqa: B008  (frozen)
    ) -> None:
        super().__init__()
        self.lora_name = lora_name
        self.lora_dim = int(lora_dim)
        self.alpha = float(alpha or self.lora_dim)
        self.multiplier = float(multiplier)
        self.place = place
        self.dropout: Dropout | None = None
        self.rows: int | None = None
        self.lora_down, self.lora_up = _factors(org_module, self.lora_dim)
        self._channels = 1 if isinstance(org_module, nn.Conv2d) else -1
        if not self.lora_down.weight.is_meta:
            nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5), generator=generator)
            nn.init.zeros_(self.lora_up.weight)

    @property
    def scale(self) -> float:
        """alpha / rank, of the ranks that are in use."""
        return self.alpha / (self.rows or self.lora_dim)

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """The module's output with the adapter's contribution added; in the output's dtype.

        Args:
            x: input of the module.
            output: what the module, and any adapter before this one, made of it.
        """
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.lora_down.weight.dtype)
        inner = (
            self.lora_down(x) if self.rows is None else _apply(self.lora_down, self.lora_down.weight[: self.rows], x)
        )
        if self.training and self.dropout is not None:
            inner = self.dropout.apply(inner, self.place.number, self._channels)
        if self.rows is None:
            change = self.lora_up(inner)
        else:
            change = _apply(self.lora_up, self.lora_up.weight[:, : self.rows], inner)
        return torch.add(output, change, alpha=self.scale * self.multiplier).to(output.dtype)

    def layer(self) -> LoraLayer:
        """Its weights as a value, whatever rows are in use; the tensors are its own."""
        return LoraLayer(self.lora_down.weight, self.lora_up.weight, self.alpha)

    def delta(self) -> Tensor:
        """The change of the module's weight at multiplier 1, of the rows in use."""
        layer = self.layer()
        return (layer if self.rows is None else layer.truncated(self.rows)).delta()

    def fitted(self, layer: Layer) -> dict[str, Tensor]:
        """A layer of a file in this adapter's shapes: a 1x1 convolution's factors may have two or four dimensions.

        Raises:
            ValueError: it is of another kind, rank or shape.
        """
        if not isinstance(layer, LoraLayer):
            raise ValueError(f"is a {layer.KIND}, not a LoRA")
        down, up = self.lora_down.weight, self.lora_up.weight
        if layer.down.numel() != down.numel() or layer.up.numel() != up.numel() or layer.rank != self.lora_dim:
            raise ValueError(
                f"has down {tuple(layer.down.shape)} and up {tuple(layer.up.shape)}, "
                f"where the network has {tuple(down.shape)} and {tuple(up.shape)}"
            )
        return {
            ".lora_down.weight": layer.down.reshape(down.shape),
            ".lora_up.weight": layer.up.reshape(up.shape),
            ".alpha": torch.tensor(layer.alpha, dtype=torch.float32),
        }

    def fast_parameters(self) -> list[nn.Parameter]:
        """LoRA+ (arXiv 2402.12354) trains `up` at a higher rate."""
        return [self.lora_up.weight]

    def norm(self) -> Tensor:
        """Frobenius norm of the whole `delta`."""
        return self.layer().norm()

    def scale_by(self, factor: Tensor) -> None:
        """Make `delta` so many times as large; both factors take half of it."""
        for weight in (self.lora_down.weight, self.lora_up.weight):
            weight.mul_(factor.sqrt())

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        save_alpha(self, destination, prefix)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, _metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, _metadata, strict, *lists)
        load_alpha(self, state_dict, prefix, unexpected=lists[1])


def _apply(layer: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """What the layer makes of x with another weight."""
    if isinstance(layer, nn.Conv2d):
        return functional.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation)
    return functional.linear(x, weight)


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


KIND = Kind("networks.lora", LoRAModule, LoraLayer)


def create_network(
    multiplier: float,
    network_dim: int | None,
    network_alpha: float | None,
    vae: Any,
    text_encoder: TextEncoders,
    unet: nn.Module | None,
    *,
    generator: torch.Generator | None = None,
    dropout: float | None = None,
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
        dropout: share of the activations between the factors that training leaves out (`network_dropout`).
        network_args: see `config.network.LoraArgs`; values may be text.

    Raises:
        UserError: naming the option that is unknown or wrong, or the model is of an unknown family.
    """
    return build_network(
        KIND, multiplier, (network_dim, network_alpha), (text_encoder, unet), generator, dropout, network_args
    )


def create_network_from_weights(
    multiplier: float,
    file: str | Path | None,
    vae: Any,
    text_encoder: TextEncoders,
    unet: nn.Module | None,
    weights_sd: Mapping[str, Tensor] | None = None,
    *,
    dropout: float | None = None,
    **network_args: Any,
) -> tuple[Network, dict[str, Tensor]]:
    """The network that is in a LoRA file, with its weights loaded.

    Args:
        multiplier: how strongly it acts.
        file: path of a LoRA file; read only if `weights_sd` is None.
        vae: not used.
        text_encoder, unet: the model, for its shapes.
        weights_sd: the tensors of a LoRA file in any spelling.
        dropout, network_args: as for `create_network`; ranks and alphas are those of the file.

    Returns:
        The network, and the file's tensors under the names that the network's `state_dict` has.

    Raises:
        UserError: the file is broken or of another kind, or a key in it matches no module of the model.
    """
    return network_from_file(KIND, multiplier, (file, weights_sd), (text_encoder, unet), dropout, network_args)
