"""Every sampler against a model that is right, whose picture is therefore known; LMS against its definition."""

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch

from backend.config.choices import Sampler
from backend.families.original import sd1_config
from backend.generate.pipeline import denoise
from backend.generate.prompts import Request
from backend.generate.samplers import SAMPLERS, make_solver, multistep_coefficient
from backend.train.noise import diffusion_of

SCHEDULER = sd1_config()["scheduler"]
ALPHAS = diffusers.DDPMScheduler.from_config(SCHEDULER).alphas_cumprod.double()


ZERO_SNR = SCHEDULER | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}


def kept(timesteps: torch.Tensor, alphas: torch.Tensor = ALPHAS) -> torch.Tensor:
    """Share of the signal's variance; between two time steps the noise level is interpolated linearly."""
    sigmas = ((1 - alphas) / alphas).sqrt().numpy()
    at = np.interp(timesteps.double().numpy(), np.arange(len(sigmas)), sigmas)
    return torch.from_numpy(1 / (1 + at**2)).float().view(-1, 1, 1, 1)


def knowing_model(model, picture, prediction_type="epsilon", alphas=ALPHAS):
    """The model of a world in which `picture` is the only latent: it predicts exactly what was added."""

    def predict(_model, noisy, timesteps, _conditioning):
        share = kept(timesteps, alphas)
        noise = (noisy - share.sqrt() * picture) / (1 - share).sqrt()
        return noise if prediction_type == "epsilon" else share.sqrt() * noise - (1 - share).sqrt() * picture

    scheduler = model.scheduler | {"prediction_type": prediction_type}
    return replace(model, family=replace(model.family, predict=predict), scheduler=scheduler)


def test_the_table_is_the_one_that_the_options_list() -> None:
    assert set(SAMPLERS) == set(Sampler.__args__)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_model_that_knows_gets_its_picture(model, name, prediction_type) -> None:
    picture = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    request = Request("", width=64, height=64, steps=12, scale=1, sampler=name, seed=1)
    found = denoise(knowing_model(model, picture, prediction_type), request, [1, 2])
    # Those that end on the lowest trained noise level instead of none keep a thirtieth of noise.
    assert (found - picture).abs().max() < 0.15
    assert (found - picture).square().mean().sqrt() < 0.04


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_model_trained_down_to_pure_noise_is_sampled_on_its_own_schedule(model, name) -> None:
    # Algorithm 1 of arXiv 2305.08891, written out; the trainer's schedule is the same.
    roots = ALPHAS.sqrt()
    stretched = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])).square()
    trained = diffusion_of(ZERO_SNR).alphas_cumprod
    torch.testing.assert_close(trained.double(), stretched, rtol=1e-4, atol=1e-9)
    solver = make_solver(name, ZERO_SNR)
    own = getattr(solver, "euler", solver).alphas_cumprod.double()
    torch.testing.assert_close(own[:-1], stretched[:-1], rtol=2e-3, atol=1e-7)
    assert 0 < own[-1] < 1e-7
    solver.set_timesteps(12)
    assert float(solver.timesteps[0]) == 999
    # And a model that knows gets its picture.
    picture = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    request = Request("", width=64, height=64, steps=12, scale=1, sampler=name, seed=1)
    knowing = knowing_model(model, picture, "v_prediction", own)
    right = denoise(replace(knowing, scheduler=ZERO_SNR), request, [1, 2])
    assert (right - picture).square().mean().sqrt() < 0.05


def test_guidance_moves_away_from_the_negative(model) -> None:
    positive, negative = torch.full((1, 4, 8, 8), 0.5), torch.full((1, 4, 8, 8), 0.25)

    def predict(_model, noisy, timesteps, _conditioning):
        target = torch.cat([negative.expand(len(noisy) // 2, -1, -1, -1), positive.expand(len(noisy) // 2, -1, -1, -1)])
        share = kept(timesteps)
        return (noisy - share.sqrt() * target) / (1 - share).sqrt()

    guided = replace(model, family=replace(model.family, predict=predict))
    request = Request("", width=64, height=64, steps=10, scale=3.0, sampler="euler", seed=1)
    found = denoise(guided, request, [1])
    torch.testing.assert_close(found, torch.full_like(found, 0.25 + 3 * 0.25), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_solver_asks_within_the_trained_times(name) -> None:
    solver = make_solver(name, SCHEDULER)
    solver.set_timesteps(20)
    times = solver.timesteps.float()
    assert times.max() <= 999 and times.min() >= 0
    assert times[0] > 900 and times[-1] < 60


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_multistep_coefficients_integrate_polynomials_exactly(order) -> None:
    sigmas = np.array([9.0, 7.0, 4.0, 2.5, 1.0, 0.0])
    polynomial = np.poly1d([1.0, -2.0, 0.5, 3.0][:order])  # degree order - 1
    nodes = sigmas[4 - order + 1 : 5][::-1]
    found = sum(polynomial(nodes[back]) * multistep_coefficient(sigmas, 4, back, order) for back in range(order))
    assert found == pytest.approx(polynomial.integ()(sigmas[5]) - polynomial.integ()(sigmas[4]), rel=1e-12)


def test_the_first_step_of_lms_is_eulers() -> None:
    lms, euler = make_solver("lms", SCHEDULER), make_solver("euler", SCHEDULER)
    sample, predicted = torch.randn(1, 4, 8, 8) * 14, torch.randn(1, 4, 8, 8)
    for solver in (lms, euler):
        solver.set_timesteps(10)
    time = euler.timesteps[0]
    torch.testing.assert_close(lms.scale_model_input(sample, time), euler.scale_model_input(sample, time))
    ours, theirs = lms.step(predicted, time, sample), euler.step(predicted, time, sample)
    torch.testing.assert_close(ours.prev_sample, theirs.prev_sample)


def test_a_models_own_noise_schedule_is_used() -> None:
    betas = [0.01, 0.02, 0.03, 0.04]
    solver = make_solver("euler", {"num_train_timesteps": 4, "trained_betas": betas, "steps_offset": 3})
    torch.testing.assert_close(solver.betas, torch.tensor(betas))
    assert solver.config.steps_offset == 0  # not what the model was trained on, but the sampler's choice


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_takes_the_steps_that_it_says_it_takes(name) -> None:
    solver = make_solver(name, {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012})
    solver.set_timesteps(SAMPLERS[name].most)
    sample = torch.ones(1, 1, 2, 2)
    for timestep in solver.timesteps:
        sample = solver.step(sample * 0.01, timestep, solver.scale_model_input(sample, timestep)).prev_sample
    assert sample.isfinite().all()
