"""The documents' example: three LoRA files stacked on a stock Diffusers pipeline, dosed, merged."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from backend.families.build import random_model
from backend.families.model import Model
from backend.networks.lora import create_network, create_network_from_weights

STRENGTHS = (0.5, 0.7, 0.5)


@pytest.fixture
def pipeline_and_files() -> tuple[Callable[[], StableDiffusionPipeline], list[dict[str, torch.Tensor]]]:
    """A maker of equal pipelines, and three files for them."""

    def make() -> StableDiffusionPipeline:
        model: Model = random_model(3)
        pipeline = StableDiffusionPipeline(
            vae=model.vae,
            text_encoder=model.text_encoders[0],
            tokenizer=model.tokenizers[0],
            unet=model.unet,
            scheduler=DDIMScheduler.from_config(model.scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    pipeline, files = make(), []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        network = create_network(1.0, 4, 4, None, pipeline.text_encoder, pipeline.unet, generator=generator)
        for adapter in network.adapters():
            torch.nn.init.normal_(adapter.lora_up.weight, std=0.2, generator=generator)
        files.append(network.state_dict())
    return make, files


def draw(pipeline: StableDiffusionPipeline, dtype: torch.dtype | None = None) -> np.ndarray:
    generator = torch.Generator().manual_seed(1)
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        drawn = pipeline("a cat", num_inference_steps=4, generator=generator, output_type="np", guidance_scale=3.0)
    return drawn.images[0]


def test_three_networks_are_stacked_dosed_and_merged(pipeline_and_files: tuple) -> None:
    make, files = pipeline_and_files
    pipe = make()
    parts = (pipe.vae, pipe.text_encoder, pipe.unet)
    plain, networks = draw(pipe), []
    for strength, sd in zip(STRENGTHS, files, strict=True):
        network, sd = create_network_from_weights(strength, None, *parts, sd)
        network.apply_to(pipe.text_encoder, pipe.unet)
        network.load_state_dict(sd)
        network.to("cpu", dtype=torch.float32)
        networks.append(network)
    stacked = draw(pipe)
    assert np.abs(stacked - plain).max() > 0.05

    merged = make()
    for strength, sd in zip(STRENGTHS, files, strict=True):
        network, sd = create_network_from_weights(strength, None, merged.vae, merged.text_encoder, merged.unet, sd)
        network.merge_to(merged.text_encoder, merged.unet, sd)
    assert np.abs(stacked - draw(merged)).max() < 1e-3

    for network in networks:
        network.set_multiplier(0.8)
    assert np.abs(draw(pipe) - stacked).max() > 0.01
    for network, strength in zip(networks, STRENGTHS, strict=True):
        network.set_multiplier(strength)
    assert np.array_equal(draw(pipe), stacked)
    for network in networks:
        network.set_multiplier(0)
    assert np.array_equal(draw(pipe), plain)


def test_half_precision_networks_under_autocast(pipeline_and_files: tuple) -> None:
    make, files = pipeline_and_files
    pipe = make()
    network, sd = create_network_from_weights(0.8, None, pipe.vae, pipe.text_encoder, pipe.unet, files[0])
    network.apply_to(pipe.text_encoder, pipe.unet)
    network.load_state_dict(sd)
    exact = draw(pipe)
    network.to("cpu", dtype=torch.bfloat16)
    half = draw(pipe, torch.bfloat16)
    network.set_multiplier(0)
    assert np.abs(half - exact).mean() < 0.2 * np.abs(exact - draw(pipe)).mean()
