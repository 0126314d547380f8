"""Extraction of a difference: what was merged in comes out, each text encoder on its own evidence."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend import events
from backend.__main__ import main
from backend.families.weights import open_weights
from backend.lora.file import read_lora
from backend.lora.metadata import file_hashes
from backend.tools.diff_extract import equal_but_for_rounding, exceeds_rounding
from tests.tools.loras import FAMILIES, Files, deltas
from tests.tools.test_merge import assert_close, merge, wanted


def extract(original: Path, tuned: Path, target: Path, *more: object) -> int:
    words = ["extract_lora_from_models", "--model_org", original, "--model_tuned", tuned, "--save_to", target, *more]
    return main([str(word) for word in words])


def changed(source: Path, target: Path, change: dict[str, float]) -> Path:
    """A copy of a checkpoint with a random number of this size added to tensors whose names match."""
    generator, tensors = torch.Generator().manual_seed(1), load_file(source)
    for name, tensor in tensors.items():
        size = next((size for pattern, size in change.items() if re.search(pattern, name)), 0)
        if size and tensor.is_floating_point():
            random = torch.rand(tensor.shape, generator=generator) * 2 - 1
            tensors[name] = (tensor.float() + size * random).to(tensor.dtype)
    save_file(tensors, target)
    return target


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("conv", [False, True])
def test_what_was_merged_in_comes_out(files: Files, tmp_path: Path, family: str, conv: bool) -> None:
    lora = files.lora("a", family, 4, 2.0, conv_dim=2) if conv else files.lora("p", family)
    source = files.checkpoint(family, dtype=torch.float32)
    assert merge(tmp_path / "tuned.safetensors", [lora], [0.8], "--sd_model", source) == 0
    ranks = ["--dim", 4, *(["--conv_dim", 2] if conv else [])]
    assert extract(source, tmp_path / "tuned.safetensors", tmp_path / "o.safetensors", *ranks, "--min_diff", 0) == 0
    found, expected = deltas(tmp_path / "o.safetensors"), wanted([lora], [0.8])
    assert_close(found, expected, 2e-4)  # the weights' own rounding
    file = read_lora(tmp_path / "o.safetensors")
    assert file_hashes(tmp_path / "o.safetensors").items() <= file.metadata.items()
    versions = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
    assert file.metadata["ss_base_model_version"] == versions[family] and file.metadata["ss_network_dim"] == "4"
    assert all(layer.alpha == layer.rank for layer in file.layers.values())


def test_every_module_is_within_half_a_percent_of_the_optimum(files: Files, tmp_path: Path) -> None:
    source = files.checkpoint("sd1", dtype=torch.float32)
    tuned = changed(source, tmp_path / "t.safetensors", {"weight$": 0.05})
    assert extract(source, tuned, tmp_path / "o.safetensors", "--dim", 6, "--conv_dim", 3) == 0
    before, after, layers = open_weights(source), open_weights(tuned), read_lora(tmp_path / "o.safetensors").layers
    for key, delta in deltas(tmp_path / "o.safetensors").items():
        difference = (after.weight(key).double() - before.weight(key).double()).flatten(1)
        least = torch.linalg.svdvals(difference)[layers[key].rank :].norm()
        assert float((difference - delta).norm()) <= 1.005 * float(least), key
    assert len(layers) == 291 and {layer.rank for layer in layers.values()} == {3, 6}


def test_a_matrix_in_one_model_and_a_1x1_convolution_in_the_other(files: Files, tmp_path: Path) -> None:
    lora, source = files.lora("p", "sd2"), files.checkpoint("sd2", dtype=torch.float32)
    tensors = load_file(source)
    wide = {name: tensor[..., None, None] for name, tensor in tensors.items()
            if re.search(r"\.1\.proj_(in|out)\.weight", name)}  # fmt: skip
    save_file({name: t.contiguous() for name, t in (tensors | wide).items()}, tmp_path / "wide.safetensors")
    assert merge(tmp_path / "tuned.safetensors", [lora], [0.8], "--sd_model", source) == 0
    pairs = [(source, tmp_path / "tuned.safetensors"), (tmp_path / "wide.safetensors", tmp_path / "tuned.safetensors")]
    for original, tuned in pairs:
        more = ["--dim", 4, "--min_diff", 0, "--overwrite"]
        assert extract(original, tuned, tmp_path / "o.safetensors", *more) == 0
        assert_close(deltas(tmp_path / "o.safetensors"), wanted([lora], [0.8]), 2e-4)


def test_the_report_is_of_the_file_as_it_is_saved(files: Files, tmp_path: Path, monkeypatch) -> None:
    source = files.checkpoint("sd1", dtype=torch.float32)
    tuned = changed(source, tmp_path / "t.safetensors", {"attn1.to_q.weight": 0.1})
    monkeypatch.setenv(events.VARIABLE, str(tmp_path / "events.jsonl"))
    for number, more in enumerate((["--clamp_quantile", 0.5], ["--save_precision", "bf16"])):
        assert extract(source, tuned, tmp_path / f"{number}.safetensors", "--dim", 8, *more) == 0
        report = [one for one in events.read(tmp_path / "events.jsonl")[0] if one["event"] == "report"][-1]
        before, after = load_file(source), load_file(tuned)
        made, lost, total = deltas(tmp_path / f"{number}.safetensors"), 0.0, 0.0
        name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
        key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
        difference = after[name].double() - before[name].double()
        lost, total = float((difference - made[key]).square().sum()), float(difference.square().sum())
        told = {module: float(kept.split()[0]) for module, _, kept in report["modules"]}
        assert told[key] == pytest.approx(100 * (1 - lost / total), abs=0.02)
        sizes = dict(zip(report["curve"]["ranks"], report["curve"]["bytes"], strict=True))
        assert sizes[8] == pytest.approx(report["files"][0]["bytes"], rel=0.08)


@pytest.mark.parametrize("suffix", [".ckpt", ""], ids=["ckpt", "folder"])
def test_models_in_other_layouts(files: Files, tmp_path: Path, suffix: str) -> None:
    lora, source = files.lora("p"), files.checkpoint("sd1", suffix)
    assert merge(tmp_path / "tuned.ckpt", [lora], [1.0], "--sd_model", source, "--save_precision", "float") == 0
    assert extract(source, tmp_path / "tuned.ckpt", tmp_path / "o.safetensors", "--dim", 4, "--min_diff", 0) == 0
    assert_close(deltas(tmp_path / "o.safetensors"), wanted([lora], [1.0]), 2e-3)


def test_each_text_encoder_is_judged_by_itself(files: Files, tmp_path: Path, capsys) -> None:
    """The reference keeps or drops all of them together."""
    source = files.checkpoint("sdxl", dtype=torch.float32)
    first, second = r"conditioner\.embedders\.0\..*(proj|fc\d)\.weight", r"conditioner\.embedders\.1\..*mlp.*weight"
    unet = r"diffusion_model\..*attn1\.to_q\.weight"
    change = {unet: 0.1, first: 0.005, second: 0.1}
    tuned = changed(source, tmp_path / "t.safetensors", change)
    assert extract(source, tuned, tmp_path / "o.safetensors", "--dim", 2, "--sdxl", "--min_diff", 0.01) == 0
    told = capsys.readouterr().out
    parts = {key.split("_")[1] for key in read_lora(tmp_path / "o.safetensors").layers}
    assert parts == {"unet", "te2"}
    assert "text encoder 1: left out, its numbers differ by at most 0.005" in told
    assert "text encoder 2: kept, its numbers differ by up to 0.1" in told
    assert extract(source, tuned, tmp_path / "o.safetensors", "--min_diff", 0.001, "--overwrite") == 0
    assert {key.split("_")[1] for key in read_lora(tmp_path / "o.safetensors").layers} == {"unet", "te1", "te2"}


def test_a_preview_shows_what_larger_ranks_would_keep(files: Files, tmp_path: Path, monkeypatch) -> None:
    source = files.checkpoint("sd1", dtype=torch.float32)
    tuned = changed(source, tmp_path / "t.safetensors", {"attn1.to_q.weight": 0.1, "ff.net.2.weight": 0.1})
    monkeypatch.setenv(events.VARIABLE, str(tmp_path / "events.jsonl"))
    for more in (["--dry_run"], []):
        assert extract(source, tuned, tmp_path / "o.safetensors", "--dim", 2, *more) == 0
    preview, whole = [one for one in events.read(tmp_path / "events.jsonl")[0] if one["event"] == "report"]
    widest = min(64, max(min(tensor.shape) for name, tensor in load_file(source).items() if "ff.net.2.weight" in name))
    assert preview["curve"]["ranks"] == list(range(1, widest + 1)) and widest > 16
    assert whole["curve"]["ranks"] == [1, 2]
    errors = preview["curve"]["errors"]
    assert errors == sorted(errors, reverse=True) and errors[:2] == pytest.approx(whole["curve"]["errors"], rel=1e-3)
    assert preview["files"][0]["bytes"] == pytest.approx(whole["files"][0]["bytes"], rel=0.01)
    kept = [float(dict(report["facts"])["energy kept"].split()[0]) for report in (preview, whole)]
    assert kept[0] == pytest.approx(kept[1], rel=0.05)


def test_what_a_lora_cannot_carry_is_told(files: Files, tmp_path: Path, capsys, monkeypatch) -> None:
    source = files.checkpoint("sd1")
    change = {"norm": 0.5, "bias": 0.5, "attn1.to_q": 0.5, "out_layers.3.weight": 0.5, "token_embedding": 0.5}
    tuned = changed(source, tmp_path / "t.safetensors", change)
    monkeypatch.setenv(events.VARIABLE, str(tmp_path / "events.jsonl"))
    assert extract(source, tuned, tmp_path / "o.safetensors", "--dim", 2) == 0
    told = capsys.readouterr().out
    note = next(line for line in told.splitlines() if "not in the LoRA" in line)
    assert "22 of convolutions (give conv_dim)" in note and "1 of embeddings" in note
    counts = {words: int(count) for count, words in re.findall(r"(\d+) of ([\w ]+?)(?:,| \(|$)", note)}
    assert counts["norms"] > 50 and counts["biases"] > 50
    report = next(event for event in events.read(tmp_path / "events.jsonl")[0] if event["event"] == "report")
    assert report["curve"]["ranks"] == [1, 2] and report["curve"]["errors"][0] > report["curve"]["errors"][1] > 0
    kept = dict(report["facts"])["energy kept"]
    own = read_lora(tmp_path / "o.safetensors").layers
    total = sum(float((load_file(tuned)[name].double() - tensor.double()).square().sum())
                for name, tensor in load_file(source).items() if "attn1.to_q.weight" in name)  # fmt: skip
    held = sum(float(layer.norm()) ** 2 for layer in own.values())
    assert float(kept.split()[0]) == pytest.approx(100 * held / total, rel=1e-3)


def test_what_cannot_work_is_one_line_and_leaves_nothing(files: Files, tmp_path: Path, capsys) -> None:
    sd1, xl, sd2 = (files.checkpoint(family) for family in ("sd1", "sdxl", "sd2"))
    nan = changed(sd1, tmp_path / "nan.safetensors", {"attn1.to_q.weight": float("nan")})
    small = changed(sd1, tmp_path / "small.safetensors", {"transformer.text_model.*weight": 0.004})
    norms = changed(sd1, tmp_path / "norms.safetensors", {"norm1.weight": 0.5})
    cases = [
        (sd1, sd1, [], "model_tuned: .* are identical; choose a model that was tuned"),
        (files.checkpoint("sd1", dtype=torch.float32), sd1, [], "are identical; choose a model that was tuned"),
        (sd1, norms, [], "are identical in what this LoRA can carry .differ too, .* norms"),
        (sd1, small, ["--min_diff", 0.01], "differ in text encoders alone, by less than min_diff; lower min_diff"),
        (nan, sd1, [], "model_org: has numbers that are not finite"),
        (sd1, xl, [], "model_tuned: is Stable Diffusion XL, but .* is Stable Diffusion 1"),
        (sd1, sd1, ["--v2"], "v2: is set, but the models are Stable Diffusion 1"),
        (sd2, sd2, ["--sdxl"], "sdxl: is set, but the models are Stable Diffusion 2"),
        (sd1, nan, [], "not finite"),
        (sd1, files.lora("p"), [], "this is a LoRA file, not a checkpoint"),
        (sd1, tmp_path / "none.safetensors", [], "none.safetensors"),
        (sd1, small, ["--dim", 0], "dim: must be at least 1"),
        (sd1, small, ["--save_to", tmp_path / "x"], "save_to: must end in"),
    ]
    before = sorted(tmp_path.iterdir())
    for original, tuned, more, message in cases:
        assert extract(original, tuned, tmp_path / "o.safetensors", *more) == 2, message
        error = capsys.readouterr().err.strip().splitlines()
        assert re.search(message, error[-1]), (message, error)
        assert sorted(tmp_path.iterdir()) == before


def test_dry_run_precision_and_the_documents_command_line(files: Files, tmp_path: Path, capsys) -> None:
    source = files.checkpoint("sd2", ".ckpt")
    tuned = changed(files.checkpoint("sd2"), tmp_path / "t.safetensors", {"attn1.to_q.weight": 0.1})
    target = tmp_path / "o.safetensors"
    assert extract(source, tuned, target, "--dim", 4, "--dry_run") == 0
    assert "would write" in capsys.readouterr().out and not target.exists()
    more = ["--dim", 4, "--v2", "--device", "cuda", "--save_precision", "fp16"]
    assert extract(source, tuned, target, *more) == 0
    layers = read_lora(target).layers
    assert {layer.down.dtype for layer in layers.values()} == {torch.float16}
    assert all("attn1_to_q" in key for key in layers)
    assert extract(source, tuned, target, *more) == 2
    assert "exists; give --overwrite" in capsys.readouterr().err


def test_a_text_encoder_that_was_trained_a_little_is_kept(files: Files, tmp_path: Path, capsys) -> None:
    """Merged LoRAs change a text encoder by a few ten-thousandths; a fixed limit of 0.01 would lose them."""
    source, unet = files.checkpoint("sdxl"), r"diffusion_model\..*attn1\.to_q\.weight"
    first = r"conditioner\.embedders\.0\..*mlp\.fc1\.weight"
    tuned = changed(source, tmp_path / "t.safetensors", {unet: 0.1, first: 3e-3})
    target = tmp_path / "o.safetensors"
    assert extract(source, tuned, target, "--dim", 2) == 0
    told = capsys.readouterr().out
    assert re.search(r"text encoder 1: kept, its numbers differ by up to 0\.00\d+$", told, re.MULTILINE)
    assert "text encoder 2: left out, its numbers differ by at most 0 (by rounding alone)" in told
    assert {key.split("_")[1] for key in read_lora(target).layers} == {"unet", "te1"}


@pytest.mark.parametrize("coarse", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wide", [torch.float32, torch.float16])
def test_rounding_alone_is_no_training(coarse: torch.dtype, wide: torch.dtype) -> None:
    """A file that was once saved in a smaller precision is the same model, whatever precision it is in now."""
    original = (torch.randn(64, 64, generator=torch.Generator().manual_seed(1)) * 0.02).to(wide)
    rounded = original.to(coarse).to(wide)
    assert equal_but_for_rounding(original, rounded) and equal_but_for_rounding(rounded, original.float())
    moved = original.clone()
    moved[3, 5] += 3e-4
    assert not equal_but_for_rounding(original, moved) and exceeds_rounding(original, moved)
    step = torch.nextafter(original.half(), torch.full_like(original.half(), 9.0))
    assert not exceeds_rounding(original.half(), step)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_checkpoints_in_8_bits_are_drawn_merged_converted_and_extracted(
    files: Files, tmp_path: Path, kind: torch.dtype, capsys
) -> None:
    source, lora = files.checkpoint("sd1"), files.lora("p")
    tensors = load_file(source)
    unet = "model.diffusion_model."
    small = {name: value.to(kind) if name.startswith(unet) and value.dim() > 1 else value
             for name, value in tensors.items()}  # fmt: skip
    save_file(small, tmp_path / "f8.safetensors")
    eight, tuned = tmp_path / "f8.safetensors", tmp_path / "m-fp16.safetensors"
    for more in ([], ["--save_precision", "fp16"], ["--save_precision", "bf16"], ["--dry_run"]):
        target = tmp_path / f"m-{more[-1] if more else ''}.safetensors"
        assert merge(target, [lora], [1.0], "--sd_model", eight, *more) == 0, capsys.readouterr().err
    merged = load_file(tuned)
    name = f"{unet}middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    delta = deltas(lora)["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"]
    torch.testing.assert_close(merged[name].double(), small[name].double() + delta, rtol=2e-3, atol=2e-3)
    for original in (source, eight):
        assert extract(original, tuned, tmp_path / "d.safetensors", "--dim", 2, "--overwrite") == 0
    scales = {f"{name.removesuffix('weight')}scale_weight": torch.tensor(0.25)}
    rows = f"{unet}middle_block.1.transformer_blocks.0.attn1.to_k.weight"
    scales |= {f"{rows.removesuffix('weight')}weight_scale": torch.linspace(1, 2, len(small[rows]))}
    save_file(small | scales | {f"{unet}scaled_fp8": torch.zeros(2, dtype=kind)}, tmp_path / "scaled.safetensors")
    found = open_weights(tmp_path / "scaled.safetensors").tensors
    assert torch.equal(found[name], small[name].float() * 0.25)
    assert torch.equal(found[rows], small[rows].float() * torch.linspace(1, 2, len(small[rows]))[:, None])
    assert found.keys() == small.keys()
    blocks = {f"{name.removesuffix('weight')}scale_weight": torch.ones(2, 3)}
    save_file(small | blocks, tmp_path / "blocks.safetensors")
    assert merge(tmp_path / "x.safetensors", [lora], [1.0], "--sd_model", tmp_path / "blocks.safetensors") == 2
    assert "is no scale of a weight in fp8, or one of blocks" in capsys.readouterr().err
