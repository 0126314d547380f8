"""Dropout: what is left out, how often, and that it hangs on seed, step and sample alone."""

import pytest
import torch
from torch import Tensor, nn

from backend.errors import UserError
from backend.networks.adapter import Place, attach
from backend.networks.dropout import Dropout, DropoutRates
from backend.networks.lora import LoRAModule, create_network
from tests.networks.tiny import TinyModel


def adapter_with(rates: DropoutRates, module: nn.Module, rank: int = 4) -> LoRAModule:
    adapter = LoRAModule("a", module, 1.0, rank, rank, torch.Generator().manual_seed(0), Place(0, None, 1))
    nn.init.normal_(adapter.lora_up.weight)
    adapter.dropout = Dropout(rates, 1, rank)
    return adapter.train()


def change(adapter: LoRAModule, module: nn.Module, x: Tensor, step: int, indices: list[int]) -> Tensor:
    adapter.dropout.begin(7, step, indices)
    handle = attach(adapter, module)
    with_adapter = module(x)
    handle.remove()
    return with_adapter - module(x)


@pytest.mark.parametrize("rates", [DropoutRates(neuron=0.3), DropoutRates(rank=0.3)])
def test_the_mean_of_the_change_stays(rates: DropoutRates) -> None:
    module, x = nn.Linear(6, 5), torch.randn(2, 3, 6)
    adapter = adapter_with(rates, module)
    with torch.no_grad():
        drawn = torch.stack([change(adapter, module, x, step, [0, 1]) for step in range(3000)])
        adapter.eval()
        exact = change(adapter, module, x, 0, [0, 1])
    assert drawn.std(0).min() > 0.01
    assert ((drawn.mean(0) - exact).norm() / exact.norm()) < 0.06


@pytest.mark.parametrize(
    ("module", "shape", "channels"), [(nn.Linear(6, 5), (2, 3, 6), -1), (nn.Conv2d(4, 6, 3), (2, 4, 7, 7), 1)]
)
def test_whole_ranks_are_left_out_for_a_picture(module: nn.Module, shape: tuple[int, ...], channels: int) -> None:
    adapter = adapter_with(DropoutRates(rank=0.5), module, rank=8)
    adapter.dropout.begin(1, 0, [0, 1])
    inner = adapter.lora_down(torch.randn(shape))
    ratio = (adapter.dropout.apply(inner, 0, channels) / inner).movedim(channels, -1).reshape(2, -1, 8)
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), atol=1e-5), "one mask for a picture"
    assert set(ratio.round(decimals=4).unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(ratio[0], ratio[1])


@pytest.mark.parametrize("rates", [DropoutRates(neuron=0.5), DropoutRates(rank=0.5), DropoutRates(0.3, 0.3, 0.3)])
def test_a_draw_hangs_on_seed_step_and_sample_alone(rates: DropoutRates) -> None:
    module, x = nn.Linear(6, 5), torch.randn(4, 3, 6)
    adapter = adapter_with(rates, module)
    torch.manual_seed(0)
    whole = change(adapter, module, x, 5, [0, 1, 2, 3])
    torch.manual_seed(1)
    assert torch.equal(change(adapter, module, x, 5, [0, 1, 2, 3]), whole)
    halves = [change(adapter, module, x[:2], 5, [0, 1]), change(adapter, module, x[2:], 5, [2, 3])]
    torch.testing.assert_close(torch.cat(halves), whole)
    others = [change(adapter, module, x, step, [0, 1, 2, 3]) for step in range(6, 20)]
    assert any(not torch.equal(other, whole) for other in others)


def test_long_captions_give_a_sample_several_rows() -> None:
    dropout = Dropout(DropoutRates(rank=0.5), 1, 64)
    dropout.begin(1, 0, [4, 5])
    mask = dropout.apply(torch.ones(4, 2, 64), 0, -1)
    assert len({tuple(row.flatten().tolist()) for row in mask}) == 4


def test_modules_are_left_out_for_a_step_and_then_change_nothing(model: TinyModel) -> None:
    network = create_network(1.0, 4, 4, None, model.text_encoder, model.unet, module_dropout=0.5).train()
    for adapter in network.adapters():
        nn.init.normal_(adapter.lora_up.weight, std=0.1)
    network.begin_step(1, 0, [0, 1])
    skipped = [network.dropout.skips(number) for number in range(len(network.adapters()))]
    assert 0.4 < sum(skipped) / len(skipped) < 0.6
    network.begin_step(1, 0, [2, 3])
    assert [network.dropout.skips(number) for number in range(len(skipped))] == skipped, "the same for the whole step"
    network.begin_step(1, 1, [0, 1])
    assert [network.dropout.skips(number) for number in range(len(skipped))] != skipped
    calls = []
    for number, adapter in enumerate(network.adapters()):
        adapter.lora_down.register_forward_hook(lambda *_, number=number: calls.append(number))
    network.begin_step(1, 0, [0, 1])
    network.apply_to(model.text_encoder, model.unet)
    model.predict()
    assert sorted(calls) == [number for number, skip in enumerate(skipped) if not skip]
    network.eval()
    calls.clear()
    model.predict()
    assert len(calls) == len(skipped)


def test_dropout_reaches_the_network_from_its_arguments(model: TinyModel) -> None:
    network = create_network(
        1.0, 4, 1, None, None, model.unet, dropout=0.1, rank_dropout="0.2", module_dropout=0.3, conv_dim=16
    )
    assert network.dropout.rates == DropoutRates(0.1, 0.2, 0.3)
    assert network.dropout.largest == 16 and network.dropout.modules == len(network.adapters())
    assert {id(item.dropout) for item in network.adapters()} == {id(network.dropout)}
    assert create_network(1.0, 4, 1, None, None, model.unet).dropout is None
    with pytest.raises(UserError, match="rank_dropout: must be at least 0 and less than 1"):
        create_network(1.0, 4, 1, None, None, model.unet, rank_dropout=1)
    with pytest.raises(UserError, match="network_dropout: must be from 0 to below 1"):
        create_network(1.0, 4, 1, None, None, model.unet, dropout=1.0)
