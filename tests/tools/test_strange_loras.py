"""LoRAs as other programs write them, through the commands: merged, drawn, trained on, inspected, or one line."""

import io
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from backend.__main__ import main
from backend.config.training.network import Network
from backend.errors import UserError
from backend.families.build import random_model
from backend.families.weights import open_weights
from backend.generate.worker import Worker
from backend.networks.lora import create_network
from backend.train.build import continue_from, merge_base_weights
from tests.tools.loras import FAMILIES, Files

KNOWN = "lora_unet_mid_block_attentions_0_proj_in"


def layer(name: str, weight: Tensor, rank: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(len(name))
    down = torch.randn(rank, *weight.shape[1:], generator=generator) * 0.1
    up = torch.randn(weight.shape[0], rank, *[1] * (weight.ndim - 2), generator=generator) * 0.1
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_at_the_ends_are_merged_where_they_belong(files: Files, tmp_path: Path, family: str) -> None:
    source = files.checkpoint(family, dtype=torch.float32)
    weights = open_weights(source)
    tensors: dict[str, Tensor] = {}
    for key in weights.further:
        tensors |= layer(key, weights.weight(key))
    assert len(tensors) == 2 * {"sd1": 4, "sd2": 4, "sdxl": 7}[family]
    save_file(tensors, tmp_path / "ends.safetensors")
    target = tmp_path / "o.safetensors"
    assert main(["merge_lora", "--sd_model", str(source), "--models", str(tmp_path / "ends.safetensors"),
                 "--save_to", str(target)]) == 0  # fmt: skip
    before, after = load_file(source), load_file(target)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        weights.further[key].name for key in weights.further
    }
    merged = open_weights(target)
    for key in weights.further:
        down, up = tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"]
        wanted = weights.weight(key).flatten(1) + up.flatten(1) @ down.flatten(1)
        torch.testing.assert_close(merged.weight(key).flatten(1), wanted, rtol=1e-4, atol=1e-5)
    both = str(tmp_path / "two.safetensors")
    assert main(["merge_lora", "--models", *[str(tmp_path / "ends.safetensors")] * 2, "--save_to", both]) == 0
    assert main(["inspect_lora", both]) == 0


def test_allow_unmatched_works_in_every_command(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = files.checkpoint("sd1", dtype=torch.float32)
    weight = open_weights(source).weight(KNOWN)
    lora = tmp_path / "strange.safetensors"
    tensors = layer(KNOWN, weight, 4) | layer("lora_unet_nowhere", weight, 4) | {"something.else": torch.ones(2)}
    save_file(tensors, lora, {"ss_network_module": "networks.dylora", "ss_network_args": '{"unit": "2"}'})
    commands = {
        "merge": ["merge_lora", "--sd_model", str(source), "--models", str(lora)],
        "together": ["merge_lora", "--models", str(lora)],
        "svd": ["svd_merge_lora", "--models", str(lora), "--new_rank", "1"],
        "dylora": ["extract_lora_from_dylora", "--model", str(lora)],
    }
    for name, words in commands.items():
        words = [*words, "--save_to", str(tmp_path / f"{name}.safetensors")]
        assert main(words) == 2
        assert "give --allow_unmatched" in capsys.readouterr().err.replace("\n", " ")
        assert main([*words, "--allow_unmatched"]) == 0
        said = capsys.readouterr().out
        assert "something.else" in said
        assert name == "dylora" or "lora_unet_nowhere" in said
    drawn = ["gen_img", "--ckpt", str(files.checkpoint("sd1", "")), "--network_weights", str(lora), "--prompt", "x",
             "--steps", "1", "--W", "64", "--H", "64", "--outdir", str(tmp_path / "pictures")]  # fmt: skip
    assert main(drawn) == 2
    assert main([*drawn, "--allow_unmatched"]) == 0
    assert "lora_unet_nowhere" in capsys.readouterr().out and list((tmp_path / "pictures").glob("*.png"))


def test_a_lora_for_another_family_is_one_sentence(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    xl, folder = files.lora("other", "sdxl"), str(files.checkpoint("sd1", ""))
    for words in (
        ["merge_lora", "--sd_model", str(files.checkpoint()), "--save_to", str(tmp_path / "o.safetensors"), "--models"],
        ["gen_img", "--ckpt", folder, "--prompt", "x", "--outdir", str(tmp_path), "--network_weights"],
    ):
        assert main([*words, str(xl)]) == 2
        said = capsys.readouterr().err
        assert "is made for Stable Diffusion XL, the model is Stable Diffusion 1" in said and "lora_unet" not in said


def test_a_peft_folder_is_a_lora_to_every_tool(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weight = open_weights(files.checkpoint(dtype=torch.float32)).weight(KNOWN)
    folder = tmp_path / "adapter"
    folder.mkdir()
    ends = {"lora_down": "lora_A", "lora_up": "lora_B"}
    tensors = layer("base_model.model.mid_block.attentions.0.proj_in", weight)
    save_file({name.replace(end, ends[end]): tensor for name, tensor in tensors.items() for end in ends if end in name},
              folder / "adapter_model.safetensors")  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 6, "peft_type": "LORA"}))
    down, up = (tensor.flatten(1) for tensor in tensors.values())
    for name, words in {"merge": ["merge_lora"], "svd": ["svd_merge_lora", "--new_rank", "2"]}.items():
        target = tmp_path / f"{name}.safetensors"
        assert main([*words, "--models", str(folder), "--save_to", str(target)]) == 0
        made = load_file(target)
        scale = made[f"{KNOWN}.alpha"] / 2
        product = made[f"{KNOWN}.lora_up.weight"].flatten(1) @ made[f"{KNOWN}.lora_down.weight"].flatten(1) * scale
        torch.testing.assert_close(product, up @ down * 3, rtol=1e-4, atol=1e-5)
    capsys.readouterr()
    assert main(["inspect_lora", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["alphas"] == {"6": 1} and report["ranks"] == {"2": 1}


def strange(folder: Path, weight: Tensor) -> Path:
    """A LoRA of which one module of two is unknown."""
    path = folder / "half.safetensors"
    save_file(layer(KNOWN, weight, 4) | layer("lora_unet_nowhere", weight, 4), path)
    return path


def test_training_merges_and_goes_on_from_what_matches(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_model(1, family="sd1")
    weight = model.unet.mid_block.attentions[0].proj_in.weight
    path, before = strange(tmp_path, weight.detach()), weight.detach().clone()
    with pytest.raises(UserError, match="lora_unet_nowhere; give --allow_unmatched"):
        merge_base_weights(Network(base_weights=(path,)), model)
    assert torch.equal(weight, before)
    merge_base_weights(Network(base_weights=(path,), allow_unmatched=True), model)
    tensors = load_file(path)
    wanted = tensors[f"{KNOWN}.lora_up.weight"].flatten(1) @ tensors[f"{KNOWN}.lora_down.weight"].flatten(1)
    torch.testing.assert_close((weight - before).detach().flatten(1), wanted, rtol=1e-3, atol=1e-5)
    network = create_network(1.0, 4, 4.0, None, model.text_encoders, model.unet)
    with pytest.raises(UserError, match="lora_unet_nowhere; give --allow_unmatched"):
        continue_from(network, Network(network_weights=path), model)
    continue_from(network, Network(network_weights=path, allow_unmatched=True), model)
    own = {adapter.lora_name: adapter for adapter in network.adapters()}[KNOWN]
    assert torch.equal(own.lora_down.weight.flatten(), tensors[f"{KNOWN}.lora_down.weight"].flatten())
    assert capsys.readouterr().out.count("lora_unet_nowhere") == 2


def test_the_generate_worker_tells_what_it_left_out(files: Files, tmp_path: Path) -> None:
    weight = open_weights(files.checkpoint(dtype=torch.float32)).weight(KNOWN)
    request = {"id": 1, "op": "generate", "model": str(files.checkpoint("sd1", "")), "prompt": "x", "steps": 1,
               "width": 64, "height": 64, "out_dir": str(tmp_path),
               "loras": [{"path": str(strange(tmp_path, weight)), "multiplier": 1.0}]}  # fmt: skip
    answers = io.StringIO()
    worker = Worker(answers)
    for changes in ({}, {"allow_unmatched": True}, {"allow_unmatched": "yes"}):
        worker.answer(request | changes)
    told = [json.loads(line) for line in answers.getvalue().splitlines()]
    refused, done, wrong = (answer for answer in told if answer["event"] in ("error", "done"))
    assert "lora_unet_nowhere; give --allow_unmatched" in refused["message"]
    assert done["event"] == "done" and "lora_unet_nowhere; left out" in " ".join(done["warnings"])
    assert wrong["field"] == "allow_unmatched"
