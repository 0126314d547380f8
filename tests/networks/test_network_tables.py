"""Names, order, shapes and alphas of a network on a full-size SD1.5, built on the meta device, are the reference's."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from backend.errors import UserError
from backend.networks.base import Network
from backend.networks.lora import create_network, create_network_from_weights
from tests.networks.tiny import TinyModel

DATA = Path(__file__).parents[1] / "data"
REFERENCE = DATA / "sd15_c3lier_dim1.safetensors"


@pytest.fixture(scope="module")
def sd15() -> tuple[CLIPTextModel, UNet2DConditionModel]:
    with torch.device("meta"):
        return CLIPTextModel(clip_config()), UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8
        )


def clip_config() -> CLIPTextConfig:
    return CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)


def described(network: Network) -> list[tuple[str, list]]:
    """[(key, [shape of down, shape of up, alpha])] in the order of the state dict."""
    tensors = network.state_dict()
    keys = list(dict.fromkeys(name.split(".")[0] for name in tensors))
    parts = ("lora_down.weight", "lora_up.weight")
    return [
        (key, [*(list(tensors[f"{key}.{part}"].shape) for part in parts), tensors[f"{key}.alpha"].item()])
        for key in keys
    ]


@pytest.mark.parametrize("name", ["sd15_lierla", "sd15_c3lier"])
def test_network_is_the_references_to_the_letter(sd15: tuple[nn.Module, nn.Module], name: str) -> None:
    table = json.loads((DATA / "keys" / f"{name}.json").read_text())
    options = (table["network_dim"], table["network_alpha"])
    network = create_network(1.0, *options, None, *sd15, **table["network_args"])
    assert described(network) == list(table["modules"].items())
    assert [a.lora_name for a in (*network.text_encoder_loras, *network.unet_loras)] == list(table["modules"])


def test_parameters_are_as_many_as_the_references(sd15: tuple[nn.Module, nn.Module]) -> None:
    for arguments, expected in (({}, 2_359_296), ({"conv_dim": 4}, 4_866_816)):
        network = create_network(1.0, 4, 1, None, *sd15, **arguments)
        assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_stable_diffusion_2_has_as_many_modules_and_parameters_as_the_reference() -> None:
    """engine.md 2.3: 138 in its text encoder, whose one is 1024 wide and 23 layers deep, and the U-Net's of SD1."""
    unet = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20)}
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
    for linear in (True, False):
        with torch.device("meta"):
            parts = CLIPTextModel(CLIPTextConfig(**text)), UNet2DConditionModel(use_linear_projection=linear, **unet)
        for arguments, modules, expected in (({}, 192, 3_424_256), ({"conv_dim": 4}, 278, 5_931_776)):
            network = create_network(1.0, 4, 1, None, *parts, **arguments)
            assert (len(network.text_encoder_loras), len(network.unet_loras)) == (138, modules)
            assert sum(parameter.numel() for parameter in network.parameters()) == expected
            last = [item.lora_name for item in network.text_encoder_loras][-1]
            assert last == "lora_te_text_model_encoder_layers_22_mlp_fc2"


def test_building_one_network_does_not_change_the_next(sd15: tuple[nn.Module, nn.Module]) -> None:
    before = described(create_network(1.0, 4, 1, None, *sd15))
    create_network(1.0, 8, 2, None, *sd15, conv_dim=8, conv_alpha=3)
    create_network_from_weights(1.0, REFERENCE, None, *sd15)
    assert described(create_network(1.0, 4, 1, None, *sd15)) == before


def test_text_encoder_with_text_model_gets_the_same_names(sd15: tuple[nn.Module, nn.Module]) -> None:
    with torch.device("meta"):
        nested = CLIPTextModelWithProjection(clip_config())
    assert hasattr(nested, "text_model") and not hasattr(sd15[0], "text_model")
    one, other = (create_network(1.0, 4, 1, None, encoder, None) for encoder in (nested, [sd15[0]]))
    assert described(one) == described(other)
    assert len(one.text_encoder_loras) == 72 and not one.unet_loras


def test_the_references_file_is_taken_whole(sd15: tuple[nn.Module, nn.Module]) -> None:
    network, tensors = create_network_from_weights(1.0, REFERENCE, None, *sd15)
    assert len(network.text_encoder_loras) == 72 and len(network.unet_loras) == 278
    assert {(adapter.lora_dim, adapter.alpha) for adapter in network.adapters()} == {(1, 0.5)}
    saved = network.state_dict()
    assert set(saved) == set(tensors) and len(saved) == 1050
    assert all(torch.equal(saved[name], tensors[name].float()) for name in tensors)


def test_linear_layers_in_place_of_1x1_convolutions_take_either_shape(sd15: tuple[nn.Module, nn.Module]) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, use_linear_projection=True)
    key = "lora_unet_mid_block_attentions_0_proj_in"
    for shapes in (((2, 1280), (1280, 2)), ((2, 1280, 1, 1), (1280, 2, 1, 1))):
        weights = dict(zip((f"{key}.lora_down.weight", f"{key}.lora_up.weight"), map(torch.ones, shapes)))
        for where, dimensions in ((unet, 2), (sd15[1], 4)):
            network, _ = create_network_from_weights(1.0, None, None, None, where, weights)
            assert network.unet_loras[0].lora_down.weight.ndim == dimensions
            assert network.unet_loras[0].alpha == 2.0


def test_other_numbers_of_blocks_are_taken_and_other_models_refused() -> None:
    widths = {"block_out_channels": (32, 64), "cross_attention_dim": 8, "attention_head_dim": 4, "layers_per_block": 1}
    types = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
    types |= {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
    with torch.device("meta"):
        small = create_network(1.0, 4, 1, None, None, UNet2DConditionModel(**widths, **types))
    assert len(small.unet_loras) == (1 + 1 + 2) * 12
    with pytest.raises(UserError, match="unet: is not built like"):
        create_network(1.0, 4, 1, None, None, nn.Linear(2, 2))
    with pytest.raises(UserError, match="text_encoder: Linear is not built like"):
        create_network(1.0, 4, 1, None, nn.Linear(2, 2), None)


def test_a_model_that_lacks_a_module_is_refused_by_the_modules_name(model: TinyModel) -> None:
    del model.unet.mid_block.attentions[0].proj_in
    with pytest.raises(UserError, match="unet: has no module mid_block.attentions.0.proj_in"):
        create_network(1.0, 4, 1, None, None, model.unet)
