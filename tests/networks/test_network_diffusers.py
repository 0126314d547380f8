"""The same file in diffusers and here: its strict converter takes what we write, and we take what it writes."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from backend.networks.base import Network
from backend.networks.lora import create_network_from_weights
from backend.tables.names import unet_targets
from tests.networks.tiny import TinyModel, make_model, make_sd2

Trained = Callable[..., Network]


def pipeline_of(model: TinyModel) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=AutoencoderKL(),
        text_encoder=model.text_encoder,
        tokenizer=None,
        unet=model.unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def relative(one: Tensor, other: Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("make", [make_model, make_sd2], ids=["sd1", "sd2"])
@pytest.mark.parametrize("arguments", [{}, {"conv_dim": 2}], ids=["lierla", "c3lier"])
def test_a_saved_file_gives_the_same_output_in_diffusers(
    make: Callable[[], TinyModel], trained: Trained, tmp_path: Path, arguments: dict
) -> None:
    model = make()
    network = trained(model, alpha=3.0, **arguments)
    network.save_weights(tmp_path / "a.safetensors", None, {"ss_v2": "False"})
    theirs = make()
    pipeline = pipeline_of(theirs)
    pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors")
    plain = model.predict()
    network.apply_to(model.text_encoder, model.unet)
    for multiplier in (1.0, 0.5, 0.0, -1.0):
        network.set_multiplier(multiplier)
        pipeline.set_adapters(pipeline.get_active_adapters(), multiplier)
        assert relative(model.encode(), theirs.encode()) < 1e-5
        assert relative(model.predict(), theirs.predict()) < 1e-5
        assert (relative(model.predict(), plain) > 0.01) == (multiplier != 0)


def test_files_that_diffusers_writes_are_read_with_their_alpha(model: TinyModel, tmp_path: Path) -> None:
    theirs = copy.deepcopy(model)
    torch.manual_seed(3)
    settings = {"init_lora_weights": "gaussian", "r": 4, "lora_alpha": 6}
    theirs.unet.add_adapter(LoraConfig(target_modules=["to_q", "to_k", "to_v", "to_out.0", "proj_in"], **settings))
    theirs.text_encoder.add_adapter(LoraConfig(target_modules=["q_proj", "v_proj", "fc1"], **settings))
    with torch.no_grad():
        for part in (theirs.unet, theirs.text_encoder):
            for name, parameter in part.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.1)
    expected, plain = theirs.predict(), model.predict()
    assert relative(expected, plain) > 0.01
    parts = {"unet": theirs.unet, "text_encoder": theirs.text_encoder}
    layers = {
        f"{part}_lora_layers": convert_state_dict_to_diffusers(get_peft_model_state_dict(module))
        for part, module in parts.items()
    }
    metadata = {
        f"{part}_lora_adapter_metadata": module.peft_config["default"].to_dict() for part, module in parts.items()
    }
    StableDiffusionPipeline.save_lora_weights(tmp_path, **layers, **metadata)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    network, _ = create_network_from_weights(1.0, file, None, model.text_encoder, model.unet)
    assert {(item.lora_dim, item.alpha) for item in network.adapters()} == {(4, 6.0)}
    network.merge_to(model.text_encoder, model.unet)
    assert relative(model.predict(), expected) < 1e-5


def test_training_is_the_same_as_with_pefts_layers(model: TinyModel, trained: Trained) -> None:
    network = trained(model, alpha=4.0)
    theirs = make_model()
    config = LoraConfig(
        r=4,
        lora_alpha=4,
        target_modules=["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"],
    )
    for part in (model.unet, model.text_encoder, theirs.unet, theirs.text_encoder):
        part.requires_grad_(False)
    theirs.unet.add_adapter(config)
    network.apply_to(None, model.unet, apply_text_encoder=False)
    ours = [parameter for item in network.unet_loras for parameter in item.parameters()]
    matching, paths = [], [target.path for target in unet_targets("sd1") if not target.conv_only]
    with torch.no_grad():
        for item, target in zip(network.unet_loras, paths):
            layer = theirs.unet.get_submodule(target)
            for half, own in ((layer.lora_A, item.lora_down), (layer.lora_B, item.lora_up)):
                half["default"].weight.copy_(own.weight)
                matching.append(half["default"].weight)
    target = torch.roll(model.predict().detach(), 1, dims=0)
    assert losses(model, ours, target) == pytest.approx(losses(theirs, matching, target), rel=1e-5)


def losses(model: TinyModel, parameters: list[torch.nn.Parameter], target: Tensor) -> list[float]:
    optimizer, found = torch.optim.AdamW(parameters, 1e-3), []
    for _ in range(5):
        loss = (model.predict() - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found
