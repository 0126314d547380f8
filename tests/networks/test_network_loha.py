"""LoHa: a kind of network that is one file and a row, in LyCORIS's file format."""

from pathlib import Path

import pytest
import torch
from torch import nn

from backend.config.network import NETWORK_ARGS
from backend.errors import UserError
from backend.lora.file import layers_of, read_lora
from backend.lora.loha import LohaLayer
from backend.networks import loha, lora
from backend.networks.adapter import attach
from backend.networks.loha import LohaModule, create_network
from tests.networks.tiny import TinyModel, make_model


def filled(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for adapter in network.adapters():
            adapter.hada_w2_a.normal_(std=0.1, generator=generator)
    return network


@pytest.mark.parametrize(
    ("module", "shape"),
    [(nn.Linear(6, 10), (3, 5, 6)), (nn.Conv2d(4, 6, 1), (2, 4, 7, 7)), (nn.Conv2d(4, 4, 3, 2, 1), (2, 4, 8, 8))],
)
def test_adapter_is_the_formula(module: nn.Module, shape: tuple[int, ...]) -> None:
    module = module.double()
    adapter = LohaModule("a", module, 0.4, lora_dim=3, alpha=2.0).double()
    nn.init.normal_(adapter.hada_w2_a)
    x = torch.randn(shape, dtype=torch.float64)
    handle = attach(adapter, module)
    applied = module(x)
    handle.remove()
    product = (adapter.hada_w1_a @ adapter.hada_w1_b) * (adapter.hada_w2_a @ adapter.hada_w2_b)
    with torch.no_grad():
        module.weight += 0.4 * (2.0 / 3) * product.reshape(module.weight.shape)
    torch.testing.assert_close(applied, module(x))


def test_a_new_network_changes_nothing_and_merged_equals_applied(model: TinyModel) -> None:
    plain = model.predict()
    network = create_network(0.7, 4, 2, None, model.text_encoder, model.unet, conv_dim=2)
    network.apply_to(model.text_encoder, model.unet)
    torch.testing.assert_close(model.predict(), plain, rtol=0, atol=0)
    filled(network)
    applied, other = model.predict(), make_model()
    network.remove()
    network.merge_to(other.text_encoder, other.unet)
    torch.testing.assert_close(applied, other.predict(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(applied, plain)


def test_files_have_lycoris_names_and_come_back(model: TinyModel, tmp_path: Path) -> None:
    network = filled(create_network(1.0, 4, 2, None, model.text_encoder, model.unet, conv_dim=2, conv_alpha=1))
    network.save_weights(tmp_path / "a.safetensors")
    key = "lora_unet_mid_block_resnets_0_conv1"
    shapes = {name: list(value.shape) for name, value in network.state_dict().items() if name.startswith(f"{key}.")}
    assert shapes == {
        f"{key}.hada_w1_a": [128, 2],
        f"{key}.hada_w1_b": [2, 128 * 9],
        f"{key}.hada_w2_a": [128, 2],
        f"{key}.hada_w2_b": [2, 128 * 9],
        f"{key}.alpha": [],
    }
    loaded, tensors = loha.create_network_from_weights(
        1.0, tmp_path / "a.safetensors", None, model.text_encoder, model.unet
    )
    assert set(tensors) == set(network.state_dict())
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in network.state_dict().items())
    layer = read_lora(tmp_path / "a.safetensors").layers[key]
    assert (type(layer), layer.rank, layer.alpha, layer.shape) == (LohaLayer, 2, 1.0, (128, 128 * 9))


def test_tuckers_cores_are_read() -> None:
    """LyCORIS: the weight is the sum over i, j of t[i, j] w1_b[j] w1_a[i], for each of the two."""
    generator = torch.Generator().manual_seed(0)
    rank, outputs, inputs = 2, 5, 3
    sizes = {"t1": (rank, rank, 3, 3), "t2": (rank, rank, 3, 3)}
    sizes |= {"w1_a": (rank, outputs), "w1_b": (rank, inputs), "w2_a": (rank, outputs), "w2_b": (rank, inputs)}
    parts = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    (layer,) = layers_of({f"lora_unet_mid_block_x.hada_{name}": part for name, part in parts.items()}).values()
    expected = torch.zeros(outputs, inputs, 3, 3)
    one, two = torch.zeros_like(expected), torch.zeros_like(expected)
    for i in range(rank):
        for j in range(rank):
            for total, core, a, b in ((one, "t1", "w1_a", "w1_b"), (two, "t2", "w2_a", "w2_b")):
                total += parts[a][i][:, None, None, None] * parts[b][j][None, :, None, None] * parts[core][i, j]
    torch.testing.assert_close(layer.delta(), one * two)
    assert layer.shape == (outputs, inputs * 9)


def test_norms_are_scaled(model: TinyModel) -> None:
    network = filled(create_network(1.0, 4, 2, None, None, model.unet))
    before = [item.delta() for item in network.unet_loras]
    largest = min(delta.norm().item() for delta in before) / 2
    scaled, mean = network.scale_weight_norms(largest)
    assert (int(scaled), float(mean)) == (len(before), pytest.approx(largest, rel=1e-4))
    torch.testing.assert_close(network.unet_loras[0].delta(), before[0] * (largest / before[0].norm()))


def test_training_lowers_a_loss(model: TinyModel) -> None:
    network = create_network(1.0, 4, 4, None, model.text_encoder, model.unet, rank_dropout=0.1).train()
    target = torch.roll(model.predict(), 1, dims=0).detach()
    network.apply_to(model.text_encoder, model.unet)
    optimizer = torch.optim.AdamW(network.prepare_optimizer_params(None, None, 1e-2))
    losses = []
    for step in range(8):
        network.begin_step(0, step, [0, 1])
        loss = (model.predict() - target).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert min(losses[-3:]) < 0.7 * losses[0]


def test_what_does_not_fit_is_refused(model: TinyModel) -> None:
    network = filled(create_network(1.0, 4, 2, None, model.text_encoder, model.unet))
    plain = lora.create_network(1.0, 4, 2, None, model.text_encoder, model.unet)
    with pytest.raises(UserError, match="holds a LoHa, which networks.lora cannot train"):
        lora.create_network_from_weights(1.0, None, None, model.text_encoder, model.unet, network.state_dict())
    with pytest.raises(UserError, match="is a LoRA, not a LoHa"):
        network.load_state_dict(plain.state_dict())
    with pytest.raises(UserError, match="network_dropout: has no meaning for networks.loha"):
        create_network(1.0, 4, 2, None, None, model.unet, dropout=0.1)
    with pytest.raises(UserError, match="loraplus_lr_ratio: has no meaning for networks.loha, only for networks.lora"):
        create_network(1.0, 4, 2, None, None, model.unet, loraplus_lr_ratio=4)
    assert "networks.loha" in NETWORK_ARGS
