"""Draws that hang on nothing but their place, and the forward process against diffusers."""

import diffusers
import pytest
import torch

from backend.errors import UserError
from backend.families.original import sd1_config
from backend.train.noise import diffusion_of, draw_noise, draw_timesteps

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
