"""Masks in the loss, and what a run keeps on the disk: nothing is learnt outside a mask, nothing is encoded twice."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor

from backend.data.store import FOLDER
from backend.errors import UserError
from backend.train.feed import MicroBatch
from backend.train.loop import train, training_step
from backend.train.loss import element_error, masked, per_sample
from backend.train.setup import Run

MASKED = 'conditioning_data_dir = "{}"'


@pytest.fixture
def masks(tmp_path) -> Callable[[Callable[[int], np.ndarray]], str]:
    """masks(function of the picture's number): paints them and returns the line of the dataset toml."""

    def paint(level: Callable[[int], np.ndarray]) -> str:
        folder = tmp_path / "masks"
        folder.mkdir(exist_ok=True)
        for index in range(4):
            Image.fromarray(np.broadcast_to(level(index), (64, 64)).astype(np.uint8)).save(folder / f"{index:02d}.png")
        return MASKED.format(folder)

    return paint


def with_line(path: Path, line: str) -> str:
    """The dataset toml with one more line in its last table, the subset's."""
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    return str(path)


def first_batch(run: Run) -> MicroBatch:
    return next(run.feed(run.training_set.epoch_batches(run.seed, 0)))


def gradients(run: Run, micro_batch: MicroBatch) -> tuple[float, list[Tensor]]:
    run.optimizer.step = lambda: None
    run.optimizer.zero_grad = lambda: None
    for parameter in run.parameters:
        parameter.grad = None
    loss = float(training_step(run, 0, [micro_batch]))
    return loss, [parameter.grad.clone() for parameter in run.parameters]


def test_a_mask_weighs_the_mean_over_the_whole_picture() -> None:
    predicted, target, mask = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6), torch.rand(3, 1, 5, 6)
    loss = per_sample(masked(element_error(predicted, target), mask))
    for index in range(3):
        total = sum((predicted[index, c] - target[index, c]).square().mul(mask[index, 0]).sum() for c in range(4))
        torch.testing.assert_close(loss[index], total / (4 * 5 * 6))


def test_ones_change_no_bit_and_nothing_is_no_mask() -> None:
    errors = element_error(torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6))
    assert torch.equal(masked(errors, torch.ones(3, 1, 5, 6)), errors)
    assert masked(errors, None) is errors


def test_nothing_is_learnt_outside_the_mask() -> None:
    predicted, target = torch.randn(2, 4, 6, 6, requires_grad=True), torch.randn(2, 4, 6, 6)
    mask = (torch.rand(2, 1, 6, 6) > 0.5).float()
    per_sample(masked(element_error(predicted, target), mask)).sum().backward()
    expected = 2 * (predicted - target).detach() * mask / (4 * 6 * 6)
    torch.testing.assert_close(predicted.grad, expected)
    assert (predicted.grad[mask.expand_as(predicted.grad) == 0] == 0).all() and predicted.grad.abs().sum() > 0


def test_white_masks_train_as_no_masks_bit_for_bit(run_of, dataset, masks) -> None:
    plain = gradients(run_of(), first_batch(run_of()))
    data = with_line(dataset(), masks(lambda index: np.full((64, 64), 255)))
    run = run_of(dataset_config=data, masked_loss=True)
    batch = first_batch(run)
    assert batch.masks.shape == (4, 1, 8, 8) and batch.masks.device == batch.latents.device
    loss, found = gradients(run, batch)
    assert loss == plain[0]
    assert all(torch.equal(a, b) for a, b in zip(plain[1], found, strict=True))


def test_black_masks_teach_nothing(run_of, dataset, masks) -> None:
    run = run_of(dataset_config=with_line(dataset(), masks(lambda index: np.zeros((64, 64)))), masked_loss=True)
    loss, found = gradients(run, first_batch(run))
    assert loss == 0 and all(gradient.abs().max() == 0 for gradient in found)


def test_half_a_mask_is_half_the_loss_of_its_picture(run_of, dataset, masks) -> None:
    """Grey counts in proportion, and each picture has its own mask."""
    levels = [255, 0, 51, 102]
    data = with_line(dataset(batch_size=1), masks(lambda index: np.full((64, 64), levels[index])))
    run, plain = run_of(dataset_config=data, masked_loss=True), run_of(dataset_config=str(dataset(batch_size=1)))
    pairs = [list(one.feed(one.training_set.epoch_batches(one.seed, 0))) for one in (run, plain)]
    for weighed, whole in zip(*pairs, strict=True):
        level = levels[int(weighed.batch.items[0].picture.path.stem)] / 255
        assert gradients(run, weighed)[0] == pytest.approx(level * gradients(plain, whole)[0], rel=1e-5)


@pytest.mark.parametrize("option", ["cache_latents_to_disk", "max_data_loader_n_workers"])
def test_masks_come_the_same_from_caches_and_workers(run_of, dataset, masks, option) -> None:
    level = np.linspace(0, 255, 64)[None]
    data = with_line(dataset(extra="flip_aug = true"), masks(lambda index: level))
    base = {"dataset_config": data, "masked_loss": True, "cache_latents": False}
    chosen = {"max_data_loader_n_workers": 2} if option == "max_data_loader_n_workers" else {option: True}
    losses = [train(run_of(**options)).losses for options in (base, base | chosen)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    unmasked = train(run_of(dataset_config=str(dataset(extra="flip_aug = true")))).losses
    assert losses[0][0] < 0.8 * unmasked[0]


@pytest.mark.parametrize("name", ["color_aug", "random_crop", "face_crop_aug_range"])
def test_caching_and_drawn_pictures_exclude_each_other(run_of, config_of, dataset, monkeypatch, name) -> None:
    data = dataset(extra=f"{name} = {'[1, 2]' if name.startswith('face') else 'true'}")
    monkeypatch.setattr("backend.train.setup.load_model", None)
    with pytest.raises(UserError, match=rf"cache_latents: keeps pictures as they are once, but .* has {name}, which"):
        run_of(dataset_config=str(data))


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        ('conditioning_data_dir = "x"', {}, "conditioning_data_dir: .* count with masked_loss only"),
        ("", {"masked_loss": True}, "masked_loss: no dataset has a mask"),
    ],
)
def test_masks_that_would_do_nothing_are_told(run_of, dataset, monkeypatch, line, options, message) -> None:
    data = with_line(dataset(), line)
    monkeypatch.setattr("backend.train.setup.load_model", None)
    with pytest.raises(UserError, match=message):
        run_of(dataset_config=data, **options)


@pytest.mark.parametrize("name", ["color_aug", "random_crop"])
def test_drawn_pictures_train_the_same_with_any_number_of_workers(run_of, dataset, name) -> None:
    """Pictures of 64x64 cut to 64x48, so that there is something to draw."""
    plain = dataset(extra="flip_aug = true")
    plain.write_text(plain.read_text().replace("resolution = 64", "resolution = [64, 48]"))
    options = {"cache_latents": False, "max_train_steps": 3}
    without = train(run_of(dataset_config=str(plain), **options)).losses
    data = with_line(plain, f"{name} = true")
    losses = [train(run_of(dataset_config=data, max_data_loader_n_workers=n, **options)).losses for n in (0, 2)]
    assert losses[0] == losses[1] != without


class Calls:
    """Counts calls of a module's class."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        self.count, original = 0, getattr(owner, name)

        def counted(*arguments: object, **options: object) -> object:
            self.count += 1
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, counted)


def test_a_second_start_encodes_no_picture_and_learns_the_same(run_of, model, dataset, monkeypatch) -> None:
    data = str(dataset(extra="flip_aug = true"))
    in_memory = train(run_of(dataset_config=data)).losses
    calls = Calls(monkeypatch, type(model.vae), "encode")
    first = train(run_of(dataset_config=data, cache_latents_to_disk=True)).losses
    assert calls.count == 8  # four pictures, and mirrored
    second = train(run_of(dataset_config=data, cache_latents_to_disk=True)).losses
    assert calls.count == 8 and first == second == in_memory


def test_another_vae_is_noticed_by_its_numbers(run_of, model, dataset, monkeypatch) -> None:
    data = str(dataset())
    calls = Calls(monkeypatch, type(model.vae), "encode")
    run_of(dataset_config=data, cache_latents_to_disk=True)
    bias = model.vae.encoder.conv_in.bias
    with torch.no_grad():
        bias += 0.01
    try:
        run_of(dataset_config=data, cache_latents_to_disk=True)
        assert calls.count == 8
    finally:
        with torch.no_grad():
            bias -= 0.01


def test_pictures_that_are_not_cached_are_looked_at_too(run_of, monkeypatch) -> None:
    run = run_of(cache_latents=False)
    with torch.no_grad():
        run.model.vae.encoder.conv_in.bias += float("nan")
    with pytest.raises(UserError, match=r"pictures/0.\.png: the VAE makes numbers that are not finite"):
        train(run)


TEXT = {"network_train_unet_only": True, "cache_text_encoder_outputs_to_disk": True}


def test_a_second_start_encodes_no_caption_and_learns_the_same(run_of, model, monkeypatch, tmp_path) -> None:
    in_memory = train(run_of(network_train_unet_only=True, cache_text_encoder_outputs=True)).losses
    calls = Calls(monkeypatch, type(model.text_encoders[0]), "forward")
    first, second = (train(run_of(**TEXT)).losses for _ in range(2))
    assert calls.count == 1 and first == second == in_memory
    assert len(list((tmp_path / "pictures" / FOLDER / "captions").iterdir())) == 4


@pytest.mark.parametrize(
    "change", [{"clip_skip": 2}, {"max_token_length": 150}, {"mixed_precision": "bf16"}, {"weights": True}]
)
def test_what_changes_the_conditioning_encodes_anew(run_of, model, monkeypatch, change) -> None:
    calls = Calls(monkeypatch, type(model.text_encoders[0]), "forward")
    plain = run_of(**TEXT)
    options = {name: value for name, value in change.items() if name != "weights"}
    with monkeypatch.context() as patch:
        if "weights" in change:
            weight = next(model.text_encoders[0].parameters())
            patch.setattr(weight, "data", weight.data + 0.5)
        if options.keys() & {"clip_skip", "max_token_length"}:
            for name, value in options.items():
                patch.setattr(model, name, value)
        AcceleratorState._reset_state(True)  # a precision is for a whole process
        changed = run_of(**TEXT, **options)
        assert calls.count == 2
        AcceleratorState._reset_state(True)
    captions = [plain.training_set.pictures[0].caption]
    first, second = (run.encode_captions(captions).hidden for run in (plain, changed))
    assert first.shape != second.shape or not torch.equal(first, second)
    run_of(**TEXT)
    assert calls.count == 2


def test_a_new_caption_alone_is_encoded(run_of, model, dataset, tmp_path, monkeypatch) -> None:
    data, texts, forward = str(dataset()), [], type(model.text_encoders[0]).forward

    def counted(self: torch.nn.Module, ids: Tensor, *arguments: object, **options: object) -> object:
        texts.append(len(ids))
        return forward(self, ids, *arguments, **options)

    monkeypatch.setattr(type(model.text_encoders[0]), "forward", counted)
    run_of(dataset_config=data, **TEXT)
    (tmp_path / "pictures" / "01.txt").write_text("something new")
    run = run_of(dataset_config=data, **TEXT)
    assert texts == [4, 1]
    assert run.encode_captions(["something new"]).hidden.shape[0] == 1


def test_captions_that_change_are_not_kept(run_of, dataset) -> None:
    with pytest.raises(UserError, match="cache_text_encoder_outputs: needs captions that stay the same"):
        run_of(dataset_config=str(dataset(extra="shuffle_caption = true")), **TEXT)


def test_caching_is_told_as_a_phase(run_of, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LORALOOM_EVENTS", str(tmp_path / "events.jsonl"))
    run_of(**TEXT)
    told = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    last = {event["name"]: (event["step"], event["total"]) for event in told if event["event"] == "phase"}
    assert last["caching latents"] == last["encoding captions"] == last["checking pictures"] == (4, 4)
