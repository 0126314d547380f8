"""The loss against its formula."""

import diffusers
import pytest
import torch

from backend.config.training.noise import Noise
from backend.errors import UserError
from backend.train.loss import (
    element_error,
    huber_borders,
    make_objective,
    sample_weights,
    squared_error,
    time_weights,
    weighted_share,
)
from backend.train.noise import Diffusion, diffusion_of


def test_squared_error_is_the_mean_over_each_sample_in_float32() -> None:
    predicted, target = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6)
    loss = squared_error(predicted.half(), target.half())
    expected = torch.stack(
        [torch.nn.functional.mse_loss(p.half().float(), t.half().float()) for p, t in zip(predicted, target)]
    )
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


def test_shares_of_a_step_add_up_to_the_weighted_mean_over_all_its_samples() -> None:
    per_sample = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    weights = sample_weights([False, True, False, True, False], 0.5)
    assert weights.tolist() == [1.0, 0.5, 1.0, 0.5, 1.0]
    shares = [weighted_share(per_sample[part], weights[part], 5) for part in (slice(0, 2), slice(2, 4), slice(4, 5))]
    assert sum(shares) == (1 + 1 + 4 + 4 + 16) / 5


CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def process(predicts_v: bool = False, ends_in_noise: bool = False) -> Diffusion:
    kind = "v_prediction" if predicts_v else "epsilon"
    return diffusion_of({**CONFIG, "prediction_type": kind, "rescale_betas_zero_snr": ends_in_noise})


def snr_of(diffusion: Diffusion) -> list[float]:
    """From the betas' definition, in Python's own numbers."""
    ends = [CONFIG["beta_start"] ** 0.5, CONFIG["beta_end"] ** 0.5]
    kept, found = 1.0, []
    for step in range(1000):
        kept *= 1 - (ends[0] + (ends[1] - ends[0]) * step / 999) ** 2
        found.append(kept / (1 - kept))
    return found


WEIGHTS = {
    "plain": ({}, False, lambda snr: 1.0),
    "min-SNR of noise": ({"min_snr_gamma": 5.0}, False, lambda snr: min(snr, 5.0) / snr),
    "min-SNR of v": ({"min_snr_gamma": 5.0}, True, lambda snr: min(snr, 5.0) / (snr + 1)),
    "v as noise": (
        {"scale_v_pred_loss_like_noise_pred": True},
        True,
        lambda snr: min(snr, 1000) / (min(snr, 1000) + 1),
    ),
    "noise as v": ({"v_pred_like_loss": 0.5}, False, lambda snr: 1 + 0.5 * (min(snr, 1000) + 1) / min(snr, 1000)),
    "debiased noise": ({"debiased_estimation_loss": True}, False, lambda snr: min(snr, 1000) ** -0.5),
    "debiased v": ({"debiased_estimation_loss": True}, True, lambda snr: 1 / (min(snr, 1000) + 1)),
    "two at once": (
        {"min_snr_gamma": 2.0, "debiased_estimation_loss": True},
        False,
        lambda snr: min(snr, 2.0) / snr * min(snr, 1000) ** -0.5,
    ),
}


@pytest.mark.parametrize(("options", "predicts_v", "formula"), WEIGHTS.values(), ids=WEIGHTS)
def test_weights_of_times_are_their_closed_forms(options, predicts_v, formula) -> None:
    diffusion = process(predicts_v)
    expected = torch.tensor([formula(snr) for snr in snr_of(diffusion)])
    torch.testing.assert_close(time_weights(Noise(**options), diffusion), expected, rtol=1e-3, atol=1e-6)


def test_the_ratio_is_that_of_the_schedule_that_is_trained_on() -> None:
    """The reference computes it before the schedule is stretched, so that its weights belong to another schedule."""
    kept = torch.from_numpy(
        diffusers.DDIMScheduler(**CONFIG, rescale_betas_zero_snr=True).alphas_cumprod.double().numpy()
    )
    snr = kept / (1 - kept)
    found = time_weights(Noise(min_snr_gamma=5.0), process(True, True))
    torch.testing.assert_close(found[:-1].double(), (snr.clamp(max=5) / (snr + 1))[:-1], rtol=2e-3, atol=1e-5)
    assert found[-1] == 0 and time_weights(Noise(min_snr_gamma=5.0), process(False, True))[-1] == 1
    assert not torch.allclose(found, time_weights(Noise(min_snr_gamma=5.0), process(True)), atol=1e-3)


@pytest.mark.parametrize("name", ["debiased_estimation_loss", "v_pred_like_loss"])
def test_weights_without_an_end_are_refused_where_they_would_be_used(name) -> None:
    value = True if name == "debiased_estimation_loss" else 0.5
    with pytest.raises(UserError, match="max_timestep to 999"):
        time_weights(Noise(**{name: value}), process(ends_in_noise=True))
    assert time_weights(Noise(**{name: value}, max_timestep=999), process(ends_in_noise=True))[:999].isfinite().all()


@pytest.mark.parametrize(
    ("options", "predicts_v", "field"),
    [
        ({"scale_v_pred_loss_like_noise_pred": True}, False, "scale_v_pred_loss_like_noise_pred"),
        ({"v_pred_like_loss": 1.0}, True, "v_pred_like_loss"),
        ({"max_timestep": 1001}, False, "max_timestep"),
        ({"min_timestep": 1000}, False, "min_timestep"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused_by_name(options, predicts_v, field) -> None:
    with pytest.raises(UserError) as caught:
        make_objective(Noise(**options), process(predicts_v))
    assert caught.value.field == field


@pytest.mark.parametrize("schedule", ["snr", "exponential", "constant"])
def test_borders_of_huber_losses_follow_their_schedule_and_scale(schedule) -> None:
    options = Noise(huber_schedule=schedule, huber_c=0.2, huber_scale=3.0)
    formula = {
        "snr": lambda snr, t: 0.8 / (1 + snr**-0.5) ** 2 + 0.2,
        "exponential": lambda snr, t: 0.2 ** (t / 1000),
        "constant": lambda snr, t: 0.2,
    }[schedule]
    expected = torch.tensor([3.0 * formula(snr, t) for t, snr in enumerate(snr_of(process()))])
    torch.testing.assert_close(huber_borders(options, process()), expected, rtol=1e-3, atol=1e-6)
    assert huber_borders(options, process(ends_in_noise=True)).isfinite().all()


ERRORS = {
    "l2": lambda d, c: d**2,
    "l1": lambda d, c: abs(d),
    "huber": lambda d, c: 2 * c * ((d**2 + c**2) ** 0.5 - c),
    "smooth_l1": lambda d, c: 2 * ((d**2 + c**2) ** 0.5 - c),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_their_closed_forms_with_a_border_for_each_sample(name) -> None:
    difference, borders = torch.tensor([[0.0, 0.3, -2.0], [0.0, 0.3, -2.0]]), torch.tensor([0.1, 0.5])
    found = element_error(difference + 1, torch.ones(2, 3), name, borders)
    expected = [[ERRORS[name](float(d), float(c)) for d in row] for row, c in zip(difference, borders, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_the_objective_looks_its_borders_up_by_time() -> None:
    objective = make_objective(Noise(loss_type="huber"), process())
    times = torch.tensor([0, 999])
    found = objective.errors(torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1), times).flatten()
    expected = element_error(torch.ones(2, 1), torch.zeros(2, 1), "huber", objective.borders[times]).flatten()
    assert torch.equal(found, expected) and found[0] != found[1]
