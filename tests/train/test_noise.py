"""Draws that hang on nothing but their place, and the forward process against diffusers."""

import random

import diffusers
import pytest
import torch

from backend.config.training.noise import Noise
from backend.errors import UserError
from backend.families.original import sd1_config
from backend.train.noise import (
    adaptive_strength,
    diffusion_of,
    disturbed,
    draw_noise,
    draw_timesteps,
    pyramid_noise,
    training_noise,
)

SCHEDULER = sd1_config()["scheduler"]


def test_draws_do_not_depend_on_how_a_batch_is_split() -> None:
    whole = draw_noise(1, 5, range(4), (4, 8, 8))
    parts = torch.cat([draw_noise(1, 5, range(2), (4, 8, 8)), draw_noise(1, 5, range(2, 4), (4, 8, 8))])
    assert torch.equal(whole, parts)
    times = draw_timesteps(1, 5, range(4), 1000)
    assert torch.equal(times, torch.cat([draw_timesteps(1, 5, [index], 1000) for index in range(4)]))


@pytest.mark.parametrize("other", [(2, 5, 0), (1, 6, 0), (1, 5, 1)])
def test_seed_step_and_index_all_change_the_draw(other) -> None:
    seed, step, index = other
    assert not torch.equal(draw_noise(1, 5, [0], (64,)), draw_noise(seed, step, [index], (64,)))
    here = torch.cat([draw_timesteps(1, 5 + 10 * n, [0], 10**9) for n in range(3)])
    there = torch.cat([draw_timesteps(seed, step + 10 * n, [index], 10**9) for n in range(3)])
    assert not torch.equal(here, there)


def test_noise_is_unit_normal_and_timesteps_are_uniform() -> None:
    noise = torch.cat([draw_noise(0, step, range(8), (4, 16, 16)) for step in range(4)])
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    times = torch.cat([draw_timesteps(0, step, range(64), 10) for step in range(32)])
    counts = torch.bincount(times, minlength=10)
    assert len(counts) == 10  # none is 10 or above
    assert counts.min() > 150 and counts.max() < 260  # 204.8 expected, standard deviation 13.6


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_forward_process_and_target_equal_diffusers(prediction_type) -> None:
    config = SCHEDULER | {"prediction_type": prediction_type}
    ours, theirs = diffusion_of(config), diffusers.DDPMScheduler.from_config(config)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-4, atol=1e-7)
    latents, noise = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    times = torch.tensor([0, 500, 999])
    torch.testing.assert_close(ours.noisy(latents, noise, times), theirs.add_noise(latents, noise, times))
    expected = noise if prediction_type == "epsilon" else theirs.get_velocity(latents, noise, times)
    torch.testing.assert_close(ours.target(latents, noise, times), expected)


@pytest.mark.parametrize("change", [{"prediction_type": "sample"}, {"beta_schedule": "cosine"}])
def test_unknown_processes_are_refused_by_name(change) -> None:
    with pytest.raises(UserError, match=next(iter(change.values()))):
        diffusion_of(SCHEDULER | change)


def test_a_schedule_that_ends_without_a_signal_is_diffusers_own() -> None:
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    ours = diffusion_of({**config, "rescale_betas_zero_snr": True})
    theirs = diffusers.DDIMScheduler(**config, rescale_betas_zero_snr=True)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-3, atol=1e-6)
    assert ours.alphas_cumprod[-1] == 0 < diffusion_of(config).alphas_cumprod[-1]


LATENTS = torch.randn(3, 4, 16, 12, generator=torch.Generator().manual_seed(0))


def noise_of(step: int = 5, indices: range = range(3), **options: object) -> torch.Tensor:
    return training_noise(Noise(**options), 1, step, indices, LATENTS[indices.start : indices.stop])


def test_noise_without_options_is_the_plain_draw() -> None:
    plain = draw_noise(1, 5, range(3), LATENTS.shape[1:])
    assert torch.equal(noise_of(), plain)
    assert disturbed(Noise(), 1, 5, range(3), plain) is plain


OPTIONS = [
    {"noise_offset": 0.1},
    {"noise_offset": 0.1, "noise_offset_random_strength": True, "adaptive_noise_scale": 0.2},
    {"multires_noise_iterations": 4},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_shaped_noise_does_not_depend_on_how_a_batch_is_split(options) -> None:
    whole = noise_of(**options)
    assert torch.equal(whole, torch.cat([noise_of(indices=part, **options) for part in (range(1), range(1, 3))]))
    assert not torch.equal(whole, noise_of()) and not torch.equal(whole, noise_of(step=6, **options))


def test_an_offset_is_one_number_a_channel_of_the_given_size() -> None:
    change = torch.stack([noise_of(step=step, noise_offset=0.3) - noise_of(step=step) for step in range(200)])
    torch.testing.assert_close(change, change[..., :1, :1].expand_as(change), rtol=0, atol=1e-6)
    assert change[..., 0, 0].std() == pytest.approx(0.3, rel=0.05) and abs(change.mean()) < 0.03


def test_a_random_strength_is_uniform_below_the_given_one() -> None:
    options = {"noise_offset": 0.3, "noise_offset_random_strength": True}
    full, weaker = (
        [noise_of(step=s, **o) - noise_of(step=s) for s in range(100)] for o in ({"noise_offset": 0.3}, options)
    )
    share = (torch.stack(weaker) / torch.stack(full))[..., 0, 0]
    assert share.amin() > -1e-4 and share.amax() < 1 + 1e-4
    torch.testing.assert_close(share, share[..., :1].expand_as(share), rtol=1e-2, atol=1e-3)  # one for each picture
    assert share[..., 0].mean() == pytest.approx(0.5, abs=0.06)
    assert share[..., 0].std() == pytest.approx(12**-0.5, abs=0.04)


def test_an_adaptive_offset_follows_the_mean_of_the_channel_and_stays_above_zero() -> None:
    latents = torch.full((1, 2, 4, 4), -3.0)
    latents[:, 1] = 0.5
    found = adaptive_strength(torch.full((1, 1, 1, 1), 0.1), latents, -0.1)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.05]).view(1, 2, 1, 1))


def test_pyramid_noise_is_the_sum_written_out() -> None:
    noise = draw_noise(1, 5, [0], (4, 16, 12))[0]
    found = pyramid_noise(noise, 3, 0.5, random.Random(3), torch.Generator().manual_seed(4))
    ratios, generator, total = random.Random(3), torch.Generator().manual_seed(4), noise.clone()
    for level in range(3):
        ratio = (2 + 2 * ratios.random()) ** level
        coarse = torch.randn(1, 4, int(16 / ratio), int(12 / ratio), generator=generator)
        total += torch.nn.Upsample((16, 12), mode="bilinear")(coarse)[0] * 0.5**level
    torch.testing.assert_close(found, total / total.std())
    assert found.std() == pytest.approx(1)


def test_pyramid_noise_ends_at_one_pixel_and_is_coarser_than_plain_noise() -> None:
    found = pyramid_noise(torch.randn(4, 16, 12), 20, 1.0, random.Random(3), torch.Generator().manual_seed(4))
    neighbours = torch.corrcoef(torch.stack([found[:, :, 1:].flatten(), found[:, :, :-1].flatten()]))[0, 1]
    assert neighbours > 0.3


@pytest.mark.parametrize("random_strength", [False, True])
def test_a_perturbation_is_seen_by_the_model_alone(random_strength) -> None:
    options = Noise(ip_noise_gamma=0.2, ip_noise_gamma_random_strength=random_strength)
    noise = noise_of()
    seen = [disturbed(options, 1, step, range(3), noise) - noise for step in range(60)]
    spread = torch.stack(seen).std(dim=(2, 3, 4)).flatten()
    if random_strength:
        assert spread.max() < 0.21 and spread.mean() == pytest.approx(0.1, rel=0.15)
    else:
        assert spread.min() > 0.18 and spread.max() < 0.22


def test_times_stay_within_their_range() -> None:
    times = draw_timesteps(0, 0, range(500), 60, 50)
    assert times.min() == 50 and times.max() == 59
