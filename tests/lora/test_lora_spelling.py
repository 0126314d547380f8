"""Every spelling of every place of every family reads to the key that files of the family have."""

import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from backend.errors import UserError
from backend.lora.family import families_of, family_keys, family_of
from backend.lora.file import LoraFile, layers_of, parse
from backend.lora.fit import fitted
from backend.lora.spelling import read_name, split_name
from backend.tables.names import UNET_SHAPES, further_text_targets, further_unet_targets
from backend.tables.sizes import FULL_SIZE, SizedTarget, sized_targets
from tests.lora.spellings import ENDINGS, text_spellings, unet_spellings

FAMILIES = tuple(FULL_SIZE)
# A busy machine is no fault.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def spellings(place: SizedTarget, family: str) -> list[str]:
    if place.encoder is None:
        return unet_spellings(place.target, family)
    return text_spellings(place.target, f"te{place.encoder + 1}" if family == "sdxl" else "te")


def shapes(family: str) -> dict[str, tuple[int, int]]:
    """Of every weight of a full-size model that can have a layer, but for those at its ends."""
    return {place.target.key: (place.outputs, place.inputs) for place in sized_targets(FULL_SIZE[family])}


def layer(name: str, ends: tuple[str, str], outputs: int, inputs: int) -> dict[str, Tensor]:
    """A layer's tensors, which take no memory."""
    factors = (torch.empty(2, inputs, device="meta"), torch.empty(outputs, 2, device="meta"))
    return {name + end: factor for end, factor in zip(ends, factors, strict=True)}


@unhurried
@given(st.data())
def test_any_spelling_of_any_place_goes_to_its_key(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(FAMILIES))
    place = data.draw(st.sampled_from(sized_targets(FULL_SIZE[family])))
    name, ends = data.draw(st.sampled_from(spellings(place, family))), data.draw(st.sampled_from(ENDINGS))
    file = parse(layer(name, ends, place.outputs, place.inputs))
    layers, notes = fitted(file, shapes(family), "file", family)
    assert list(layers) == [place.target.key] and not notes
    assert layers[place.target.key].shape == (place.outputs, place.inputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_place_is_known_in_every_spelling(family: str) -> None:
    for place in sized_targets(FULL_SIZE[family]):
        for name in spellings(place, family):
            found = split_name(f"{name}.lora_down.weight")
            assert found is not None, name
            (key,) = family_keys({found[0]: (place.outputs, place.inputs)}, family).values()
            numbered = re.search(r"te\d|clip|text_encoder|embedders", name)
            bare = key if numbered else key.replace("lora_te1_", "lora_te2_")
            assert place.target.key in (key, bare), name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ends_of_a_model_are_places_in_every_spelling(family: str) -> None:
    for target in further_unet_targets(UNET_SHAPES[family]):
        for name in unet_spellings(target, family):
            found = split_name(f"{name}.lora_A.weight")
            assert found is not None and family_keys([found[0]], family)[found[0]] == target.key, name
    for target in further_text_targets(family, 1):
        for beginning in ("lora_te2_", "text_encoder_2.", "clip_g.transformer."):
            name = f"{beginning}text_projection"
            assert split_name(f"{name}.lora_A.weight") == (target.key, "down")


@unhurried
@given(st.data())
def test_shapes_decide_the_family_whatever_the_names(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(FAMILIES))
    ends = ("attn2.to_k", "attn2.to_v")
    readers = [one for one in sized_targets(FULL_SIZE[family]) if one.target.path.endswith(ends)]
    places = data.draw(st.lists(st.sampled_from(readers), min_size=1, max_size=8, unique_by=lambda one: one.target.key))
    tensors = {}
    for place in places:
        tensors |= layer(data.draw(st.sampled_from(spellings(place, family))), ENDINGS[0], place.outputs, place.inputs)
    file = parse(tensors)
    assert file.family == family
    assert set(file.layers) == {place.target.key for place in places}
    for other in set(FAMILIES) - {family}:
        with pytest.raises(UserError, match=r"is made for Stable Diffusion \w+, the model is Stable Diffusion \w+$"):
            fitted(file, shapes(other), "file", other)


def test_names_tell_where_no_shape_does() -> None:
    small = {"lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q": (32, 32)}
    assert families_of(small) == {"sd1", "sd2"} and family_of(small) is None
    assert family_of({"lora_unet_add_embedding_linear_1": (32, 32)}) == "sdxl"
    assert family_of({"lora_te_text_model_encoder_layers_15_mlp_fc1": (32, 32)}) is None
    assert families_of({"lora_unet_double_blocks_0_img_attn_qkv": (32, 32)}) == frozenset()
    layers = layers_of(layer("lora_unet_input_blocks_1_1_proj_in", ENDINGS[0], 32, 32))
    assert list(layers) == ["lora_unet_down_blocks_0_attentions_0_proj_in"]


def test_a_text_encoder_without_a_number_goes_where_its_shapes_fit() -> None:
    for index, (inner, hidden) in enumerate(((3072, 768), (5120, 1280))):
        file = parse(layer("base_model.model.encoder.layers.3.mlp.fc1", ENDINGS[1], inner, hidden))
        layers, _ = fitted(file, shapes("sdxl"), "file", "sdxl")
        assert list(layers) == [f"lora_te{index + 1}_text_model_encoder_layers_3_mlp_fc1"]
    small = {f"lora_te{n}_text_model_encoder_layers_0_mlp_fc1": (8 * n, 4 * n) for n in (1, 2)}
    layers, _ = fitted(parse(layer("encoder.layers.0.mlp.fc1", ENDINGS[1], 16, 8)), small, "file", "sdxl")
    assert list(layers) == ["lora_te2_text_model_encoder_layers_0_mlp_fc1"]


@pytest.mark.parametrize("name", ["", "x", "unet", "unet.", "lora_unet_", ".lora_down.weight", "base_model.model."])
def test_names_without_a_module_are_none(name: str) -> None:
    assert read_name(name) is None and read_name(f"{name}.weight") is None


@unhurried
@given(st.text(max_size=600))
def test_any_text_is_a_name_or_none(text: str) -> None:
    for name in (text, f"{text}.lora_down.weight", f"lora_unet_{text}.alpha", f"unet.{text}.lora_A.{text}.weight"):
        found = read_name(name)
        assert found is None or (found.key.startswith("lora_") and found.role in ("down", "up", "mid", "alpha"))


def test_alpha_and_open_clips_names_are_read_wherever_the_factors_are() -> None:
    to_q, key = "unet.mid_block.attentions.0.proj_in", "lora_unet_mid_block_attentions_0_proj_in"
    for middle in ("", ".lora", ".lora_linear_layer", "_lora"):
        assert split_name(f"{to_q}{middle}.alpha") == (key, "alpha")
    name = "conditioner.embedders.1.model.transformer.resblocks.3.mlp.c_fc.lora_A.weight"
    assert split_name(name) == ("lora_te2_text_model_encoder_layers_3_mlp_fc1", "down")


def test_several_adapters_in_one_file_are_named() -> None:
    name = "unet.mid_block.attentions.0.proj_in"
    one, two = (layer(name, (f".lora_A.{adapter}.weight", f".lora_B.{adapter}.weight"), 4, 4) for adapter in ("a", "b"))
    with pytest.raises(UserError, match=r"holds several adapters \(a, b\)"):
        layers_of(one | two)


def test_unknown_layers_are_left_out_where_that_is_allowed() -> None:
    known = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = layer(known, ENDINGS[0], 4, 4) | layer("lora_unet_nowhere", ENDINGS[0], 4, 4)
    file = parse(tensors)
    assert isinstance(file, LoraFile)
    with pytest.raises(UserError, match="1 of its keys match no module here: lora_unet_nowhere; give"):
        fitted(file, {known: (4, 4)}, "file")
    layers, notes = fitted(file, {known: (4, 4)}, "file", allow_unmatched=True)
    assert list(layers) == [known] and "lora_unet_nowhere; left out" in notes[0]
    with pytest.raises(UserError, match="2 of its keys match no module here"):
        fitted(file, {"lora_unet_other": (4, 4)}, "file", allow_unmatched=True)
