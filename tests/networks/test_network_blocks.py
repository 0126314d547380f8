"""Rates and ranks by block in a network: what is built, and how its groups are trained."""

import json

import pytest
import torch
from torch import nn

from backend.errors import UserError
from backend.networks.lora import create_network
from tests.networks.test_network_tables import DATA, described, sd15  # noqa: F401
from tests.networks.tiny import TinyModel, make_xl


def build(table: dict, model: tuple[nn.Module, nn.Module], **changes: object) -> object:
    options = (table["network_dim"], table["network_alpha"])
    return create_network(1.0, *options, None, *model, **{**table["network_args"], **changes})


@pytest.mark.parametrize("name", ["sd15_block_dims_conv", "sd15_blocklr_sine"])
def test_network_is_the_references_to_the_letter(sd15: tuple[nn.Module, nn.Module], name: str) -> None:  # noqa: F811
    table = json.loads((DATA / "keys" / f"{name}.json").read_text())
    assert described(build(table, sd15)) == list(table["modules"].items())


def test_there_is_a_group_for_each_block_with_the_references_rate(sd15: tuple[nn.Module, nn.Module]) -> None:  # noqa: F811
    table = json.loads((DATA / "keys" / "sd15_blocklr_sine.json").read_text())
    network = build(table, sd15)
    groups = network.parameter_groups(1.0, 1.0, None)
    assert sorted(group.lr for group in groups) == pytest.approx(table["group_lrs"], abs=1e-6)
    assert [group.name for group in groups] == ["text_encoder"] + [
        f"unet_block{block}" for block in (1, 2, 4, 5, 7, 8, 12, *range(16, 25))
    ]
    assert sum(len(group.params) for group in groups) == 2 * len(network.adapters())


def test_a_block_of_rate_zero_has_no_modules(model: TinyModel) -> None:
    network = create_network(1.0, 4, 1, None, None, model.unet, up_lr_weight="zeros", mid_lr_weight=0, conv_dim=2)
    assert {item.place.block for item in network.unet_loras} == set(range(1, 12))
    assert not any("up_blocks" in item.lora_name or "mid_block" in item.lora_name for item in network.unet_loras)


def test_conv_ranks_of_blocks_alone_are_honoured(model: TinyModel) -> None:
    ranks = [index % 3 for index in range(25)]
    network = create_network(1.0, 4, 2, None, model.text_encoder, model.unet, conv_block_dims=ranks)
    wide = {item.place.block: item.lora_dim for item in network.unet_loras if item.lora_down.weight.shape[-1] == 3}
    assert wide == {block: ranks[block] for block in range(1, 25) if ranks[block]}
    assert {item.lora_dim for item in network.unet_loras if item.lora_down.weight.shape[-1] != 3} == {4}
    assert {item.alpha for item in network.text_encoder_loras} == {2.0}


def test_alphas_of_blocks_alone_are_honoured(model: TinyModel) -> None:
    network = create_network(1.0, 4, 2, None, model.text_encoder, model.unet, block_alphas=[1.0] * 24 + [3.0])
    assert {(item.place.block == 24, item.alpha) for item in network.unet_loras} == {(False, 1.0), (True, 3.0)}


def test_ranks_as_numbers_text_or_a_zero(model: TinyModel) -> None:
    text = ",".join(["0"] + ["2"] * 23 + ["0"])
    by_text = create_network(1.0, 4, 1, None, None, model.unet, block_dims=text)
    by_list = create_network(1.0, 4, 1, None, None, model.unet, block_dims=[0] + [2] * 23 + [0])
    assert described(by_text) == described(by_list)
    assert {item.place.block for item in by_text.unet_loras} & {0, 24} == set()


def test_lengths_are_those_of_the_family(model: TinyModel) -> None:
    with pytest.raises(UserError, match="block_dims: has 23 values, but must have 25, one per block"):
        create_network(1.0, 4, 1, None, None, model.unet, block_dims=[2] * 23)
    with pytest.raises(UserError, match="down_lr_weight: has 12 weights, but must have 9, one per block"):
        create_network(1.0, 4, 1, None, None, make_xl().unet, down_lr_weight=",".join("1" * 12))
    xl = create_network(1.0, 4, 1, None, None, make_xl().unet, block_dims=list(range(23)), mid_lr_weight="0,1,0")
    assert {(item.place.block, item.lora_dim) for item in xl.unet_loras} == {
        (block, block) for block in (5, 6, 8, 9, 11, 13, 14, 15, 16, 17, 18)
    }


def test_a_network_of_nothing_is_refused(model: TinyModel) -> None:
    with pytest.raises(UserError, match="network_args: leaves no module"):
        create_network(1.0, 4, 1, None, None, model.unet, block_dims=[0] * 25)


def test_lora_plus_trains_up_faster(model: TinyModel) -> None:
    parts = (None, model.text_encoder, model.unet)
    network = create_network(1.0, 4, 1, *parts, loraplus_lr_ratio=16, loraplus_text_encoder_lr_ratio="4")
    groups = {group.name: group for group in network.parameter_groups(1e-5, 1e-4, None)}
    assert {name: group.lr for name, group in groups.items()} == pytest.approx(
        {"text_encoder": 1e-5, "text_encoder_plus": 4e-5, "unet": 1e-4, "unet_plus": 1.6e-3}
    )
    ups = {id(item.lora_up.weight) for item in network.unet_loras}
    assert {id(parameter) for parameter in groups["unet_plus"].params} == ups
    everything = [id(parameter) for group in groups.values() for parameter in group.params]
    assert sorted(everything) == sorted(id(parameter) for parameter in network.parameters())
    by_block = create_network(1.0, 4, 1, *parts, loraplus_unet_lr_ratio=2, mid_lr_weight="0.5")
    rates = {group.name: group.lr for group in by_block.parameter_groups(1.0, 1.0, None)}
    assert (rates["unet_block12"], rates["unet_block12_plus"], rates["text_encoder"]) == (0.5, 1.0, 1.0)
    assert "text_encoder_plus" not in rates


def test_norms_above_the_largest_are_scaled_down_to_it(model: TinyModel) -> None:
    network = create_network(1.0, 4, 3.0, None, None, model.unet, conv_dim=2)
    with torch.no_grad():
        for number, item in enumerate(network.unet_loras):
            item.lora_up.weight.normal_(std=0.001 if number % 2 else 0.5)
    before = [item.delta() for item in network.unet_loras]
    exact = torch.stack([delta.norm() for delta in before])
    torch.testing.assert_close(torch.stack([item.norm() for item in network.unet_loras]), exact, rtol=1e-4, atol=1e-6)
    scaled, mean = (value.item() for value in network.scale_weight_norms(1.0))
    assert scaled == int((exact > 1).sum()) > 0
    assert mean == pytest.approx(exact.clamp(max=1).mean().item(), rel=1e-4)
    for item, delta in zip(network.unet_loras, before, strict=True):
        torch.testing.assert_close(item.delta(), delta * min(1.0, 1 / delta.norm().item()), rtol=1e-3, atol=1e-6)


def test_building_changes_nothing_for_the_next(model: TinyModel) -> None:
    plain = described(create_network(1.0, 4, 1, None, model.text_encoder, model.unet))
    create_network(1.0, 4, 1, None, model.text_encoder, model.unet, conv_block_dims=[1] * 25, up_lr_weight="zeros")
    assert described(create_network(1.0, 4, 1, None, model.text_encoder, model.unet)) == plain
