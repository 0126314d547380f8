"""Samplers by name: which solver of the diffusion equation, and with which settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import diffusers
import numpy as np
import torch
from torch import Tensor

# What a model's own scheduler config says about the noise it was trained on; everything else is the sampler's choice.
TRAINED_ON = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)


class Solver(Protocol):
    """The part of a diffusers scheduler that denoising uses."""

    timesteps: Tensor
    init_noise_sigma: float | Tensor

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None: ...

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor: ...

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> object: ...


class StepResult(NamedTuple):
    """What a solver's step gives: the sample one step nearer to the picture."""

    prev_sample: Tensor


def multistep_coefficient(sigmas: np.ndarray, index: int, history: int, order: int) -> float:
    """Integral from sigma_i to sigma_(i+1) of the Lagrange basis polynomial of the derivative `history` steps ago.

    Source: the linear multistep (Adams-Bashforth) method on a non-uniform grid, as in k-diffusion's `lms`.

    Args:
        sigmas: noise levels, [steps + 1], falling.
        index: the current step i.
        history: 0 for the newest derivative, up to `order` - 1.
        order: number of derivatives in use, at most `index` + 1.
    """
    nodes = sigmas[index - order + 1 : index + 1][::-1]
    basis = np.poly1d([1.0])
    for other, node in enumerate(nodes):
        if other != history:
            basis *= np.poly1d([1.0, -node]) / (nodes[history] - node)
    integral = basis.integ()
    return float(integral(sigmas[index + 1]) - integral(sigmas[index]))


class LinearMultistep:
    """LMS of order 4 on the noise levels of the Euler solver; needs no scipy, as polynomials are integrated exactly."""

    order = 4

    def __init__(self, euler: diffusers.EulerDiscreteScheduler) -> None:
        self.euler = euler
        self.index = 0
        self.derivatives: list[Tensor] = []

    @property
    def timesteps(self) -> Tensor:
        """Training times at which the model is asked, [steps]."""
        return self.euler.timesteps

    @property
    def init_noise_sigma(self) -> float | Tensor:
        """Standard deviation of the noise to start from."""
        return self.euler.init_noise_sigma

    @property
    def sigmas(self) -> np.ndarray:
        """Noise levels, [steps + 1], falling to 0."""
        return self.euler.sigmas.double().cpu().numpy()

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Choose the noise levels of `num_inference_steps` steps, and forget what was before."""
        self.euler.set_timesteps(num_inference_steps, device=device)
        self.index = 0
        self.derivatives = []

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """The sample divided by sqrt(sigma^2 + 1), which is what the model was trained to see."""
        return sample / float(self.sigmas[self.index] ** 2 + 1) ** 0.5

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> StepResult:
        """One step along the derivative dx/dsigma, integrated over up to four of its values."""
        sigmas = self.sigmas
        sigma = float(sigmas[self.index])
        derivative = model_output
        if self.euler.config.prediction_type == "v_prediction":
            # x0 = x / (sigma^2 + 1) - v sigma / sqrt(sigma^2 + 1), and the derivative is (x - x0) / sigma.
            denoised = sample / (sigma**2 + 1) - model_output * (sigma / (sigma**2 + 1) ** 0.5)
            derivative = (sample - denoised) / sigma
        self.derivatives = [derivative, *self.derivatives][: self.order]
        for history, value in enumerate(self.derivatives):
            sample = sample + value * multistep_coefficient(sigmas, self.index, history, len(self.derivatives))
        self.index += 1
        return StepResult(sample)


@dataclass(frozen=True)
class Sampler:
    """A solver and its settings.

    Attributes:
        solver: name of the class in diffusers.
        settings: where it differs from that class's defaults.
        about: one line for the reader of a list.
        wrap: what the solver is wrapped into, if anything.
        most: steps above this it cannot spread over the model's times: it fails, or its picture is not finite.
    """

    solver: str
    about: str
    settings: Mapping[str, object] = field(default_factory=dict)
    wrap: type | None = None
    most: int = 1000


# Stable Diffusion's own: time steps 1, 1 + n, ..., and the last one goes to the noise level of time 0, not to none.
LEADING = {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}
# As in k-diffusion: noise levels spread evenly over all of the training times, ends included.
SPREAD = {"timestep_spacing": "linspace"}

SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(
        "DDIMScheduler", "deterministic, plain, even with few steps", {**LEADING, "clip_sample": False}, most=999
    ),
    "pndm": Sampler(
        "PNDMScheduler",
        "linear multistep, Stable Diffusion's first default",
        {**LEADING, "skip_prk_steps": True},
        most=999,
    ),
    "lms": Sampler("EulerDiscreteScheduler", "linear multistep of order 4", SPREAD, LinearMultistep),
    "euler": Sampler("EulerDiscreteScheduler", "first order, deterministic", SPREAD),
    "euler_a": Sampler("EulerAncestralDiscreteScheduler", "first order, new noise at every step", SPREAD),
    "heun": Sampler("HeunDiscreteScheduler", "second order, two model calls a step", SPREAD),
    "dpm_2": Sampler("KDPM2DiscreteScheduler", "second order, two model calls a step", SPREAD),
    "dpm_2_a": Sampler("KDPM2AncestralDiscreteScheduler", "dpm_2 with new noise at every step", SPREAD),
    "dpmsolver": Sampler(
        "DPMSolverMultistepScheduler",
        "DPM-Solver, multistep of order 2",
        {**SPREAD, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        most=999,
    ),
    "dpmsolver++": Sampler(
        "DPMSolverMultistepScheduler", "DPM-Solver++ 2M, good with 15 to 25 steps", SPREAD, most=999
    ),
    "dpmsingle": Sampler("DPMSolverSinglestepScheduler", "DPM-Solver++ 2S", {"lower_order_final": True}),
}


# What is left of the signal at the last time of a schedule without any: no solver can divide by nothing.
LEAST_SIGNAL = 2.0**-24


def zero_snr_betas(trained_on: Mapping[str, object]) -> list[float]:
    """The betas of a schedule stretched so that its end is pure noise (arXiv 2305.08891, algorithm 1), but for a trace.

    Half of diffusers' schedulers do not know `rescale_betas_zero_snr`; all of them take betas.

    Args:
        trained_on: the schedule before it is stretched.
    """
    schedule = diffusers.DDIMScheduler.from_config({**trained_on, "rescale_betas_zero_snr": True})
    kept = schedule.alphas_cumprod.double()
    kept[-1] = LEAST_SIGNAL
    ratios = torch.cat([kept[:1], kept[1:] / kept[:-1]])
    return (1 - ratios).tolist()


def make_solver(name: str, trained_on: Mapping[str, object]) -> Solver:
    """A fresh solver for one denoising run.

    Args:
        name: a name of `SAMPLERS`.
        trained_on: the model's scheduler config; only what it says about the training noise is used.
    """
    sampler = SAMPLERS[name]
    noise = {key: trained_on[key] for key in TRAINED_ON if trained_on.get(key) is not None}
    settings = dict(sampler.settings)
    if noise.pop("rescale_betas_zero_snr", False):
        noise = {**noise, "trained_betas": zero_snr_betas(noise)}
        if "timestep_spacing" in settings:
            # A model that was trained on pure noise has to begin from it (arXiv 2305.08891, section 3.3).
            settings |= {"timestep_spacing": "linspace" if settings == SPREAD else "trailing"}
    solver = getattr(diffusers, sampler.solver).from_config({**noise, **settings})
    return sampler.wrap(solver) if sampler.wrap else solver
