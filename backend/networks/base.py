"""A network: adapters on the modules of a model, to be trained, saved, stacked, merged and taken off again.

The kinds of network (lora.py, ...) bring the adapter (adapter.py). Everything else is here.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backend.errors import UserError
from backend.lora.file import layers_of, listing, write_lora
from backend.lora.fit import check_keys, respelled
from backend.lora.layer import Layer
from backend.networks.adapter import Adapter, Attachment, attach
from backend.networks.dropout import Dropout, DropoutRates
from backend.networks.modules import FoundModule, TextEncoders, find_places


@dataclass(frozen=True)
class Rates:
    """How the learning rates of a network's parts differ.

    Attributes:
        blocks: a weight for every block of the U-Net; None is one rate for all.
        text_encoder_ratio, unet_ratio: LoRA+: how many times faster `fast_parameters` are trained; None is as fast.
    """

    blocks: Sequence[float] | None = None
    text_encoder_ratio: float | None = None
    unet_ratio: float | None = None


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained at one rate.

    Attributes:
        name: "text_encoder" (with its number where there are two), "unet", or "unet_block" and its number; with
            "_plus" at the end for those that LoRA+ trains faster.
        params: in the order of the file.
        lr: their rate; never 0.
    """

    name: str
    params: list[nn.Parameter]
    lr: float


class Network(nn.Module):
    """The adapters of one LoRA file, or of one training run.

    `text_encoder_loras` and `unet_loras` list them in the order of the file. Several networks can sit on one model at a
    time, and can be taken off in any order. An adapter stands in the place of its module's `forward`; the module's
    parameters and class stay as they are. The parameters are float32 unless `to` says otherwise, whatever the model.

    Args:
        adapters: each knows its place.
        multiplier: how strongly the network acts.
        rates: of its parts.
        dropout: shares that are left out in training.
    """

    def __init__(
        self,
        adapters: Iterable[Adapter],
        multiplier: float = 1.0,
        rates: Rates = Rates(),  # noqa: B008  (frozen)
        dropout: DropoutRates = DropoutRates(),  # noqa: B008
    ) -> None:
        super().__init__()
        adapters = list(adapters)
        self.text_encoder_loras = [adapter for adapter in adapters if adapter.place.encoder is not None]
        self.unet_loras = [adapter for adapter in adapters if adapter.place.encoder is None]
        self.rates = rates
        largest = max((adapter.lora_dim for adapter in adapters), default=0)
        self.dropout = Dropout(dropout, len(adapters), largest) if dropout.any else None
        self._attached: list[Attachment] = []
        self._resting: list[Adapter] = []
        for adapter in self.adapters():
            adapter.dropout = self.dropout
            self.add_module(adapter.lora_name, adapter)
        self.set_multiplier(multiplier)

    def adapters(self) -> list[Adapter]:
        """All adapters in the order of the file: the text encoders', then the U-Net's."""
        return [*self.text_encoder_loras, *self.unet_loras]

    @property
    def arguments(self) -> dict[str, object]:
        """Arguments that readers of a file have to know even where they were left at their defaults."""
        return {}

    def begin_step(self, seed: int, step: int, indices: Sequence[int]) -> None:
        """Say where in training the next forward passes stand, which is all that random parts of a network hang on.

        Args:
            seed: of the run.
            step: optimizer steps done before.
            indices: of the next batch's samples in the global batch of the step.
        """
        if self.dropout is not None:
            self.dropout.begin(seed, step, indices)

    def set_multiplier(self, multiplier: float) -> None:
        """Set how strongly the network acts; at 0 the model is as if there were no network, bit for bit."""
        self.multiplier = float(multiplier)
        for adapter in self.adapters():
            # Every training step asks twice, and modules are slow to set attributes of.
            if adapter.multiplier != self.multiplier:
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
        self._attached = [attach(adapter, found.module) for adapter, found in self._pairs(text_encoder, unet)]

    def remove(self) -> None:
        """Take the network off its model, which then is as before; other networks on it stay."""
        for attachment in self._attached:
            attachment.remove()
        self._attached = []

    def merge_to(
        self,
        text_encoder: TextEncoders,
        unet: nn.Module | None,
        weights_sd: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Add the network to a model's weights, at its multiplier: W += multiplier * delta, summed in float32.

        Args:
            text_encoder, unet: the model; its weights keep their dtype and device.
            weights_sd: loaded first, if given. A part of the model of which it has nothing is dropped from the network.
            dtype: the sums are rounded to it before they are put into the weights; None rounds them once, to the
                weight's own.
            device: where the sums are computed; None is the device of the weight.

        Raises:
            UserError: the model lacks a module that the network has an adapter for, or weights are missing.
        """
        if weights_sd is not None:
            layers = self._respelled(weights_sd)
            if not any(key.startswith("lora_te") for key in layers):
                self._drop(self.text_encoder_loras)
            if not any(key.startswith("lora_unet_") for key in layers):
                self._drop(self.unet_loras)
            self.load_state_dict(weights_sd)
        for adapter, found in self._pairs(text_encoder, unet):
            add_to_weight(found.module, adapter.delta(), adapter.multiplier, dtype, device)

    def parameter_groups(
        self,
        text_encoder_lr: float | Sequence[float] | None,
        unet_lr: float | None,
        default_lr: float | None,
    ) -> list[ParameterGroup]:
        """What is trained at which rate: each text encoder, and the U-Net or each of its blocks.

        Args:
            text_encoder_lr: one rate for all text encoders, or one for each; None is the default.
            unet_lr: the U-Net's, multiplied by the weight of the block; None is the default.
            default_lr: for parts without a rate of their own. A part with the rate 0 is not trained.

        Raises:
            UserError: nothing is left to be trained, or there are more rates than text encoders.
        """
        if not self.adapters():
            raise UserError("has nothing for the part of the model that is to be trained", field="network_weights")
        # SDXL's two have a number in their keys, also where the network has adapters for one of them alone.
        numbered = any(re.match(r"lora_te\d_", adapter.lora_name) for adapter in self.text_encoder_loras)
        encoders = 2 if numbered else 1
        text_rates = _one_each(text_encoder_lr, encoders) if self.text_encoder_loras else []
        members: dict[tuple[str, float], list[Adapter]] = {}
        for adapter in self.adapters():
            if adapter.place.encoder is not None:
                name = "text_encoder" if encoders == 1 else f"text_encoder_{adapter.place.encoder + 1}"
                rate = text_rates[adapter.place.encoder]
                rate = default_lr if rate is None else rate
            else:
                rate = default_lr if unet_lr is None else unet_lr
                name = "unet"
                if self.rates.blocks is not None:
                    name, rate = (
                        f"unet_block{adapter.place.block}",
                        (rate or 0) * self.rates.blocks[adapter.place.block],
                    )
            if rate:
                members.setdefault((name, float(rate)), []).append(adapter)
        if not members:
            raise UserError("every learning rate is 0, so nothing would be trained", field="learning_rate")
        ordered = sorted(members.items(), key=lambda item: item[1][0].place.block or 0)
        return [group for (name, rate), adapters in ordered for group in self._plus_groups(name, rate, adapters)]

    def _plus_groups(self, name: str, rate: float, adapters: Sequence[Adapter]) -> Iterator[ParameterGroup]:
        """One group, or two where LoRA+ trains some parameters faster."""
        part = "unet" if adapters[0].place.encoder is None else "text_encoder"
        ratio = self.rates.unet_ratio if part == "unet" else self.rates.text_encoder_ratio
        fast = (
            [parameter for adapter in adapters for parameter in adapter.fast_parameters()] if ratio is not None else []
        )
        known = {id(parameter) for parameter in fast}
        slow = [parameter for adapter in adapters for parameter in adapter.parameters() if id(parameter) not in known]
        yield ParameterGroup(name, slow, rate)
        if fast and ratio:
            yield ParameterGroup(f"{name}_plus", fast, rate * ratio)

    def prepare_optimizer_params(
        self,
        text_encoder_lr: float | Sequence[float] | None,
        unet_lr: float | None,
        default_lr: float | None,
    ) -> list[dict[str, Any]]:
        """`parameter_groups` as an optimizer takes them: a list of {"params", "lr"}."""
        groups = self.parameter_groups(text_encoder_lr, unet_lr, default_lr)
        return [{"params": group.params, "lr": group.lr} for group in groups]

    def train_only(self, groups: Iterable[ParameterGroup]) -> None:
        """Have adapters without parameters in these groups rest: no gradients, and no random parts in training."""
        trained = {id(parameter) for group in groups for parameter in group.params}
        for adapter in self.adapters():
            if not any(id(parameter) in trained for parameter in adapter.parameters()):
                adapter.requires_grad_(False)
                self._resting.append(adapter)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Network":
        """As `nn.Module.train`; resting adapters stay in evaluation."""
        super().train(mode)
        for adapter in self._resting:
            adapter.eval()
        return self

    @torch.no_grad()
    def scale_weight_norms(self, largest: float) -> tuple[Tensor, Tensor]:
        """Scale every adapter whose change of weight has a Frobenius norm above `largest` down to it.

        Returns:
            How many were scaled, and the mean norm afterwards, still on the device.
        """
        norms = torch.stack([adapter.norm() for adapter in self.adapters()])
        factors = (largest / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(max=1)
        for adapter, factor in zip(self.adapters(), factors, strict=True):
            adapter.scale_by(factor)
        return (factors < 1).sum(), (norms * factors).mean()

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """Take over the weights and alphas of a LoRA file, in any spelling; values are cast to the network's dtype.

        Raises:
            UserError: a key matches nothing here, an adapter gets no weights (only if `strict`), or a rank differs.
        """
        layers, adapters = self._respelled(state_dict), {adapter.lora_name: adapter for adapter in self.adapters()}
        if strict:
            check_keys(layers, adapters, "weights_sd")
            missing = [key for key in adapters if key not in layers]
            if missing:
                raise UserError(f"has no weights for {listing(missing)}", field="weights_sd")
        tensors: dict[str, Tensor] = {}
        for key, layer in layers.items():
            if key not in adapters:
                continue
            try:
                tensors |= {f"{key}{suffix}": tensor for suffix, tensor in adapters[key].fitted(layer).items()}
            except ValueError as error:
                raise UserError(f"{key} {error}", field="weights_sd") from error
        return super().load_state_dict(tensors, strict=strict, assign=assign)

    def _respelled(self, state_dict: Mapping[str, Tensor]) -> dict[str, Layer]:
        """The layers of a file's tensors by the names of the adapters."""
        return respelled(layers_of(state_dict), [adapter.lora_name for adapter in self.adapters()])

    def save_weights(
        self, file: str | Path, dtype: torch.dtype | None = None, metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write the network as a LoRA file; see `write_lora`."""
        write_lora(file, self.state_dict(), metadata, dtype)

    def _drop(self, adapters: list[Adapter]) -> None:
        for adapter in adapters:
            delattr(self, adapter.lora_name)
        adapters.clear()

    def _pairs(self, text_encoder: TextEncoders, unet: nn.Module | None) -> list[tuple[Adapter, FoundModule]]:
        found = find_places(text_encoder if self.text_encoder_loras else None, unet if self.unet_loras else None)
        adapters = {adapter.lora_name: adapter for adapter in self.adapters()}
        check_keys(adapters, found, "network")
        return [(adapter, found[key]) for key, adapter in adapters.items()]


@torch.no_grad()
def add_to_weight(
    module: nn.Module,
    delta: Tensor,
    multiplier: float,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> None:
    """W += multiplier * delta, summed in the precision of delta and rounded to the weight's.

    Args:
        dtype: to which the sum is rounded before.
        device: where it is computed; None is the weight's.
    """
    weight = module.weight
    device = weight.device if device is None else device
    total = weight.to(device, delta.dtype) + delta.to(device).reshape(weight.shape) * multiplier
    weight.copy_(total if dtype is None else total.to(dtype))


def _one_each(value: float | Sequence[float] | None, count: int) -> list[float | None]:
    """A rate for each text encoder.

    Raises:
        UserError: there are more rates than text encoders.
    """
    rates = [value] if value is None or isinstance(value, int | float) else list(value) or [None]
    if len(rates) > max(count, 1):
        raise UserError(f"has {len(rates)} rates for {count} text encoder(s)", field="text_encoder_lr")
    return [*rates, *[rates[-1]] * (count - len(rates))]
