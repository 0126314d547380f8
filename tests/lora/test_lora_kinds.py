"""What cannot be used is called by its name; bundled embeddings and single strange tensors do not spoil the rest."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from backend.__main__ import main
from backend.errors import UserError
from backend.lora.file import layers_of, parse, read_lora
from backend.lora.kinds import kind_of_file
from backend.lora.layer import LoraLayer
from backend.tools.inspect_lora import inspect

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
TO_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
DOTTED = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
ONE = torch.ones(4, 4)
PAIR = {f"{TO_Q}.lora_down.weight": torch.ones(2, 8), f"{TO_Q}.lora_up.weight": torch.ones(6, 2)}
KINDS: dict[str, tuple[str, ...]] = {
    "LoKr": (f"{TO_Q}.lokr_w1", f"{TO_Q}.lokr_w2_a", f"{TO_Q}.lokr_w2_b", f"{TO_Q}.alpha"),
    "IA3": (f"{TO_Q}.weight", f"{TO_Q}.on_input"),
    "OFT": (f"{TO_Q}.oft_blocks", f"{TO_Q}.alpha"),
    "full difference of weights": (f"{TO_Q}.diff", f"{TO_Q}.diff_b"),
    "full difference of norms": (f"{CONV}.w_norm", f"{CONV}.b_norm"),
    "GLoRA": (f"{TO_Q}.a1.weight", f"{TO_Q}.a2.weight", f"{TO_Q}.b1.weight", f"{TO_Q}.b2.weight"),
    "AdaLoRA": (f"{DOTTED}.lora_A", f"{DOTTED}.lora_B", f"{DOTTED}.lora_E"),
    "BOFT": (f"{DOTTED}.boft_R", f"{DOTTED}.boft_s"),
    "VeRA": (f"{DOTTED}.vera_lambda_b", f"{DOTTED}.vera_lambda_d"),
    "textual inversion embedding": ("emb_params",),
    "whole checkpoint": ("model.diffusion_model.out.2.weight", "first_stage_model.quant_conv.weight"),
    "VAE": ("encoder.conv_in.weight", "decoder.conv_out.weight"),
    "ControlNet": ("control_model.input_hint_block.0.weight",),
    "ControlNet-LoRA": ("lora_controlnet", "input_blocks.0.0.up"),
    "IP-Adapter": ("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"),
    "U-Net of a Diffusers folder": ("down_blocks.0.resnets.0.conv1.weight",),
    "text encoder": ("text_model.encoder.layers.0.mlp.fc1.weight",),
    "Flux": ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
             "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"),
    "Flux or": ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",),
    "Stable Diffusion 3": ("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight",
                           "lora_unet_joint_blocks_0_x_block_attn_qkv.lora_up.weight"),
    "a diffusion transformer": ("transformer.x_embedder.lora_A.weight",),
    "LoRA for a diffusion transformer": ("diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight",
                                         "diffusion_model.transformer_blocks.0.attn1.to_q.lora_B.weight"),
    "Lumina or Z-Image": ("diffusion_model.layers.0.attention.to_q.lora_A.weight",
                          "diffusion_model.layers.0.attention.to_q.lora_B.weight"),
    "AnimateDiff": ("down_blocks.0.motion_modules.0.temporal_transformer.proj_in.lora.down.weight",
                    "down_blocks.0.motion_modules.0.temporal_transformer.proj_in.lora.up.weight"),
    "cloneofsimo": ("unet:0:down", "unet:0:up", "text_encoder:0:down", "text_encoder:0:up"),
    "a language model": ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_called_by_its_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({name: ONE.clone() for name in KINDS[kind]}, path)
    for allow in (False, True):
        with pytest.raises(UserError, match=f"is an? .*{kind}") as caught:
            read_lora(path, allow)
        assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
    report = inspect(path)
    assert kind in report["kind"] and report["refused"] and report["modules"] > 0
    assert main(["inspect_lora", str(path)]) == 0


TEXT = "text_model.encoder.layers.0.mlp.fc1"


@pytest.mark.parametrize(
    "names",
    [
        ("lora_unet_double_blocks_0_img_attn_qkv", f"lora_te1_{TEXT.replace('.', '_')}"),
        ("transformer.single_transformer_blocks.0.attn.to_q", f"text_encoder.{TEXT}"),
        ("lora_te3_encoder_block_0_layer_0_SelfAttention_q", f"lora_te1_{TEXT.replace('.', '_')}"),
    ],
)
def test_a_lora_of_another_architecture_is_no_lora_for_its_clip(tmp_path: Path, names: tuple[str, str]) -> None:
    path = tmp_path / "a.safetensors"
    ends = (".lora_down.weight", ".lora_up.weight")
    save_file({name + end: ONE.clone() for name in names for end in ends}, path)
    for allow in (False, True):
        with pytest.raises(UserError, match="is a LoRA for (Flux|Stable Diffusion 3)"):
            read_lora(path, allow)
    assert "LoRA for" in inspect(path)["kind"]


def test_factors_of_whole_numbers_are_refused() -> None:
    with pytest.raises(UserError, match=f"{TO_Q} has factors of whole numbers"):
        parse({name: tensor.to(torch.int8) for name, tensor in PAIR.items()})
    assert parse(PAIR | {f"{TO_Q}.alpha": torch.tensor(1)}).layers[TO_Q].alpha == 1.0


def test_a_bias_is_no_adapters_name() -> None:
    pair = {f"{DOTTED}.lora_A.weight": torch.ones(2, 8), f"{DOTTED}.lora_B.weight": torch.ones(6, 2)}
    with pytest.raises(UserError, match=r"LoRA with a bias\).*give --allow_unmatched"):
        parse(pair | {f"{DOTTED}.lora_B.bias": torch.ones(6)})
    assert list(parse(pair | {f"{DOTTED}.lora_B.bias": torch.ones(6)}, allow_unmatched=True).layers) == [TO_Q]


def test_a_dora_is_no_lora_with_something_more(tmp_path: Path) -> None:
    magnitude = f"{DOTTED}.lora_magnitude_vector"
    for scale in (f"{TO_Q}.dora_scale", magnitude, f"{magnitude}.default.weight"):
        for allow in (False, True):
            with pytest.raises(UserError, match="is a DoRA"):
                parse(PAIR | {scale: torch.ones(6)}, allow_unmatched=allow)
    # One module of many can be left out, but then as a whole.
    other = {name.replace("to_q", "to_k"): tensor for name, tensor in PAIR.items()}
    with pytest.raises(UserError, match=r"1 of its names are no LoRA's \(DoRA\).*give --allow_unmatched"):
        parse(PAIR | other | {f"{TO_Q}.dora_scale": torch.ones(6)})
    file = parse(PAIR | other | {f"{TO_Q}.dora_scale": torch.ones(6)}, allow_unmatched=True)
    assert list(file.layers) == [TO_Q.replace("to_q", "to_k")] and "DoRA" in file.notes[0]


def test_what_only_shifts_a_bias_can_be_left_out_alone() -> None:
    tensors = PAIR | {f"{TO_Q}.diff_b": torch.ones(6), f"{CONV}.w_norm": torch.ones(6)}
    with pytest.raises(UserError, match="give --allow_unmatched"):
        parse(tensors)
    assert list(parse(tensors, allow_unmatched=True).layers) == [TO_Q]


def test_a_bundled_embedding_is_told_and_the_lora_used() -> None:
    words = {"bundle_emb.mydog.string_to_param.*": ONE, "bundle_emb.cat.clip_l": ONE, "bundle_emb.cat.clip_g": ONE}
    file = parse(PAIR | words)
    assert list(file.layers) == [TO_Q] and file.notes == (
        "has the embedding of mydog, cat in it, which is left out; its LoRA is used",
    )
    with pytest.raises(UserError, match="holds an embedding and no LoRA"):
        parse(words)


def test_pickles_that_are_no_lora_are_called_by_their_names(tmp_path: Path) -> None:
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": ONE}}, tmp_path / "word.pt")
    torch.save({768: ({"linear.weight": ONE}, {}), "step": 3}, tmp_path / "hyper.pt")
    torch.save([ONE, ONE], tmp_path / "list.pt")
    named = (("word.pt", "textual inversion"), ("hyper.pt", "hypernetwork"), ("list.pt", "list without names"))
    for name, kind in named:
        with pytest.raises(UserError, match=f"{name}: is a {kind}"):
            read_lora(tmp_path / name)
    torch.save(PAIR | {f"{TO_Q}.alpha": 3}, tmp_path / "number.pt")
    assert read_lora(tmp_path / "number.pt").layers[TO_Q].alpha == 3.0


@unhurried
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3]))
def test_cores_between_the_factors_are_applied_exactly(
    above: int, below: int, outputs: int, inputs: int, kernel: int
) -> None:
    generator = torch.Generator().manual_seed(above + 10 * below)
    up, down, mid = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((outputs, above, 1, 1), (below, inputs, 1, 1), (above, below, kernel, kernel))
    )
    tensors = {f"{CONV}.lora_{name}.weight": value for name, value in (("up", up), ("down", down), ("mid", mid))}
    picture = torch.randn(1, inputs, 5, 5, generator=generator, dtype=torch.float64)
    wanted = functional.conv2d(functional.conv2d(functional.conv2d(picture, down), mid, padding=kernel // 2), up)
    for alpha in (None, 3.0):
        layer = layers_of(tensors | ({} if alpha is None else {f"{CONV}.alpha": torch.tensor(alpha)}))[CONV]
        assert isinstance(layer, LoraLayer) and layer.shape == (outputs, inputs * kernel * kernel)
        scale = 1.0 if alpha is None else alpha / below
        made = functional.conv2d(picture, layer.delta(), padding=kernel // 2)
        torch.testing.assert_close(made, wanted * scale, rtol=1e-9, atol=1e-9)
        assert layer.rank == above and math.isclose(layer.alpha / layer.rank, scale)


@pytest.mark.parametrize("shape", [(2, 2), (2, 3, 3, 3), (), (0, 2, 3, 3), (2,)])
def test_a_core_that_does_not_fit_is_one_line(shape: tuple[int, ...]) -> None:
    tensors = {f"{CONV}.lora_down.weight": torch.ones(2, 4, 1, 1), f"{CONV}.lora_up.weight": torch.ones(4, 2, 1, 1)}
    with pytest.raises(UserError, match=f"{CONV}: .*do not fit"):
        layers_of(tensors | {f"{CONV}.lora_mid.weight": torch.ones(shape)})


TENSORS = st.builds(
    lambda shape, dtype: torch.ones(shape).to(dtype),
    st.lists(st.integers(0, 3), max_size=6),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn]),
)
NAMES = st.builds(
    lambda module, end: module + end,
    st.sampled_from([TO_Q, CONV, DOTTED, "", "lora_te_text_model_encoder_layers_0_mlp_fc1", "bundle_emb.x"])
    | st.text(),
    st.sampled_from([".lora_down.weight", ".lora_up.weight", ".lora_mid.weight", ".alpha", ".lora_A.weight",
                     ".lora_B.weight", ".hada_w1_a", ".hada_w1_b", ".hada_t1", ".dora_scale", ".lokr_w1", ".diff", ""])
    | st.text(),
)  # fmt: skip


@unhurried
@given(st.dictionaries(NAMES, TENSORS, max_size=8), st.booleans())
def test_any_table_of_tensors_is_a_lora_or_one_line(tensors: dict[str, Tensor], allow: bool) -> None:
    try:
        for layer in parse(tensors, {}, "file", allow).layers.values():
            assert layer.delta().numel() == math.prod(layer.shape) and math.isfinite(float(layer.norm()))
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 3000


@given(st.lists(st.text()))
def test_any_names_have_a_kind_or_none(names: list[str]) -> None:
    assert kind_of_file(names) is None or kind_of_file(names).startswith("a")
