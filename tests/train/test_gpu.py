"""What only a GPU does: half precision with its scaler, 8-bit states, fused attention, against the CPU's losses."""

import gc

import pytest
import torch
from accelerate.state import AcceleratorState

from backend.train.loop import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]
STEPS = 4


@pytest.fixture
def losses(run_of, dataset, monkeypatch):
    """losses(on_gpu, option=value, ...): the losses of a short run."""
    data = str(dataset(count=4, batch_size=2))

    def make(on_gpu: bool, **options: object) -> list[float]:
        AcceleratorState._reset_state(True)
        with monkeypatch.context() as patch:
            patch.setenv("ACCELERATE_USE_CPU", "false" if on_gpu else "true")
            run = run_of(dataset_config=data, max_train_steps=STEPS, learning_rate=1e-3, **options)
            assert run.accelerator.device.type == ("cuda" if on_gpu else "cpu")
            found = train(run).losses
        del run
        gc.collect()
        torch.cuda.empty_cache()
        return found

    return make


def test_float32_on_a_gpu_learns_as_on_a_cpu(losses) -> None:
    assert losses(True) == pytest.approx(losses(False), rel=2e-3)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_learns_nearly_as_float32(losses, precision) -> None:
    assert losses(True, mixed_precision=precision) == pytest.approx(losses(False), rel=3e-2)


def test_fp16_scales_its_gradients_and_steps(run_of) -> None:
    run = run_of(mixed_precision="fp16", max_train_steps=2)
    before = [parameter.detach().clone() for parameter in run.parameters]
    train(run)
    assert run.accelerator.scaler is not None and run.accelerator.scaler.get_scale() >= 1.0
    assert all(parameter.dtype == torch.float32 for parameter in run.parameters)
    moved = [not torch.equal(old, new) for old, new in zip(before, run.parameters, strict=True)]
    assert any(moved) and all(bool(parameter.isfinite().all()) for parameter in run.parameters)


def test_adamw8bit_learns_as_adamw(losses) -> None:
    assert losses(True, optimizer_type="AdamW8bit") == pytest.approx(losses(False), rel=2e-2)


@pytest.mark.parametrize("attention", ["sdpa", "xformers"])
def test_attention_that_saves_memory_gives_the_same_losses(losses, attention, capsys) -> None:
    if attention == "xformers":
        pytest.importorskip("xformers", reason="xformers, which is built for one torch, does not load with this one")
    found = losses(True, **{attention: True})
    if "Warning: xformers" in capsys.readouterr().out:
        pytest.skip("xformers does not run on this GPU")
    assert found == pytest.approx(losses(False), rel=5e-3)


def test_gradient_checkpointing_on_a_gpu_gives_the_same_losses(losses) -> None:
    assert losses(True, gradient_checkpointing=True) == pytest.approx(losses(True), rel=2e-3)
