"""DyLoRA: one network for every rank, nested for real."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from backend.errors import UserError
from backend.lora.file import layers_of, tensors_of
from backend.networks import dylora, lora
from backend.networks.dylora import create_network, draw_rank
from tests.networks.test_network_tables import DATA, described, sd15  # noqa: F401
from tests.networks.tiny import TinyModel, make_model, make_xl


def trained(model: TinyModel, dim: int = 8, alpha: float = 6.0, **network_args: object) -> dylora.DyLoRANetwork:
    generator = torch.Generator().manual_seed(1)
    network = create_network(
        1.0, dim, alpha, None, model.text_encoder, model.unet, generator=generator, **{"unit": 2, **network_args}
    )
    with torch.no_grad():
        for adapter in network.adapters():
            adapter.lora_up.weight.normal_(std=0.1, generator=generator)
    return network


def cut(network: dylora.DyLoRANetwork, rank: int) -> dict[str, torch.Tensor]:
    """The network's file cut to its first rows, alpha unchanged."""
    layers = layers_of(network.state_dict())
    return tensors_of({key: layer.truncated(rank) for key, layer in layers.items()})


def test_names_ranks_and_shapes_are_the_references(sd15: tuple[nn.Module, nn.Module]) -> None:  # noqa: F811
    table = json.loads((DATA / "keys" / "sd15_dylora.json").read_text())
    network = create_network(1.0, table["network_dim"], table["network_alpha"], None, *sd15, **table["network_args"])
    found = []
    for key, (down, up, alpha) in described(network):
        # The reference keeps the rows of a 1x1 convolution as vectors and writes them with four dimensions.
        wide = down[2:] == [3, 3]
        row, column = ([1, *down[1:]], [up[0], 1, *up[2:]]) if wide else ([1, down[1]], [up[0], 1])
        found.append((key, [down[0], alpha, [row, column], wide]))
    assert found == [(key, value) for key, value in table["modules"].items()]
    assert network.unit == 4
    assert len(list(network.parameters())) == 2 * len(table["modules"]), "few large tensors"


@pytest.mark.parametrize("arguments", [{}, {"conv_dim": 8, "conv_alpha": 3}], ids=["lierla", "c3lier"])
def test_trained_at_a_rank_is_the_file_cut_to_it(model: TinyModel, arguments: dict) -> None:
    network = trained(model, **arguments)
    network.apply_to(model.text_encoder, model.unet)
    seen = set()
    for step in range(12):
        network.train()
        network.begin_step(3, step, [0, 1])
        rank = draw_rank(3, step, 8, 2)
        if rank in seen:
            continue
        seen.add(rank)
        other = make_model()
        single, _ = lora.create_network_from_weights(
            1.0, None, None, other.text_encoder, other.unet, cut(network, rank)
        )
        single.apply_to(other.text_encoder, other.unet)
        torch.testing.assert_close(model.predict(), other.predict(), rtol=1e-4, atol=1e-5)
        network.eval()
        network.set_rank(rank)
        torch.testing.assert_close(model.predict(), other.predict(), rtol=1e-4, atol=1e-5)
        network.set_rank(None)
        torch.testing.assert_close(network.unet_loras[0].delta(), network.unet_loras[0].layer().delta())
    assert seen == {2, 4, 6, 8}


def test_ranks_are_uniform_over_the_multiples_of_unit_and_hang_on_seed_and_step_alone() -> None:
    counts = Counter(draw_rank(1, step, 12, 3) for step in range(4000))
    assert set(counts) == {3, 6, 9, 12}
    assert all(900 < count < 1100 for count in counts.values())
    assert [draw_rank(1, step, 12, 3) for step in range(50)] != [draw_rank(2, step, 12, 3) for step in range(50)]
    assert draw_rank(5, 7, 4, 4) == 4


def test_one_rank_for_the_whole_network_and_the_whole_step(model: TinyModel) -> None:
    network = trained(model).train()
    for step in range(6):
        used = set()
        for indices in ([0, 1], [2, 3]):
            network.begin_step(9, step, indices)
            used |= {adapter.rows or adapter.lora_dim for adapter in network.adapters()}
        assert used == {draw_rank(9, step, 8, 2)}


def test_rows_beyond_the_rank_get_no_gradient(model: TinyModel) -> None:
    network = trained(model).train()
    network.apply_to(model.text_encoder, model.unet)
    step = next(step for step in range(99) if draw_rank(1, step, 8, 2) == 4)
    network.begin_step(1, step, [0, 1])
    model.predict().square().mean().backward()
    for adapter in network.adapters():
        down, up = adapter.lora_down.weight.grad, adapter.lora_up.weight.grad
        assert down[:4].abs().max() > 0 and not down[4:].any()
        assert up[:, :4].abs().max() > 0 and not up[:, 4:].any()


def test_checkpointing_sees_the_same_rank(model: TinyModel) -> None:
    network = trained(model).train()
    network.apply_to(None, model.unet, apply_text_encoder=False)
    hidden, parameters = model.encode().detach(), [item.lora_down.weight for item in network.unet_loras]
    step = next(step for step in range(99) if draw_rank(1, step, 8, 2) == 2)
    network.begin_step(1, step, [0, 1])

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        latents = torch.ones(2, 4, 8, 8)
        return model.unet(latents, torch.tensor([10, 900]), hidden).sample.square().mean()

    plain = torch.autograd.grad(forward(hidden), parameters)
    again = torch.autograd.grad(checkpoint(forward, hidden.requires_grad_(), use_reentrant=False), parameters)
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


def test_the_multiplier_is_obeyed_and_zero_is_nothing(model: TinyModel) -> None:
    plain = model.predict()
    network = trained(model).eval()
    network.apply_to(model.text_encoder, model.unet)
    full = model.predict()
    network.set_multiplier(0)
    assert torch.equal(model.predict(), plain)
    network.set_multiplier(0.5)
    assert not torch.allclose(model.predict(), full) and not torch.allclose(model.predict(), plain)


def test_evaluation_does_not_flicker_and_training_goes_on_as_before(model: TinyModel) -> None:
    network = trained(model)
    network.apply_to(model.text_encoder, model.unet)
    pictures = []
    for step in range(4):
        network.train()
        network.begin_step(4, step, [0])
        drawn = {adapter.rows for adapter in network.adapters()}
        network.eval()
        pictures.append(model.predict())
        network.train()
        assert {adapter.rows for adapter in network.adapters()} == drawn
    assert all(torch.equal(pictures[0], picture) for picture in pictures)


def test_saving_writes_an_ordinary_lora_whatever_rank_is_in_use(model: TinyModel, tmp_path: Path) -> None:
    network = trained(model).train()
    before = network.state_dict()
    network.begin_step(1, 0, [0])
    network.save_weights(tmp_path / "a.safetensors")
    single, tensors = lora.create_network_from_weights(
        1.0, tmp_path / "a.safetensors", None, model.text_encoder, model.unet
    )
    assert all(torch.equal(tensors[name], before[name]) for name in before)
    again, _ = dylora.create_network_from_weights(
        1.0, tmp_path / "a.safetensors", None, model.text_encoder, model.unet, unit=4
    )
    assert (again.rank, again.unit) == (8, 4)
    assert all(torch.equal(again.state_dict()[name], before[name]) for name in before)


def test_both_text_encoders_of_sdxl_are_complete() -> None:
    model = make_xl()
    network = create_network(1.0, 4, 1, None, model.text_encoders, model.unet, unit=2)
    names = [item.lora_name for item in network.text_encoder_loras]
    assert len(names) == len(set(names)) == 24
    assert Counter(name.split("_")[1] for name in names) == {"te1": 12, "te2": 12}
    assert {name.partition(".")[0] for name in network.state_dict()} == {item.lora_name for item in network.adapters()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unit": 3}, "unit: must divide network_dim 8, got 3"),
        ({"conv_dim": 4}, "conv_dim: must be equal to network_dim 8, got 4"),
        ({"block_dims": [1] * 25}, "block_dims: has no meaning for networks.dylora"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(model: TinyModel, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_network(1.0, 8, 1, None, None, model.unet, **arguments)
    with pytest.raises(UserError, match="rank: must be from 1 to 8, not 9"):
        trained(model).set_rank(9)


def test_block_rates_and_norms_are_those_of_plain_lora(model: TinyModel) -> None:
    network = trained(model, up_lr_weight="zeros", loraplus_lr_ratio=2)
    assert {item.place.block for item in network.unet_loras} == {1, 2, 4, 5, 7, 8, 12}
    assert "unet_block12_plus" in [group.name for group in network.parameter_groups(1.0, 1.0, None)]
    network.train().begin_step(1, 0, [0])
    exact = torch.stack([item.layer().delta().norm() for item in network.adapters()])
    torch.testing.assert_close(torch.stack([item.norm() for item in network.adapters()]), exact, rtol=1e-4, atol=1e-6)
