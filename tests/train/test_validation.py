"""Held out pictures: never trained, and the loss on them, which leaves no trace in training."""

import itertools
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from backend import events
from backend.config.dataset import DatasetConfig
from backend.data.dataset import TrainingSet
from backend.data.split import Split, count_held_out
from backend.errors import UserError
from backend.lora.file import read_lora
from backend.networks.dylora import draw_rank
from backend.train.loop import train
from backend.train.setup import Run, prepare
from backend.train.validation import Held, fixed_noise, moments


@pytest.fixture
def scan(tmp_path) -> Callable[..., TrainingSet]:
    """scan(toml, share, seed): a training set of the folders in tmp_path."""

    def make(text: str, share: float = 0.0, seed: int = 0) -> TrainingSet:
        return TrainingSet.scan(DatasetConfig.loads(text.replace("DIR", str(tmp_path))), split=Split(share, seed))

    return make


def paint(folder: Path, *values: int) -> None:
    """A picture for each number, all different."""
    folder.mkdir(exist_ok=True)
    for value in values:
        Image.new("RGB", (16, 16), (value, 255 - value, value // 2)).save(folder / f"{value}.png")


def subset(name: str, extra: str = "") -> str:
    return f'[[datasets.subsets]]\nimage_dir = "DIR/{name}"\n{extra}\n'


def contents(pictures) -> set[bytes]:
    return {picture.path.read_bytes() for picture in pictures}


ONE = "[general]\nresolution = 16\n[[datasets]]\n"


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [
        (100, 0.2, 20), (12, 0.05, 1), (4, 0.1, 1), (3, 0.9, 2), (5, 0.5, 3), (1, 0.5, 0), (7, 0.0, 0), (7, 1.0, 7),
        (0, 1.0, 0),
    ],
)  # fmt: skip
def test_how_many_are_held_out(count: int, share: float, expected: int) -> None:
    assert count_held_out(count, share) == expected


@pytest.mark.parametrize(("share", "seed"), itertools.product((0.1, 0.2, 0.5, 0.77), (0, 1, 2**40)))
def test_no_picture_is_both_trained_and_held_out(scan, tmp_path, share: float, seed: int) -> None:
    paint(tmp_path / "a", *range(20))
    paint(tmp_path / "b", *range(15, 30))  # five of them are in both
    shutil.copy(tmp_path / "a" / "3.png", tmp_path / "b" / "copy.png")
    paint(tmp_path / "reg", 1, 200, 201)  # one of these is a training picture too
    first = subset("a", "num_repeats = 3") + subset("b") + subset("reg", "is_reg = true")
    text = f"{ONE}{first}[[datasets]]\nresolution = 32\n{subset('b', 'num_repeats = 2')}"
    found, whole = scan(text, share, seed), scan(text)
    assert not contents(found.pictures) & contents(found.validation)
    assert not any(picture.is_reg for picture in found.validation)

    def places(pictures) -> list[tuple]:
        return sorted((p.dataset, p.subset, p.path) for p in pictures if not p.is_reg)

    assert places([*found.pictures, *found.validation]) == places(whole.pictures)
    # 29 pictures may be held out, counted by their contents; the second dataset may want some more of its own.
    alone = scan(ONE + first, share, seed)
    assert len(contents(alone.validation)) == count_held_out(29, share)
    assert contents(alone.validation) <= contents(found.validation)
    assert len(contents(p for p in found.validation if p.dataset == 1)) >= count_held_out(16, share)
    assert places(scan(text, share, seed).validation) == places(found.validation)


def test_the_choice_hangs_on_seed_and_contents_alone(scan, tmp_path) -> None:
    paint(tmp_path / "a", *range(40))
    chosen = contents(scan(ONE + subset("a"), 0.25, 1).validation)
    assert chosen != contents(scan(ONE + subset("a"), 0.25, 2).validation)
    (tmp_path / "other").mkdir()
    for index, path in enumerate(sorted((tmp_path / "a").iterdir())):
        shutil.copy(path, tmp_path / "other" / f"{99 - index}.png")
    assert contents(scan(ONE + subset("other"), 0.25, 1).validation) == chosen
    # A picture more changes the choice of one picture at most.
    paint(tmp_path / "a", 250)
    assert len(contents(scan(ONE + subset("a"), 0.25, 1).validation) ^ chosen) <= 2


def test_a_datasets_own_split_counts_before_the_runs(scan, tmp_path) -> None:
    paint(tmp_path / "a", *range(10))
    paint(tmp_path / "b", *range(100, 110))
    text = f"{ONE}validation_split = 0.0\n{subset('a')}[[datasets]]\nvalidation_seed = 9\n{subset('b')}"
    found = scan(text, 0.3, 4)
    assert [p.dataset for p in found.validation] == [1, 1, 1]
    assert [(d.validation_split, d.validation_seed) for d in found.datasets] == [(0.0, None), (0.3, 9)]
    held = f"{ONE}{subset('a')}[[datasets]]\nvalidation_split = 1.0\n{subset('b')}"
    assert {p.dataset for p in scan(held).validation} == {1} and {p.dataset for p in scan(held).pictures} == {0}
    with pytest.raises(UserError, match="validation_split: holds every picture out"):
        scan(ONE + subset("a"), 1.0)


def test_held_out_pictures_are_shown_once_upright_with_their_captions_as_they_are(scan, tmp_path) -> None:
    paint(tmp_path / "a", *range(12))
    for path in list((tmp_path / "a").iterdir()):
        path.with_suffix(".txt").write_text(f"tag {path.stem}, b, c, d, e", encoding="utf-8")
    wild = 'flip_aug = true\nshuffle_caption = true\ncaption_dropout_rate = 1.0\nnum_repeats = 5\ncaption_prefix = "my"'
    found = scan(f"{ONE}batch_size = 2\n{subset('a', wild)}", 0.4, 3)
    batches = found.validation_batches(3)
    items = [item for batch in batches for item in batch.items]
    assert [len(batch.items) for batch in batches] == [2, 2, 1] or len(items) == 5
    assert sorted(item.caption for item in items) == sorted(
        f"my tag {p.path.stem}, b, c, d, e" for p in found.validation
    )
    assert not any(item.flip for item in items) and batches == found.validation_batches(3)


def held_out_run(run_of, dataset, tmp_path, **options) -> Run:
    data = str(dataset(count=9, batch_size=2, extra="flip_aug = true\nshuffle_caption = true"))
    defaults = {"dataset_config": data, "validation_split": 0.34, "max_train_steps": 6, "learning_rate": 1e-3}
    return run_of(**defaults | options)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.network.state_dict().items()}


@pytest.mark.parametrize(
    "options",
    [
        {"network_dropout": 0.3, "gradient_checkpointing": True},
        {"network_module": "networks.dylora", "cache_latents": False},
        {"network_train_unet_only": True, "cache_text_encoder_outputs": True},
        {"cache_latents": False, "max_data_loader_n_workers": 1, "persistent_data_loader_workers": True},
    ],
)
def test_validating_leaves_training_as_it_is_bit_for_bit(run_of, dataset, tmp_path, options) -> None:
    if "cache_text_encoder_outputs" in options:
        options = options | {"dataset_config": str(dataset(count=9, batch_size=2, extra="flip_aug = true"))}
    make = held_out_run if "dataset_config" not in options else plain_run
    options = options | {"max_train_steps": 3}
    never = make(run_of, dataset, tmp_path, validate_every_n_steps=99, **options)
    object.__setattr__(never, "validation", replace(never.validation, batches=()))
    expected = train(never).losses
    often = make(run_of, dataset, tmp_path, validate_every_n_steps=1, **options)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    modes = [module.training for module in (often.model.unet, *often.model.text_encoders, often.network)]
    assert train(often).losses == expected
    assert torch.equal(torch.random.get_rng_state(), state)
    assert modes == [module.training for module in (often.model.unet, *often.model.text_encoders, often.network)]
    first, second = weights(never), weights(often)
    assert all(torch.equal(first[name], second[name]) for name in first)


def plain_run(run_of, dataset, tmp_path, **options) -> Run:
    return run_of(**{"validation_split": 0.34, "max_train_steps": 6, "learning_rate": 1e-3} | options)


def by_hand(run: Run) -> list[float]:
    """The definition, picture by picture: mean squared error of the noise at each time."""
    run.network.eval()
    losses = []
    for number, time in enumerate((200, 400, 600, 800)):
        at_time = []
        for batch, latents, _ in run.feed(run.training_set.validation_batches(run.seed)):
            for item, latent in zip(batch.items, latents, strict=True):
                noise = fixed_noise(run.seed, [item.index_in_epoch], number, latent.shape)
                kept = run.objective.diffusion.alphas_cumprod[time]
                noisy = kept.sqrt() * latent + (1 - kept).sqrt() * noise
                with torch.no_grad():
                    conditioning = run.encode_captions([item.caption])
                    predicted = run.model.family.predict(run.model, noisy, torch.tensor([time]), conditioning)
                at_time.append(float((predicted - noise).square().mean()))
        losses.append(sum(at_time) / len(at_time))
    run.network.train()
    return losses


@pytest.mark.parametrize("module", ["networks.lora", "networks.dylora"])
def test_the_loss_is_its_definition_with_the_network_at_rest(run_of, dataset, tmp_path, module: str) -> None:
    options = {"network_module": module} | ({"network_dropout": 0.5} if module == "networks.lora" else {})
    run = held_out_run(run_of, dataset, tmp_path, **options)
    train(run)
    # A rank is drawn that is not the whole one, and does not count here.
    run.network.begin_step(run.seed, next(step for step in range(99) if draw_rank(run.seed, step, 4, 1) == 1), [0])
    found = run.validation.loss(run.model, run.network, run.objective.diffusion, run.accelerator)
    assert list(found.by_timestep) == [200, 400, 600, 800]
    assert list(found.by_timestep.values()) == pytest.approx(by_hand(run), rel=1e-5)
    assert found.loss == pytest.approx(sum(found.by_timestep.values()) / 4)
    again = run.validation.loss(run.model, run.network, run.objective.diffusion, run.accelerator)
    assert again == found
    with torch.no_grad():
        for adapter in run.network.adapters():
            adapter.lora_up.weight.zero_()
    assert run.validation.loss(run.model, run.network, run.objective.diffusion, run.accelerator).loss != found.loss


def test_pictures_are_looked_at_with_the_multiplier_they_are_trained_with(run_of, dataset) -> None:
    data = dataset(count=9, batch_size=2)
    whole = data.read_text()

    def held(multiplier: float, weight: float):
        data.write_text(whole.replace("[[datasets]]", f"[[datasets]]\nnetwork_multiplier = {multiplier}", 1))
        run = run_of(dataset_config=str(data), validation_split=0.34, network_train_unet_only=True)
        with torch.no_grad():
            for adapter in run.network.adapters():
                adapter.lora_up.weight.fill_(weight)
        found = run.validation.loss(run.model, run.network, run.objective.diffusion, run.accelerator)
        assert run.network.multiplier == 1.0  # as samples see it
        return found.loss

    assert held(-1.0, 0.02) == pytest.approx(held(1.0, -0.02), rel=1e-6)
    assert held(-1.0, 0.02) != pytest.approx(held(1.0, 0.02), rel=1e-4)


def test_neither_caches_nor_weights_of_samples_change_the_loss(run_of, dataset, tmp_path) -> None:
    data = {"dataset_config": str(dataset(count=9, reg=2, batch_size=2)), "network_train_unet_only": True}
    losses = []
    for options in ({}, {"cache_latents": False}, {"cache_text_encoder_outputs": True}, {"prior_loss_weight": 0.0}):
        run = plain_run(run_of, dataset, tmp_path, **data, **options)
        losses.append(run.validation.loss(run.model, run.network, run.objective.diffusion, run.accelerator).loss)
        # What training finds remembered must not hang on validation.
        assert not getattr(run.encode_captions, "_known", None) or "cache_text_encoder_outputs" in options
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)


def test_the_loss_is_told_and_the_file_knows_of_it(run_of, dataset, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv(events.VARIABLE, str(tmp_path / "events.jsonl"))
    run = held_out_run(run_of, dataset, tmp_path, validate_every_n_steps=4, validation_seed=3, max_validation_steps=1)
    train(run)
    told = [event for event in events.read(tmp_path / "events.jsonl")[0] if event["event"] == "validation"]
    assert [event["step"] for event in told] == [4, 6]
    assert list(told[0]["by_timestep"]) == ["200", "400", "600", "800"] and told[0]["loss"] != told[1]["loss"]
    assert f"validation loss {told[1]['loss']:.4f} after step 6" in capsys.readouterr().out
    assert len(run.validation.batches) == 1
    metadata = read_lora(run.outputs.final).metadata
    expected = {
        "num_train_images": "6",
        "num_validation_images": "3",
        "validation_split": "0.34",
        "validation_seed": "3",
    }
    expected |= {"max_validation_steps": "1", "validate_every_n_steps": "4", "validate_every_n_epochs": "None"}
    assert {name: metadata[f"ss_{name}"] for name in expected} == expected
    assert json.loads(metadata["ss_datasets"])[0]["num_train_images"] == 6


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(run_of, dataset, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(events.VARIABLE, str(tmp_path / "events.jsonl"))
    run = held_out_run(run_of, dataset, tmp_path, validate_every_n_steps=3, save_every_n_steps=1)
    found = iter([1.0, math.inf])
    object.__setattr__(run.validation, "loss", lambda *_: Held(next(found), {}))
    with pytest.raises(UserError, match="validation loss became inf after step 6, .*files saved before are good"):
        train(run)
    # There is no file of the step that the network was judged at, and no event that is not JSON.
    assert [path.stem for path in sorted(run.outputs.folder.glob("*.safetensors"))][-1] == "test-step00000005"
    told = [event for event in events.read(tmp_path / "events.jsonl")[0] if event["event"] == "validation"]
    assert [event["step"] for event in told] == [3]


@pytest.mark.parametrize(
    ("options", "steps", "epochs"),
    [
        ({}, [], [1, 2, 3]),
        ({"validate_every_n_epochs": 2}, [], [2, 3]),
        ({"validate_every_n_steps": 3}, [3, 6], [3]),
        ({"validate_every_n_steps": 4, "validate_every_n_epochs": 2}, [4, 8], [3]),
    ],
)
def test_when_it_is_taken(run_of, dataset, tmp_path, options, steps, epochs) -> None:
    validation = held_out_run(run_of, dataset, tmp_path, **options).validation
    assert [step for step in range(1, 9) if validation.after_step(step)] == steps
    # Epochs of two steps; the last is the third, and its last step is the run's.
    assert [
        epoch for epoch in (1, 2, 3) if validation.after_epoch(epoch, 2 * epoch + (epoch == 3), epoch == 3)
    ] == epochs


def test_options_without_held_out_pictures_are_refused_before_anything_is_loaded(
    config_of, dataset, monkeypatch
) -> None:
    single = str(dataset(count=1))
    monkeypatch.setattr("backend.train.setup.load_model", None)
    for name in ("validation_seed", "validate_every_n_steps", "validate_every_n_epochs", "max_validation_steps"):
        with pytest.raises(UserError, match=f"{name}: has no effect without held out pictures: set validation_split"):
            prepare(config_of(overwrite=True, dataset_config=single, **{name: 5}))
    with pytest.raises(UserError, match="validation_split: holds no picture out"):
        prepare(config_of(overwrite=True, dataset_config=single, validation_split=0.5))


def test_times_are_scaled_to_the_models_schedule() -> None:
    assert moments(1000) == (200, 400, 600, 800) and moments(500) == (100, 200, 300, 400)
