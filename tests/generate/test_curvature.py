"""Every sampler on a model whose prediction bends along the way, against diffusers and against the exact solution.

A model that always predicts one picture makes every solver exact; here the pictures are normally distributed about two
centres, so the path from noise to picture is curved, and each solver errs in its own way.
"""

from dataclasses import replace

import diffusers
import pytest
import torch

from backend.families.original import sd1_config
from backend.generate.pipeline import denoise
from backend.generate.prompts import Request
from backend.generate.samplers import SAMPLERS, multistep_coefficient

SCHEDULER = sd1_config()["scheduler"]
ALPHAS = diffusers.DDPMScheduler.from_config(SCHEDULER).alphas_cumprod.double()
SIGMAS = ((1 - ALPHAS) / ALPHAS).sqrt()
CENTRES, SPREAD = (-1.5, 1.0), 0.4
STEPS = 9
# What each name stands for, written out once more: the class in diffusers and the settings that make it that solver.
LEADING = {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}
LINSPACE = {"timestep_spacing": "linspace"}
MEANT = {
    "ddim": (diffusers.DDIMScheduler, LEADING | {"clip_sample": False}),
    "pndm": (diffusers.PNDMScheduler, LEADING | {"skip_prk_steps": True}),
    "lms": (diffusers.EulerDiscreteScheduler, LINSPACE),
    "euler": (diffusers.EulerDiscreteScheduler, LINSPACE),
    "euler_a": (diffusers.EulerAncestralDiscreteScheduler, LINSPACE),
    "heun": (diffusers.HeunDiscreteScheduler, LINSPACE),
    "dpm_2": (diffusers.KDPM2DiscreteScheduler, LINSPACE),
    "dpm_2_a": (diffusers.KDPM2AncestralDiscreteScheduler, LINSPACE),
    "dpmsolver": (
        diffusers.DPMSolverMultistepScheduler,
        LINSPACE | {"algorithm_type": "dpmsolver", "solver_order": 2, "final_sigmas_type": "sigma_min"},
    ),
    "dpmsolver++": (
        diffusers.DPMSolverMultistepScheduler,
        LINSPACE | {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"},
    ),
    "dpmsingle": (
        diffusers.DPMSolverSinglestepScheduler,
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "lower_order_final": True},
    ),
}


def expected_noise(noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """E[noise | noisy] where x0 is normal about either centre: the score of that mixture."""
    at = float(time.double().reshape(-1)[0])
    low = int(at)
    # Between two times the noise level is interpolated linearly, as the solvers do.
    sigma = SIGMAS[low] + (at - low) * (SIGMAS[min(low + 1, 999)] - SIGMAS[low])
    share = float(1 / (1 + sigma**2))
    x = noisy.double()
    variance = share * SPREAD**2 + 1 - share
    means = [share**0.5 * centre for centre in CENTRES]
    logs = torch.stack([-((x - mean) ** 2) / (2 * variance) for mean in means])
    weights = torch.softmax(logs, 0)
    score = sum(weight * (mean - x) / variance for weight, mean in zip(weights, means, strict=True))
    return (-score * (1 - share) ** 0.5).float()


def bent(model):
    """A model that predicts the noise of that world."""
    return replace(model, family=replace(model.family, predict=lambda _m, x, t, _c: expected_noise(x, t)))


def noise(seed: int) -> torch.Tensor:
    return torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(seed))


def ours(model, name: str, steps: int = STEPS) -> torch.Tensor:
    return denoise(bent(model), Request("", width=64, height=64, steps=steps, scale=1, sampler=name, seed=1), [3])


def by_diffusers(name: str, steps: int = STEPS) -> torch.Tensor:
    """The loop of a pipeline of diffusers."""
    kind, settings = MEANT[name]
    known = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
    solver = kind.from_config({key: SCHEDULER[key] for key in known} | settings)
    solver.set_timesteps(steps)
    generator = torch.Generator().manual_seed(3)
    sample = torch.randn((1, 4, 8, 8), generator=generator) * solver.init_noise_sigma
    options = {"generator": generator} if name.endswith("_a") else {}
    for time in solver.timesteps:
        predicted = expected_noise(solver.scale_model_input(sample, time), time)
        sample = solver.step(predicted, time, sample, **options).prev_sample
    return sample


def linear_multistep(steps: int = STEPS) -> torch.Tensor:
    """LMS by its definition: diffusers' own needs scipy, and is of the same order on the same noise levels."""
    euler = diffusers.EulerDiscreteScheduler.from_config(
        {key: SCHEDULER[key] for key in ("beta_start", "beta_end", "beta_schedule")} | LINSPACE
    )
    euler.set_timesteps(steps)
    sigmas, derivatives = euler.sigmas.double().numpy(), []
    sample = noise(3) * euler.init_noise_sigma
    for index, time in enumerate(euler.timesteps):
        derivatives.insert(0, expected_noise(sample / float(sigmas[index] ** 2 + 1) ** 0.5, time))
        order = min(4, index + 1)
        for back in range(order):
            sample = sample + derivatives[back] * multistep_coefficient(sigmas, index, back, order)
    return sample


def oracle(name: str) -> torch.Tensor:
    return linear_multistep() if name == "lms" else by_diffusers(name)


def test_every_sampler_is_meant() -> None:
    assert set(MEANT) == set(SAMPLERS)


@pytest.mark.parametrize("name", SAMPLERS)
def test_on_a_curved_path_it_is_the_solver_that_its_name_says(model, name) -> None:
    torch.testing.assert_close(ours(model, name), oracle(name), rtol=1e-4, atol=1e-4)


def test_on_this_path_no_two_samplers_agree() -> None:
    # Else the comparison would not tell one from another.
    found = {name: oracle(name) for name in SAMPLERS}
    for name in found:
        for other in found:
            if name < other:
                assert (found[name] - found[other]).abs().max() > 3e-3, (name, other)


def exact(steps: int = 1500) -> torch.Tensor:
    """The probability flow's end for the same noise, by Heun's rule in float64 with many steps."""
    euler = diffusers.EulerDiscreteScheduler.from_config(
        {key: SCHEDULER[key] for key in ("beta_start", "beta_end", "beta_schedule")} | LINSPACE
    )
    euler.set_timesteps(2)
    start = float(euler.sigmas[0])
    sample = noise(3).double() * float(euler.init_noise_sigma)
    levels = torch.linspace(start ** (1 / 7), float(SIGMAS[0]) ** (1 / 7), steps).double() ** 7

    def derivative(x: torch.Tensor, sigma: float) -> torch.Tensor:
        share = 1 / (1 + sigma**2)
        scaled, variance = x * share**0.5, share * SPREAD**2 + 1 - share
        means = [share**0.5 * centre for centre in CENTRES]
        weights = torch.softmax(torch.stack([-((scaled - mean) ** 2) / (2 * variance) for mean in means]), 0)
        score = sum(w * (mean - scaled) / variance for w, mean in zip(weights, means, strict=True))
        return -score * (1 - share) ** 0.5

    for one, two in zip(levels, levels[1:], strict=False):
        slope = derivative(sample, float(one))
        ahead = sample + slope * (two - one)
        sample = sample + (slope + derivative(ahead, float(two))) / 2 * (two - one)
    return sample.float()


# Deterministic solvers whose last step is of higher order too; that of the others is Euler's.
HIGHER = ("lms", "heun", "dpm_2")


@pytest.mark.parametrize("name", HIGHER)
def test_a_solver_of_higher_order_is_nearer_to_the_exact_path_than_euler(model, name) -> None:
    steps, right = 40, exact()
    error = (ours(model, name, steps) - right).square().mean().sqrt()
    eulers = (ours(model, "euler", steps) - right).square().mean().sqrt()
    assert error < eulers / 2
