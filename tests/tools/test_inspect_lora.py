"""inspect_lora: what it says about files of every kind is what is in them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.__main__ import main
from backend.lora.places import block_of
from backend.networks import loha, lora
from backend.networks.lora import create_network
from backend.tools.inspect_lora import inspect
from tests.networks.tiny import make_model, make_xl

REFERENCE = Path(__file__).parents[1] / "data" / "sd15_c3lier_dim1.safetensors"


def test_the_references_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect_lora", str(REFERENCE), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["kind"], report["family"], report["modules"]) == ("LoRA-C3Lier", "sd1", 350)
    assert report["ranks"] == {"1": 350} and report["alphas"] == {"0.5": 350}
    assert [block["modules"] for block in report["blocks"].values()] == [
        72, 15, 15, 1, 16, 15, 1, 16, 15, 1, 3, 3, 18, 4, 4, 5, 16, 16, 17, 16, 16, 17, 16, 16, 16,
    ]  # fmt: skip
    assert list(report["blocks"]) == ["te", *(f"unet {number}" for number in range(1, 25))]
    assert report["hashes"]["right"] is True
    layer = load_file(REFERENCE)
    key = "lora_unet_down_blocks_0_downsamplers_0_conv"
    delta = layer[f"{key}.lora_up.weight"].flatten(1).float() @ layer[f"{key}.lora_down.weight"].flatten(1).float()
    assert report["blocks"]["unet 3"]["norm_max"] == pytest.approx((delta * 0.5).norm().item(), rel=1e-4)


def test_text_names_what_is_there_and_hashes_that_are_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model()
    network = create_network(1.0, 4, 2, None, model.text_encoder, model.unet, block_dims=[2] * 12 + [8] * 13)
    file = tmp_path / "a.safetensors"
    network.save_weights(file, torch.float16, {"ss_network_module": "networks.lora", "ss_tag": "<b>" * 99})
    assert main(["inspect_lora", str(file)]) == 0
    out = capsys.readouterr().out
    assert "networks.lora" in out and "hashes      right" in out and "float16" in out
    assert max(len(line) for line in out.splitlines()) < 200
    assert "ranks       2 (72), 4 (12), 8 (120)" in out
    tensors = load_file(file)
    tensors[next(iter(tensors))] += 1
    save_file(tensors, file, inspect(file)["metadata"])
    assert main(["inspect_lora", str(file)]) == 0
    assert "hashes      WRONG" in capsys.readouterr().out


def test_other_kinds_and_families(tmp_path: Path) -> None:
    xl = make_xl()
    lora.create_network(1.0, 4, 2, None, xl.text_encoders, xl.unet, conv_dim=2).save_weights(tmp_path / "xl.ckpt")
    report = inspect(tmp_path / "xl.ckpt")
    assert (report["family"], report["hashes"], list(report["blocks"])[:3]) == ("sdxl", {}, ["te1", "te2", "unet 2"])
    assert "unknown" not in report["blocks"]
    model = make_model()
    network = loha.create_network(1.0, 4, 2, None, model.text_encoder, model.unet)
    network.save_weights(tmp_path / "loha.safetensors")
    plain = create_network(1.0, 4, 2, None, model.text_encoder, model.unet)
    plain.save_weights(tmp_path / "plain.pt")
    assert inspect(tmp_path / "plain.pt")["kind"] == "LoRA-LierLa"
    assert inspect(tmp_path / "loha.safetensors")["kind"] == "LoHa"
    assert block_of("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q", "sdxl") == "unet 5"
    assert block_of("lora_unet_elsewhere", "sd1") is None


def test_what_is_no_lora_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cut.safetensors").write_bytes(REFERENCE.read_bytes()[:5000])
    save_file({"model.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    for name in ("cut.safetensors", "other.safetensors", "missing.safetensors"):
        assert main(["inspect_lora", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert name in error and error.count("\n") == 1
