"""Merging: W + ratio * delta, and sum(ratio * delta), whatever the layout, the family and the spelling."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend import events
from backend.__main__ import main
from backend.families.base import load_model
from backend.header import read_header
from backend.lora.file import read_lora, write_lora
from backend.lora.metadata import file_hashes
from backend.lora.source import read_tensors
from backend.networks.lora import create_network_from_weights
from tests.tools.loras import FAMILIES, Files, deltas


def merge(target: Path, models: list[Path], ratios: list[float], *more: object) -> int:
    words = ["merge_lora", "--save_to", target, "--models", *models, "--ratios", *ratios, *more]
    return main([str(word) for word in words])


def wanted(models: list[Path], ratios: list[float]) -> dict[str, torch.Tensor]:
    """The exact sum, in float64."""
    total: dict[str, torch.Tensor] = {}
    for path, ratio in zip(models, ratios, strict=True):
        for key, delta in deltas(path).items():
            total[key] = total.get(key, 0) + ratio * delta
    return total


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], share: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for key, delta in expected.items():
        assert float((found[key] - delta).norm()) <= share * float(delta.norm()) + 1e-12, key


FLAGS = ([], ["--concat"], ["--shuffle"], ["--concat", "--shuffle"])
SUMS = [("sd1", flags, ratios) for flags in FLAGS for ratios in ([0.6, 0.4], [1.0, -1.0])]
SUMS += [("sd2", FLAGS[0], [-0.5, 2.0]), ("sdxl", FLAGS[3], [1.0, -1.0])]


@pytest.mark.parametrize(("family", "more", "ratios"), SUMS)
def test_loras_add_up_exactly(files: Files, tmp_path: Path, family: str, more: list[str], ratios: list[float]) -> None:
    """The reference squares ratios and, with concat, forgets that the rank has grown."""
    models = [files.lora("a", family, 4, 2.0, conv_dim=2), files.lora("b", family, 3, 3.0)]
    assert merge(tmp_path / "o.safetensors", models, ratios, *more) == 0
    assert_close(deltas(tmp_path / "o.safetensors"), wanted(models, ratios))
    layers = read_lora(tmp_path / "o.safetensors").layers
    key = next(key for key in layers if key.endswith("attn1_to_q"))
    assert (layers[key].rank, layers[key].alpha) == (7, 7.0)


def test_shuffle_reorders_and_changes_no_delta(files: Files, tmp_path: Path) -> None:
    models = [files.lora("a", "sd1", 4, 2.0, conv_dim=2), files.lora("b", "sd1", 3, 3.0)]
    for name, more in (("p", []), ("s", ["--shuffle"])):
        assert merge(tmp_path / f"{name}.safetensors", models, [1.0, 1.0], *more) == 0
    plain, mixed = (load_file(tmp_path / f"{name}.safetensors") for name in "ps")
    assert any(not torch.equal(plain[name], mixed[name]) for name in plain)
    assert_close(deltas(tmp_path / "s.safetensors"), deltas(tmp_path / "p.safetensors"), 2e-6)


def test_the_result_is_a_lora_of_the_file_format(files: Files, tmp_path: Path) -> None:
    models = [
        files.lora("t1", metadata={"ss_tag_frequency": '{"x": {"cat": 2}}', "ss_clip_skip": "2", "ss_seed": "1"}),
        files.lora("t2", metadata={"ss_tag_frequency": '{"y": {"dog": 1}}', "ss_clip_skip": "2", "ss_seed": "2"}),
    ]
    target = tmp_path / "both.safetensors"
    assert merge(target, models, [0.5, -1.0]) == 0
    found = read_header(target).metadata
    assert file_hashes(target).items() <= found.items()
    assert json.loads(found["ss_tag_frequency"]) == {"x": {"cat": 2}, "y": {"dog": 1}}
    assert (found["ss_clip_skip"], found["ss_network_dim"], found["ss_network_alpha"]) == ("2", "8", "8")
    assert "ss_seed" not in found and found["modelspec.merged_from"] == "sd1_t1, sd1_t2"
    assert [(one["file"], one["ratio"]) for one in json.loads(found["ss_merged_from"])] == [
        ("sd1_t1.safetensors", 0.5),
        ("sd1_t2.safetensors", -1.0),
    ]
    assert {tensor.dtype for tensor in load_file(target).values()} == {torch.float32}
    assert merge(target, models, [0.5, -1.0], "--overwrite", "--save_precision", "bf16", "--no_metadata") == 0
    kinds = {name.split(".", 1)[1]: tensor.dtype for name, tensor in load_file(target).items()}
    assert kinds["lora_up.weight"] == torch.bfloat16 and "ss_tag_frequency" not in read_header(target).metadata
    assert_close(deltas(target), wanted(models, [0.5, -1.0]), 0.02)


def test_the_classical_sum_tells_its_error(files: Files, tmp_path: Path, capsys) -> None:
    models = [files.lora("p"), files.lora("c", alpha=4.0)]
    assert merge(tmp_path / "o.safetensors", models, [0.6, 0.4], "--method", "add") == 0
    total, made = wanted(models, [0.6, 0.4]), deltas(tmp_path / "o.safetensors")
    error = sum(float((made[key] - total[key]).norm() ** 2) for key in total) ** 0.5
    size = sum(float(delta.norm() ** 2) for delta in total.values()) ** 0.5
    line = next(line for line in capsys.readouterr().out.splitlines() if "error against" in line)
    assert float(line.split()[-2]) == pytest.approx(100 * error / size, rel=0.01) and error > 0.3 * size
    assert {layer.rank for layer in read_lora(tmp_path / "o.safetensors").layers.values()} == {4}
    assert merge(tmp_path / "o.safetensors", [models[0]], [0.5], "--method", "add", "--overwrite") == 0
    # As in sd-scripts, a ratio is in both factors.
    assert_close(deltas(tmp_path / "o.safetensors"), wanted(models[:1], [0.25]))
    other = files.lora("b", "sd1", 3, 3.0)
    assert merge(tmp_path / "p.safetensors", [models[0], other], [1, 1], "--method", "add") == 2
    assert "method: add needs equal ranks" in capsys.readouterr().err


def test_a_smaller_rank_is_the_best_there_is(files: Files, tmp_path: Path) -> None:
    models = [files.lora("a", "sd1", 4, 2.0, conv_dim=2), files.lora("b", "sd1", 3, 3.0)]
    assert merge(tmp_path / "o.safetensors", models, [1.0, 0.5], "--new_rank", 5, "--new_conv_rank", 1) == 0
    made = deltas(tmp_path / "o.safetensors")
    for key, delta in wanted(models, [1.0, 0.5]).items():
        rank = 1 if "conv1" in key or "conv2" in key or "samplers" in key else 5
        least = torch.linalg.svdvals(delta)[rank:].norm()
        assert float((made[key] - delta).norm()) <= 1.001 * float(least) + 1e-5 * float(delta.norm())


def test_a_file_at_ratio_zero_adds_no_ranks_and_one_alone_is_scaled(files: Files, tmp_path: Path) -> None:
    models = [files.lora("p"), files.lora("b", "sd1", 3, 3.0)]
    assert merge(tmp_path / "o.safetensors", models, [1.0, 0.0]) == 0
    assert {layer.rank for layer in read_lora(tmp_path / "o.safetensors").layers.values()} == {4}
    assert main(["merge_lora", "--save_to", str(tmp_path / "p.ckpt"), "--models", str(models[0]), str(models[0])]) == 0
    assert_close(deltas(tmp_path / "p.ckpt"), wanted(models[:1], [2.0]))


LAYOUTS = [(family, suffix, torch.float32) for family in FAMILIES for suffix in (".safetensors", "")]
LAYOUTS += [("sd1", ".ckpt", torch.float32), ("sd1", ".safetensors", torch.float16), ("sdxl", ".ckpt", torch.float16)]


@pytest.mark.parametrize(("family", "suffix", "dtype"), LAYOUTS)
def test_a_checkpoint_becomes_what_the_model_with_the_lora_is(
    files: Files, tmp_path: Path, family: str, suffix: str, dtype: torch.dtype
) -> None:
    lora, source = files.lora("a", family, 4, 2.0, conv_dim=2), files.checkpoint(family, suffix, dtype)
    target = tmp_path / "merged.safetensors"
    assert merge(target, [lora], [0.8], "--sd_model", source) == 0
    expected, made = load_model(source), load_model(target)
    network, tensors = create_network_from_weights(0.8, lora, None, expected.text_encoders, expected.unet)
    network.merge_to(expected.text_encoders, expected.unet, tensors)
    for one, other in zip(expected.modules(), made.modules(), strict=True):
        for (name, ours), theirs in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            # Where the sum lies between two numbers of half precision, it may fall to either side.
            share = 1e-3 if dtype == torch.float16 else 2e-6
            torch.testing.assert_close(
                theirs.float(), ours.to(dtype).float(), rtol=share, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("family", FAMILIES)
def test_what_no_lora_touches_is_carried_over_bit_for_bit(files: Files, tmp_path: Path, family: str) -> None:
    lora, source = files.lora("b", family, 3, 3.0), tmp_path / "source.safetensors"
    tensors = load_file(files.checkpoint(family))
    strange = {"model_ema.decay": torch.tensor(0.5), "alphas_cumprod": torch.arange(9.0), "count": torch.arange(3)}
    save_file(tensors | strange, source, {"modelspec.title": "base", "modelspec.hash_sha256": "0x1", "other": "kept"})
    assert merge(tmp_path / "m.safetensors", [lora], [1.0], "--sd_model", source) == 0
    made = load_file(tmp_path / "m.safetensors")
    assert made.keys() == tensors.keys() | strange.keys()
    changed = {name for name, tensor in made.items() if not torch.equal(tensor, (tensors | strange)[name])}
    assert len(changed) > 100 and all(name.endswith("weight") for name in changed)
    assert all(made[name].dtype == tensor.dtype for name, tensor in (tensors | strange).items())
    found = read_header(tmp_path / "m.safetensors").metadata
    assert (found["other"], found["modelspec.title"]) == ("kept", "m") and "modelspec.hash_sha256" not in found
    assert found["modelspec.merged_from"] == f"base, {lora.stem}"


def test_precisions_of_the_sum_and_of_the_file(files: Files, tmp_path: Path) -> None:
    lora, source = files.lora("p"), files.checkpoint("sd1")
    for name, more in (("o", []), ("f", ["--save_precision", "float"]), ("h", ["--precision", "fp16"])):
        assert merge(tmp_path / f"{name}.safetensors", [lora], [0.7], "--sd_model", source, *more) == 0
    own, full, half = (load_file(tmp_path / f"{name}.safetensors") for name in "ofh")
    before = load_file(source)
    key = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    delta = deltas(lora)["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"].float()
    torch.testing.assert_close(full[key], before[key].float() + 0.7 * delta)
    assert torch.equal(own[key], full[key].half())
    assert torch.equal(half[key], before[key] + (0.7 * delta).half()) and not torch.equal(half[key], own[key])
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in full.values())
    assert {name: tensor.dtype for name, tensor in own.items()} == {n: t.dtype for n, t in before.items()}


def test_several_loras_of_other_spellings_and_kinds_into_one_checkpoint(files: Files, tmp_path: Path) -> None:
    source, first = files.checkpoint("sd1", dtype=torch.float32), files.lora("p")
    second = files.lora("b", "sd1", 3, 3.0)
    peft = {}
    for key, layer in read_lora(second).layers.items():
        if key.startswith("lora_unet_mid_block"):
            path = "unet.mid_block.attentions.0." + key.removeprefix("lora_unet_mid_block_attentions_0_")
            for ours, theirs in (("transformer_blocks_0_", "transformer_blocks.0."), ("attn1_to", "attn1.to"),
                                 ("attn2_to", "attn2.to"), ("ff_net_", "ff.net."), ("_0_proj", ".0.proj"),
                                 ("to_out_0", "to_out.0"), ("net.0_proj", "net.0.proj")):  # fmt: skip
                path = path.replace(ours, theirs)
            peft |= {f"{path}.lora_A.weight": layer.down, f"{path}.lora_B.weight": layer.up}
    save_file({name: tensor.contiguous() for name, tensor in peft.items()}, tmp_path / "peft.safetensors")
    models, ratios = [first, tmp_path / "peft.safetensors"], [0.5, -0.25]
    assert merge(tmp_path / "o.safetensors", models, ratios, "--sd_model", source) == 0
    before, after = load_file(source), load_file(tmp_path / "o.safetensors")
    name = "model.diffusion_model.middle_block.1.transformer_blocks.0.ff.net.0.proj.weight"
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj"
    expected = before[name] + sum(r * deltas(m)[key].float() for m, r in zip(models, ratios, strict=True))
    torch.testing.assert_close(after[name], expected, rtol=1e-5, atol=1e-6)


def test_files_for_different_families_are_refused_by_name(tmp_path: Path, capsys) -> None:
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    files = []
    for width in (768, 1024):
        files.append(tmp_path / f"{width}.safetensors")
        save_file(
            {f"{key}.lora_down.weight": torch.ones(1, width), f"{key}.lora_up.weight": torch.ones(8, 1)}, files[-1]
        )
    assert merge(tmp_path / "o.safetensors", files, [1, 1]) == 2
    error = capsys.readouterr().err
    assert re.search(
        "models: are made for different models: .* for Stable Diffusion 1, .* for Stable Diffusion 2", error
    )
    assert main(["svd_merge_lora", "--save_to", str(tmp_path / "o.pt"), "--models", *map(str, files)]) == 2
    assert "are made for different models" in capsys.readouterr().err


@pytest.mark.parametrize("dry", [False, True])
def test_wrong_files_are_one_line_and_leave_nothing(files: Files, tmp_path: Path, capsys, dry: bool) -> None:
    good, xl, source = files.lora("p"), files.lora("b", "sdxl", 3, 3.0), files.checkpoint("sd1")
    strange, nan, zero = (tmp_path / f"{name}.safetensors" for name in ("strange", "nan", "zero"))
    tensors, _ = read_tensors(good)
    write_lora(strange, tensors | {f"lora_unet_nowhere.{name}": torch.ones(2, 2)
                                   for name in ("lora_down.weight", "lora_up.weight")})  # fmt: skip
    write_lora(nan, {name: tensor * torch.nan for name, tensor in tensors.items()})
    write_lora(zero, {name: tensor * (0 if "up" in name else 1) for name, tensor in tensors.items()})
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(good.read_bytes()[:-9])
    model = ["--sd_model", source]
    cases = [
        ([good, xl], [1, 1], [], "models: are made for different models: .* for Stable Diffusion XL"),
        ([xl], [1], model, "is made for Stable Diffusion XL, the model is Stable Diffusion 1"),
        ([xl], [1], ["--v2"], "v2: is set, but the files are for Stable Diffusion XL"),
        ([good], [1], [*model, "--v2"], "v2: is set, but the files are for Stable Diffusion 1"),
        ([strange], [1], [], "1 of its keys match no module of any model: lora_unet_nowhere; give --allow_unmatched"),
        ([strange], [1], model, "1 of its keys match no module of a Stable Diffusion 1 model"),
        ([nan], [1], model, "not finite"),
        ([zero], [1], model, "models: would change nothing"),
        ([zero], [1], [], "models: would change nothing"),
        ([good, good], [0.7, -0.7], [], "would change nothing: every layer is zero, or they cancel each other out"),
        ([good, good], [0.7, -0.7], model, "would change nothing: the layers are zero, cancel each other out"),
        ([broken], [1], [], "cut off"),
        ([tmp_path / "none.safetensors"], [1], [], "none.safetensors: cannot be read"),
        ([good, good], [1], [], "ratios: has 1 values for 2 files"),
        ([good], [0], [], "ratios: are all 0"),
        ([good], [1], ["--sd_model", tmp_path / "none"], "none"),
        ([good], [1], ["--sd_model", good], "this is a LoRA file, not a checkpoint"),
        ([good], [1], [*model, "--concat"], "concat: is about merging LoRAs into one LoRA"),
        ([good], [1], ["--concat", "--method", "add"], "concat: contradicts method add"),
        ([good], [1], ["--new_rank", "0"], "new_rank: must be at least 1"),
        ([good], [1e6], model, "save_precision: .* has numbers up to .*, too large for float16"),
        ([good], [1e-9], model, "would change nothing: the layers are zero, cancel each other out, or are too small"),
        ([good], [1e7], [], "ratios: must lie between -1e.06 and 1e.06"),
        ([good], [1], ["--save_to", "/proc/x.safetensors"], "save_to: /proc/x.safetensors cannot be written"),
    ]
    before = sorted(tmp_path.iterdir())
    for models, ratios, more, message in cases:
        assert merge(tmp_path / "o.safetensors", models, ratios, *more, *["--dry_run"][: int(dry)]) == 2, message
        error = capsys.readouterr().err.strip().splitlines()
        assert re.search(message, error[-1]), (message, error)
        assert sorted(tmp_path.iterdir()) == before
    allowed = ["--allow_unmatched", *["--dry_run"][: int(dry)]]
    assert merge(tmp_path / "o.safetensors", [strange], [1], *allowed) == 0
    assert (tmp_path / "o.safetensors").exists() != dry


def test_a_dry_run_tells_the_size_and_an_existing_file_stays(files: Files, tmp_path: Path, capsys) -> None:
    target, models = tmp_path / "o.safetensors", [files.lora("p"), files.lora("c", alpha=4.0)]
    for more in ([], ["--sd_model", files.checkpoint("sd1")]):
        assert merge(target, models, [1, 1], "--dry_run", *more) == 0
        told = re.search(r"would write .* \(([\d.]+) (kB|MB)\)", capsys.readouterr().out)
        assert not target.exists() and merge(target, models, [1, 1], *more) == 0
        size = float(told[1]) * {"kB": 1e3, "MB": 1e6}[told[2]]
        assert size == pytest.approx(target.stat().st_size, rel=0.06)
        assert merge(target, models, [1, 1], *more) == 2
        assert "exists; give --overwrite to replace it" in capsys.readouterr().err
        assert merge(target, models, [1, 1], "--overwrite", *more) == 0
        target.unlink()
        capsys.readouterr()


def test_the_documents_command_lines(files: Files, tmp_path: Path) -> None:
    a, b = str(files.lora("p")), str(files.lora("b", "sd1", 3, 3.0))
    model, out, pickled = (
        str(files.checkpoint(suffix=".ckpt")),
        str(tmp_path / "o.safetensors"),
        str(tmp_path / "o.ckpt"),
    )
    for line in (
        ["merge_lora", "--sd_model", model, "--save_to", out, "--models", a, "--ratios", "0.8"],
        ["merge_lora", "--sd_model", model, "--save_to", pickled, "--models", a, b, "--ratios", "0.8", "0.5"],
        ["merge_lora", "--save_to", out, "--models", a, b, "--ratios", "0.6", "0.4"],
        ["merge_lora", "--save_precision", "bf16", "--save_to", out, "--models", a, b, "--ratios", "1.0", "-1.0",
         "--concat", "--shuffle"],
        ["sdxl_merge_lora", "--save_to", out, "--models", str(files.lora("p", "sdxl")), "--ratios", "0.5",
         "--precision", "float", "--save_precision", "fp16"],
        ["merge_lora", "--v2", "--save_to", out, "--models", str(files.lora("p", "sd2")), "--ratios", "-1e-3"],
    ):  # fmt: skip
        Path(out).unlink(missing_ok=True)
        assert main(line) == 0


def test_merging_loras_imports_neither_diffusers_nor_transformers(files: Files, tmp_path: Path) -> None:
    code = (
        "import sys; from backend.__main__ import main; status = main(sys.argv[1:]); "
        "print(status, [name for name in ('diffusers', 'transformers', 'accelerate') if name in sys.modules])"
    )
    a, model = str(files.lora("p")), str(files.checkpoint("sd1"))
    for name, more in (("svd_merge_lora", []), ("merge_lora", []), ("merge_lora", ["--sd_model", model])):
        words = [name, "--models", a, "--save_to", str(tmp_path / f"{name}{len(more)}.safetensors"), *more]
        found = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
        assert found.stdout.splitlines()[-1] == "0 []"


def test_a_known_family_decides_what_a_file_alone_leaves_open(files: Files, tmp_path: Path) -> None:
    """SDXL's U-Net in Diffusers' spelling, with nothing that only SDXL has."""
    source = files.checkpoint("sdxl", dtype=torch.float32)
    path, key = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "input_blocks_4_1_transformer_blocks_0"
    factors = {"lora_A.weight": torch.ones(1, 64), "lora_B.weight": torch.ones(64, 1)}
    save_file({f"unet.{path}.{name}": value for name, value in factors.items()}, tmp_path / "open.safetensors")
    assert merge(tmp_path / "o.safetensors", [tmp_path / "open.safetensors"], [0.5], "--sd_model", source) == 0
    name = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"
    before, after = load_file(source), load_file(tmp_path / "o.safetensors")
    torch.testing.assert_close(after[name], before[name] + 0.5)
    both = [tmp_path / "open.safetensors", files.lora("p", "sdxl")]
    assert merge(tmp_path / "both.safetensors", both, [1, 1]) == 0
    assert read_lora(tmp_path / "both.safetensors").layers[f"lora_unet_{key}_attn1_to_q"].rank == 5


def test_norms_of_a_checkpoints_report_are_those_of_the_sum(files: Files, tmp_path: Path, monkeypatch) -> None:
    models, ratios = [files.lora("p"), files.lora("p")], [1.0, -0.5]
    monkeypatch.setenv(events.VARIABLE, str(tmp_path / "events.jsonl"))
    source = files.checkpoint("sd1")
    assert merge(tmp_path / "o.safetensors", models, ratios, "--sd_model", source) == 0
    report = next(one for one in events.read(tmp_path / "events.jsonl")[0] if one["event"] == "report")
    te = sum(float(d.norm() ** 2) for key, d in wanted(models, ratios).items() if key.startswith("lora_te")) ** 0.5
    assert report["bars"]["values"][0] == pytest.approx(te, rel=1e-5)


def test_where_a_file_comes_from_is_kept_through_further_merges(files: Files, tmp_path: Path) -> None:
    tags = [{"ss_tag_frequency": json.dumps({"10_x": {"cat": count}})} for count in (2, 3)]
    a, b = (files.lora(f"from{n}", metadata=one) for n, one in enumerate(tags))
    assert merge(tmp_path / "one.safetensors", [a, b, files.lora("c", alpha=4.0)], [1, 1, 0]) == 0
    first = read_header(tmp_path / "one.safetensors").metadata
    assert json.loads(first["ss_tag_frequency"]) == {"10_x": {"cat": 5}}
    assert [one["file"] for one in json.loads(first["ss_merged_from"])] == [a.name, b.name]
    assert merge(tmp_path / "two.safetensors", [tmp_path / "one.safetensors", files.lora("p")], [1, 1]) == 0
    second = json.loads(read_header(tmp_path / "two.safetensors").metadata["ss_merged_from"])
    assert [one["file"] for one in second[0]["merged_from"]] == [a.name, b.name]
    assert second[1]["file"] == "sd1_p.safetensors"
    source = files.checkpoint("sd1")
    for target, base in (("m", source), ("n", tmp_path / "m.safetensors")):
        assert merge(tmp_path / f"{target}.safetensors", [a], [1], "--sd_model", base) == 0
    found = json.loads(read_header(tmp_path / "n.safetensors").metadata["ss_merged_from"])
    assert [one["file"] for one in found] == [a.name, a.name]


def test_the_config_is_kept_beside_the_result(files: Files, tmp_path: Path) -> None:
    assert merge(tmp_path / "o.safetensors", [files.lora("p")], [0.5]) == 0
    config = tomllib.loads((tmp_path / "o.config.toml").read_text())
    assert config["mixture"]["ratios"] == [0.5]
    assert main(["merge_lora", "--config_file", str(tmp_path / "o.config.toml"), "--overwrite"]) == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_leaves_nothing_half_written(files: Files, tmp_path: Path, name: str) -> None:
    """The job's Stop sends SIGTERM; it comes here while a tensor is written."""
    code = f"""
import os, signal, sys
from backend.tools import merge_checkpoint as tool
real = tool.merged_blocks
names = []
def slow(*rest):
    names.append(rest[-1])
    if len(names) == 400:
        os.kill(os.getpid(), signal.{name})
    return real(*rest)
tool.merged_blocks = slow
from backend.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
    words = ["merge_lora", "--sd_model", str(files.checkpoint("sd1")), "--models", str(files.lora("p"))]
    words += ["--save_to", str(tmp_path / "o.safetensors")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 130 and not list(tmp_path.iterdir()) and "Traceback" not in done.stderr


def test_tensors_of_any_type_are_carried_over(files: Files, tmp_path: Path) -> None:
    strange = {"x.a": torch.arange(3).to(torch.uint16), "x.b": torch.ones(2, dtype=torch.complex64),
               "x.c": torch.ones(4).to(torch.float8_e5m2)}  # fmt: skip
    save_file(load_file(files.checkpoint("sd1")) | strange, tmp_path / "s.safetensors")
    assert merge(tmp_path / "o.safetensors", [files.lora("p")], [1], "--sd_model", tmp_path / "s.safetensors") == 0
    made = load_file(tmp_path / "o.safetensors")
    assert all(torch.equal(made[name].view(torch.uint8), tensor.view(torch.uint8)) for name, tensor in strange.items())
