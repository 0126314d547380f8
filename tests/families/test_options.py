"""What is asked of a model on loading: checked against its files, and done."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from backend.errors import UserError
from backend.families.base import (
    LoadOptions,
    Model,
    checkpoint_of,
    load_model,
    save_diffusers,
    save_single_file,
    write_single_file,
)
from backend.families.build import random_model
from tests.families.checkpoints import distinct

VAE = "first_stage_model."


def single(family: str, path: Path, metadata: dict[str, str] | None = None) -> Path:
    write_single_file(distinct(family=family), path)
    save_file(load_file(path), path, metadata)
    return path


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_v_parameterization_decides_where_the_file_says_nothing(family: str, tmp_path: Path) -> None:
    path = single(family, tmp_path / "m.safetensors")
    assert not load_model(path).predicts_v
    model = load_model(path, None, LoadOptions(v_parameterization=True))
    assert model.predicts_v and model.notes == ()
    assert model.resolution == {"sd1": 512, "sd2": 768, "sdxl": 1024}[family]
    stated = single(family, tmp_path / "n.safetensors", {"modelspec.prediction_type": "epsilon"})
    with pytest.raises(UserError, match="v_parameterization: is set, but .*n.safetensors says that it predicts epsil"):
        load_model(stated, None, LoadOptions(v_parameterization=True))


def test_only_a_guess_is_told(tmp_path: Path) -> None:
    assert "epsilon is assumed" in load_model(single("sd2", tmp_path / "m.safetensors")).notes[0]
    assert load_model(single("sd1", tmp_path / "n.safetensors")).notes == ()
    told = single("sd2", tmp_path / "o.safetensors", {"modelspec.architecture": "stable-diffusion-v2-512"})
    assert load_model(told).notes == ()


def test_a_size_that_the_file_tells_stays(tmp_path: Path) -> None:
    path = single("sd2", tmp_path / "m.safetensors", {"modelspec.resolution": "640x640"})
    assert load_model(path, None, LoadOptions(v_parameterization=True)).resolution == 640


def test_v2_is_checked(tmp_path: Path) -> None:
    assert load_model(single("sd2", tmp_path / "m.safetensors"), None, LoadOptions(v2=True)).family.name == "sd2"
    with pytest.raises(UserError, match="v2: is set, but .* is a Stable Diffusion XL model; leave it out"):
        load_model(single("sdxl", tmp_path / "n.safetensors"), None, LoadOptions(v2=True))


def test_clip_skip_is_that_of_the_pipeline(model: Model, tmp_path: Path) -> None:
    save_diffusers(model, tmp_path / "m")
    loaded = load_model(tmp_path / "m", None, LoadOptions(clip_skip=2))
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "m", local_files_only=True)
    encoder = pipe.text_encoder
    ids = loaded.family.tokenize(loaded, ["a photo of a cat"])
    # Diffusers counts skipped layers: 1 is the last but one.
    states = encoder(ids, output_hidden_states=True).hidden_states[-2]
    expected = encoder.final_layer_norm(states)
    assert torch.equal(loaded.family.encode(loaded, ids).hidden, expected)
    last = load_model(tmp_path / "m", None, LoadOptions(clip_skip=1))
    assert torch.equal(last.family.encode(last, ids).hidden, model.family.encode(model, ids).hidden)
    with pytest.raises(UserError, match="clip_skip: 3 is more than the text encoder's 2 layers"):
        load_model(tmp_path / "m", None, LoadOptions(clip_skip=3))


def test_clip_skip_of_sdxl_is_fixed(tmp_path: Path) -> None:
    path = single("sdxl", tmp_path / "m.safetensors")
    for skip in (1, 2):
        assert load_model(path, None, LoadOptions(clip_skip=skip)).clip_skip == skip
    with pytest.raises(UserError, match="Stable Diffusion XL always reads the last layer but one; leave clip_skip out"):
        load_model(path, None, LoadOptions(clip_skip=3))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with another VAE, in each form that one can have."""
    root = tmp_path_factory.mktemp("vae")
    model = random_model(9)
    save_diffusers(model, root / "whole")
    AutoencoderKL.from_pretrained(root / "whole" / "vae").save_pretrained(root / "alone")
    save_single_file(model, root / "checkpoint.safetensors")
    inner = {name: value for name, value in load_file(root / "checkpoint.safetensors").items() if name.startswith(VAE)}
    bare = {name.removeprefix(VAE): value for name, value in inner.items()}
    save_file(bare, root / "bare.safetensors")
    torch.save({"state_dict": bare | {"loss.logvar": torch.zeros(1)}}, root / "bare.pt")
    save_file(load_file(root / "alone/diffusion_pytorch_model.safetensors"), root / "diffusers.safetensors")
    return root


FORMS = ["whole", "alone", "checkpoint.safetensors", "bare.safetensors", "bare.pt", "diffusers.safetensors"]


@pytest.mark.parametrize("form", FORMS)
def test_another_vae_takes_the_place_of_the_models_own(form: str, other: Path, tmp_path: Path) -> None:
    path = single("sdxl", tmp_path / "m.safetensors")
    model = load_model(path, None, LoadOptions(vae=str(other / form)), dtype=torch.float32)
    wanted = checkpoint_of(random_model(9)).parts["vae"].tensors
    found = model.vae.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    # A folder says how its latents are scaled; a file does not, and the family's scale stays.
    assert model.vae.config.scaling_factor == (0.18215 if form in ("whole", "alone") else 0.13025)


def test_what_is_no_vae_for_the_model(other: Path, tmp_path: Path) -> None:
    path = single("sd1", tmp_path / "m.safetensors")
    save_file({"fc.weight": torch.zeros(2)}, tmp_path / "none.safetensors")
    strange = load_file(other / "bare.safetensors") | {"encoder.gate.weight": torch.zeros(2)}
    save_file(strange, tmp_path / "strange.safetensors")
    wide = load_file(other / "bare.safetensors")
    wide["post_quant_conv.weight"] = torch.zeros(16, 16, 1, 1)
    save_file(wide, tmp_path / "wide.safetensors")
    cases = {
        "none.safetensors": "vae: .*none.safetensors holds no VAE",
        "strange.safetensors": "1 tensors that a VAE does not have: encoder.gate.weight",
        "wide.safetensors": "vae: its latents have 16 channels, the model's 4",
        "gone.safetensors": "there is no such file or folder",
    }
    for name, words in cases.items():
        with pytest.raises(UserError, match=words):
            load_model(path, None, LoadOptions(vae=str(tmp_path / name)))
