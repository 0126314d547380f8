"""A network: adapters on the modules of a model, to be trained, saved, stacked, merged and taken off again.

The kinds of network (lora.py, ...) bring the adapter: its parameters and its formula. Everything else is here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from backend.errors import UserError
from backend.lora.file import layers_of, listing, tensors_of, write_lora
from backend.lora.layer import LoraLayer
from backend.networks.modules import FoundModule, TextEncoders, find_modules


class Adapter(Protocol):
    """What a kind of network puts on one module. It is an `nn.Module` too; its tensors are saved under `lora_name`."""

    lora_name: str
    lora_dim: int
    alpha: float
    multiplier: float

    def apply_to(self, module: nn.Module) -> None:
        """Add the adapter's contribution to what the module gives out, until `remove`."""

    def remove(self) -> None:
        """Give the module back as it was."""

    def delta(self) -> Tensor:
        """The change of weight at multiplier 1, as the maths has it."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained at one rate.

    Attributes:
        name: "text_encoder" or "unet".
        params: in the order of the file.
        lr: their rate; never 0.
    """

    name: str
    params: list[nn.Parameter]
    lr: float


class Network(nn.Module):
    """The adapters of one LoRA file, or of one training run.

    `text_encoder_loras` and `unet_loras` list them in the order of the file. Several networks can sit on one model at a
    time, and can be taken off in any order. The parameters are float32 unless `to` says otherwise, whatever the model.

    Args:
        adapters: pairs of the adapter and whether it is for a text encoder.
        multiplier: how strongly the network acts.
    """

    def __init__(self, adapters: Iterable[tuple[nn.Module, bool]], multiplier: float = 1.0) -> None:
        super().__init__()
        adapters = list(adapters)
        self.text_encoder_loras = [adapter for adapter, in_text_encoder in adapters if in_text_encoder]
        self.unet_loras = [adapter for adapter, in_text_encoder in adapters if not in_text_encoder]
        for adapter in self.adapters():
            self.add_module(adapter.lora_name, adapter)
        self.set_multiplier(multiplier)

    def adapters(self) -> list[Any]:
        """All adapters in the order of the file: the text encoder's, then the U-Net's."""
        return [*self.text_encoder_loras, *self.unet_loras]

    def set_multiplier(self, multiplier: float) -> None:
        """Set how strongly the network acts; at 0 the model is as if there were no network, bit for bit."""
        self.multiplier = float(multiplier)
        for adapter in self.adapters():
            adapter.multiplier = self.multiplier

    def apply_to(
        self,
        text_encoder: TextEncoders,
        unet: nn.Module | None,
        apply_text_encoder: bool = True,
        apply_unet: bool = True,
    ) -> None:
        """Put the network on a model, until `remove`. A part that is not applied is dropped from the network.

        Raises:
            UserError: the model lacks a module that the network has an adapter for.
        """
        self.remove()
        if not apply_text_encoder:
            self._drop(self.text_encoder_loras)
        if not apply_unet:
            self._drop(self.unet_loras)
        for adapter, found in self._pairs(text_encoder, unet):
            adapter.apply_to(found.module)

    def remove(self) -> None:
        """Take the network off its model, which then is as before; other networks on it stay."""
        for adapter in self.adapters():
            adapter.remove()

    def merge_to(
        self, text_encoder: TextEncoders, unet: nn.Module | None, weights_sd: Mapping[str, Tensor] | None = None
    ) -> None:
        """Add the network to a model's weights, at its multiplier: W += multiplier * delta, summed in float32.

        Args:
            text_encoder, unet: the model; its weights keep their dtype.
            weights_sd: loaded first, if given.

        Raises:
            UserError: the model lacks a module that the network has an adapter for.
        """
        if weights_sd is not None:
            self.load_state_dict(weights_sd)
        with torch.no_grad():
            for adapter, found in self._pairs(text_encoder, unet):
                weight = found.module.weight
                delta = adapter.delta().to(weight.device).reshape(weight.shape) * adapter.multiplier
                weight.copy_(weight.to(delta.dtype) + delta)

    def parameter_groups(
        self, text_encoder_lr: float | None, unet_lr: float | None, default_lr: float | None
    ) -> list[ParameterGroup]:
        """What is trained at which rate. A part without a rate of its own has the default; one with 0 is not trained.

        Raises:
            UserError: nothing is left to be trained.
        """
        parts = (("text_encoder", self.text_encoder_loras, text_encoder_lr), ("unet", self.unet_loras, unet_lr))
        groups = []
        for name, adapters, own in parts:
            rate = default_lr if own is None else own
            if adapters and rate:
                params = [parameter for adapter in adapters for parameter in adapter.parameters()]
                groups.append(ParameterGroup(name, params, float(rate)))
        if not groups:
            raise UserError("every learning rate is 0, so nothing would be trained", field="learning_rate")
        return groups

    def prepare_optimizer_params(
        self, text_encoder_lr: float | None, unet_lr: float | None, default_lr: float | None
    ) -> list[dict[str, Any]]:
        """`parameter_groups` as an optimizer takes them: a list of {"params", "lr"}."""
        groups = self.parameter_groups(text_encoder_lr, unet_lr, default_lr)
        return [{"params": group.params, "lr": group.lr} for group in groups]

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """Take over the weights and alphas of a LoRA file, in any spelling; values are cast to the network's dtype.

        Raises:
            UserError: a key matches nothing here, an adapter gets no weights (only if `strict`), or a rank differs.
        """
        layers, adapters = layers_of(state_dict), {adapter.lora_name: adapter for adapter in self.adapters()}
        if strict:
            check_keys(layers, adapters, "weights_sd")
            missing = [key for key in adapters if key not in layers]
            if missing:
                raise UserError(f"has no weights for {listing(missing)}", field="weights_sd")
        fitted = {key: _fitted(layer, adapters[key]) for key, layer in layers.items() if key in adapters}
        return super().load_state_dict(tensors_of(fitted), strict=strict, assign=assign)

    def save_weights(
        self, file: str | Path, dtype: torch.dtype | None = None, metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write the network as a LoRA file; see `write_lora`."""
        write_lora(file, self.state_dict(), metadata, dtype)

    def _drop(self, adapters: list[Any]) -> None:
        for adapter in adapters:
            delattr(self, adapter.lora_name)
        adapters.clear()

    def _pairs(self, text_encoder: TextEncoders, unet: nn.Module | None) -> list[tuple[Any, FoundModule]]:
        found = find_modules(text_encoder if self.text_encoder_loras else None, unet if self.unet_loras else None)
        adapters = {adapter.lora_name: adapter for adapter in self.adapters()}
        check_keys(adapters, found, "network")
        return [(adapter, found[key]) for key, adapter in adapters.items()]


def check_keys(keys: Iterable[str], known: Mapping[str, Any], field: str) -> None:
    """Refuse keys that match nothing.

    Raises:
        UserError: listing them.
    """
    unmatched = [key for key in keys if key not in known]
    if unmatched:
        raise UserError(f"{len(unmatched)} of its keys match no module here: {listing(unmatched)}", field=field)


def _fitted(layer: LoraLayer, adapter: Any) -> LoraLayer:
    """The layer in the adapter's shapes: a 1x1 convolution's factors may have two or four dimensions in a file."""
    down, up = adapter.lora_down.weight, adapter.lora_up.weight
    if layer.down.numel() != down.numel() or layer.up.numel() != up.numel() or layer.rank != adapter.lora_dim:
        message = (
            f"{adapter.lora_name} has down {tuple(layer.down.shape)} and up {tuple(layer.up.shape)}, "
            f"where the network has {tuple(down.shape)} and {tuple(up.shape)}"
        )
        raise UserError(message, field="weights_sd")
    return LoraLayer(layer.down.reshape(down.shape), layer.up.reshape(up.shape), layer.alpha)
