"""Stable Diffusion 2 and XL: equal to diffusers' own pipelines and converters, from single files and folders."""

from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from backend.errors import UserError
from backend.families.base import (
    Model,
    empty_modules,
    load_model,
    read_checkpoint,
    save_diffusers,
    save_single_file,
    write_folder,
    write_single_file,
)
from backend.families.build import model_configs, random_model
from backend.networks.modules import unet_shape
from backend.tables.names import text_encoder_targets, unet_targets
from tests.families.checkpoints import assert_same, assert_same_checkpoint, distinct

FAMILIES = ("sd2", "sdxl")
CAPTIONS = ["a photo of a cat, masterpiece", "", "two dogs!"]
OPEN_CLIP = {"sd2": "cond_stage_model.model.", "sdxl": "conditioner.embedders.1.model."}


@pytest.mark.parametrize("family", ["sd1", *FAMILIES])
def test_every_target_of_a_lora_names_its_weight_in_a_single_file(family: str, tmp_path: Path) -> None:
    """Also which third of a tensor it is, where OpenCLIP keeps queries, keys and values in one."""
    checkpoint = distinct(torch.float32, family=family)
    write_single_file(checkpoint, tmp_path / "m.safetensors")
    tensors, parts = load_file(tmp_path / "m.safetensors"), checkpoint.parts
    unet = unet_shape(empty_modules(checkpoint)["unet"])
    targets = {"unet": unet_targets(unet)}
    for index, name in enumerate(name for name in parts if name.startswith("text_encoder")):
        layers = parts[name].config["num_hidden_layers"]
        targets[name] = text_encoder_targets(family, layers, index)
    seen = []
    for part, ones in targets.items():
        for target in ones:
            if target.optional and f"{target.path}.weight" not in parts[part].tensors:
                continue
            weight = tensors[target.checkpoint_key]
            weight = weight if target.third is None else weight.chunk(3)[target.third]
            assert torch.equal(weight.flatten(1), parts[part].tensors[f"{target.path}.weight"].flatten(1)), target.key
            seen.append((target.checkpoint_key, target.third))
    assert len(set(seen)) == len(seen) > 190


@cache
def model_of(family: str) -> Model:
    return random_model(3, family=family)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Model:
    return model_of(request.param)


@pytest.fixture(scope="module")
def folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folder") / "model"
    save_diffusers(model, path)
    return path


@pytest.fixture(scope="module")
def stock(folder: Path) -> DiffusionPipeline:
    """Diffusers' pipeline on our folder."""
    return DiffusionPipeline.from_pretrained(folder, local_files_only=True)


def test_captions_are_encoded_as_by_the_pipeline(model: Model, stock: DiffusionPipeline) -> None:
    family = model.family
    ours = family.encode(model, family.tokenize(model, CAPTIONS))
    found = stock.encode_prompt(
        CAPTIONS,
        device="cpu",
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        negative_prompt=["blurry"] * len(CAPTIONS),
    )
    torch.testing.assert_close(ours.hidden, found[0], rtol=0, atol=1e-6)
    negative = family.encode(model, family.tokenize(model, ["blurry"] * 3))
    torch.testing.assert_close(negative.hidden, found[1], rtol=0, atol=1e-6)
    assert (ours.hidden[0] - ours.hidden[2]).abs().max() > 1e-3
    if family.name == "sdxl":
        torch.testing.assert_close(ours.pooled, found[2], rtol=0, atol=1e-6)
        torch.testing.assert_close(negative.pooled, found[3], rtol=0, atol=1e-6)
        assert (ours.pooled[0] - ours.pooled[2]).abs().max() > 1e-3
    else:
        assert ours.pooled is None


def test_padding_is_that_of_each_encoder(model: Model) -> None:
    ids = model.family.tokenize(model, ["cat"])
    padded = {"sd2": [[49406, 2368, 49407, 0]], "sdxl": [[49406, 2368, 49407, 49407], [49406, 2368, 49407, 0]]}
    assert ids.reshape(-1, 77)[:, :4].tolist() == padded[model.family.name]
    assert len(ids) == 1


def test_latents_and_predictions_are_those_of_the_pipeline(model: Model, stock: DiffusionPipeline) -> None:
    family, generator = model.family, torch.Generator().manual_seed(0)
    scale = {"sd2": 0.18215, "sdxl": 0.13025}[family.name]
    noisy, steps = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([500, 20])
    pixels = family.decode_latents(model, noisy)
    torch.testing.assert_close(pixels, stock.vae.decode(noisy / scale).sample, rtol=0, atol=1e-5)
    latents = family.encode_images(model, pixels)
    torch.testing.assert_close(latents, stock.vae.encode(pixels).latent_dist.mode() * scale, rtol=0, atol=1e-5)
    conditioning = family.encode(model, family.tokenize(model, CAPTIONS[:2]))
    sizes = [(300, 200, 4, 6, 64, 72), (64, 64, 0, 0, 64, 64)]
    told = family.with_sizes(conditioning, sizes)
    added = None
    if family.name == "sdxl":
        added = {"text_embeds": conditioning.pooled, "time_ids": torch.tensor(sizes, dtype=torch.float32)}
        other = family.with_sizes(conditioning, [sizes[1], sizes[1]])
        difference = family.predict(model, noisy, steps, told) - family.predict(model, noisy, steps, other)
        assert difference[0].abs().max() > 1e-4 and difference[1].abs().max() < 1e-5
    expected = stock.unet(noisy, steps, encoder_hidden_states=told.hidden, added_cond_kwargs=added).sample
    torch.testing.assert_close(family.predict(model, noisy, steps, told), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_diffusers_own_converters_read_what_we_write(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint = distinct(dtype, family=family)
    write_single_file(checkpoint, tmp_path / "m.safetensors")
    tensors, parts = load_file(tmp_path / "m.safetensors"), checkpoint.parts
    assert_same(parts["unet"].tensors, convert_ldm_unet_checkpoint(dict(tensors), parts["unet"].config))
    assert_same(parts["vae"].tensors, convert_ldm_vae_checkpoint(dict(tensors), parts["vae"].config))
    name = "text_encoder" if family == "sd2" else "text_encoder_2"
    ours, config = parts[name].tensors, parts[name].config
    with torch.device("meta"):
        shell = CLIPTextModel(CLIPTextConfig(hidden_size=config["hidden_size"], num_attention_heads=1))
    theirs = convert_open_clip_checkpoint(shell, dict(tensors), prefix=OPEN_CLIP[family])
    theirs = {key.removeprefix("text_model."): value for key, value in theirs.items()}
    if family == "sd2":
        # Theirs knows the spare layer of the real model by its number; ours is the one behind the last.
        spare = f"encoder.layers.{config['num_hidden_layers']}."
        assert any(key.startswith(spare) for key in theirs)
        theirs = {
            key: value for key, value in theirs.items() if not key.startswith(spare) and key != "text_projection.weight"
        }
    assert_same(ours, theirs)
    if family == "sdxl":
        clip = convert_ldm_clip_checkpoint(dict(tensors))
        clip = {key.removeprefix("text_model."): value for key, value in clip.items() if "position_ids" not in key}
        assert_same(parts["text_encoder"].tensors, clip)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_round_trip_keeps_every_bit(family: str, suffix: str, tmp_path: Path) -> None:
    original = distinct(family=family)
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    write_single_file(original, first)
    again = read_checkpoint(first)
    assert_same_checkpoint(again, original)
    assert again.family == family
    write_folder(again, tmp_path / "folder")
    back = read_checkpoint(tmp_path / "folder")
    assert_same_checkpoint(back, original)
    expected = model_configs(family)
    for checkpoint in (again, back):
        for name, part in checkpoint.parts.items():
            # Only metadata tells the size of pictures, and a .ckpt has none.
            size = {"sample_size": part.config.get("sample_size")} if suffix == ".ckpt" else {}
            assert part.config | size == expected[name] | size
    write_single_file(back, second)
    if suffix == ".safetensors":
        assert first.read_bytes() == second.read_bytes()


def test_full_sizes_are_the_published_ones() -> None:
    """Widths are read from tensors, so the bundled numbers are only seen here."""
    sd2, sdxl = (model_configs(family, small=False) for family in FAMILIES)
    assert sd2["unet"]["attention_head_dim"] == [5, 10, 20, 20]
    assert (sd2["text_encoder"]["num_hidden_layers"], sd2["text_encoder"]["hidden_act"]) == (23, "gelu")
    assert (sdxl["unet"]["attention_head_dim"], sdxl["unet"]["transformer_layers_per_block"]) == (
        [5, 10, 20],
        [1, 2, 10],
    )
    assert sdxl["unet"]["projection_class_embeddings_input_dim"] == 6 * 256 + 1280
    assert (sdxl["text_encoder"]["hidden_act"], sdxl["text_encoder_2"]["hidden_act"]) == ("quick_gelu", "gelu")


def rewrite(family: str, path: Path, change: dict[str, Tensor | None]) -> Path:
    """A small single file with tensors put in and (None) left out."""
    write_single_file(distinct(family=family), path)
    tensors = load_file(path)
    for name, tensor in change.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, path)
    return path


def test_the_last_layer_of_stable_diffusion_2_is_left_out_where_it_is_there(tmp_path: Path) -> None:
    prefix = OPEN_CLIP["sd2"]
    whole = rewrite("sd2", tmp_path / "whole.safetensors", {})
    assert any(f"{prefix}transformer.resblocks.3." in name for name in load_file(whole))
    assert load_model(whole).text_encoders[0].config.num_hidden_layers == 3
    spare = [name for name in load_file(whole) if f"{prefix}transformer.resblocks.3." in name]
    pruned = dict.fromkeys([*spare, f"{prefix}text_projection", f"{prefix}logit_scale"])
    cut = rewrite("sd2", tmp_path / "cut.safetensors", pruned)
    assert_same_checkpoint(read_checkpoint(cut), read_checkpoint(whole))


def test_a_projection_as_a_layer_has_it(tmp_path: Path) -> None:
    path = rewrite("sdxl", tmp_path / "m.safetensors", {})
    name = OPEN_CLIP["sdxl"] + "text_projection"
    weight = load_file(path)[name]
    changed = rewrite("sdxl", tmp_path / "n.safetensors", {name: None, f"{name}.weight": weight.T.contiguous()})
    assert_same_checkpoint(read_checkpoint(changed), read_checkpoint(path))


def test_strange_tensors_of_an_encoder_are_named(tmp_path: Path) -> None:
    strange = {OPEN_CLIP["sdxl"] + "transformer.resblocks.0.gate.weight": torch.zeros(1)}
    path = rewrite("sdxl", tmp_path / "m.safetensors", strange)
    with pytest.raises(UserError, match=r"1 tensors that Stable Diffusion XL does not have: conditioner.*gate.weight"):
        read_checkpoint(path)


def test_proj_in_as_a_convolution_is_read_as_one(tmp_path: Path) -> None:
    """Some programs write Stable Diffusion 2 with 1x1 convolutions around the attention."""
    path = tmp_path / "m.safetensors"
    write_single_file(distinct(torch.float32, family="sd2"), path)
    tensors = load_file(path)
    matrix = load_model(path)
    names = [name for name in tensors if name.endswith(("proj_in.weight", ".1.proj_out.weight"))]
    convolved = {name: tensors[name][..., None, None] for name in names}
    changed = load_model(rewrite_float(path, tmp_path / "n.safetensors", convolved))
    assert not changed.unet.config.use_linear_projection and matrix.unet.config.use_linear_projection
    noisy, hidden = torch.ones(1, 4, 8, 8), torch.ones(1, 77, 64)
    pair = [found.unet(noisy, torch.tensor([9]), encoder_hidden_states=hidden).sample for found in (changed, matrix)]
    torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4)


def rewrite_float(source: Path, path: Path, change: dict[str, Tensor]) -> Path:
    save_file({name: value.contiguous() for name, value in (load_file(source) | change).items()}, path)
    return path


@pytest.mark.parametrize("tokens", [150, 225])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_long_captions_are_encoded_in_chunks(family: str, tokens: int) -> None:
    model = random_model(3, family=family)
    family_of = model.family
    words = ["cat", "dog", "red", "blue", "big"] * 50
    model.max_token_length = tokens
    captions = [" ".join(words), "cat", " ".join(words[:75])]
    ids = family_of.tokenize(model, captions)
    chunks = tokens // 75
    found = family_of.encode(model, ids)
    assert found.hidden.shape[:2] == (3, tokens + 2)
    rows = ids.reshape(3, -1, chunks, 77)
    assert (rows[..., 0] == 49406).all()
    assert (rows[0, ..., -1] == 49407).all()
    end_then_padding = [49406, 49407, 49407 if family == "sd1" else 0]
    assert rows[1, -1, 1, :3].tolist() == rows[2, -1, 1, :3].tolist() == end_then_padding
    model.max_token_length = 75
    parts = [" ".join(words[n * 75 : n * 75 + 75]) for n in range(chunks)]
    single = family_of.encode(model, family_of.tokenize(model, parts))
    inner = single.hidden[:, 1:-1].flatten(0, 1)
    expected = torch.cat([single.hidden[0, :1], inner, single.hidden[-1, -1:]])
    torch.testing.assert_close(found.hidden[0], expected, rtol=0, atol=1e-5)
    if family == "sdxl":
        torch.testing.assert_close(found.pooled[0], single.pooled[0], rtol=0, atol=1e-5)


def test_gradients_reach_both_encoders() -> None:
    model = random_model(3, family="sdxl")
    weights = [
        model.text_encoders[0].encoder.layers[0].mlp.fc1.weight,
        model.text_encoders[1].text_model.encoder.layers[0].mlp.fc1.weight,
    ]
    for weight in weights:
        weight.requires_grad_(True)
    found = model.family.encode(model, model.family.tokenize(model, ["a cat"]))
    (found.hidden.square().mean() + found.pooled.square().mean()).backward()
    assert all(weight.grad.abs().max() > 0 for weight in weights)


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_what_is_predicted_survives_both_layouts(family: str, predicts: str, suffix: str, tmp_path: Path) -> None:
    model = random_model(0, family=family, prediction_type=predicts)
    save_single_file(model, tmp_path / f"m{suffix}", torch.float16)
    again = load_model(tmp_path / f"m{suffix}")
    assert again.scheduler["prediction_type"] == predicts
    save_diffusers(again, tmp_path / "m")
    assert load_model(tmp_path / "m").scheduler["prediction_type"] == predicts


def change_metadata(path: Path, metadata: dict[str, str], change: dict[str, Tensor]) -> Path:
    save_file(load_file(path) | change, path, metadata)
    return path


ZERO = {"v_pred": torch.empty(0)}
STATED = [
    ("sdxl", {}, ZERO, "v_prediction", True),
    ("sdxl", {"modelspec.prediction_type": "epsilon"}, ZERO, "v_prediction", True),
    ("sdxl", {"modelspec.predict_key": "v"}, {}, "v_prediction", True),
    ("sdxl", {"modelspec.prediction_type": "epsilon"}, {}, "epsilon", True),
    ("sdxl", {"modelspec.architecture": "stable-diffusion-xl-v1-base"}, {}, "epsilon", False),
    ("sdxl", {"modelspec.resolution": "768x768"}, {}, "epsilon", False),
    ("sd2", {}, {}, "epsilon", False),
    ("sd2", {"modelspec.architecture": "stable-diffusion-v2-768-v"}, {}, "v_prediction", True),
    ("sd2", {"modelspec.architecture": "stable-diffusion-v2-512"}, {}, "epsilon", True),
    ("sd2", {"modelspec.resolution": "768x768"}, {}, "v_prediction", True),
    ("sd2", {"modelspec.resolution": "768x768", "modelspec.prediction_type": "epsilon"}, {}, "epsilon", True),
    ("sd2", {"modelspec.resolution": "512x512"}, {}, "epsilon", False),
    ("sd1", {}, {}, "epsilon", False),
]


@pytest.mark.parametrize(("family", "metadata", "change", "predicts", "stated"), STATED)
def test_what_a_single_file_predicts(
    family: str, metadata: dict, change: dict, predicts: str, stated: bool, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    write_single_file(distinct(family=family), path)
    checkpoint = read_checkpoint(change_metadata(path, metadata, change))
    assert (checkpoint.scheduler["prediction_type"], checkpoint.prediction_stated) == (predicts, stated)


def test_a_schedule_that_ends_in_noise_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_single_file(distinct(family="sdxl"), path)
    change_metadata(path, {}, ZERO | {"ztsnr": torch.empty(0)})
    model = load_model(path)
    assert model.scheduler["rescale_betas_zero_snr"] is True
    save_diffusers(model, tmp_path / "m")
    save_single_file(load_model(tmp_path / "m"), tmp_path / "again.safetensors")
    assert {"v_pred", "ztsnr"} < set(load_file(tmp_path / "again.safetensors"))
