"""Pictures of Stable Diffusion 2 and XL: those of diffusers' own pipelines, whatever file they are from."""

import io
import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, EulerDiscreteScheduler

from backend.__main__ import main
from backend.families.base import load_model, save_diffusers, save_single_file
from backend.families.build import random_model
from backend.generate.pipeline import GenerationModel, decode, denoise, load_generation_model, resolve
from backend.generate.prompts import Request
from backend.generate.worker import Worker

KINDS = [("sd2", "epsilon"), ("sd2", "v_prediction"), ("sdxl", "epsilon"), ("sdxl", "v_prediction")]
STOCK = {
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    "euler": (EulerDiscreteScheduler, {"timestep_spacing": "linspace"}),
}
REQUEST = Request("a red disc", "blurry", width=72, height=64, steps=4, scale=5.0, seed=11)


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, prediction_type = request.param
    path = tmp_path_factory.mktemp("model") / "m"
    save_diffusers(random_model(1, family=family, prediction_type=prediction_type), path)
    return path


def pixels(source: Path, request: Request = REQUEST) -> torch.Tensor:
    hot = load_generation_model(str(source))
    return decode(hot.model, denoise(hot.model, resolve(request, hot.model), [request.seed]))


@pytest.mark.parametrize("sampler", list(STOCK))
def test_a_picture_is_that_of_the_stock_pipeline(folder: Path, sampler: str) -> None:
    stock = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    scheduler, settings = STOCK[sampler]
    stock.scheduler = scheduler.from_config(stock.scheduler.config, **{"timestep_spacing": "leading"} | settings)
    stock.set_progress_bar_config(disable=True)
    theirs = stock(
        REQUEST.prompt,
        negative_prompt=REQUEST.negative,
        height=REQUEST.height,
        width=REQUEST.width,
        num_inference_steps=REQUEST.steps,
        guidance_scale=REQUEST.scale,
        generator=torch.Generator().manual_seed(REQUEST.seed),
        output_type="pt",
    ).images
    ours = pixels(folder, Request(**vars(REQUEST) | {"sampler": sampler}))
    assert ours.shape == (1, 3, 64, 72) and ours.std() > 0.05
    torch.testing.assert_close(ours.clamp(-1, 1), theirs * 2 - 1, rtol=0, atol=1e-3)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file_makes_the_picture_of_the_folder(folder: Path, suffix: str, tmp_path: Path) -> None:
    save_single_file(load_model(folder), tmp_path / f"m{suffix}")
    torch.testing.assert_close(pixels(tmp_path / f"m{suffix}"), pixels(folder), rtol=0, atol=1e-4)


def test_prompts_may_be_encoded_elsewhere() -> None:
    model = random_model(1, family="sdxl")
    hot = GenerationModel(model)
    request = resolve(REQUEST, model)
    plain = denoise(hot.model, request, [1])
    told = []

    def encode(texts: list[str]) -> object:
        conditioning = model.family.encode(model, model.family.tokenize(model, texts))
        told.append(len(texts))
        return conditioning

    assert torch.equal(denoise(hot.model, request, [1], encode=encode), plain) and told == [2]


def test_the_worker_draws_with_the_models_options(folder: Path, tmp_path: Path) -> None:
    answers = io.StringIO()
    worker = Worker(answers)
    request = {
        "op": "generate",
        "model": str(folder),
        "prompt": "a disc",
        "out_dir": str(tmp_path),
        "steps": 1,
        "seed": 1,
    }
    worker.answer({"id": 1, **request})
    first = worker.loaded
    worker.answer({"id": 2, **request, "max_token_length": 150, "clip_skip": 2, "precision": "float"})
    assert worker.loaded is not first and worker.loaded.generator.model.max_token_length == 150
    for wrong in ({"clip_skip": "2"}, {"max_token_length": 80}, {"clip_skip": 9}, {"vae": "/no/vae.pt"}):
        worker.answer({"id": 3, **request, **wrong})
    told = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert [event["id"] for event in told if event["event"] == "done"] == [1, 2]
    fields = [event["field"] for event in told if event["event"] == "error"]
    assert fields == ["clip_skip", "max_token_length", "clip_skip", "/no/vae.pt"]


def test_gen_img_draws_with_the_models_options(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    command = [
        "gen_img",
        "--ckpt",
        str(folder),
        "--prompt",
        "a disc",
        "--outdir",
        str(out),
        "--steps",
        "2",
        "--seed",
        "1",
    ]
    assert main([*command, "--max_token_length", "150", "--no_half_vae", "--clip_skip", "2"]) == 0
    assert len(list(out.glob("*.png"))) == 1
    assert main([*command, "--clip_skip", "9"]) == 2
    assert capsys.readouterr().err.startswith("clip_skip: 9 ")
