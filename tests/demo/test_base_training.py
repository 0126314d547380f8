"""The parts that trained the base model: exact identities on a few steps."""

import math

import pytest
import torch

from backend.demo import base_unet, base_vae
from backend.demo.pictures import Monster, draw


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.stack([torch.from_numpy(draw(Monster("round", "red", eyes, "white"))) for eyes in (1, 2, 3)] * 2)


def _trainer(seed: int = 1) -> base_unet.BaseTrainer:
    draw_noise = torch.Generator().manual_seed(0)
    data = base_unet.TrainingPictures(
        torch.randn(6, 4, 8, 8, generator=draw_noise),
        torch.randint(0, 49406, (6, 2, 77), generator=draw_noise),
        torch.full((77,), 49407),
    )
    return base_unet.BaseTrainer(base_unet.build_unet(seed), base_unet.build_text_encoder(seed), data, seed)


def test_folding_the_scale_normalises_latents_and_keeps_reconstructions(pictures: torch.Tensor) -> None:
    vae = base_vae.build_vae(seed=1).eval()
    latents = base_vae.encode(vae, pictures)
    with torch.no_grad():
        before = vae.decode(latents).sample
        base_vae.fold_scale(vae, latents)
        folded = base_vae.encode(vae, pictures)
        after = vae.decode(folded).sample
    assert torch.allclose(before, after, atol=1e-4)
    scaled = folded * base_vae.LATENT_SCALE
    assert scaled.mean((0, 2, 3)).abs().max() < 1e-3
    assert (scaled.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_psnr_is_the_textbook_formula(pictures: torch.Tensor) -> None:
    class Shifted:
        """An "autoencoder" that adds 0.1 to every value in [-1, 1]."""

        def encode(self, x: torch.Tensor) -> "Shifted":
            self.latent_dist = self
            self.x = x
            return self

        def mode(self) -> torch.Tensor:
            return self.x

        def decode(self, x: torch.Tensor) -> "Shifted":
            self.sample = x + 0.1
            return self

    grey = torch.full((2, 64, 64, 3), 128, dtype=torch.uint8)
    assert base_vae.reconstruction_psnr(Shifted(), grey) == pytest.approx(-10 * math.log10(0.05**2), abs=1e-3)


def test_one_cycle_rises_and_falls() -> None:
    rates = [base_vae.one_cycle(step, 100, 1.0) for step in range(100)]
    assert rates[4] == max(rates) == 1.0
    assert all(later < earlier for earlier, later in zip(rates[5:], rates[6:], strict=False))
    assert rates[99] == pytest.approx(0.01, abs=1e-3)


def test_interrupted_run_ends_as_the_uninterrupted_one(tmp_path) -> None:
    whole, first = _trainer(), _trainer()
    whole.run(3, 3, 2, lambda step, loss: None)
    first.run(1, 3, 2, lambda step, loss: None)
    torch.save(first.state(), tmp_path / "state.pt")
    second = _trainer(seed=1)
    second.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    second.run(3, 3, 2, lambda step, loss: None)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters, second.parameters, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole.average.shadow, second.average.shadow, strict=True))


def test_average_follows_its_formula_and_swaps_back() -> None:
    parameter = torch.nn.Parameter(torch.tensor([0.0]))
    average = base_unet.Average([parameter], limit=0.5)
    expected = 0.0
    for step, value in enumerate((1.0, 2.0, 4.0)):
        parameter.data.fill_(value)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert float(average.shadow[0]) == pytest.approx(expected)
    average.swap()
    assert float(parameter) == pytest.approx(expected)
    average.swap()
    assert float(parameter) == 4.0
