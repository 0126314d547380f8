"""Whole runs: which files they leave, what they refuse, how they end."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from backend import events
from backend.config.base import read_toml, resolve, values
from backend.config.train import TrainNetwork
from backend.errors import UserError
from backend.generate.images import read_parameters
from backend.generate.pipeline import GenerationModel, denoise
from backend.generate.prompts import Request, parse_line
from backend.lora.file import read_lora
from backend.lora.metadata import file_hashes
from backend.train.loop import run, train
from backend.train.loss import make_objective
from backend.train.noise import diffusion_of
from backend.train.setup import length, prepare, with_seed
from tests.train.conftest import copy_of

ROOT = Path(__file__).parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_saves_under_kohyas_names_with_its_config_beside(config_of, dataset, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(events.VARIABLE, str(tmp_path / "events.jsonl"))
    data = str(dataset(count=2, batch_size=1))
    config = config_of(dataset_config=data, max_train_epochs=3, max_train_steps=99, save_every_n_epochs=1)
    run(config)
    folder = config.save.output_dir
    files = ["test-000001.safetensors", "test-000002.safetensors", "test.config.toml", "test.safetensors"]
    assert names(folder) == files
    assert resolve(TrainNetwork, read_toml(TrainNetwork, folder / "test.config.toml")) == config

    told, _ = events.read(tmp_path / "events.jsonl")
    saved = [(Path(e["path"]).name, e["step"], e["epoch"], e["final"]) for e in told if e["event"] == "file"]
    assert saved == [(files[0], 2, 1, False), (files[1], 4, 2, False), (files[3], 6, 3, True)]
    last = [e for e in told if e["event"] == "progress"][-1]
    assert (last["step"], last["total"], last["epoch"], last["epochs"]) == (6, 6, 3, 3)
    assert last["loss"] > 0 and last["lr"] == {"text_encoder": 1e-4, "unet": 1e-4} and last["seconds_per_step"] > 0
    assert {"loading", "caching latents", "training", "saving"} <= {e.get("name") for e in told}


def test_the_file_tells_how_it_was_trained(run_of, model_folder, dataset) -> None:
    data = str(dataset(count=3, reg=2, batch_size=2))
    prepared = run_of(dataset_config=data, training_comment="discs", save_precision="fp16", optimizer_args=["eps=1e-7"])
    train(prepared)
    file = read_lora(prepared.outputs.final)
    expected = {
        "ss_steps": "2",
        "ss_max_train_steps": "2",
        "ss_seed": "7",
        "ss_learning_rate": "0.0001",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "1.0",
        "ss_base_model_version": "sd_v1",
        "ss_sd_model_name": model_folder.name,
        "ss_training_comment": "discs",
        "ss_num_train_images": "3",
        "ss_optimizer": "torch.optim.adamw.AdamW(eps=1e-07)",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": "test",
        "modelspec.resolution": "64x64",
    }
    assert {key: file.metadata.get(key) for key in expected} == expected
    assert json.loads(file.metadata["ss_tag_frequency"])["pictures"]["a green disc on red"] == 1
    hashes = file_hashes(prepared.outputs.final)
    assert {key: file.metadata[key] for key in hashes} == hashes
    assert all(layer.down.dtype == layer.up.dtype == torch.float16 for layer in file.layers.values())


def test_no_field_that_readers_know_is_missing(run_of, model, tmp_path) -> None:
    """The list is reference/engine.md 2.6, but for the commit of the reference's own code and hashes of folders."""
    vae = tmp_path / "vae.safetensors"
    save_file({name: value.clone() for name, value in model.vae.state_dict().items()}, vae)
    prepared = run_of(vae=str(vae), clip_skip=2)
    train(prepared)
    found = read_lora(prepared.outputs.final).metadata
    names = (Path(__file__).parents[1] / "data" / "metadata_fields.txt").read_text().split()
    assert len(names) == 72 and [name for name in names if f"ss_{name}" not in found] == []
    assert (found["ss_vae_name"], found["modelspec.encoder_layer"]) == ("vae.safetensors", "2")
    assert found["ss_new_vae_hash"] == hashlib.sha256(vae.read_bytes()).hexdigest()
    assert (found["ss_caption_dropout_rate"], found["ss_zero_terminal_snr"]) == ("0.0", "False")


def test_no_metadata_keeps_the_least_that_readers_need(run_of) -> None:
    prepared = run_of(no_metadata=True, max_train_steps=1)
    train(prepared)
    kept = {key for key in read_lora(prepared.outputs.final).metadata if key.startswith("ss_")}
    least = {"v2", "base_model_version", "network_module", "network_dim", "network_alpha", "network_args"}
    assert kept == {f"ss_{name}" for name in least}


@pytest.mark.parametrize(
    ("options", "batches", "expected"),
    [
        ({"max_train_steps": 10}, 4, (10, 3)),
        ({"max_train_steps": 10, "max_train_epochs": 2}, 4, (8, 2)),
        ({"max_train_epochs": 2, "gradient_accumulation_steps": 3}, 4, (4, 2)),
        ({"max_train_steps": 4, "gradient_accumulation_steps": 8}, 4, (4, 4)),
    ],
)
def test_length_of_a_run(config_of, options, batches, expected) -> None:
    assert length(config_of(**options), batches) == expected


def test_a_missing_seed_is_drawn_and_kept(config_of, capsys) -> None:
    config, seed = with_seed(config_of(seed=None))
    assert f"Seed: {seed}" in capsys.readouterr().out
    assert values(config)["seed"] == seed
    assert with_seed(config_of(seed=None))[1] != seed


@pytest.mark.parametrize("name", ["test.safetensors", "test-000003.safetensors", "test-step00000007.safetensors"])
def test_existing_outputs_are_refused_before_anything_is_loaded(config_of, name, monkeypatch) -> None:
    monkeypatch.setattr("backend.train.setup.load_model", None)
    config = config_of()
    config.save.output_dir.mkdir()
    (config.save.output_dir / name).write_bytes(b"mine")
    (config.save.output_dir / "test2.safetensors").write_bytes(b"another run's")
    with pytest.raises(UserError, match=f"output_name: .*{re.escape(name)} exists already; set overwrite"):
        prepare(config)
    assert (config.save.output_dir / name).read_bytes() == b"mine"


def test_a_folder_that_cannot_be_written_is_named_at_once(config_of, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="output_dir: .*file/out cannot be written to"):
        prepare(config_of(output_dir=str(tmp_path / "file" / "out")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no file .*gone.txt"),
        ("a disc --s 2000", "steps: 2000 is too many"),
        ("a --x", "unknown option --x"),
    ],
)
def test_faulty_sample_prompts_are_named_before_anything_is_loaded(
    config_of, tmp_path, monkeypatch, text, message
) -> None:
    monkeypatch.setattr("backend.train.setup.load_model", None)
    path = tmp_path / "gone.txt"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        prepare(config_of(sample_prompts=str(path), sample_at_first=True))


def test_optimizer_arguments_that_fail_at_the_first_step_are_named_before_anything_is_loaded(
    config_of, monkeypatch
) -> None:
    monkeypatch.setattr("backend.train.setup.load_model", None)
    with pytest.raises(UserError, match="optimizer_args: .*cannot take a step"):
        prepare(config_of(optimizer_args=["betas=0.9,0.99,0.9"]))


def test_a_sample_picture_that_fails_costs_a_warning_and_not_the_run(
    run_of, dataset, tmp_path, monkeypatch, capsys
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one --s 1\ntwo --s 1\n", encoding="utf-8")
    data = {"dataset_config": str(dataset(count=2, batch_size=1)), "max_train_steps": 2}
    run = run_of(**data, sample_prompts=str(prompts), sample_at_first=True)

    def fail_once(model, request, seeds):
        if request.prompt == "one":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nmore")
        return denoise(model, request, seeds)

    monkeypatch.setattr("backend.train.samples.denoise", fail_once)
    modes = [module.training for module in (run.model.unet, *run.model.text_encoders)]
    train(run)
    said = capsys.readouterr().out
    assert "Warning: sample picture 1 at step 0 failed and is left out: CUDA out of memory. Tried to allocate" in said
    assert "Drew 1 sample pictures at step 0" in said
    assert [module.training for module in (run.model.unet, *run.model.text_encoders)] == modes
    assert run.outputs.final.is_file() and len(names(run.outputs.folder / "sample")) == 1


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_good_file(run_of, dataset) -> None:
    data = str(dataset(count=1, batch_size=1))
    prepared = run_of(dataset_config=data, max_train_epochs=4, save_every_n_epochs=1)
    predict = prepared.model.family.predict
    calls = []

    def explode(*arguments: object) -> torch.Tensor:
        calls.append(1)
        return predict(*arguments) * (torch.nan if len(calls) == 2 else 1)

    object.__setattr__(prepared.model.family, "predict", explode)
    try:
        with pytest.raises(UserError, match="loss became nan at step 2.*learning_rate"):
            train(prepared)
    finally:
        object.__setattr__(prepared.model.family, "predict", predict)
    assert len(calls) == 2  # no step after the bad one
    assert names(prepared.outputs.folder) == ["test-000001.safetensors", "test.config.toml"]
    assert read_lora(prepared.outputs.epoch(1)).layers


def test_a_loss_is_judged_before_its_weights_are_saved(run_of, dataset, monkeypatch) -> None:
    # Nothing is told in between, so that saving alone has the loss read.
    monkeypatch.setattr("backend.train.progress.EVENT_INTERVAL", float("inf"))
    monkeypatch.setattr("backend.train.progress.LOG_LINES", 0.1)
    losses = iter([1.0, torch.inf])
    monkeypatch.setattr("backend.train.loop.training_step", lambda *_: torch.tensor(next(losses)))
    prepared = run_of(dataset_config=str(dataset(count=1, batch_size=1)), max_train_epochs=4, save_every_n_epochs=1)
    with pytest.raises(UserError, match="loss became inf at step 2"):
        train(prepared)
    assert names(prepared.outputs.folder) == ["test-000001.safetensors", "test.config.toml"]


def test_weights_that_are_not_finite_are_not_saved(run_of) -> None:
    prepared = run_of(max_train_steps=1)
    step = prepared.optimizer.step

    def spoil() -> None:
        step()
        with torch.no_grad():
            prepared.parameters[0].view(-1)[0] = torch.inf

    prepared.optimizer.step = spoil
    with pytest.raises(UserError, match="not finite after step 1"):
        train(prepared)
    assert names(prepared.outputs.folder) == ["test.config.toml"]


def test_half_precision_and_xformers_without_a_gpu_say_so_and_go_on(run_of, capsys) -> None:
    prepared = run_of(mixed_precision="fp16", xformers=True, max_train_steps=1)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Warning:")]
    assert len(lines) == 2 and "fp16" in lines[0] and "float32" in lines[0] and "xformers" in lines[1]
    assert {parameter.dtype for parameter in prepared.model.unet.parameters()} == {torch.float32}
    assert len(train(prepared).losses) == 1


def test_sample_pictures_change_nothing_in_training(run_of, dataset, tmp_path, monkeypatch) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# two\na red disc --d 3 --s 2\na blue disc --s 2 --ss euler_a --w 72 --l 1\n", encoding="utf-8")
    data = {"dataset_config": str(dataset(count=2, batch_size=1)), "max_train_steps": 4, "gradient_checkpointing": True}
    plain = train(run_of(**data)).losses
    sampled = run_of(**data, sample_prompts=str(prompts), sample_at_first=True, sample_every_n_steps=3)
    modes = []

    def watched(model, request, seeds):
        modes.append((model.unet.training, model.text_encoders[0].training))
        return denoise(model, request, seeds)

    monkeypatch.setattr("backend.train.samples.denoise", watched)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    assert train(sampled).losses == plain
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sampled.model.text_encoders[0].training and modes == [(False, False)] * 4
    folder = sampled.outputs.folder / "sample"
    seed = sampled.sampling.requests[1].seed
    files = [f"test_{step}_{n}.png" for step in ("000000", "000003") for n in ("00_3", f"01_{seed}")]
    assert names(folder) == sorted(files)
    with Image.open(folder / files[3]) as picture:
        assert picture.size == (72, 64)
    assert read_parameters(folder / files[0])["Prompt"] == "a red disc"
    before, after = (Image.open(folder / files[index]).tobytes() for index in (0, 2))
    assert before != after  # the live network is in it


def test_sampling_by_epochs_wins_over_steps(run_of, dataset, tmp_path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red disc --d 3 --s 1\n", encoding="utf-8")
    data = str(dataset(count=2, batch_size=1))
    every = {"sample_every_n_epochs": 2, "sample_every_n_steps": 1}
    sampled = run_of(dataset_config=data, max_train_epochs=4, sample_prompts=str(prompts), **every)
    moments = [("step", n) for n in range(1, 9) if sampled.sampling.after_step(n)]
    moments += [("epoch", n) for n in range(1, 5) if sampled.sampling.after_epoch(n)]
    assert moments == [("epoch", 2), ("epoch", 4)]
    assert not sampled.sampling.at_first


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_finishes_its_step_and_saves(config_of, tmp_path, dataset, ending) -> None:
    # As from a shell, uncached and with workers, where Ctrl-C reaches the whole process group.
    data = str(dataset(count=4, batch_size=2))
    config = config_of(
        dataset_config=data, max_train_steps=500, cache_latents=False, max_data_loader_n_workers=1, seed=None
    )
    flags = [f"--{name}={value}" for name, value in values(config, changed_only=True).items() if value is not None]
    told = tmp_path / "events.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "backend", "train_network", *flags],
        cwd=ROOT,
        env=os.environ | {events.VARIABLE: str(told)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not any(e["event"] == "progress" and e["step"] >= 2 for e in events.read(told)[0]):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        if ending == signal.SIGINT:
            os.killpg(process.pid, ending)
        else:
            process.send_signal(ending)
        output, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, output
    (saved,) = config.save.output_dir.glob("*.safetensors")
    step = int(re.fullmatch(r"test-step(\d{8})\.safetensors", saved.name).group(1))
    assert f"Stopped after step {step} of 500" in output and "Traceback" not in output
    assert read_lora(saved).metadata["ss_steps"] == str(step)


@pytest.mark.parametrize("prediction", ["epsilon", "zero snr"])
def test_a_sample_is_what_gen_img_draws_with_the_saved_file(run_of, model, tmp_path, prediction) -> None:
    changes = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True} if prediction != "epsilon" else {}
    changed = replace(model, scheduler=model.scheduler | changes)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red disc --d 3 --s 4 --n blurry\n", encoding="utf-8")
    options = {"learning_rate": 1e-2, "max_train_steps": 3, "sample_prompts": str(prompts), "sample_every_n_steps": 3}
    run = run_of(**options)
    run.model.scheduler = run.model.scheduler | changes
    run.objective = make_objective(run.config.noise, diffusion_of(run.model.scheduler))
    train(run)
    (path,) = (run.outputs.folder / "sample").iterdir()
    drawn = GenerationModel(copy_of(changed))
    request = parse_line("a red disc --d 3 --s 4 --n blurry", Request(""))
    (plain,) = drawn.generate(request)
    drawn.set_loras([(run.outputs.final, 1.0)])
    (expected,) = drawn.generate(request)
    with Image.open(path) as picture:
        found = np.asarray(picture).astype(int)
    assert np.abs(found - np.asarray(expected)).max() <= 1
    assert np.abs(found - np.asarray(plain)).max() > 3
