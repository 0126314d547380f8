"""Training on Stable Diffusion 2 and XL: targets, sizes, options, and text encoders that are dropped."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from backend.config.dataset import DatasetConfig
from backend.data.dataset import TrainingSet
from backend.errors import ConfigError, UserError
from backend.families.base import load_model, save_diffusers
from backend.families.build import random_model
from backend.train.loop import train, training_step
from backend.train.setup import Run, prepare
from tests.train.conftest import loaded_once
from tests.train.test_step import first_group

KINDS = [("sd1", "epsilon"), ("sd2", "epsilon"), ("sd2", "v_prediction"), ("sdxl", "epsilon"), ("sdxl", "v_prediction")]


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Callable[[str, str], Path]:
    """folders(family, prediction_type): a tiny random model of that kind."""
    root, made = tmp_path_factory.mktemp("families"), {}

    def make(family: str, prediction_type: str) -> Path:
        path = root / f"{family}-{prediction_type}"
        if path not in made:
            save_diffusers(random_model(4, family=family, prediction_type=prediction_type), path)
            made[path] = True
        return path

    return make


@pytest.fixture
def prepared(config_of, folders, monkeypatch) -> Callable[..., Run]:
    """prepared(family, prediction_type, option=value, ...): a run that trains a LoRA on the U-Net."""
    monkeypatch.setattr("backend.train.setup.load_model", loaded_once)

    def make(family: str, prediction_type: str = "epsilon", **options: object) -> Run:
        own = {"pretrained_model_name_or_path": str(folders(family, prediction_type)), "overwrite": True}
        return prepare(config_of(**{**own, "network_train_unet_only": True, **options}))

    return make


@pytest.mark.parametrize(("family", "prediction_type"), KINDS)
def test_the_loss_of_a_step_is_the_one_written_out(prepared, family: str, prediction_type: str) -> None:
    run = prepared(family, prediction_type)
    group = first_group(run)
    ((batch, latents, _),) = group
    seen = {}
    predict = run.model.family.predict

    def watched(model, noisy, timesteps, conditioning):
        seen.update(noisy=noisy, timesteps=timesteps, conditioning=conditioning)
        seen["predicted"] = predict(model, noisy, timesteps, conditioning)
        return seen["predicted"]

    run.model.family = replace(run.model.family, predict=watched)
    loss = training_step(run, 0, group)
    assert any(item.lora_up.weight.any() for item in run.network.unet_loras)
    kept = run.objective.diffusion.alphas_cumprod[seen["timesteps"]].double().view(-1, 1, 1, 1)
    noise = (seen["noisy"].double() - kept.sqrt() * latents) / (1 - kept).sqrt()
    v = kept.sqrt() * noise - (1 - kept).sqrt() * latents
    target = v if prediction_type == "v_prediction" else noise
    assert float(loss) == pytest.approx(float((seen["predicted"].detach() - target).square().mean()), rel=1e-4)
    other = noise if prediction_type == "v_prediction" else v
    assert float(loss) != pytest.approx(float((seen["predicted"].detach() - other).square().mean()), rel=1e-2)
    extra = seen["conditioning"].extra
    assert set(extra) == ({"time_ids"} if family == "sdxl" else set())
    if extra:
        assert extra["time_ids"].tolist() == [[64, 64, 0, 0, 64, 64]] * len(batch.items)


def test_what_a_sample_says_of_its_sizes(tmp_path: Path) -> None:
    """A picture of 200x100 in a bucket of 64x64: resized to 128x64, cut at both sides; mirrored it is cut the same."""
    (tmp_path / "a").mkdir()
    Image.new("RGB", (201, 100), "red").save(tmp_path / "a" / "wide.png")
    Image.new("RGB", (64, 130), "red").save(tmp_path / "a" / "tall.png")
    text = (
        f'[general]\nresolution = 64\nflip_aug = true\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = "{tmp_path}/a"\n'
    )
    training_set = TrainingSet.scan(DatasetConfig.loads(text))
    found = {}
    for epoch in range(12):
        for batch in training_set.epoch_batches(1, epoch):
            for item in batch.items:
                found[item.picture.path.stem, item.flip] = (item.sizes, item.picture.resized)
    assert len(found) == 4
    (wide, resized), (mirrored, _) = found["wide", False], found["wide", True]
    cut = resized[0] - 64
    assert resized[1] == 64 and cut > 0
    assert wide == (100, 201, 0, cut // 2, 64, 64)
    assert mirrored == (100, 201, 0, cut - cut // 2, 64, 64)
    tall, resized = found["tall", False]
    assert tall == (130, 64, (resized[1] - 64) // 2, 0, 64, 64) and tall[2] > 0


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_text_encoders_are_dropped_and_nothing_else_changes(prepared, family: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red disc --d 3 --s 2 --n blurry\n", encoding="utf-8")
    options = {"max_train_steps": 3, "sample_prompts": str(prompts), "sample_every_n_steps": 3}
    plain = prepared(family, **options)
    losses = train(plain).losses
    pictures = [Image.open(path).tobytes() for path in sorted((plain.outputs.folder / "sample").iterdir())]
    cached = prepared(family, **options, cache_text_encoder_outputs=True)
    assert cached.model.text_encoders == []
    assert train(cached).losses == pytest.approx(losses, rel=1e-5)
    again = sorted((cached.outputs.folder / "sample").iterdir())
    assert len(again) == len(pictures) == 1
    pixels = zip(Image.open(again[0]).tobytes(), pictures[0], strict=True)
    assert max(abs(a - b) for a, b in pixels) <= 1 and len(set(pictures[0])) > 20


def test_the_memory_of_the_text_encoders_is_given_back(prepared, monkeypatch) -> None:
    alive = []

    def watched(*source, dtype):
        model = load_model(*source, dtype=dtype)
        alive.extend(weakref.ref(encoder) for encoder in model.text_encoders)
        return model

    monkeypatch.setattr("backend.train.setup.load_model", watched)
    run = prepared("sdxl", cache_text_encoder_outputs=True)
    gc.collect()
    assert len(alive) == 2 and all(reference() is None for reference in alive)
    assert float(training_step(run, 0, first_group(run))) > 0


def test_a_plain_lora_lets_go_of_them_too(config_of, folders) -> None:
    options = {"network_train_unet_only": True, "cache_text_encoder_outputs": True}
    source = str(folders("sd2", "epsilon"))
    run = prepare(config_of(pretrained_model_name_or_path=source, max_train_steps=2, **options))
    assert run.model.text_encoders == [] and len(train(run).losses) == 2
    with safe_open(run.outputs.final, "pt") as file:
        facts = file.metadata()
    assert (facts["ss_v2"], facts["ss_base_model_version"]) == ("True", "sd_v2")
    assert facts["modelspec.architecture"] == "stable-diffusion-v2-512/lora"


def test_captions_that_change_cannot_be_encoded_once(config_of, dataset) -> None:
    with pytest.raises(ConfigError, match="cache_text_encoder_outputs: needs network_train_unet_only"):
        config_of(cache_text_encoder_outputs=True)
    for line in ("shuffle_caption = true", "caption_dropout_rate = 0.1"):
        data = str(dataset(extra=line))
        config = config_of(dataset_config=data, cache_text_encoder_outputs=True, network_train_unet_only=True)
        with pytest.raises(UserError, match=f"has {line.split()[0]}; leave one out") as caught:
            prepare(config)
        assert caught.value.field == "cache_text_encoder_outputs"


def test_stable_diffusion_2_trains_as_it_is(config_of, folders) -> None:
    """U-Net and text encoder, with the networks that there are."""
    source = str(folders("sd2", "v_prediction"))
    run = prepare(config_of(pretrained_model_name_or_path=source, max_train_steps=2, v2=True, v_parameterization=True))
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    assert len(train(run).losses) == 2
    changed = {name for name, value in run.network.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("lora_te_") for name in changed) and any("lora_unet_" in name for name in changed)
    with safe_open(run.outputs.final, "pt") as file:
        facts = file.metadata()
    assert (facts["ss_base_model_version"], facts["modelspec.prediction_type"]) == ("sd_v2_v", "v")
    assert facts["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"
    assert facts["ss_v2"] == "True"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_stable_diffusion_xl_trains_with_a_rate_for_each_text_encoder(config_of, folders, checkpointing: bool) -> None:
    source = str(folders("sdxl", "epsilon"))
    options = {"text_encoder_lr": [1e-3, 0.0], "gradient_checkpointing": checkpointing, "network_args": ["conv_dim=2"]}
    run = prepare(config_of(pretrained_model_name_or_path=source, max_train_steps=2, overwrite=True, **options))
    assert run.group_names == ("text_encoder_1", "unet")
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    assert len(train(run).losses) == 2
    changed = {name for name, value in run.network.state_dict().items() if not torch.equal(value, before[name])}
    assert {name[:9] for name in changed} == {"lora_te1_", "lora_unet"}
    assert any("input_blocks" in name for name in changed)
    with safe_open(run.outputs.final, "pt") as file:
        facts, names = file.metadata(), set(file.keys())
    assert names == set(before)
    assert (facts["ss_base_model_version"], facts["ss_text_encoder_lr"]) == ("sdxl_base_v1-0", "[0.001, 0.0]")
    assert facts["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"


@pytest.mark.parametrize(
    ("family", "options", "field"),
    [
        ("sd1", {"v2": True}, "v2"),
        ("sdxl", {"v2": True}, "v2"),
        ("sd2", {"v_parameterization": True}, "v_parameterization"),
        ("sdxl", {"clip_skip": 3}, "clip_skip"),
        ("sd1", {"clip_skip": 3}, "clip_skip"),
    ],
)
def test_options_that_contradict_the_model_are_one_line(prepared, family: str, options: dict, field: str) -> None:
    with pytest.raises(UserError) as caught:
        prepared(family, **options)
    assert caught.value.field == field and "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [76, 300, 0])
def test_other_lengths_of_captions_are_refused(config_of, length: int) -> None:
    with pytest.raises(ConfigError, match="max_token_length"):
        config_of(max_token_length=length)


def test_options_reach_the_captions_of_a_run(prepared) -> None:
    plain = prepared("sd1").encode_captions(["a red disc"]).hidden
    long = prepared("sd1", max_token_length=150, no_half_vae=True)
    assert long.encode_captions(["a red disc"]).hidden.shape[1] == 152
    assert next(long.model.vae.parameters(), torch.zeros(1)).dtype == torch.float32
    skipped = prepared("sd1", clip_skip=2).encode_captions(["a red disc"]).hidden
    assert skipped.shape == plain.shape and (skipped - plain).abs().max() > 1e-3
    same = prepared("sdxl", clip_skip=2).encode_captions(["a red disc"]).hidden
    assert torch.equal(same, prepared("sdxl").encode_captions(["a red disc"]).hidden)


@pytest.mark.parametrize("options", [{}, {"no_half_vae": True}])
def test_the_vae_stays_in_float32(prepared, options: dict) -> None:
    run = prepared("sdxl", mixed_precision="bf16", cache_latents=False, **options)
    assert {parameter.dtype for parameter in run.model.vae.parameters()} == {torch.float32}
    assert next(run.model.unet.parameters()).dtype == torch.bfloat16
    assert float(training_step(run, 0, first_group(run))) > 0
