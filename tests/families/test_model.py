"""Models as values: loading, conditioning, latents, hashes."""

import hashlib
from pathlib import Path

import torch

from backend.families.base import Conditioning, Model, load_model
from backend.families.build import random_model


def test_a_loaded_model_is_frozen_and_evaluating(single_file: Path) -> None:
    model = load_model(single_file)
    assert (model.dtype, str(model.device)) == (torch.float32, "cpu")
    for module in model.modules():
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert not any(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()])


def test_types_on_loading(single_file: Path) -> None:
    stored = load_model(single_file, dtype=None)
    assert stored.dtype == torch.float16
    wide = load_model(single_file, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in wide.text_encoders[0].parameters()} == {torch.bfloat16}
    exact = load_model(single_file)
    for name, value in exact.unet.state_dict().items():
        assert torch.equal(value, stored.unet.state_dict()[name].float())


def test_a_loaded_model_can_be_trained_and_changed_without_touching_its_file(single_file: Path) -> None:
    before = hashlib.sha256(single_file.read_bytes()).hexdigest()
    model = load_model(single_file, dtype=None)
    for module in model.modules():
        for parameter in module.parameters():
            parameter.add_(1)
    assert hashlib.sha256(single_file.read_bytes()).hexdigest() == before


def test_random_models_follow_their_seed() -> None:
    first, again, other = (random_model(seed).unet.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv_in.weight"], other["conv_in.weight"])


def test_a_random_model_is_of_the_demo_sizes_and_tame(model: Model) -> None:
    sizes = [sum(parameter.numel() for parameter in module.parameters()) for module in model.modules()]
    assert sizes == [6_872_036, 1_732_679, 3_267_136]
    conditioning = model.family.encode(model, model.family.tokenize(model, ["a cat", "a dog"]))
    assert conditioning.hidden.shape == (2, 77, 64)
    noise = model.family.predict(model, torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), conditioning)
    assert noise.shape == (2, 4, 8, 8)
    assert 0.05 < noise.std() < 20


def test_captions_reach_the_prediction_and_gradients_the_encoder(model: Model) -> None:
    family, noisy, steps = model.family, torch.ones(1, 4, 8, 8), torch.tensor([10])
    weight = model.text_encoders[0].encoder.layers[0].mlp.fc1.weight.requires_grad_(True)
    one, two = (family.encode(model, family.tokenize(model, [caption])) for caption in ("a cat", "two red dogs"))
    first, second = family.predict(model, noisy, steps, one), family.predict(model, noisy, steps, two)
    assert (first - second).abs().max() > 1e-4
    first.square().mean().backward()
    assert weight.grad.abs().max() > 0
    weight.requires_grad_(False).grad = None


def test_latents_are_the_mode_or_a_sample(model: Model) -> None:
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    encode = model.family.encode_images
    mode = encode(model, pixels)
    assert mode.shape == (2, 4, 8, 8)
    assert torch.equal(mode, encode(model, pixels))
    posterior = model.vae.encode(pixels).latent_dist
    assert torch.allclose(mode, posterior.mean * 0.18215)
    sample = encode(model, pixels, torch.Generator().manual_seed(5))
    spread = (sample - mode) / (posterior.std * 0.18215)
    assert 0.8 < spread.std() < 1.2


def test_a_sampled_latent_does_not_depend_on_its_batch(model: Model) -> None:
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    both = model.family.encode_images(model, pixels, [torch.Generator().manual_seed(seed) for seed in (7, 8)])
    alone = model.family.encode_images(model, pixels[1:], [torch.Generator().manual_seed(8)])
    assert torch.allclose(both[1:], alone, atol=1e-5)
    assert not torch.allclose(both[:1], model.family.encode_images(model, pixels[:1]), atol=1e-5)


def test_pictures_are_encoded_and_decoded_without_gradients(model: Model) -> None:
    model.vae.requires_grad_(True)
    latents = model.family.encode_images(model, torch.zeros(1, 3, 64, 64))
    pixels = model.family.decode_latents(model, latents)
    model.vae.requires_grad_(False)
    assert not latents.requires_grad and not pixels.requires_grad


def test_conditioning_moves_repeats_and_joins() -> None:
    one = Conditioning(torch.ones(1, 2, 3), torch.ones(1, 4), {"size": torch.ones(1, 6)})
    two = Conditioning(torch.zeros(1, 2, 3), torch.zeros(1, 4), {"size": torch.zeros(1, 6)})
    both = Conditioning.cat([one, two])
    assert both.hidden[:, 0, 0].tolist() == both.pooled[:, 0].tolist() == both.extra["size"][:, 0].tolist() == [1, 0]
    assert both.repeat(2).extra["size"][:, 0].tolist() == [1, 1, 0, 0]
    assert both[1:].pooled.tolist() == two.pooled.tolist()
    half = both.to(dtype=torch.float16)
    assert half.hidden.dtype == half.pooled.dtype == half.extra["size"].dtype == torch.float16
    assert Conditioning.cat([Conditioning(one.hidden), Conditioning(two.hidden)]).pooled is None
