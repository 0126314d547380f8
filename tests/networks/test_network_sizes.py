"""The counts that are made without torch are those of the networks that are built."""

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from backend.config.network import network_options
from backend.config.ranks import network_size
from backend.networks import dylora, loha, lora
from backend.tables.sizes import FULL_SIZE, sized_targets
from backend.tables.widths import widths_of_configs
from tests.networks.tiny import make_model, make_xl

KINDS = {"networks.lora": lora, "networks.dylora": dylora, "networks.loha": loha}
RANKS = {"sd1": [*range(25)], "sd2": [25 - rank for rank in range(25)], "sdxl": [*range(23)]}
BLOCK_RANKS: dict[str, Any] = {"block_dims": RANKS}
RATES = {"down_lr_weight": "sine", "up_lr_weight": "linear+.1", "mid_lr_weight": "zeros"}
CASES = [
    ("networks.lora", {}),
    ("networks.lora", {"conv_dim": 4}),
    ("networks.lora", BLOCK_RANKS),
    ("networks.lora", {**BLOCK_RANKS, "conv_block_dims": RANKS}),
    ("networks.lora", {**RATES, "block_lr_zero_threshold": 0.3}),
    ("networks.lora", {**RATES, **BLOCK_RANKS, "conv_dim": 2}),
    ("networks.dylora", {"unit": 2, "conv_dim": 4, **RATES}),
    ("networks.loha", {}),
    ("networks.loha", {"conv_dim": 3, **BLOCK_RANKS}),
]


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[list[nn.Module], UNet2DConditionModel]]:
    """Full-size models of each family, of shapes alone."""
    two: dict[str, Any] = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20)}
    xl: dict[str, Any] = {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    with torch.device("meta"):
        return {
            "sd1": ([_text(12, 768)], UNet2DConditionModel(cross_attention_dim=768)),
            "sd2": ([_text(23, 1024)], UNet2DConditionModel(use_linear_projection=True, **two)),
            "sdxl": ([_text(12, 768), _text(32, 1280, CLIPTextModelWithProjection)], UNet2DConditionModel(**xl)),
        }


def _text(layers: int, width: int, kind: type[nn.Module] = CLIPTextModel) -> nn.Module:
    config = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 4 * width}
    return kind(CLIPTextConfig(num_attention_heads=width // 64, **config))


def arguments_for(family: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value[family] if isinstance(value, dict) else value for name, value in arguments.items()}


@pytest.mark.parametrize("family", FULL_SIZE)
def test_every_module_has_its_size(models: dict[str, Any], family: str) -> None:
    real = lora.create_network(1.0, 1, 1, None, *models[family], conv_dim=1).adapters()
    shapes = {one.lora_name: (one.lora_down.weight[0].numel(), one.lora_up.weight.shape[0]) for one in real}
    assert {one.target.key: (one.inputs, one.outputs) for one in sized_targets(FULL_SIZE[family])} == shapes


@pytest.mark.parametrize(("module", "arguments"), CASES)
@pytest.mark.parametrize("family", FULL_SIZE)
def test_modules_and_parameters_are_those_of_the_network(
    models: dict[str, Any], family: str, module: str, arguments: dict[str, Any]
) -> None:
    given = arguments_for(family, arguments)
    counted = network_size(network_options(module, 4, given), 4, FULL_SIZE[family])
    network = KINDS[module].create_network(1.0, 4, 1, None, *models[family], **given)
    assert counted.unet == count(network.unet_loras)
    assert counted.text == count(network.text_encoder_loras)


@pytest.mark.parametrize(
    ("family", "arguments", "parameters"),
    [
        ("sd1", {}, 2_359_296),
        ("sd1", {"conv_dim": 4}, 4_866_816),
        ("sdxl", {}, 14_252_032),
        ("sdxl", {"conv_dim": 4}, 15_909_632),
    ],
)
def test_the_usual_networks_are_as_large_as_the_references(
    family: str, arguments: dict[str, Any], parameters: int
) -> None:
    assert network_size(network_options("networks.lora", 4, arguments), 4, FULL_SIZE[family]).parameters == parameters


def test_one_part_alone_is_counted_alone() -> None:
    options = network_options("networks.lora", 4, {})
    whole = network_size(options, 4, FULL_SIZE["sd1"])
    assert network_size(options, 4, FULL_SIZE["sd1"], with_text=False).modules == whole.unet[0] == 192
    assert network_size(options, 4, FULL_SIZE["sd1"], with_unet=False).modules == whole.text[0] == 72


@pytest.mark.parametrize("make", [make_model, make_xl])
def test_other_widths_are_read_from_the_configs(make: Any) -> None:
    model = make()
    encoders = getattr(model, "text_encoders", None) or [model.text_encoder]
    widths = widths_of_configs(model.unet.config, [encoder.config.to_dict() for encoder in encoders])
    for arguments in ({}, {"conv_dim": 2}):
        network = lora.create_network(1.0, 4, 1, None, encoders, model.unet, **arguments)
        counted = network_size(network_options("networks.lora", 4, arguments), 4, widths)
        assert (counted.unet, counted.text) == (count(network.unet_loras), count(network.text_encoder_loras))


def count(adapters: list[nn.Module]) -> tuple[int, int]:
    return len(adapters), sum(parameter.numel() for adapter in adapters for parameter in adapter.parameters())
