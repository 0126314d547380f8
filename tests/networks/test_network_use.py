"""Making, loading, saving and training networks: values, parameter groups, refusals."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from backend.errors import UserError
from backend.header import read_header
from backend.lora.metadata import file_hashes
from backend.networks.base import Network
from backend.networks.lora import LoRAModule, create_network, create_network_from_weights
from tests.networks.tiny import TinyModel, make_model

Trained = Callable[..., Network]


def weights(network: Network) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def test_initial_weights_are_a_function_of_the_seed_alone(model: TinyModel) -> None:
    def make(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return weights(create_network(1.0, 4, 1, None, model.text_encoder, model.unet, generator=generator))

    torch.manual_seed(1)
    state, first = torch.get_rng_state(), make(5)
    assert torch.equal(torch.get_rng_state(), state), "torch's own state was used up"
    torch.rand(3)
    assert torch.equal(make(5), first) and not torch.equal(make(6), first)
    sd = create_network(1.0, 4, 1, None, model.text_encoder, None).state_dict()
    state = torch.get_rng_state()
    create_network_from_weights(1.0, None, None, model.text_encoder, None, sd)
    assert torch.equal(torch.get_rng_state(), state), "torch's own state was used up by loading"


def test_initial_weights_are_spread_like_a_linear_layers(model: TinyModel) -> None:
    adapter = LoRAModule("a", nn.Linear(300, 200), lora_dim=64)
    bound = 300**-0.5
    assert 0.98 * bound < adapter.lora_down.weight.abs().max() <= bound
    assert adapter.lora_down.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not adapter.lora_up.weight.any()


def test_items_have_the_documented_attributes(model: TinyModel) -> None:
    network = create_network(0.7, 8, 2, None, model.text_encoder, model.unet)
    assert (len(network.text_encoder_loras), len(network.unet_loras)) == (12, 192)
    item = network.unet_loras[0]
    assert isinstance(item, LoRAModule)
    assert (item.lora_name, item.lora_dim, item.alpha, item.multiplier, item.scale) == (
        "lora_unet_down_blocks_0_attentions_0_proj_in",
        8,
        2.0,
        0.7,
        0.25,
    )
    assert isinstance(item.alpha, float)
    assert item.lora_down.weight.shape == (8, 32, 1, 1) and item.lora_up.weight.shape == (32, 8, 1, 1)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("alpha", [None, 0, 0.0])
def test_no_alpha_is_the_rank_and_no_rank_is_four(model: TinyModel, alpha: float | None) -> None:
    network = create_network(1.0, None, alpha, None, model.text_encoder, None)
    assert {(item.lora_dim, item.alpha) for item in network.adapters()} == {(4, 4.0)}


def test_conv_alpha_is_one_if_not_given(model: TinyModel) -> None:
    network = create_network(1.0, 8, 4, None, None, model.unet, conv_dim="2")
    found = {item.lora_name: (item.lora_dim, item.alpha) for item in network.unet_loras}
    assert found["lora_unet_mid_block_resnets_0_conv1"] == (2, 1.0)
    assert found["lora_unet_mid_block_resnets_0_time_emb_proj"] == (8, 4.0)
    # wider than the level before, unlike SD1.5's, so it has a shortcut
    assert found["lora_unet_down_blocks_3_resnets_0_conv_shortcut"] == (8, 4.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"con_dim": 4}, "con_dim: .*conv_dim"),
        ({"conv_dim": "four"}, "conv_dim: must be an integer"),
        ({"conv_dim": 2.5}, "conv_dim: must be an integer"),
        ({"conv_dim": 0}, "conv_dim: must be at least 1"),
        ({"conv_dim": 4, "conv_alpha": float("nan")}, "conv_alpha: must be a finite number"),
        ({"conv_alpha": 1}, "conv_alpha: has no effect"),
    ],
)
def test_wrong_network_args_are_refused_by_name(model: TinyModel, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_network(1.0, 4, 1, None, None, model.unet, **arguments)


def test_wrong_rank_and_alpha_are_refused_by_name(model: TinyModel) -> None:
    with pytest.raises(UserError, match="network_dim: must be a whole number from 1"):
        create_network(1.0, 0, 1, None, None, model.unet)
    with pytest.raises(UserError, match="network_alpha: must be a number from 0"):
        create_network(1.0, 4, -1, None, None, model.unet)


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_a_saved_network_is_the_same_when_loaded(
    model: TinyModel, trained: Trained, tmp_path: Path, ending: str
) -> None:
    network = trained(model, alpha=0.3, conv_dim=2)
    network.save_weights(tmp_path / f"a{ending}", None, {"ss_network_dim": "4"})
    loaded, tensors = create_network_from_weights(0.5, tmp_path / f"a{ending}", None, model.text_encoder, model.unet)
    assert loaded.multiplier == 0.5 and set(tensors) == set(network.state_dict())
    assert [item.lora_name for item in loaded.adapters()] == [item.lora_name for item in network.adapters()]
    assert torch.equal(weights(loaded), weights(network))
    assert [item.alpha for item in loaded.adapters()] == pytest.approx([item.alpha for item in network.adapters()])
    other = make_model()
    for one, where in ((network, model), (loaded, other)):
        one.set_multiplier(1)
        one.apply_to(where.text_encoder, where.unet)
    assert torch.equal(model.predict(), other.predict())


def test_save_load_save_is_the_same_to_the_byte(model: TinyModel, trained: Trained, tmp_path: Path) -> None:
    metadata = {"ss_network_dim": "4", "ss_note": "ä"}
    trained(model, alpha=0.3, conv_dim=2).save_weights(tmp_path / "a.safetensors", None, metadata)
    loaded, _ = create_network_from_weights(1.0, tmp_path / "a.safetensors", None, model.text_encoder, model.unet)
    kept = read_header(tmp_path / "a.safetensors").metadata
    loaded.save_weights(tmp_path / "b.safetensors", None, kept)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_saved_precision_and_hashes(model: TinyModel, trained: Trained, tmp_path: Path) -> None:
    trained(model).save_weights(tmp_path / "a.safetensors", torch.float16, {"ss_v2": "False"})
    header = read_header(tmp_path / "a.safetensors")
    dtypes = {name.partition(".")[2]: info.dtype for name, info in header.tensors.items()}
    assert dtypes == {"lora_down.weight": "F16", "lora_up.weight": "F16", "alpha": "F32"}
    assert header.metadata == {"ss_v2": "False"} | file_hashes(tmp_path / "a.safetensors")


def test_the_strength_of_the_file_wins_over_the_networks_alpha(model: TinyModel, trained: Trained) -> None:
    file = trained(model, alpha=3.0).state_dict()
    network = create_network(1.0, 4, 1.0, None, model.text_encoder, model.unet)
    network.load_state_dict(file)
    assert {item.alpha for item in network.adapters()} == {3.0}
    without = {name: tensor for name, tensor in file.items() if not name.endswith("alpha")}
    network.load_state_dict(without)
    assert {item.alpha for item in network.adapters()} == {4.0}


def test_the_documents_way_to_stack_three_files(model: TinyModel, trained: Trained, tmp_path: Path) -> None:
    networks = []
    for seed, multiplier in ((1, 0.5), (2, 0.7), (3, 0.5)):
        sd = trained(model, seed=seed).state_dict()
        network, sd = create_network_from_weights(multiplier, None, None, model.text_encoder, model.unet, sd)
        network.apply_to(model.text_encoder, model.unet)
        network.load_state_dict(sd)
        network.to("cpu", dtype=torch.float32)
        networks.append(network)
    applied = model.predict()
    merged = make_model()
    for seed, multiplier in ((1, 0.5), (2, 0.7), (3, 0.5)):
        sd = trained(merged, seed=seed).state_dict()
        network, sd = create_network_from_weights(multiplier, None, None, merged.text_encoder, merged.unet, sd)
        network.merge_to(merged.text_encoder, merged.unet, sd)
    torch.testing.assert_close(applied, merged.predict(), rtol=1e-4, atol=1e-5)
    for network in networks:
        network.set_multiplier(0)
    assert torch.equal(model.predict(), make_model().predict())


def test_keys_that_match_nothing_are_listed(model: TinyModel, trained: Trained, tmp_path: Path) -> None:
    network = trained(model)
    stray = {f"lora_unet_nowhere_{n}.lora_{half}.weight": torch.ones(1, 1) for n in range(2) for half in ("up", "down")}
    for refuse in (
        lambda: network.load_state_dict(network.state_dict() | stray),
        lambda: create_network_from_weights(1.0, None, None, model.text_encoder, model.unet, stray),
    ):
        with pytest.raises(UserError, match="2 of its keys match no module.*lora_unet_nowhere_0, lora_unet_nowhere_1"):
            refuse()
    network.load_state_dict(network.state_dict() | stray, strict=False)
    network.save_weights(tmp_path / "both.safetensors")
    with pytest.raises(UserError, match="both.safetensors: 12 of its keys.*lora_te_text_model_encoder_layers_0"):
        create_network_from_weights(1.0, tmp_path / "both.safetensors", None, None, model.unet)
    with pytest.raises(UserError, match="match no module"):
        network.apply_to(None, model.unet)


def test_missing_weights_and_other_ranks_are_refused(model: TinyModel, trained: Trained) -> None:
    network = trained(model)
    key = network.unet_loras[3].lora_name
    partial = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(f"{key}.")}
    with pytest.raises(UserError, match=f"has no weights for {key}$"):
        network.load_state_dict(partial)
    with pytest.raises(UserError, match="has down .*where the network has"):
        network.load_state_dict(trained(model, dim=8).state_dict())


def test_parameter_groups(model: TinyModel, trained: Trained) -> None:
    network = trained(model)
    groups = network.prepare_optimizer_params(5e-5, None, 1e-4)
    assert [(set(group), len(group["params"]), group["lr"]) for group in groups] == [
        ({"params", "lr"}, 24, 5e-5),
        ({"params", "lr"}, 384, 1e-4),
    ]
    assert [group.name for group in network.parameter_groups(None, 1e-3, 1e-4)] == ["text_encoder", "unet"]
    assert [group.name for group in network.parameter_groups(0, None, 1e-4)] == ["unet"]
    with pytest.raises(UserError, match="learning_rate: every learning rate is 0"):
        network.prepare_optimizer_params(None, 0, None)


def test_training_lowers_a_loss_and_leaves_the_model_alone(model: TinyModel) -> None:
    generator = torch.Generator().manual_seed(0)
    network = create_network(1.0, 4, 4, None, model.text_encoder, model.unet, generator=generator)
    for part in (model.unet, model.text_encoder):
        part.requires_grad_(False)
    before, target = model.tensors(), torch.roll(model.predict(), 1, dims=0)
    network.apply_to(model.text_encoder, model.unet)
    optimizer = torch.optim.AdamW(network.prepare_optimizer_params(None, None, 1e-2))
    losses = []
    for _ in range(6):
        loss = (model.predict() - target).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.5 * losses[0]
    after = model.tensors()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_state_dict_goes_through_a_wrapper_for_several_devices(model: TinyModel, trained: Trained) -> None:
    network, fresh = trained(model), create_network(1.0, 4, 1, None, model.text_encoder, model.unet)
    wrapped, other = nn.Module(), nn.Module()
    wrapped.module, other.module = network, fresh
    other.load_state_dict(wrapped.state_dict())
    assert torch.equal(weights(fresh), weights(network))
    assert {item.alpha for item in fresh.adapters()} == {2.0}
