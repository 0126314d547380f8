"""Building a network of any kind: which modules get an adapter, of which rank, and what a file says about that."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backend.config.network import network_options
from backend.config.ranks import has_conv, module_rank, ranks_of_blocks, rate_weights
from backend.errors import UserError
from backend.lora.file import parse, tensors_of
from backend.lora.fit import fitted
from backend.lora.layer import Layer
from backend.lora.source import read_tensors
from backend.networks.adapter import DEFAULT_DIM, Adapter, Place
from backend.networks.base import Network, Rates
from backend.networks.dropout import DropoutRates
from backend.networks.modules import TextEncoders, as_list, find_modules, find_places, shapes_of, unet_shape
from backend.tables.blocks import SD, SDXL, Blocks
from backend.terminal import warn

Parts = tuple[TextEncoders, nn.Module | None]


def plain_network(
    adapters: list[Adapter], multiplier: float, rates: Rates, dropout: DropoutRates, _options: Any
) -> Network:
    """A network that needs nothing but its adapters."""
    return Network(adapters, multiplier, rates, dropout)


@dataclass(frozen=True)
class Kind:
    """A kind of network.

    Attributes:
        name: as in `--network_module`; its arguments are in config/network.py.
        adapter: its class.
        layer: what its files hold.
        network: makes the whole of (adapters, multiplier, rates, dropout, the kind's own arguments).
        takes_dropout: it has activations between its factors, of which some can be left out.
    """

    name: str
    adapter: type[Adapter]
    layer: type[Layer]
    network: Callable[..., Network] = plain_network
    takes_dropout: bool = True


def library_face(kind: Kind) -> tuple[Callable[..., Network], Callable[..., tuple[Network, dict[str, Tensor]]]]:
    """The two functions that every module of a kind of network has, `create_network` and its like from weights."""

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
            network_args: the kind's own, see config/network.py; values may be text.

        Raises:
            UserError: naming the option that is unknown or wrong, or the model is of an unknown family.
        """
        size, parts = (network_dim, network_alpha), (text_encoder, unet)
        return build_network(kind, multiplier, size, parts, generator, dropout, network_args)

    def create_network_from_weights(
        multiplier: float,
        file: str | Path | None,
        vae: Any,
        text_encoder: TextEncoders,
        unet: nn.Module | None,
        weights_sd: Mapping[str, Tensor] | None = None,
        for_inference: bool = False,
        **network_args: Any,
    ) -> tuple[Network, dict[str, Tensor]]:
        """The network that is in a LoRA file, with its weights loaded.

        Args:
            multiplier: how strongly it acts.
            file: path of a LoRA file, or of a PEFT adapter's folder; read only if `weights_sd` is None.
            vae: not used.
            text_encoder, unet: the model, for its shapes.
            weights_sd: the tensors of a LoRA file in any spelling.
            for_inference: the network is only to be used: no gradients, and nothing is left out in training mode.
            network_args: as for `create_network`, `dropout` too; ranks and alphas are those of the file. With
                `allow_unmatched` what matches no module of the model is left out with a warning instead of refused.

        Returns:
            The network, and the file's tensors under the names that the network's `state_dict` has.

        Raises:
            UserError: the file is broken or of another kind, or a key in it matches no module of the model.
        """
        dropout, allow = network_args.pop("dropout", None), bool(network_args.pop("allow_unmatched", False))
        source, parts = WeightsSource(file, weights_sd, allow), (text_encoder, unet)
        network, ready = network_from_file(kind, multiplier, source, parts, dropout, network_args)
        return (for_use(network) if for_inference else network), ready

    return create_network, create_network_from_weights


def build_network(
    kind: Kind,
    multiplier: float,
    size: tuple[int | None, float | None],
    parts: Parts,
    generator: torch.Generator | None,
    dropout: float | None,
    network_args: Mapping[str, Any],
) -> Network:
    """A new network; see `library_face`.

    Args:
        size: rank and alpha.
        parts: text encoders and U-Net.
    """
    dim, alpha = _whole("network_dim", size[0]) or DEFAULT_DIM, _real("network_alpha", size[1])
    options = network_options(kind.name, dim, network_args)
    text, unet = parts
    found = find_modules(text, unet)
    blocks = _blocks(parts)
    weights = rate_weights(options, blocks)
    ranks = ranks_of_blocks(options, blocks, dim, alpha, weights)
    adapters = []
    for key, where in found.items():
        rank, own_alpha = module_rank(where.target, ranks, (dim, alpha), has_conv(options))
        if rank:
            place = Place(len(adapters), where.encoder, where.target.block)
            adapters.append(kind.adapter(key, where.module, multiplier, rank, own_alpha, generator, place))
    if not adapters:
        raise UserError("leaves no module of the model to be trained", field="network_args")
    return kind.network(adapters, multiplier, _rates(options, weights), _dropout(kind, options, dropout), options)


@dataclass(frozen=True)
class WeightsSource:
    """Where a network's weights come from: the file, or its tensors if they have been read already.

    Attributes:
        allow_unmatched: leave out what matches no module of the model.
    """

    file: str | Path | None
    tensors: Mapping[str, Tensor] | None = None
    allow_unmatched: bool = False


def for_use(network: Network) -> Network:
    """A network that is only used: without gradients, and without dropout in whatever mode its model is."""
    for adapter in network.adapters():
        adapter.dropout = None
    network.dropout = None
    return network.requires_grad_(False).eval()


def network_from_file(
    kind: Kind,
    multiplier: float,
    source: WeightsSource,
    parts: Parts,
    dropout: float | None,
    network_args: Mapping[str, Any],
) -> tuple[Network, dict[str, Tensor]]:
    """The network that a file holds; see `library_face`.

    Args:
        source: of the weights.
        parts: text encoders and U-Net.
    """
    file, tensors = source.file, source.tensors
    metadata: dict[str, str] = {}
    if tensors is None:
        if file is None:
            raise UserError("give a file, or its tensors as weights_sd", field="file")
        tensors, metadata = read_tensors(file)
    field = "weights_sd" if file is None else str(file)
    found = find_places(*parts)
    read = parse(tensors, metadata, field, source.allow_unmatched)
    layers, notes = fitted(read, shapes_of(found), field, allow_unmatched=source.allow_unmatched)
    for note in notes:
        warn(f"{field}: {note}")
    other = next((layer for layer in layers.values() if not isinstance(layer, kind.layer)), None)
    if other is not None:
        raise UserError(f"holds a {other.KIND}, which {kind.name} cannot train", field=field)
    largest = max(layer.rank for layer in layers.values())
    options = network_options(kind.name, largest, network_args)
    blocks = _blocks(parts)
    # The weights are about to be replaced, so the seed is any: what matters is that torch's own state is left alone.
    generator = torch.Generator().manual_seed(0)
    present = [(key, where) for key, where in found.items() if key in layers]
    adapters = [
        kind.adapter(
            key,
            where.module,
            multiplier,
            layers[key].rank,
            layers[key].alpha,
            generator,
            Place(number, where.encoder, where.target.block),
        )
        for number, (key, where) in enumerate(present)
    ]
    rates = _rates(options, rate_weights(options, blocks))
    network = kind.network(adapters, multiplier, rates, _dropout(kind, options, dropout), options)
    ready = tensors_of(layers)
    network.load_state_dict(ready)
    return network, ready


def _blocks(parts: Parts) -> Blocks:
    """How the U-Net's blocks are counted, also where there are only text encoders."""
    text, unet = parts
    if unet is not None:
        return unet_shape(unet).blocks
    return SDXL if len(as_list(text)) > 1 else SD


def _rates(options: Any, weights: tuple[float, ...] | None) -> Rates:
    everywhere = getattr(options, "loraplus_lr_ratio", None)
    text, unet = (getattr(options, f"loraplus_{part}_lr_ratio", None) for part in ("text_encoder", "unet"))
    return Rates(weights, everywhere if text is None else text, everywhere if unet is None else unet)


def _dropout(kind: Kind, options: Any, neuron: float | None) -> DropoutRates:
    if neuron and not kind.takes_dropout:
        message = f"has no meaning for {kind.name}; use rank_dropout or module_dropout in network_args"
        raise UserError(message, field="network_dropout")
    if neuron is not None and not 0 <= neuron < 1:
        raise UserError(f"must be from 0 to below 1, not {neuron}", field="network_dropout")
    return DropoutRates(neuron or 0.0, options.rank_dropout or 0.0, options.module_dropout or 0.0)


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
    if number is not None and not 0 <= number < float("inf"):
        raise UserError(f"must be a number from 0, not {value!r}", field=name)
    return number
