"""SDXL: names to the letter, and files that diffusers reads and writes."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from backend.errors import UserError
from backend.networks.base import Network
from backend.networks.lora import create_network, create_network_from_weights
from backend.networks.modules import find_modules
from tests.networks.test_network_diffusers import relative
from tests.networks.test_network_tables import described
from tests.networks.tiny import TinyXL, make_model, make_xl

DATA = Path(__file__).parents[1] / "data" / "keys"


@pytest.fixture(scope="module")
def sdxl() -> tuple[list[nn.Module], UNet2DConditionModel]:
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        first = CLIPTextModel(CLIPTextConfig(num_hidden_layers=12, hidden_size=768, intermediate_size=3072))
        second = CLIPTextModelWithProjection(
            CLIPTextConfig(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20)
        )
    return [first, second], unet


def trained_xl(model: TinyXL, **network_args: object) -> Network:
    generator = torch.Generator().manual_seed(1)
    network = create_network(1.0, 4, 3.0, None, model.text_encoders, model.unet, generator=generator, **network_args)
    with torch.no_grad():
        for adapter in network.adapters():
            adapter.lora_up.weight.normal_(std=0.1, generator=generator)
    return network


def test_network_is_the_references_to_the_letter(sdxl: tuple[list[nn.Module], nn.Module]) -> None:
    table = json.loads((DATA / "sdxl_lierla.json").read_text())
    network = create_network(1.0, table["network_dim"], table["network_alpha"], None, *sdxl)
    assert described(network) == list(table["modules"].items())
    assert (len(network.text_encoder_loras), len(network.unet_loras)) == (264, 722)


def test_c3lier_has_as_many_modules_of_each_kind_as_the_reference(sdxl: tuple[list[nn.Module], nn.Module]) -> None:
    network = create_network(1.0, 4, 1, None, *sdxl, conv_dim=4, conv_alpha=1)
    assert len(network.unet_loras) == 788
    assert sum(parameter.numel() for parameter in network.parameters()) == 15_909_632
    kinds = Counter(str(getattr(item.lora_down, "kernel_size", "linear")) for item in network.unet_loras)
    assert kinds == {"linear": 739, "(1, 1)": 11, "(3, 3)": 38}
    keys = {item.lora_name for item in network.unet_loras}
    assert {
        "lora_unet_input_blocks_1_0_in_layers_2",
        "lora_unet_input_blocks_3_0_op",
        "lora_unet_input_blocks_4_0_skip_connection",
        "lora_unet_middle_block_0_emb_layers_1",
        "lora_unet_middle_block_2_out_layers_3",
        "lora_unet_output_blocks_2_2_conv",
        "lora_unet_output_blocks_5_2_conv",
        "lora_unet_output_blocks_8_0_skip_connection",
    } <= keys


def test_blocks_hold_as_many_modules_as_in_the_reference(sdxl: tuple[list[nn.Module], nn.Module]) -> None:
    found = find_modules(None, sdxl[1]).values()
    attention = Counter(one.target.block for one in found if not one.target.conv_only)
    assert attention == {5: 22, 6: 22, 8: 102, 9: 102, 11: 102, 13: 102, 14: 102, 15: 102, 16: 22, 17: 22, 18: 22}
    assert set(Counter(one.target.block for one in found)) == set(range(2, 22))


@pytest.mark.parametrize("arguments", [{}, {"conv_dim": 2}], ids=["lierla", "c3lier"])
def test_a_saved_file_gives_the_same_output_in_diffusers(tmp_path: Path, arguments: dict) -> None:
    model, theirs = make_xl(), make_xl()
    network = trained_xl(model, **arguments)
    network.save_weights(tmp_path / "a.safetensors", None, {"ss_v2": "False"})
    pipeline = StableDiffusionXLPipeline(
        vae=AutoencoderKL(),
        text_encoder=theirs.text_encoders[0],
        text_encoder_2=theirs.text_encoders[1],
        tokenizer=None,
        tokenizer_2=None,
        unet=theirs.unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
    )
    pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors")
    plain = model.predict()
    network.apply_to(model.text_encoders, model.unet)
    for multiplier in (1.0, 0.5, 0.0, -1.0):
        network.set_multiplier(multiplier)
        pipeline.set_adapters(pipeline.get_active_adapters(), multiplier)
        assert relative(model.encode()[0], theirs.encode()[0]) < 1e-5
        assert relative(model.encode()[1], theirs.encode()[1]) < 1e-5
        assert relative(model.predict(), theirs.predict()) < 1e-4
        assert (relative(model.predict(), plain) > 0.01) == (multiplier != 0)


def test_a_full_size_c3lier_passes_the_strict_converter_of_diffusers(sdxl: tuple[list[nn.Module], nn.Module]) -> None:
    """It raises on every key that it cannot place; SDXL's U-Net has to have Diffusers' names first."""
    tensors = create_network(1.0, 1, 1, None, *sdxl, conv_dim=1).state_dict()
    tensors = {name: torch.zeros(tensor.shape) if tensor.is_meta else tensor for name, tensor in tensors.items()}
    mapped = _maybe_map_sgm_blocks_to_diffusers(dict(tensors), sdxl[1].config)
    converted, alphas = _convert_non_diffusers_lora_to_diffusers(mapped)
    assert len(converted) == 2 * (264 + 788) and len(alphas) == 264 + 788


def test_files_that_diffusers_writes_are_read(tmp_path: Path) -> None:
    model, theirs = make_xl(), make_xl()
    torch.manual_seed(3)
    settings = {"init_lora_weights": "gaussian", "r": 4, "lora_alpha": 6}
    theirs.unet.add_adapter(LoraConfig(target_modules=["to_q", "to_out.0", "proj_in", "conv1"], **settings))
    for encoder in theirs.text_encoders:
        encoder.add_adapter(LoraConfig(target_modules=["q_proj", "fc1"], **settings))
    parts = {"unet": theirs.unet, "text_encoder": theirs.text_encoders[0], "text_encoder_2": theirs.text_encoders[1]}
    with torch.no_grad():
        for part in parts.values():
            for name, parameter in part.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.1)
    layers = {
        f"{part}_lora_layers": convert_state_dict_to_diffusers(get_peft_model_state_dict(module))
        for part, module in parts.items()
    }
    metadata = {
        f"{part}_lora_adapter_metadata": module.peft_config["default"].to_dict() for part, module in parts.items()
    }
    StableDiffusionXLPipeline.save_lora_weights(tmp_path, **layers, **metadata)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    network, _ = create_network_from_weights(1.0, file, None, model.text_encoders, model.unet)
    assert {(item.lora_dim, item.alpha) for item in network.adapters()} == {(4, 6.0)}
    plain = model.predict()
    network.merge_to(model.text_encoders, model.unet)
    assert relative(model.predict(), theirs.predict()) < 1e-4 < relative(model.predict(), plain)


def test_kohya_names_in_diffusers_spelling_are_read() -> None:
    model = make_xl()
    network = trained_xl(model)
    names = {
        f"lora_unet_{one.target.path}".replace(".", "_"): key for key, one in find_modules(None, model.unet).items()
    }
    back = {key: name for name, key in names.items()}
    tensors = {
        f"{back.get(name.partition('.')[0], name.partition('.')[0])}.{name.partition('.')[2]}": tensor
        for name, tensor in network.state_dict().items()
    }
    assert any("down_blocks" in name for name in tensors) and not any("input_blocks" in name for name in tensors)
    loaded, _ = create_network_from_weights(1.0, None, None, model.text_encoders, model.unet, tensors)
    assert all(
        torch.equal(one, other)
        for one, other in zip(loaded.state_dict().values(), network.state_dict().values(), strict=True)
    )
    assert list(loaded.state_dict()) == list(network.state_dict())


def test_each_text_encoder_obeys_its_own_rate() -> None:
    network = trained_xl(make_xl())
    groups = network.parameter_groups([1e-5, 2e-5], 1e-4, 1.0)
    assert [(group.name, group.lr) for group in groups] == [
        ("text_encoder_1", 1e-5),
        ("text_encoder_2", 2e-5),
        ("unet", 1e-4),
    ]
    assert [group.name for group in network.parameter_groups([0.0, 2e-5], 1e-4, 1.0)] == ["text_encoder_2", "unet"]
    assert [group.lr for group in network.parameter_groups(3e-5, 1e-4, 1.0)] == [3e-5, 3e-5, 1e-4]
    with pytest.raises(UserError, match="text_encoder_lr: has 3 rates for 2 text encoder"):
        network.parameter_groups([1e-5] * 3, 1e-4, 1.0)


def test_a_file_of_another_family_is_refused_by_name() -> None:
    xl, sd = make_xl(), make_model()
    file = trained_xl(xl).state_dict()
    with pytest.raises(UserError, match="weights_sd: is made for Stable Diffusion XL, the model is "):
        create_network_from_weights(1.0, None, None, sd.text_encoder, sd.unet, file)
    network = create_network(1.0, 4, 1, None, sd.text_encoder, sd.unet)
    with pytest.raises(UserError, match="is made for Stable Diffusion 1 or .*, the model is Stable Diffusion XL"):
        create_network_from_weights(1.0, None, None, xl.text_encoders, xl.unet, network.state_dict())


def test_one_encoder_of_two_and_none_at_all_have_their_rates() -> None:
    model = make_xl()
    file = {name: value for name, value in trained_xl(model).state_dict().items() if name.startswith("lora_te1_")}
    network, _ = create_network_from_weights(1.0, None, None, model.text_encoders, model.unet, file)
    assert [(one.name, one.lr) for one in network.parameter_groups([1e-5, 2e-5], None, 1.0)] == [
        ("text_encoder_1", 1e-5)
    ]
    unet_only = create_network(1.0, 4, 1, None, None, model.unet)
    assert [one.name for one in unet_only.parameter_groups([1e-5, 2e-5], None, 1.0)] == ["unet"]
    text_only = create_network(1.0, 4, 1, None, model.text_encoders, None, block_dims=[1] * 23)
    assert len(text_only.text_encoder_loras) == 24
