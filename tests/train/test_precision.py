"""Precision and memory: what is kept in which numbers, and that the step computes the same."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from backend.__main__ import main
from backend.errors import UserError
from backend.families.model import Model
from backend.lora.file import read_lora
from backend.train import device, setup
from backend.train.device import HalfScaler
from backend.train.eight_bits import pack, store_in_eight_bits, unpack
from backend.train.loop import train, training_step
from tests.train.test_step import assert_same, first_group, gradients, warm

SMALL = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.01


@pytest.mark.parametrize(
    "weight", [SMALL, SMALL[:, :, 0, 0] * 1e-4, SMALL.flatten(1) * 1e4], ids=["3x3", "tiny", "large"]
)
def test_packed_weights_keep_four_digits_whatever_their_size(weight) -> None:
    packed, scale = pack(weight)
    found = unpack(packed, scale, torch.float32)
    error = (found - weight).abs().flatten(1) / weight.flatten(1).abs().amax(1, keepdim=True)
    assert packed.dtype == torch.float8_e4m3fn and packed.shape == weight.shape
    assert error.max() <= 2**-4 and (found - weight).norm() < 0.04 * weight.norm()


def test_rows_of_zeros_stay_zeros() -> None:
    packed, scale = pack(torch.zeros(2, 3))
    assert torch.equal(unpack(packed, scale, torch.float32), torch.zeros(2, 3))
    # A smaller scale counts as 0 where numbers below the normal ones do, and 0 / 0 is no weight.
    assert scale.min() >= torch.finfo(torch.float32).tiny


def test_scales_beat_a_plain_cast() -> None:
    plain = (SMALL.to(torch.float8_e4m3fn).float() - SMALL).norm()
    assert (unpack(*pack(SMALL), torch.float32) - SMALL).norm() < plain / 2


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(8, 6), (2, 5, 8)),
        (nn.Linear(8, 6, bias=False), (5, 8)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 9, 9)),
        (nn.Conv2d(4, 6, 1), (2, 4, 5, 5)),
    ],
)
def test_a_packed_layer_computes_as_one_with_the_weight_it_was_packed_from(layer, shape) -> None:
    expected_weight = unpack(*pack(layer.weight), torch.float32)
    x, again = (torch.randn(shape, generator=torch.Generator().manual_seed(1), requires_grad=True) for _ in range(2))
    if isinstance(layer, nn.Linear):
        expected = functional.linear(again, expected_weight, layer.bias)
    else:
        expected = functional.conv2d(again, expected_weight, layer.bias, layer.stride, layer.padding)
    assert store_in_eight_bits([layer]) == 1
    found = layer(x)
    torch.testing.assert_close(found, expected)
    for output in (found, expected):
        output.square().sum().backward()
    torch.testing.assert_close(x.grad, again.grad)
    assert layer.weight.dtype == torch.float8_e4m3fn


def test_a_packed_layer_follows_autocast() -> None:
    layer = nn.Linear(8, 6)
    store_in_eight_bits([layer])
    x = torch.randn(2, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    output.sum().backward()
    assert output.dtype == torch.bfloat16 and x.grad.dtype == torch.float32


@pytest.mark.parametrize("option", ["fp8_base", "fp8_base_unet"])
def test_the_base_in_eight_bits_is_smaller_and_trains_much_the_same(run_of, option) -> None:
    plain = warm(run_of(max_grad_norm=0, mixed_precision="bf16"))
    loss, expected = gradients(plain, first_group(plain))
    run = warm(run_of(max_grad_norm=0, mixed_precision="bf16", **{option: True}))
    found_loss, found = gradients(run, first_group(run))
    assert found_loss == pytest.approx(loss, rel=0.02) and found_loss != loss
    one, other = (torch.cat([value.flatten() for value in grads.values()]) for grads in (expected, found))
    assert torch.cosine_similarity(one, other, dim=0) > 0.95

    def size(module: nn.Module) -> int:
        return sum(parameter.nbytes for parameter in module.parameters())

    assert size(run.model.unet) < 0.6 * size(plain.model.unet)
    assert run.model.unet.conv_in.weight.dtype == torch.bfloat16
    encoders = [size(item.model.text_encoders[0].encoder) for item in (run, plain)]
    assert (encoders[0] < 0.6 * encoders[1]) is (option == "fp8_base")


def test_the_network_itself_in_half_precision(run_of) -> None:
    run = run_of(mixed_precision="bf16", full_bf16=True, learning_rate=1e-2, network_dim=8, network_alpha=8)
    assert {parameter.dtype for parameter in run.parameters} == {torch.bfloat16}
    group = first_group(run)
    losses = [float(training_step(run, 0, group)) for _ in range(6)]
    assert losses[-1] < 0.8 * losses[0]
    state = run.optimizer.optimizer.state[run.parameters[0]]
    assert state["exp_avg"].dtype == torch.bfloat16
    path = run.outputs.final
    train(run)
    assert {layer.down.dtype for layer in read_lora(path).layers.values()} == {torch.bfloat16}


def test_gradients_in_fp16_are_unscaled() -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.float16))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = HalfScaler("cpu", init_scale=256.0)
    scaler.scale((weight * torch.tensor([0.5, 0.25, 0.0], dtype=torch.float16)).sum()).backward()
    assert weight.grad.tolist() == [128.0, 64.0, 0.0]
    scaler.unscale_(optimizer)
    assert weight.grad.tolist() == [0.5, 0.25, 0.0]
    scaler.step(optimizer)
    assert weight.tolist() == [0.5, 0.75, 1.0]


def test_checkpointing_to_the_cpu_changes_no_gradient(run_of, monkeypatch, capsys) -> None:
    plain = warm(run_of(max_grad_norm=0))
    loss, expected = gradients(plain, first_group(plain))
    parked = []
    original = torch.utils.checkpoint.checkpoint
    counted = lambda *inputs, **options: parked.append(1) or original(*inputs, **options)  # noqa: E731
    monkeypatch.setattr("backend.train.checkpointing.checkpoint", counted)
    run = warm(run_of(max_grad_norm=0, gradient_checkpointing=True, cpu_offload_checkpointing=True))
    found_loss, found = gradients(run, first_group(run))
    assert found_loss == loss and len(parked) >= 9
    assert_same(expected, found, 1e-6)
    assert "cpu_offload_checkpointing has nothing to do" in capsys.readouterr().out


def test_attention_in_slices_computes_the_same(run_of) -> None:
    plain = warm(run_of(max_grad_norm=0))
    loss, expected = gradients(plain, first_group(plain))
    run = warm(run_of(max_grad_norm=0, mem_eff_attn=True))
    assert {type(one).__name__ for one in run.model.unet.attn_processors.values()} == {"SlicedAttnProcessor"}
    found_loss, found = gradients(run, first_group(run))
    assert found_loss == pytest.approx(loss, rel=1e-5)
    assert_same(expected, found, 1e-4)


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(run_of) -> None:
    expected = train(run_of(max_train_steps=2)).losses
    run = run_of(max_train_steps=2, torch_compile=True, dynamo_backend="eager")
    torch._dynamo.utils.counters.clear()
    assert train(run).losses == pytest.approx(expected, rel=1e-5)
    assert sum(torch._dynamo.utils.counters["stats"].values()) > 0
    torch._dynamo.reset()


def test_pictures_and_captions_are_encoded_before_the_unet_takes_its_memory(run_of, monkeypatch) -> None:
    order, load, loaded = [], setup.load_model, []

    def load_half(*source: object, **options: object) -> Model:
        loaded.append(load(*source, **options))
        loaded[0].unet.half()
        return loaded[0]

    def noting(own: Callable[..., object], name: str) -> Callable[..., object]:
        return lambda *rest: (order.append((name, loaded[0].unet.dtype)), own(*rest))[1]

    monkeypatch.setattr(setup, "load_model", load_half)
    for module, names in ((setup, ("make_feed", "drop_text_encoders", "bring_unet")), (device, ("shrink_model",))):
        for name in names:
            monkeypatch.setattr(module, name, noting(getattr(module, name), name))
    run_of(cache_text_encoder_outputs=True, network_train_unet_only=True)
    small, full = torch.float16, torch.float32
    assert order == [
        ("make_feed", small), ("drop_text_encoders", small), ("bring_unet", small), ("shrink_model", full)
    ]  # fmt: skip


def test_a_backend_that_cannot_compile_is_named_before_training(run_of, monkeypatch) -> None:
    def broken(function: object, backend: str) -> object:
        raise RuntimeError("no compiler\nand much more")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"inductor cannot compile here \(no compiler\); leave it out"):
        run_of(torch_compile=True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--full_fp16"], "full_fp16: needs mixed_precision fp16, which is no"),
        (["--full_bf16", "--mixed_precision=fp16"], "full_bf16: needs mixed_precision bf16, which is fp16"),
        (["--fp8_base_unet"], "fp8_base_unet: needs mixed_precision fp16 or bf16, which is no"),
        (["--cpu_offload_checkpointing"], "cpu_offload_checkpointing: has no effect without gradient_checkpointing"),
        (["--mem_eff_attn", "--sdpa"], "mem_eff_attn: cannot be set together with sdpa"),
    ],
)
def test_what_does_not_go_together_is_named(flags, message, capsys) -> None:
    required = ["--pretrained_model_name_or_path=m", "--dataset_config=d", "--output_dir=o"]
    assert main(["train_network", *required, *flags]) == 2
    assert message in capsys.readouterr().err
