"""What PEFT itself saves acts here as it does there; what cannot be done is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import AdaLoraConfig, LoHaConfig, LoraConfig, get_peft_model
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from backend.errors import UserError
from backend.lora.file import read_lora
from backend.lora.fit import fitted
from backend.lora.peft_settings import settings_of
from backend.lora.source import stamp_of
from backend.networks.lora import create_network_from_weights
from backend.networks.modules import find_places, shapes_of
from backend.tools.inspect_lora import inspect
from tests.networks.tiny import make_model, make_xl

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
PATTERNS = ("to_q", "attn1.to_q", r"attn\d\.to_k", "down_blocks.*to_v", "^mid_block.*", "conv1", "proj_in", ".*")
PATHS = (TO_Q, "mid_block.resnets.0.conv1", "up_blocks.1.attentions.0.proj_in", f"{TO_Q[:-1]}v")
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 32},
    "rank-stabilised": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 3,
        "rank_pattern": {"attn1.to_q": 2, r".*up_blocks.*\.to_k": 6},
        "alpha_pattern": {r"^down_blocks.*\.to_q": 9, "to_k": 1, "conv1": 5},
    },
    "both": {"r": 4, "lora_alpha": 3, "use_rslora": True, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_k": 7}},
    "what has no effect": {"r": 2, "lora_alpha": 2, "init_lora_weights": "gaussian", "lora_dropout": 0.5},
}


def filled(model: nn.Module, config: Any, name: str = "default") -> nn.Module:
    """A model with an adapter of PEFT on it that is not at zero."""
    adapted = get_peft_model(model, config, adapter_name=name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1, generator=generator)
    return adapted


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_acts_as(path: Path, adapted: nn.Module, plain: nn.Module, text: bool = False) -> None:
    """What merging the saved adapter makes of a model is what PEFT makes of it."""
    other = (plain, None) if text else (None, plain)
    create_network_from_weights(1.0, path, None, *other, for_inference=True)[0].merge_to(*other)
    wanted = adapted.merge_and_unload().state_dict()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_a_saved_unets_adapter_acts_as_in_peft(tmp_path: Path, options: dict[str, Any], safe: bool) -> None:
    targets = ["to_q", "to_k", "to_out.0", "conv1", "conv_in", "proj_in", "time_emb_proj", "linear_1", "conv_out"]
    adapted = filled(make_model().unet, LoraConfig(target_modules=targets, **options))
    adapted.save_pretrained(tmp_path, safe_serialization=safe)
    assert_acts_as(tmp_path, adapted, make_model().unet)


def test_the_file_itself_and_a_named_adapters_folder_act_too(tmp_path: Path) -> None:
    adapted = filled(make_model().unet, LoraConfig(target_modules=["to_q"], r=4, lora_alpha=32), "style")
    adapted.save_pretrained(tmp_path)
    by_folder = read_lora(tmp_path).layers
    assert by_folder.keys() == read_lora(tmp_path / "style" / "adapter_model.safetensors").layers.keys()
    assert {layer.alpha for layer in by_folder.values()} == {32.0}
    assert_acts_as(tmp_path / "style", adapted, make_model().unet)


@pytest.mark.parametrize("index", [None, 0, 1], ids=["sd1", "sdxl, first", "sdxl, second"])
def test_a_text_encoders_adapter_acts_as_in_peft(tmp_path: Path, index: int | None) -> None:
    made = make_model().text_encoder if index is None else make_xl().text_encoders[index]
    targets = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", *(["text_projection"] if index == 1 else [])]
    config = LoraConfig(target_modules=targets, r=3, lora_alpha=7, alpha_pattern={"layers.1.*": 2})
    adapted = filled(made, config)
    adapted.save_pretrained(tmp_path)
    if index is None:
        assert_acts_as(tmp_path, adapted, make_model().text_encoder, text=True)
        return
    model = make_xl()
    network, _ = create_network_from_weights(1.0, tmp_path, None, model.text_encoders, model.unet)
    network.merge_to(model.text_encoders, model.unet)
    wanted = adapted.merge_and_unload().state_dict()
    for name, value in model.text_encoders[index].state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("effective", [False, True], ids=["flat", "with cores"])
def test_pefts_loha_acts_as_in_peft(tmp_path: Path, effective: bool) -> None:
    config = LoHaConfig(target_modules=["to_q", "conv1"], r=2, alpha=5, use_effective_conv2d=effective)
    adapted = filled(make_model().unet, config)
    adapted.save_pretrained(tmp_path)
    plain = make_model().unet
    places = find_places(None, plain)
    layers, _ = fitted(read_lora(tmp_path), shapes_of(places), "file")
    wanted = adapted.merge_and_unload().state_dict()
    for key, layer in layers.items():
        found = places[key]
        total = found.module.weight + layer.delta().view_as(found.module.weight)
        torch.testing.assert_close(total, wanted[f"{found.target.path}.weight"], rtol=1e-4, atol=1e-5)
    assert {layer.rank for layer in layers.values()} == {2} and len(layers) > 20


def test_parts_in_folders_of_their_own_are_one_lora(tmp_path: Path) -> None:
    model = make_model()
    for name, module, target in (("unet", model.unet, "to_q"), ("text_encoder", model.text_encoder, "fc1")):
        alpha = 8 if name == "unet" else 2
        filled(module, LoraConfig(target_modules=[target], r=4, lora_alpha=alpha)).save_pretrained(tmp_path / name)
    found = {key.split("_")[1]: layer.alpha for key, layer in read_lora(tmp_path).layers.items()}
    assert found == {"unet": 8.0, "te": 2.0}


def write(folder: Path, config: object, rank: int = 4) -> Path:
    """An adapter with one module, as PEFT has it, and settings of any kind."""
    factors = {"A": torch.ones(rank, 32), "B": torch.ones(32, rank)}
    folder.mkdir(exist_ok=True)
    names = {f"base_model.model.{TO_Q}.lora_{half}.weight": factor for half, factor in factors.items()}
    torch.save(names, folder / "adapter_model.bin")
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "adapter_config.json").write_text(text, "utf-8", "surrogatepass")
    return folder


REFUSED = {
    "use_dora": True,
    "bias": "all",
    "modules_to_save": ["conv_in"],
    "lora_bias": True,
    "target_parameters": ["x"],
    "layer_replication": [[0, 2]],
    "trainable_token_indices": [1],
    "use_bdlora": {"nblocks": 2},
    "kasa_config": {},
    "init_lora_weights": "pissa_niter_4",
    "peft_type": "LOKR",
    "alpha_pattern": {"(": 2},
    "rank_pattern": [1],
    "lora_alpha": "16",
    "use_rslora": "yes",
    "r": 8,
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_cannot_be_followed_are_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as caught:
        read_lora(write(tmp_path, {"peft_type": "LORA", "r": 4, name: REFUSED[name]}))
    message = {"r": "rank 8", "alpha_pattern": "regular expression"}.get(name, name)
    assert message in str(caught.value) and str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_kind_of_an_adapter_is_told_before_its_settings(tmp_path: Path) -> None:
    for config, kind in ((LoraConfig(target_modules=["to_q"], use_dora=True), "DoRA"),
                         (AdaLoraConfig(target_modules=["to_q"], total_step=9), "AdaLoRA")):  # fmt: skip
        folder = tmp_path / kind
        get_peft_model(make_model().unet, config).save_pretrained(folder)
        with pytest.raises(UserError, match=f"is an? {kind}"):
            read_lora(folder)
        assert inspect(folder)["kind"] == kind


BROKEN = ("", "[1]", "{", "[" * 100_000, '{"r": 1e999}', '{"\\ud800": 1}', '{"lora_alpha": NaN}', "9" * 5000)


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_config_is_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError) as caught:
        read_lora(write(tmp_path, text))
    assert "adapter_config.json" in str(caught.value) and "\n" not in str(caught.value)


def test_folders_that_hold_no_adapter_or_several_say_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder without adapter_config.json"):
        read_lora(tmp_path)
    write(tmp_path / "a", {"r": 4})
    assert len(read_lora(tmp_path).layers) == 1
    write(tmp_path / "b", {"r": 4})
    with pytest.raises(UserError, match=r"has several adapters \(a, b\); name the folder of one"):
        read_lora(tmp_path)
    before = stamp_of(tmp_path / "a")
    write(tmp_path / "a", {"r": 4, "lora_alpha": 123})
    assert stamp_of(tmp_path / "a") != before


@unhurried
@pytest.mark.filterwarnings("ignore:The following:RuntimeWarning")
@given(st.data())
def test_any_settings_give_pefts_own_scale(data: st.DataObject) -> None:
    number, rank = st.integers(1, 64), st.integers(1, 16)
    config = {
        "r": data.draw(rank),
        "lora_alpha": data.draw(number),
        "use_rslora": data.draw(st.booleans()),
        "alpha_pattern": data.draw(st.dictionaries(st.sampled_from(PATTERNS), number, max_size=4)),
        "rank_pattern": data.draw(st.dictionaries(st.sampled_from(PATTERNS), rank, max_size=4)),
    }
    path = data.draw(st.sampled_from(PATHS))
    ranks, alphas = config["rank_pattern"], config["alpha_pattern"]
    own = ranks.get(get_pattern_key(ranks.keys(), path), config["r"])
    layer = nn.Module()
    parent = layer
    for piece in path.split(".")[:-1]:
        parent.add_module(piece, nn.Module())
        parent = parent.get_submodule(piece)
    parent.add_module(path.rpartition(".")[2], nn.Linear(16, 16))
    adapted = get_peft_model(layer, LoraConfig(target_modules=[path.rpartition(".")[2]], **config))
    scale = adapted.base_model.model.get_submodule(path).scaling["default"]
    assert settings_of(config).alpha_of(path, own) / own == pytest.approx(scale)
    assert alphas.get(get_pattern_key(alphas.keys(), path), config["lora_alpha"]) > 0


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(st.text(max_size=8), LEAVES, max_size=3)
NAMES = ("r", "lora_alpha", "alpha", "use_rslora", "alpha_pattern", "rank_pattern", "peft_type", "init_lora_weights")


@unhurried
@given(st.dictionaries(st.sampled_from(NAMES), JSON))
def test_any_settings_are_followed_or_refused(table: dict[str, Any]) -> None:
    try:
        found = settings_of(table)
        assert found.alpha == found.alpha and (found.rank is None or found.rank > 0)
    except (ValueError, TypeError) as error:
        assert len(str(error)) < 400
