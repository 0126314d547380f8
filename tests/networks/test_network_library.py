"""The library's face on stock modules: files for use alone, merging in a precision, layers at a model's ends."""

import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from backend.errors import UserError
from backend.lora.file import tensors_of, write_lora
from backend.lora.layer import LoraLayer
from backend.networks import dylora, loha, lora
from backend.networks.base import Network
from backend.networks.lora import create_network, create_network_from_weights
from backend.networks.modules import find_modules, find_places
from tests.networks.tiny import make_model, make_xl


def random_file(network: Network) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.1, generator=generator)
    return network.state_dict()


def a_file(**arguments: object) -> dict[str, Tensor]:
    model = make_model()
    return random_file(create_network(1.0, 4, 2.0, None, model.text_encoder, model.unet, **arguments))


def test_the_signatures_are_those_of_the_reference() -> None:
    names = ["multiplier", "file", "vae", "text_encoder", "unet", "weights_sd", "for_inference"]
    for module in (lora, dylora, loha):
        assert list(inspect.signature(module.create_network_from_weights).parameters)[:7] == names
    merge = inspect.signature(Network.merge_to).parameters
    assert list(merge) == ["self", "text_encoder", "unet", "weights_sd", "dtype", "device"]
    assert merge["dtype"].default is None and merge["device"].default is None


def test_a_network_for_inference_only_acts() -> None:
    file = a_file()
    model, other = make_model(), make_model()
    for made, used in ((model, True), (other, False)):
        network, tensors = create_network_from_weights(
            0.5, None, None, made.text_encoder, made.unet, file, used, dropout=0.5, module_dropout=0.3
        )
        network.apply_to(made.text_encoder, made.unet)
        network.load_state_dict(tensors)
        network.train()
        network.begin_step(1, 0, [0, 1])
        network.to("cpu", dtype=torch.float32)
        assert any(parameter.requires_grad for parameter in network.parameters()) is not used
        made.network = network
    other.network.eval()
    assert torch.equal(model.predict(), other.predict())
    model.network.set_multiplier(0.8)
    other.network.set_multiplier(0.8)
    assert torch.equal(model.predict(), other.predict())


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_merging_rounds_to_the_precision_asked_for(dtype: torch.dtype | None) -> None:
    file, model = a_file(), make_model()
    before = model.tensors()
    network, _ = create_network_from_weights(0.5, None, None, model.text_encoder, model.unet, file, for_inference=True)
    network.merge_to(model.text_encoder, model.unet, file, dtype, "cpu")
    key = "lora_unet_mid_block_attentions_0_proj_in"
    delta = file[f"{key}.lora_up.weight"].flatten(1) @ file[f"{key}.lora_down.weight"].flatten(1) * (2.0 / 4 * 0.5)
    old, new = before["unet.mid_block.attentions.0.proj_in.weight"], model.unet.mid_block.attentions[0].proj_in.weight
    total = old + delta.view_as(old)
    wanted = total if dtype is None else total.to(dtype).float()
    assert new.dtype == torch.float32
    torch.testing.assert_close(new.detach(), wanted, rtol=0, atol=1e-7 if dtype is None else 0)
    assert torch.equal(model.unet.conv_in.weight, before["unet.conv_in.weight"])


def test_merging_a_part_of_a_file_merges_that_part() -> None:
    file, model = a_file(), make_model()
    before = model.tensors()
    network, _ = create_network_from_weights(1.0, None, None, model.text_encoder, model.unet, file, for_inference=True)
    network.merge_to(model.text_encoder, model.unet, {key: file[key] for key in file if key.startswith("lora_unet_")})
    after = model.tensors()
    changed = {name.partition(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"unet"} and not network.text_encoder_loras
    with pytest.raises(UserError, match="has no weights for"):
        network.merge_to(model.text_encoder, model.unet, dict(list(file.items())[-3:]))


def test_a_file_in_another_familys_spelling_is_loaded() -> None:
    file = a_file()
    spelled = {key.replace("lora_te_", "clip_l.").replace("lora_unet_", "diffusion_model."): file[key] for key in file}
    assert not any(key.startswith("lora_") for key in spelled)
    model = make_model()
    network, tensors = create_network_from_weights(1.0, None, None, model.text_encoder, model.unet, spelled)
    assert tensors.keys() == file.keys() and all(torch.equal(tensors[key], file[key]) for key in file)
    network.load_state_dict(spelled)


def at_the_ends(model: nn.Module, text: object) -> dict[str, LoraLayer]:
    """A layer for every place that no network is trained on."""
    generator = torch.Generator().manual_seed(5)
    layers = {}
    trained = find_modules(text, model)
    for key, found in find_places(text, model).items():
        weight = found.module.weight
        if key not in trained:
            down = torch.randn(2, *weight.shape[1:], generator=generator) * 0.1
            up = torch.randn(weight.shape[0], 2, *[1] * (weight.ndim - 2), generator=generator) * 0.1
            layers[key] = LoraLayer(down, up, 2.0)
    return layers


def test_layers_at_the_ends_of_a_model_act_and_merge(tmp_path: Path) -> None:
    model = make_model()
    layers = at_the_ends(model.unet, model.text_encoder)
    assert list(layers) == [f"lora_unet_{name}" for name in (
        "conv_in", "time_embedding_linear_1", "time_embedding_linear_2", "conv_out")]  # fmt: skip
    write_lora(tmp_path / "a.safetensors", tensors_of(layers))
    network, _ = create_network_from_weights(1.0, tmp_path / "a.safetensors", None, model.text_encoder, model.unet)
    plain = model.predict()
    network.apply_to(model.text_encoder, model.unet)
    applied = model.predict()
    network.remove()
    assert torch.equal(model.predict(), plain) and not torch.allclose(applied, plain, atol=1e-3)
    network.merge_to(model.text_encoder, model.unet)
    torch.testing.assert_close(model.predict(), applied, rtol=1e-3, atol=1e-4)


def test_sdxls_ends_are_spelled_as_in_its_files() -> None:
    model = make_xl()
    layers = at_the_ends(model.unet, model.text_encoders)
    unet = ("input_blocks_0_0", "time_embed_0", "time_embed_2", "label_emb_0_0", "label_emb_0_2", "out_2")
    assert set(layers) == {"lora_te2_text_projection", *(f"lora_unet_{name}" for name in unet)}
    network, _ = create_network_from_weights(1.0, None, None, model.text_encoders, model.unet, tensors_of(layers))
    plain = model.predict()
    network.apply_to(model.text_encoders, model.unet)
    applied = model.predict()
    network.remove()
    assert not torch.allclose(applied, plain, atol=1e-3)
    network.merge_to(model.text_encoders, model.unet)
    torch.testing.assert_close(model.predict(), applied, rtol=1e-3, atol=1e-4)


def test_networks_are_trained_on_the_places_of_before() -> None:
    model = make_model()
    network = create_network(1.0, 4, 1, None, model.text_encoder, model.unet, conv_dim=2)
    keys = {adapter.lora_name for adapter in network.adapters()}
    assert not keys & set(at_the_ends(model.unet, model.text_encoder))
