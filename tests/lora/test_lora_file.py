"""LoRA files: every spelling gives the same layers, what is written is whole, wrong files are one clear line."""

import json
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from backend.errors import UserError
from backend.header import read_header
from backend.lora.file import LoraFile, layers_of, read_lora, tensors_of, write_lora
from backend.lora.layer import LoraLayer
from backend.lora.metadata import file_hashes

REFERENCE = Path(__file__).parents[1] / "data" / "sd15_c3lier_dim1.safetensors"
TO_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
TO_OUT = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
FC1 = "lora_te_text_model_encoder_layers_0_mlp_fc1"
Q_PROJ = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


def small_tensors(alpha: float = 2.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    layers = {
        key: LoraLayer(torch.randn(4, 8, generator=generator), torch.randn(6, 4, generator=generator), alpha)
        for key in (FC1, TO_Q)
    }
    return tensors_of(layers)


def assert_same_layers(one: dict[str, LoraLayer], other: dict[str, LoraLayer]) -> None:
    assert set(one) == set(other)
    for key, layer in one.items():
        assert layer.alpha == other[key].alpha, key
        assert torch.equal(layer.down, other[key].down) and torch.equal(layer.up, other[key].up), key


def test_the_references_file_is_taken_whole() -> None:
    found = read_lora(REFERENCE)
    assert len(found.layers) == 350
    assert {layer.rank for layer in found.layers.values()} == {1}
    assert {layer.alpha for layer in found.layers.values()} == {0.5}
    assert found.metadata["ss_base_model_version"] == "sd_v1"


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt", ".pt"])
def test_what_is_written_is_read_again(tmp_path: Path, ending: str) -> None:
    tensors = small_tensors()
    write_lora(tmp_path / f"a{ending}", tensors, {"ss_network_dim": "4"})
    found = read_lora(tmp_path / f"a{ending}")
    assert_same_layers(found.layers, layers_of(tensors))
    assert found.metadata.get("ss_network_dim") == ("4" if ending == ".safetensors" else None)
    assert os.listdir(tmp_path) == [f"a{ending}"]


def test_saving_what_was_loaded_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    write_lora(first, small_tensors(), {f"ss_{number}": str(number) for number in range(20)})
    found = read_lora(first)
    write_lora(second, tensors_of(found.layers), found.metadata)
    assert first.read_bytes() == second.read_bytes()


def test_the_librarys_reader_agrees_with_what_is_written(tmp_path: Path) -> None:
    tensors = small_tensors()
    write_lora(tmp_path / "a.safetensors", tensors, {"ss_training_comment": 'quotes " and\nbreaks, umlauts äöü, 絵'})
    loaded = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert set(loaded) == set(tensors) and all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    with safetensors.safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.metadata() == read_header(tmp_path / "a.safetensors").metadata


def test_hashes_are_those_of_the_precision_that_is_written(tmp_path: Path) -> None:
    stale = {"sshs_model_hash": "stale", "sshs_legacy_hash": "stale"}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        write_lora(tmp_path / "a.safetensors", small_tensors(), stale, dtype)
        written = read_header(tmp_path / "a.safetensors").metadata
        assert written == file_hashes(tmp_path / "a.safetensors")


def test_half_precision_weights_keep_alpha_exact(tmp_path: Path) -> None:
    write_lora(tmp_path / "a.safetensors", small_tensors(alpha=0.3), None, torch.bfloat16)
    layer = read_lora(tmp_path / "a.safetensors").layers[TO_Q]
    assert layer.down.dtype == torch.bfloat16
    assert layer.alpha == pytest.approx(0.3, rel=1e-7)


def test_a_missing_alpha_is_the_rank_and_any_dtype_of_alpha_is_read() -> None:
    tensors = {name: tensor for name, tensor in small_tensors().items() if not name.endswith(".alpha")}
    assert {layer.alpha for layer in layers_of(tensors).values()} == {4.0}
    for dtype in (torch.int64, torch.float16, torch.bfloat16, torch.float64):
        assert layers_of(tensors | {f"{TO_Q}.alpha": torch.tensor(3, dtype=dtype)})[TO_Q].alpha == 3.0
    assert layers_of(tensors | {f"{TO_Q}.alpha": torch.tensor([3.0])})[TO_Q].alpha == 3.0


SPELLINGS = {
    "peft": (
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_B.weight",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight",
    ),
    "peft, flat text encoder, adapter named": (
        "unet.base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.default.weight",
        "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_B.default.weight",
        "text_encoder.encoder.layers.0.mlp.fc1.lora_A.default.weight",
        "text_encoder.encoder.layers.0.self_attn.q_proj.lora_B.default.weight",
    ),
    "diffusers": (
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.lora.up.weight",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.down.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight",
    ),
    "processors": (
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.down.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.up.weight",
    ),
}


@pytest.mark.parametrize("names", SPELLINGS.values(), ids=SPELLINGS)
def test_other_programs_names_are_understood(names: tuple[str, ...]) -> None:
    to_q_down, to_out_up, fc1_down, q_proj_up = names
    other = {True: "up", False: "down"}
    tensors = {}
    for name, is_up in ((to_q_down, False), (to_out_up, True), (fc1_down, False), (q_proj_up, True)):
        swapped = name.replace("lora_B", "lora_A") if is_up else name.replace("lora_A", "lora_B")
        swapped = swapped.replace(f".{other[is_up]}.weight", f".{other[not is_up]}.weight")
        tensors[name] = torch.ones(6, 4) if is_up else torch.ones(4, 8)
        tensors[swapped] = torch.ones(4, 8) if is_up else torch.ones(6, 4)
    layers = layers_of(tensors)
    assert set(layers) == {TO_Q, TO_OUT, FC1, Q_PROJ}
    assert all(layer.down.shape == (4, 8) and layer.up.shape == (6, 4) for layer in layers.values())


def test_alpha_is_taken_from_pefts_settings() -> None:
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_{}"
    tensors = {
        f"{prefix}.lora_{half}.weight": torch.ones((4, 8) if half == "A" else (6, 4))
        for prefix in (f"unet.{path.format('q')}", f"unet.{path.format('k')}", "text_encoder.encoder.layers.0.mlp.fc1")
        for half in "AB"
    }
    settings = {"unet.lora_alpha": 16, "unet.alpha_pattern": {path.format("k"): 2}, "text_encoder.lora_alpha": 3}
    layers = layers_of(tensors, {"lora_adapter_metadata": json.dumps(settings)})
    assert [layer.alpha for layer in layers.values()] == [16.0, 2.0, 3.0]
    settings = {"text_encoder.use_rslora": True, "text_encoder.lora_alpha": 3}
    layers = layers_of(tensors, {"lora_adapter_metadata": json.dumps(settings)})
    assert [layer.alpha for layer in layers.values()] == [4.0, 4.0, 6.0]


def one_bad(change: dict[str, Tensor], drop: str = "") -> dict[str, Tensor]:
    return {name: tensor for name, tensor in small_tensors().items() if name != drop} | change


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (one_bad({"model.out.2.weight": torch.ones(3)}), "no LoRA's.*model.out.2.weight"),
        (one_bad({f"{TO_Q}.hada_w1_a": torch.ones(3)}), f"{TO_Q} mixes factors of different kinds"),
        (one_bad({f"{TO_Q}.lora_A.weight": torch.ones(4, 8)}), "stand there twice"),
        (one_bad({}, drop=f"{TO_Q}.lora_up.weight"), f"{TO_Q} lacks its up weight"),
        (one_bad({f"{TO_Q}.lora_up.weight": torch.ones(6, 5)}), f"{TO_Q}: .*do not fit"),
        (one_bad({f"{TO_Q}.lora_up.weight": torch.full((6, 4), torch.nan)}), f"{TO_Q} has numbers that are not finite"),
        (one_bad({f"{TO_Q}.alpha": torch.ones(2)}), f"{TO_Q} has an alpha"),
        ({}, "holds no LoRA"),
    ],
    ids=["checkpoint", "loha", "twice", "half", "shapes", "nan", "alpha", "empty"],
)  # fmt: skip
def test_a_wrong_table_of_tensors_is_refused_by_name(tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        layers_of(tensors)


def test_wrong_files_are_refused_with_their_name(tmp_path: Path) -> None:
    whole = REFERENCE.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:100_000])
    (tmp_path / "header.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not json at all.")
    (tmp_path / "hostile.safetensors").write_bytes(b"\xff" * 64)
    (tmp_path / "short.safetensors").write_bytes(b"abc")
    (tmp_path / "text.ckpt").write_text("this is no pickle")
    torch.save({"a": print}, tmp_path / "code.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    names = ["cut.safetensors", "header.safetensors", "hostile.safetensors", "short.safetensors"]
    for name in [*names, "text.ckpt", "code.pt", "list.pt", "missing.safetensors", "lora.onnx"]:
        with pytest.raises(UserError) as caught:
            read_lora(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    for name in [*names, "missing.safetensors"]:
        with pytest.raises(UserError, match=name):
            read_header(tmp_path / name)


def test_the_header_alone_tells_names_shapes_and_metadata() -> None:
    header = read_header(REFERENCE)
    assert len(header.tensors) == 1050
    info = header.tensors["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"]
    assert (info.dtype, info.shape, info.end - info.start) == ("F16", (1, 768), 1536)
    assert header.metadata["ss_network_alpha"] == "0.5"


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(REFERENCE, tmp_path / "a.safetensors")

    def full_disk(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("backend.replacing.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_lora(tmp_path / "a.safetensors", small_tensors())
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert isinstance(read_lora(tmp_path / "a.safetensors"), LoraFile)
    assert len(read_lora(tmp_path / "a.safetensors").layers) == 350


@pytest.mark.parametrize(
    "settings",
    [
        '{"unet.lora_alpha": NaN}',
        '{"unet.lora_alpha": Infinity}',
        '{"unet.alpha_pattern": [1]}',
        '{"unet.alpha_pattern": {"to_q": "x"}}',
        '{"unet.alpha_pattern": {"to_q": null}}',
        '{"unet.lora_alpha": ' + "9" * 400 + "}",
        "{broken",
        "[" * 100_000,
    ],
)
def test_settings_that_make_no_sense_are_one_line(settings: str) -> None:
    tensors = {"unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.ones(2, 4)}
    tensors["unet.mid_block.attentions.0.proj_in.lora_B.weight"] = torch.ones(4, 2)
    with pytest.raises(UserError, match="PEFT|finite"):
        layers_of(tensors, {"lora_adapter_metadata": settings})


def test_eight_bit_floats_are_read_and_other_tensors_refused() -> None:
    factors = {"down": torch.ones(2, 4), "up": torch.full((3, 2), 0.5)}
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.float64):
        tensors = {f"lora_unet_x.lora_{name}.weight": value.to(dtype) for name, value in factors.items()}
        tensors["lora_unet_x.alpha"] = torch.tensor(2.0).to(dtype)
        (layer,) = layers_of(tensors).values()
        torch.testing.assert_close(layer.delta().float(), torch.ones(3, 4))
        torch.testing.assert_close(layer.norm().float(), layer.delta().norm().float())
    for wrong in (torch.ones(2, 4).to_sparse(), torch.ones(2, 4, dtype=torch.complex64)):
        with pytest.raises(UserError, match="sparse or complex"):
            layers_of({"lora_unet_x.lora_down.weight": wrong, "lora_unet_x.lora_up.weight": torch.ones(3, 2)})


def test_hostile_names_stay_one_short_line(tmp_path: Path) -> None:
    names = ["lora_unet_\n\x1b[31mred.lora_down.weight", "lora_unet_" + "_a" * 100_000 + ".lora_down.weight"]
    with pytest.raises(UserError) as caught:
        layers_of({name: torch.ones(1, 1) for name in names})
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value) and len(str(caught.value)) < 500
    torch.save({1: torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="no table of tensors"):
        read_lora(tmp_path / "a.pt")
