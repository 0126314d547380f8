"""What an applied network computes: identities against merged weights and explicit float64, in every surrounding."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from backend.networks.adapter import Adapter, attach
from backend.networks.base import Network
from backend.networks.lora import LoRAModule, create_network
from tests.networks.tiny import TinyModel, make_model

Trained = Callable[..., Network]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def network_state(network: Network) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(6, 10), (3, 5, 6)),
        (nn.Conv2d(4, 6, 1), (2, 4, 7, 7)),
        (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 7, 7)),
        (nn.Conv2d(4, 4, 3, stride=2, padding=1), (2, 4, 8, 8)),
    ],
    ids=["linear", "1x1", "3x3", "downsampler"],
)
@pytest.mark.parametrize("multiplier", [1.0, 0.4, -1.0])
def test_adapter_is_the_formula(module: nn.Module, shape: tuple[int, ...], multiplier: float) -> None:
    module = module.double()
    adapter = LoRAModule("a", module, multiplier, lora_dim=3, alpha=2.0).double()
    nn.init.normal_(adapter.lora_up.weight)
    x = torch.randn(shape, dtype=torch.float64)
    plain = module(x)
    handle = attach(adapter, module)
    applied = module(x)
    handle.remove()
    delta = (adapter.lora_up.weight.flatten(1) @ adapter.lora_down.weight.flatten(1)).reshape(module.weight.shape)
    with torch.no_grad():
        module.weight += multiplier * (2.0 / 3) * delta
    assert not torch.allclose(applied, plain)
    torch.testing.assert_close(applied, module(x))


@pytest.mark.parametrize("arguments", [{}, {"conv_dim": 2}], ids=["lierla", "c3lier"])
@pytest.mark.parametrize("multiplier", [1.0, 0.5, -1.0])
def test_applied_equals_merged(model: TinyModel, trained: Trained, arguments: dict, multiplier: float) -> None:
    network = trained(model, **arguments)
    plain = model.predict()
    network.set_multiplier(multiplier)
    network.apply_to(model.text_encoder, model.unet)
    applied = model.predict()
    network.remove()
    assert torch.equal(model.predict(), plain)
    network.merge_to(model.text_encoder, model.unet)
    torch.testing.assert_close(applied, model.predict(), **CLOSE)
    assert (applied - plain).abs().max() > 100 * (applied - model.predict()).abs().max()


def test_a_new_network_changes_nothing_bit_for_bit(model: TinyModel) -> None:
    plain = model.predict()
    network = create_network(1.0, 4, 1, None, model.text_encoder, model.unet, conv_dim=4)
    network.apply_to(model.text_encoder, model.unet)
    assert torch.equal(model.predict(), plain)


def test_at_multiplier_zero_nothing_is_computed(model: TinyModel, trained: Trained) -> None:
    plain, network = model.predict(), trained(model)
    network.apply_to(model.text_encoder, model.unet)
    calls = []
    for adapter in network.adapters():
        adapter.lora_down.register_forward_hook(lambda *_: calls.append(1))
    network.set_multiplier(0)
    assert torch.equal(model.predict(), plain) and not calls
    network.set_multiplier(1)
    model.predict()
    assert len(calls) == len(network.adapters())


def test_three_networks_stack_and_come_off_in_any_order(model: TinyModel, trained: Trained) -> None:
    networks = [trained(model, seed=1), trained(model, seed=2, dim=8), trained(model, seed=3, conv_dim=2)]
    parts = (model.text_encoder, model.unet)
    for network, multiplier in zip(networks, (0.5, 0.7, 0.5)):
        network.set_multiplier(multiplier)
        network.apply_to(*parts)
    all_three = model.predict()
    networks[1].set_multiplier(0.8)
    louder = model.predict()
    networks[0].remove()
    two = model.predict()

    def merged(*chosen: tuple[Network, float]) -> Tensor:
        fresh = make_model()
        for network, multiplier in chosen:
            network.set_multiplier(multiplier)
            network.merge_to(fresh.text_encoder, fresh.unet)
        return fresh.predict()

    one, other, third = networks
    torch.testing.assert_close(all_three, merged((one, 0.5), (other, 0.7), (third, 0.5)), **CLOSE)
    torch.testing.assert_close(louder, merged((one, 0.5), (other, 0.8), (third, 0.5)), **CLOSE)
    torch.testing.assert_close(two, merged((other, 0.8), (third, 0.5)), **CLOSE)
    assert not torch.allclose(all_three, louder, **CLOSE) and not torch.allclose(two, louder, **CLOSE)


def test_applying_twice_acts_once(model: TinyModel, trained: Trained) -> None:
    network, plain = trained(model), model.predict()
    network.apply_to(model.text_encoder, model.unet)
    once = model.predict()
    network.apply_to(model.text_encoder, model.unet)
    assert torch.equal(model.predict(), once)
    network.apply_to(model.text_encoder, model.unet, apply_text_encoder=False, apply_unet=False)
    assert torch.equal(model.predict(), plain)


def test_remove_leaves_no_trace(model: TinyModel, trained: Trained) -> None:
    before, names = model.tensors(), [name for name, _ in model.unet.named_modules()]
    network = trained(model)
    network.apply_to(model.text_encoder, model.unet)
    model.predict()
    assert [name for name, _ in model.unet.named_modules()] == names
    network.remove()
    after = model.tensors()
    assert set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module._forward_hooks for part in (model.unet, model.text_encoder) for module in part.modules())


def test_a_part_that_is_not_applied_is_not_trained_or_saved(model: TinyModel, trained: Trained) -> None:
    network = trained(model)
    hidden = model.encode()
    network.apply_to(model.text_encoder, model.unet, apply_text_encoder=False)
    assert torch.equal(model.encode(), hidden)
    assert {name.split("_")[1] for name in network.state_dict()} == {"unet"}
    network = trained(model)
    network.apply_to(model.text_encoder, model.unet, apply_unet=False)
    assert not torch.allclose(model.encode(), hidden, **CLOSE)
    assert {name.split("_")[1] for name in network.state_dict()} == {"te"}


def gradients(model: TinyModel, network: Network) -> list[Tensor]:
    network.zero_grad()
    model.predict().square().mean().backward()
    return [parameter.grad.clone() for parameter in network.parameters()]


def test_gradients_are_the_same_with_gradient_checkpointing(model: TinyModel, trained: Trained) -> None:
    network = trained(model, conv_dim=2)
    for part in (model.unet, model.text_encoder):
        part.requires_grad_(False).train()
    network.apply_to(model.text_encoder, model.unet)
    expected = gradients(model, network)
    assert all(gradient.abs().max() > 0 for gradient in expected)
    model.unet.enable_gradient_checkpointing()
    model.text_encoder.activation_checkpointing_enable()
    calls = []
    module = model.unet.down_blocks[0].resnets[0].conv1
    module.register_forward_hook(lambda *_: calls.append(1))
    for one, other in zip(gradients(model, network), expected):
        torch.testing.assert_close(one, other)
    assert len(calls) == 2, "the block should have been computed again in the backward pass"


def test_gradients_under_autocast_are_float32_and_close(model: TinyModel, trained: Trained) -> None:
    network = trained(model)
    for part in (model.unet, model.text_encoder):
        part.requires_grad_(False)
    network.apply_to(model.text_encoder, model.unet)
    expected = gradients(model, network)
    inner = []
    network.unet_loras[-1].lora_down.register_forward_hook(lambda _m, _i, output: inner.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(model, network)
    assert inner == [torch.bfloat16]
    assert {gradient.dtype for gradient in found} == {torch.float32}
    one, other = torch.cat([g.flatten() for g in found]), torch.cat([g.flatten() for g in expected])
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.99


def test_a_half_precision_model_keeps_its_dtype_and_the_network_its_precision(
    model: TinyModel, trained: Trained
) -> None:
    exact = trained(model)
    exact.apply_to(model.text_encoder, model.unet)
    expected = model.predict()
    exact.remove()
    network = trained(model)
    half = TinyModel(model.unet.to(torch.bfloat16), model.text_encoder.to(torch.bfloat16))
    plain = half.predict(torch.bfloat16)
    network.apply_to(half.text_encoder, half.unet)
    applied = half.predict(torch.bfloat16)
    assert applied.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    error, effect = (applied - expected).abs().mean(), (plain - expected).abs().mean()
    assert error < 0.1 * effect
    network.to("cpu", dtype=torch.bfloat16)
    assert (half.predict(torch.bfloat16) - expected).abs().mean() < 0.1 * effect


def test_merging_into_half_precision_rounds_the_exact_sum_once(model: TinyModel, trained: Trained) -> None:
    network = trained(model)
    adapter = network.unet_loras[0]
    module = model.unet.to(torch.bfloat16).get_submodule("down_blocks.0.attentions.0.proj_in")
    delta = adapter.lora_up.weight.flatten(1) @ adapter.lora_down.weight.flatten(1) * 0.5
    expected = (module.weight.float() + 0.3 * delta.reshape(module.weight.shape)).to(torch.bfloat16)
    network.set_multiplier(0.3)
    network.merge_to(model.text_encoder, model.unet)
    assert torch.equal(module.weight, expected)


def test_a_multiplier_that_stays_is_not_set_again(model: TinyModel, trained: Trained, monkeypatch) -> None:
    # Setting an attribute of a module takes microseconds, and a training step asks for 1 twice.
    network, touched = trained(model), []

    def watched(adapter: Adapter, name: str, value: object) -> None:
        touched.append(name)
        nn.Module.__setattr__(adapter, name, value)

    monkeypatch.setattr(Adapter, "__setattr__", watched)
    network.set_multiplier(network.multiplier)
    assert touched == []
    network.set_multiplier(0.5)
    assert touched == ["multiplier"] * len(network.adapters())
    assert {adapter.multiplier for adapter in network.adapters()} == {0.5}


def test_a_compiled_model_sees_the_network_and_its_multiplier() -> None:
    modules = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(2), nn.Linear(16, 8))
    adapters = [LoRAModule(f"a{index}", modules[index], lora_dim=2) for index in (0, 2)]
    x, compiled = torch.randn(2, 4, 4, 4), torch.compile(modules, backend="aot_eager", fullgraph=True)
    for adapter in adapters:
        nn.init.normal_(adapter.lora_up.weight)
        attach(adapter, modules[int(adapter.lora_name[1])])
    for multiplier in (1.0, 0.5, 0.0):
        for adapter in adapters:
            adapter.multiplier = multiplier
        torch.testing.assert_close(compiled(x), modules(x))
    plain = modules(x)
    adapters[0].multiplier = 1.0
    assert not torch.allclose(compiled(x), plain)
