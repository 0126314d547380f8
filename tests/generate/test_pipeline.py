"""The hot pipeline: equal to diffusers', exact under LoRA files coming and going, one picture for one seed."""

from dataclasses import replace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
)

from backend.errors import UserError
from backend.generate.lora_tags import Dose
from backend.generate.pipeline import FoldedWeight, GenerationModel, decode, denoise, resolve
from backend.generate.prompts import Request
from backend.generate.run import with_multipliers
from backend.lora.file import read_lora, write_lora
from backend.networks.lora import create_network_from_weights

REQUEST = Request("a red disc", "blurry", steps=4, scale=6.0, seed=11)


def weights(pipeline: GenerationModel) -> dict[str, torch.Tensor]:
    modules = (pipeline.model.unet, *pipeline.model.text_encoders)
    return {f"{n}.{name}": w.clone() for n, module in enumerate(modules) for name, w in module.state_dict().items()}


def pixels(pipeline: GenerationModel, request: Request = REQUEST) -> torch.Tensor:
    request = resolve(request, pipeline.model)
    seeds = range(request.seed, request.seed + request.count)
    return decode(pipeline.model, denoise(pipeline.model, request, seeds))


SPREAD = {"timestep_spacing": "linspace"}
STOCK = {
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    "euler": (EulerDiscreteScheduler, SPREAD),
    "euler_a": (EulerAncestralDiscreteScheduler, SPREAD),
    "dpmsolver++": (DPMSolverMultistepScheduler, SPREAD),
}


@pytest.mark.parametrize(
    ("sampler", "scale"), [("ddim", 6.0), ("ddim", 1.0), ("euler", 6.0), ("euler_a", 6.0), ("dpmsolver++", 6.0)]
)
def test_a_picture_with_a_lora_equals_that_of_diffusers(pipeline, another, lora_file, sampler, scale) -> None:
    path = lora_file()
    pipeline.set_loras([(path, 0.8)])
    ours = pixels(pipeline, replace(REQUEST, sampler=sampler, scale=scale))

    theirs = another().model
    scheduler_class, settings = STOCK[sampler]
    scheduler = scheduler_class.from_config(theirs.scheduler, **settings)
    stock = StableDiffusionPipeline(
        theirs.vae, theirs.text_encoders[0], theirs.tokenizers[0], theirs.unet, scheduler, None, None, None, False
    )
    stock.set_progress_bar_config(disable=True)

    def draw() -> torch.Tensor:
        found = stock(
            REQUEST.prompt,
            negative_prompt=REQUEST.negative,
            height=64,
            width=64,
            num_inference_steps=REQUEST.steps,
            guidance_scale=scale,
            generator=torch.Generator().manual_seed(REQUEST.seed),
            output_type="pt",
        )
        return found.images * 2 - 1

    without = draw()
    stock.load_lora_weights(path)
    stock.set_adapters(stock.get_active_adapters(), 0.8)
    with_lora = draw()
    assert (with_lora - without).abs().max() > 0.05
    torch.testing.assert_close(ours.clamp(-1, 1), with_lora, rtol=0, atol=1e-3)


def test_folded_weights_are_the_original_plus_the_scaled_deltas(pipeline, lora_file) -> None:
    loras = [(lora_file(0), 0.7), (lora_file(1, 8), -0.4)]
    original = {key: found.module.weight.clone() for key, found in pipeline.modules.items()}
    pipeline.set_loras(loras)
    files = [(read_lora(path), multiplier) for path, multiplier in loras]
    for key, found in pipeline.modules.items():
        expected = original[key]
        for file, multiplier in files:
            if key in file.layers:
                expected = expected + multiplier * file.layers[key].delta().view_as(expected)
        torch.testing.assert_close(found.module.weight, expected, rtol=0, atol=1e-6)
    assert {key for file, _ in files for key in file.layers} < set(original)


def test_no_order_of_changes_leaves_a_trace(pipeline, lora_file) -> None:
    first, second = lora_file(0), lora_file(1, 8)
    original = weights(pipeline)
    pipeline.set_loras([(first, 0.3)])
    direct = weights(pipeline)
    assert any(not torch.equal(direct[name], original[name]) for name in original)
    for loras in ([(second, 0.0)], [(second, 1.7)], [(first, 1.0), (second, -3.0)], [(first, 0.3)]):
        pipeline.set_loras(loras)
    again = weights(pipeline)
    assert all(torch.equal(again[name], direct[name]) for name in original)
    for loras in ([(first, 0.0)], []):
        pipeline.set_loras([(first, 5.0), (second, 2.0)])
        pipeline.set_loras(loras)
        back = weights(pipeline)
        assert all(torch.equal(back[name], original[name]) for name in original)


def test_a_slider_that_stays_costs_nothing(pipeline, lora_file, monkeypatch) -> None:
    first, second = lora_file(0), lora_file(1)
    pipeline.set_loras([(first, 0.5), (second, 0.0)])
    moved = []
    monkeypatch.setattr(FoldedWeight, "set", lambda self, layers: moved.append(layers))
    pipeline.set_loras([(first, 0.5), (second, 0.0)])
    pipeline.set_loras([(first, 0.5)])
    assert not moved and pipeline.loras == (Dose(first, 0.5),)
    pipeline.set_loras([(first, 0.6)])
    assert moved


def test_half_precision_weights_are_summed_in_float32(another, lora_file) -> None:
    pipeline = another(dtype=torch.bfloat16)
    path = lora_file()
    key, layer = next(iter(read_lora(path).layers.items()))
    before = pipeline.modules[key].module.weight.clone()
    pipeline.set_loras([(path, 0.01)])
    expected = (before.float() + 0.01 * layer.delta()).bfloat16()
    assert torch.equal(pipeline.modules[key].module.weight, expected)
    assert next(pipeline.model.vae.parameters()).dtype == torch.float32


def test_folding_does_what_the_network_does_with_conv_layers_too(pipeline, another, lora_file) -> None:
    path = lora_file(3, 4, name="conv", conv_dim=2, conv_alpha=1)
    pipeline.set_loras([(path, 0.6)])
    live = another()
    network, _ = create_network_from_weights(0.6, path, None, live.model.text_encoders, live.model.unet)
    network.apply_to(live.model.text_encoders, live.model.unet)
    plain = pixels(another())
    folded, hooked = pixels(pipeline), pixels(live)
    assert (folded - plain).abs().max() > 0.05
    torch.testing.assert_close(folded, hooked, rtol=0, atol=1e-3)


@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "dpm_2_a"])
def test_a_seed_gives_one_picture_wherever_it_stands_in_a_batch(pipeline, sampler) -> None:
    request = replace(REQUEST, sampler=sampler, count=3)
    together = pixels(pipeline, request)
    alone = torch.cat([pixels(pipeline, replace(request, seed=seed, count=1)) for seed in (11, 12, 13)])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-3)
    assert (together[0] - together[1]).abs().max() > 0.05
    assert torch.equal(pixels(pipeline, request), together)


def test_pictures_come_with_their_own_seeds_and_steps_are_counted_over_all(pipeline) -> None:
    steps = []
    found = list(pipeline.pictures(replace(REQUEST, count=3), 2, lambda done, total: steps.append((done, total))))
    assert [single.seed for single, _ in found] == [11, 12, 13]
    assert all(single.count == 1 and single.width == single.height == 64 for single, _ in found)
    assert steps == [(n, 8) for n in range(1, 9)]
    alone = pipeline.generate(replace(REQUEST, seed=12, count=1))[0]
    near = [abs(a - b) for a, b in zip(alone.tobytes(), found[1][1].tobytes(), strict=True)]
    assert max(near) <= 1


def test_without_a_seed_each_request_has_its_own(pipeline) -> None:
    seeds = {resolve(replace(REQUEST, seed=None), pipeline.model).seed for _ in range(3)}
    assert len(seeds) == 3


def test_sizes_off_the_latent_grid_are_refused_with_the_nearest(pipeline) -> None:
    with pytest.raises(UserError, match="height: 70 is not a multiple of 8; take 72"):
        resolve(replace(REQUEST, height=70), pipeline.model)
    picture = pixels(pipeline, replace(REQUEST, width=72, height=80, steps=1))
    assert picture.shape == (1, 3, 80, 72)


def test_a_lora_of_another_model_is_refused_and_changes_nothing(pipeline, lora_file, tmp_path) -> None:
    original = weights(pipeline)
    file = read_lora(lora_file())
    key, layer = next(iter(file.layers.items()))
    strange = {}
    for name, shape in (("lora_unet_no_such_module", layer.down.shape), (key, (layer.rank, 7))):
        strange[name] = tmp_path / f"{name}.safetensors"
        tensors = {
            f"{name}.lora_down.weight": torch.zeros(shape),
            f"{name}.lora_up.weight": torch.zeros_like(layer.up),
            f"{name}.alpha": torch.tensor(1.0),
        }
        write_lora(strange[name], tensors, {})
    with pytest.raises(UserError, match="1 of its keys match no module here: lora_unet_no_such_module"):
        pipeline.set_loras([(strange["lora_unet_no_such_module"], 1.0)])
    with pytest.raises(UserError, match=f"{key} is made for a weight of"):
        pipeline.set_loras([(lora_file(), 1.0), (strange[key], 1.0)])
    with pytest.raises(UserError, match=r"gone.safetensors: no such file"):
        pipeline.set_loras([(tmp_path / "gone.safetensors", 1.0)])
    after = weights(pipeline)
    assert pipeline.loras == () and all(torch.equal(after[name], original[name]) for name in original)


def test_a_file_that_changed_is_read_again(pipeline, lora_file, tmp_path) -> None:
    path = tmp_path / "live.safetensors"
    path.write_bytes(lora_file(0).read_bytes())
    pipeline.set_loras([(path, 1.0)])
    before = weights(pipeline)
    path.write_bytes(lora_file(1).read_bytes())  # of the same size
    pipeline.set_loras([(path, 1.0)])
    after = weights(pipeline)
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_a_file_overwritten_in_place_does_not_reach_what_was_read_from_it(pipeline, lora_file, tmp_path) -> None:
    path = tmp_path / "live.safetensors"
    path.write_bytes(lora_file(0).read_bytes())
    pipeline.set_loras([(path, 1.0)])
    (layers,) = [file.layers for file in pipeline._files.values()]
    before = {key: layer.delta() for key, layer in layers.items()}
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(path.stat().st_size // 2))
    assert all(torch.equal(layer.delta(), before[key]) for key, layer in layers.items())


def test_multipliers_of_a_prompt_replace_those_of_the_run_and_repeat_the_last() -> None:
    loras = [("a", 1.0), ("b", 0.5), ("c", 0.25)]
    assert with_multipliers(loras, None) == loras
    assert with_multipliers(loras, (0.1, -2.0)) == [("a", 0.1), ("b", -2.0), ("c", -2.0)]
    with pytest.raises(UserError, match="--am has 4 values for 3 files"):
        with_multipliers(loras, (1, 2, 3, 4))
