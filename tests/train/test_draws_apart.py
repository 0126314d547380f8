"""No two draws of training come from one stream: which keys a step really asks for, with everything on that draws."""

import ast
import hashlib
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from backend.config.training.noise import Noise
from backend.data.batches import Batch
from backend.train.feed import grouped
from backend.train.loop import training_step
from backend.train.noise import disturbed, draw_noise, draw_timesteps, training_noise

NOISES = {
    "noise_offset": 0.3,
    "noise_offset_random_strength": True,
    "ip_noise_gamma": 0.4,
    "ip_noise_gamma_random_strength": True,
}
SUBSET = "flip_aug = true\nshuffle_caption = true\ncaption_dropout_rate = 0.3\nrandom_crop = true\ncolor_aug = true\n"
OF_DATA = {"order", "batches", "flip", "caption", "crop", "colour"}
OF_NOISE = {"noise", "timestep", "offset", "offset strength", "perturbation", "perturbation strength"}
PYRAMID = {"pyramid", "coarse"}


@pytest.fixture
def asked(monkeypatch) -> list[tuple[object, ...]]:
    """The keys that are asked for: (seed, purpose, index ...), in the order of asking."""
    keys: list[tuple[object, ...]] = []

    def blake2b(data: bytes, **options: int) -> object:
        keys.append(ast.literal_eval(data.decode()))
        return hashlib.blake2b(data, **options)

    monkeypatch.setattr("backend.draws.hashlib", SimpleNamespace(blake2b=blake2b))
    return keys


def assert_apart(keys: list[tuple[object, ...]], purposes: set[str]) -> None:
    """Each of the purposes has drawn, and no key was asked for twice: that would give the same numbers twice."""
    assert {key[1] for key in keys} == purposes
    twice = [key for key, count in Counter(keys).items() if count > 1]
    assert not twice


def step(run, asked) -> None:
    """Form an epoch's batches and take one step, keys kept."""
    asked.clear()
    batches: list[Batch] = run.training_set.epoch_batches(run.seed, 0)
    group = next(grouped(run.feed(batches), run.config.optim.gradient_accumulation_steps))
    training_step(run, 0, group)


@pytest.mark.parametrize(
    ("options", "purposes"),
    [
        (
            {"network_dropout": 0.2, "network_args": ["rank_dropout=0.2", "module_dropout=0.1"]},
            {"dropout", "rank dropout", "module dropout"},
        ),
        ({"network_module": "networks.dylora", "network_dim": 4, "network_args": ["unit=1"]}, {"dylora rank"}),
        ({"multires_noise_iterations": 3, "noise_offset": None, "noise_offset_random_strength": False}, PYRAMID),
    ],
    ids=["dropout", "dylora", "pyramid"],
)
def test_a_step_asks_for_no_key_twice(run_of, dataset, asked, options, purposes) -> None:
    folder = dataset(extra=SUBSET)
    run = run_of(dataset_config=str(folder), cache_latents=False, **(NOISES | options))
    step(run, asked)
    noises = OF_NOISE - {"offset", "offset strength"} if purposes == PYRAMID else OF_NOISE
    assert_apart(asked, OF_DATA | noises | purposes)


def test_each_part_of_the_noise_has_a_key_of_its_own(asked) -> None:
    latents = torch.zeros(2, 4, 8, 8)
    options = Noise(**NOISES)
    clean = training_noise(options, 7, 3, [0, 1], latents)
    disturbed(options, 7, 3, [0, 1], clean)
    draw_timesteps(7, 3, [0, 1], 1000)
    assert_apart(asked, OF_NOISE)


def correlation(one: torch.Tensor, two: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1].abs())


def test_what_disturbs_a_sample_has_nothing_to_do_with_its_noise() -> None:
    indices = list(range(8))
    shape = (4, 16, 16)
    clean = draw_noise(7, 3, indices, shape)
    added = disturbed(Noise(ip_noise_gamma=0.5), 7, 3, indices, clean) - clean
    assert added.std() == pytest.approx(0.5, rel=0.05)
    assert correlation(clean, added) < 0.05
    offset = training_noise(Noise(noise_offset=0.5), 7, 3, indices, torch.zeros(8, *shape)) - clean
    assert offset.std() > 0.2 and correlation(clean, offset) < 0.1 and correlation(added, offset) < 0.1
