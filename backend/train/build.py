"""The network of a run: made from the options or a file, applied to the model."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from backend.config.train import TrainNetwork
from backend.config.training.network import Network as NetworkOptions
from backend.draws import draw_key
from backend.errors import UserError
from backend.families.model import Model
from backend.lora.file import listing, read_lora, tensors_of
from backend.lora.fit import check_keys, fitted
from backend.lora.layer import Layer
from backend.networks.base import add_to_weight
from backend.networks.modules import FoundModule, find_places, shapes_of
from backend.terminal import say, warn


def make_network(config: TrainNetwork, model: Model, seed: int) -> nn.Module:
    """The network, initialised from the seed in float32 on the CPU and applied to the model."""
    options = config.network
    merge_base_weights(options, model)
    module: ModuleType = importlib.import_module(f"backend.{options.network_module}")
    parts = (model.vae, model.text_encoders, model.unet)
    generator = torch.Generator().manual_seed(draw_key(seed, "network"))
    further = {"dropout": options.network_dropout, **options.network_args}
    if options.dim_from_weights:
        further["allow_unmatched"] = options.allow_unmatched
        network, _ = module.create_network_from_weights(1.0, options.network_weights, *parts, **further)
    else:
        size = (options.network_dim, options.network_alpha)
        network = module.create_network(1.0, *size, *parts, generator=generator, **further)
    network.apply_to(
        model.text_encoders,
        model.unet,
        apply_text_encoder=not options.network_train_unet_only,
        apply_unet=not options.network_train_text_encoder_only,
    )
    if options.network_weights is not None and not options.dim_from_weights:
        continue_from(network, options, model)
    network.requires_grad_(True).train()
    return network


def merge_base_weights(options: NetworkOptions, model: Model) -> None:
    """Add the LoRA files of `base_weights` to the model's weights, which are trained on as they are then.

    Raises:
        UserError: a file is broken or made for another model.
    """
    multipliers = [*options.base_weights_multiplier, *[1.0] * len(options.base_weights)]
    for path, multiplier in zip(options.base_weights, multipliers, strict=False):
        modules = find_places(model.text_encoders, model.unet)
        layers = layers_for(path, modules, model, options.allow_unmatched)
        for key, layer in layers.items():
            add_to_weight(modules[key].module, layer.delta(), multiplier)
        say(f"Merged {path} at {multiplier:g}")


def layers_for(
    path: Path, modules: Mapping[str, FoundModule], model: Model, allow_unmatched: bool
) -> dict[str, Layer]:
    """The layers of a file that go into a model, by the keys of its modules; what is left out is told.

    Raises:
        UserError: the file is broken or made for another model.
    """
    file = read_lora(path, allow_unmatched)
    layers, notes = fitted(file, shapes_of(modules), str(path), model.family.name, allow_unmatched)
    for note in notes:
        warn(f"{path}: {note}")
    return layers


def continue_from(network: nn.Module, options: NetworkOptions, model: Model) -> None:
    """Load `network_weights` into a network of the same ranks; what the file does not have starts from nothing.

    Raises:
        UserError: the file is broken, made for another model, or has other ranks or modules.
    """
    path = options.network_weights
    modules = find_places(model.text_encoders, model.unet)
    layers = layers_for(path, modules, model, options.allow_unmatched)
    only = {"lora_unet_": options.network_train_unet_only, "lora_te": options.network_train_text_encoder_only}
    kept = {key: layer for key, layer in layers.items() if all(key.startswith(part) for part in only if only[part])}
    if len(kept) < len(layers):
        warn(f"{len(layers) - len(kept)} modules of {path} belong to the part that is not trained and are left out")
    own = {adapter.lora_name: adapter for adapter in network.adapters()}
    strange = [key for key in kept if key not in own]
    if strange and options.allow_unmatched and len(strange) < len(kept):
        warn(f"{len(strange)} modules of {path} have no place in the network and are left out: {listing(strange)}")
        kept = {key: layer for key, layer in kept.items() if key in own}
    check_keys(kept, own, str(path))
    missing = len(network.adapters()) - len(kept)
    if missing:
        warn(f"{path} has no weights for {missing} of the network's modules, which start from nothing")
    try:
        network.load_state_dict(tensors_of(kept), strict=False)
    except UserError as error:
        message = f"{error.message}; set dim_from_weights to take the file's ranks"
        raise UserError(message, field=str(path)) from None
