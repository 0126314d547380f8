"""Diffusers folders: what diffusers writes is read, what we write diffusers reads."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from backend.errors import UserError
from backend.families.base import (
    Checkpoint,
    Model,
    load_model,
    read_checkpoint,
    save_diffusers,
    save_single_file,
    write_folder,
)
from tests.families.checkpoints import assert_same, assert_same_checkpoint, distinct

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The folder, to be spoilt."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_diffusers_reads_our_folder(folder: Path, checkpoint: Checkpoint) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float16, local_files_only=True)
    for name, part in checkpoint.parts.items():
        assert_same(dict(getattr(pipe, name).state_dict()), part.tensors)
    assert pipe.tokenizer("a photo of a cat, masterpiece").input_ids[3:6] == [539, 320, 2368]
    assert pipe.scheduler.config.beta_end == 0.012
    assert pipe.vae.config.scaling_factor == 0.18215


def test_the_text_encoder_is_named_as_every_version_of_transformers_expects(folder: Path) -> None:
    names = load_file(folder / "text_encoder/model.safetensors")
    assert all(name.startswith("text_model.") for name in names)


def test_we_read_what_diffusers_writes(folder: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float16, local_files_only=True)
    pipe.save_pretrained(tmp_path / "theirs")
    assert_same_checkpoint(read_checkpoint(tmp_path / "theirs"), checkpoint)


def test_our_single_file_in_diffusers(folder: Path, single_file: Path, checkpoint: Checkpoint) -> None:
    pipe = StableDiffusionPipeline.from_single_file(
        str(single_file), config=str(folder), local_files_only=True, dtype=torch.float16
    )
    for name in ("unet", "vae", "text_encoder"):
        assert_same(dict(getattr(pipe, name).state_dict()), checkpoint.parts[name].tensors)


def test_the_functions_of_the_family_are_those_of_the_pipeline(model: Model, tmp_path: Path) -> None:
    save_diffusers(model, tmp_path / "m")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "m", local_files_only=True)
    family, caption = model.family, "a photo of a cat, masterpiece"
    conditioning = family.encode(model, family.tokenize(model, [caption]))
    expected = pipe.encode_prompt(caption, "cpu", 1, False)[0]
    assert torch.equal(conditioning.hidden, expected)
    noisy, steps = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    prediction = family.predict(model, noisy, steps, conditioning)
    assert torch.equal(prediction, pipe.unet(noisy, steps, encoder_hidden_states=expected).sample)
    pixels = family.decode_latents(model, noisy)
    assert torch.equal(pixels, pipe.vae.decode(noisy / 0.18215).sample)
    latents = family.encode_images(model, pixels)
    assert torch.equal(latents, pipe.vae.encode(pixels).latent_dist.mode() * 0.18215)


def test_folder_and_single_file_make_the_same_picture(model: Model, tmp_path: Path) -> None:
    save_diffusers(model, tmp_path / "m", torch.float16)
    save_single_file(load_model(tmp_path / "m"), tmp_path / "m.safetensors", torch.float16)
    pictures = []
    for source in (tmp_path / "m", tmp_path / "m.safetensors"):
        loaded = load_model(source)
        pipe = StableDiffusionPipeline.from_pretrained(
            tmp_path / "m", unet=loaded.unet, vae=loaded.vae, text_encoder=loaded.text_encoders[0]
        )
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        pictures.append(pipe("cat", num_inference_steps=3, output_type="pt", generator=generator).images)
        assert pictures[-1].shape == (1, 3, 64, 64)
    assert torch.equal(*pictures)
    assert pictures[0].std() > 0.01


def test_half_precision_file_names(copy: Path, checkpoint: Checkpoint) -> None:
    for name in ("unet", "vae"):
        file = copy / name / "diffusion_pytorch_model.safetensors"
        file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    (copy / "text_encoder/model.safetensors").rename(copy / "text_encoder/model.fp16.safetensors")
    assert_same_checkpoint(read_checkpoint(copy), checkpoint)


def test_pickled_weights_and_a_folder_without_scheduler(copy: Path, checkpoint: Checkpoint) -> None:
    for name in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        file = copy / f"{name}.safetensors"
        torch.save(load_file(file), copy / f"{name.replace('/model', '/pytorch_model')}.bin")
        file.unlink()
    shutil.rmtree(copy / "scheduler")
    again = read_checkpoint(copy)
    assert_same_checkpoint(again, checkpoint)
    assert again.scheduler["beta_schedule"] == "scaled_linear"


def test_weights_in_several_files(copy: Path, checkpoint: Checkpoint) -> None:
    tensors = load_file(copy / UNET)
    names = sorted(tensors)
    pieces = {"unet-00001-of-00002.safetensors": names[::2], "unet-00002-of-00002.safetensors": names[1::2]}
    for file, held in pieces.items():
        save_file({name: tensors[name] for name in held}, copy / "unet" / file)
    where = {name: file for file, held in pieces.items() for name in held}
    (copy / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (copy / UNET).unlink()
    assert_same_checkpoint(read_checkpoint(copy), checkpoint)


def test_names_of_older_libraries(copy: Path, checkpoint: Checkpoint) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(copy / "vae/diffusion_pytorch_model.safetensors")
    for new, name in old.items():
        marks = f"attentions.0.{new}.", f"attentions.0.{name}."
        tensors = {key.replace(*marks): value for key, value in tensors.items()}
    assert any("proj_attn" in key for key in tensors)
    save_file(tensors, copy / "vae/diffusion_pytorch_model.safetensors")
    text = load_file(copy / "text_encoder/model.safetensors")
    text["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(text, copy / "text_encoder/model.safetensors")
    assert_same_checkpoint(read_checkpoint(copy), checkpoint)


def test_numbers_of_the_folder_are_obeyed(tmp_path: Path) -> None:
    """A folder can say what a single file cannot: other heads, another latent scale."""
    checkpoint = distinct()
    checkpoint.parts["unet"].config["attention_head_dim"] = 4
    checkpoint.parts["vae"].config["scaling_factor"] = 0.5
    write_folder(checkpoint, tmp_path / "m", tokenizer=False)
    model = load_model(tmp_path / "m")
    assert model.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.heads == 4
    latents = torch.ones(1, 4, 8, 8)
    assert torch.equal(model.family.decode_latents(model, latents), model.vae.decode(latents * 2).sample)
    assert not (tmp_path / "m" / "tokenizer").exists()


def test_saved_precision(model: Model, tmp_path: Path) -> None:
    save_diffusers(model, tmp_path / "m", torch.float16)
    assert {tensor.dtype for tensor in load_file(tmp_path / "m" / UNET).values()} == {torch.float16}
    save_single_file(model, tmp_path / "m.safetensors", torch.bfloat16)
    tensors = load_file(tmp_path / "m.safetensors")
    assert tensors.pop("cond_stage_model.transformer.text_model.embeddings.position_ids").dtype == torch.int64
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    weight = model.unet.state_dict()["conv_in.weight"]
    assert torch.equal(tensors["model.diffusion_model.input_blocks.0.0.weight"], weight.bfloat16())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cross_attention_dim": 1024}, "unet.down_blocks.0.attentions.0.*of the wrong shape|of the wrong shape: unet"),
        ({"addition_embed_type": "text_time"}, "Stable Diffusion XL has"),
        ({"addition_embed_type": "image"}, "image conditioning; a Stable Diffusion 1, .* or Stable Diffusion XL model"),
        ({"in_channels": 9}, "9 channels"),
        ({"layers_per_block": 1}, "layers_per_block = 1"),
        ({"block_out_channels": [32, 64, 96, 100]}, "configuration makes no model"),
        ({"block_out_channels": [32, 64, 96, 160]}, "of the wrong shape"),
    ],
)
def test_another_model_is_named(change: dict, words: str, copy: Path) -> None:
    change_json(copy / "unet/config.json", **change)
    with pytest.raises(UserError, match=words) as caught:
        load_model(copy)
    assert "\n" not in str(caught.value)


def test_what_the_scheduler_says_is_predicted(copy: Path) -> None:
    assert read_checkpoint(copy).prediction_stated
    change_json(copy / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    assert load_model(copy).predicts_v
    change_json(copy / "scheduler/scheduler_config.json", prediction_type="sample")
    with pytest.raises(UserError, match="prediction_type = sample; only epsilon and v_prediction"):
        load_model(copy)
    (copy / "scheduler/scheduler_config.json").unlink()
    checkpoint = read_checkpoint(copy)
    assert checkpoint.scheduler["prediction_type"] == "epsilon" and not checkpoint.prediction_stated


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("unet/config.json", "no unet/config.json"),
        (UNET, "expected diffusion_pytorch_model.safetensors"),
        ("vae/config.json", "there is no such file"),
        ("text_encoder/model.safetensors", "expected model.safetensors"),
    ],
)
def test_a_file_that_is_missing_is_named(missing: str, words: str, copy: Path) -> None:
    (copy / missing).unlink()
    with pytest.raises(UserError, match=words) as caught:
        load_model(copy)
    assert str(copy) in str(caught.value)


def test_a_damaged_configuration_is_named(copy: Path) -> None:
    (copy / "vae/config.json").write_text("{")
    with pytest.raises(UserError, match=r"vae/config\.json is not valid JSON"):
        load_model(copy)
