"""SVD merge: the best approximation of the sum, and what it reports."""

import json
import re
from pathlib import Path

import pytest
import torch

from backend import events
from backend.__main__ import main
from backend.header import read_header
from backend.lora.file import read_lora, write_lora
from backend.lora.metadata import file_hashes
from backend.networks import loha
from tests.tools.loras import FAMILIES, Files, deltas
from tests.tools.test_merge import assert_close, wanted


def svd(target: Path, models: list[Path], ratios: list[float], *more: object) -> int:
    words = ["svd_merge_lora", "--save_to", target, "--models", *models, "--ratios", *ratios, *more]
    return main([str(word) for word in words])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_module_is_at_the_optimum(files: Files, tmp_path: Path, family: str) -> None:
    models = [files.lora("a", family, 4, 2.0, conv_dim=2), files.lora("b", family, 3, 3.0)]
    assert svd(tmp_path / "o.safetensors", models, [0.6, -0.4], "--new_rank", 3, "--new_conv_rank", 1) == 0
    made, file = deltas(tmp_path / "o.safetensors"), read_lora(tmp_path / "o.safetensors")
    for key, delta in wanted(models, [0.6, -0.4]).items():
        layer = file.layers[key]
        wide = layer.down[:1, :1].numel() == 9
        assert (layer.rank, layer.alpha) == ((1, 1.0) if wide else (3, 3.0))
        least = torch.linalg.svdvals(delta)[layer.rank :].norm()
        assert float((made[key] - delta).norm()) <= 1.001 * float(least) + 1e-6 * float(delta.norm()), key
    assert file_hashes(tmp_path / "o.safetensors").items() <= file.metadata.items()
    assert (file.metadata["ss_network_dim"], file.metadata["ss_network_alpha"]) == ("3", "3")
    assert json.loads(file.metadata["ss_network_args"]) == {"conv_dim": "1", "conv_alpha": "1"}


def test_where_the_rank_covers_the_sum_it_is_the_sum(files: Files, tmp_path: Path) -> None:
    """The reference is 14 % off even there, as it clamps."""
    models = [files.lora("a", "sd1", 4, 2.0, conv_dim=2), files.lora("b", "sd1", 3, 3.0)]
    assert svd(tmp_path / "o.safetensors", models, [0.6, 0.4], "--new_rank", 7) == 0
    assert_close(deltas(tmp_path / "o.safetensors"), wanted(models, [0.6, 0.4]), 3e-6)
    assert svd(tmp_path / "one.safetensors", models[:1], [1], "--new_rank", 4) == 0
    assert_close(deltas(tmp_path / "one.safetensors"), wanted(models[:1], [1]), 3e-6)


def test_the_conv_rank_is_the_rank_where_it_is_left_out(files: Files, tmp_path: Path) -> None:
    assert svd(tmp_path / "o.safetensors", [files.lora("a", "sd1", 4, 2.0, conv_dim=2)], [1], "--new_rank", 2) == 0
    assert {layer.rank for layer in read_lora(tmp_path / "o.safetensors").layers.values()} == {2}


def test_ranks_by_energy(files: Files, tmp_path: Path) -> None:
    model = files.lora("wide", rank=12, alpha=12.0)
    for share in (0.5, 0.95):
        target = tmp_path / f"{share}.safetensors"
        assert svd(target, [model], [1], "--new_rank", 64, "--dynamic", f"energy={share}") == 0
        layers, total = read_lora(target).layers, wanted([model], [1])
        ranks = set()
        for key, layer in layers.items():
            energies = torch.linalg.svdvals(total[key]).square()
            shares = energies.cumsum(0) / energies.sum()
            assert float(shares[layer.rank - 1]) >= share - 1e-6
            assert layer.rank == 1 or float(shares[layer.rank - 2]) < share
            ranks.add(layer.rank)
        assert len(ranks) > 1 and read_header(target).metadata["ss_network_dim"] == "Dynamic"
    assert svd(tmp_path / "all.safetensors", [model], [1], "--dynamic", "energy=1") == 0
    assert {layer.rank for layer in read_lora(tmp_path / "all.safetensors").layers.values()} == {12}
    assert svd(tmp_path / "o.safetensors", [model], [1], "--new_rank", 3, "--dynamic", "energy=0.95") == 0
    assert {layer.rank for layer in read_lora(tmp_path / "o.safetensors").layers.values()} == {3}


def test_the_report_has_energies_and_a_curve(files: Files, tmp_path: Path, monkeypatch, capsys) -> None:
    models = [files.lora("a", "sd1", 4, 2.0, conv_dim=2), files.lora("b", "sd1", 3, 3.0)]
    monkeypatch.setenv(events.VARIABLE, str(tmp_path / "events.jsonl"))
    assert svd(tmp_path / "o.safetensors", models, [0.6, 0.4], "--new_rank", 3, "--dry_run") == 0
    assert not (tmp_path / "o.safetensors").exists() and "would write" in capsys.readouterr().out
    told = events.read(tmp_path / "events.jsonl")[0]
    report = next(event for event in told if event["event"] == "report")
    assert any(event["event"] == "phase" and event["name"] == "decomposing" for event in told)
    total = wanted(models, [0.6, 0.4])
    values = {key: torch.linalg.svdvals(delta).square() for key, delta in total.items()}
    size = float(sum(value.sum() for value in values.values()))
    for rank, error in zip(report["curve"]["ranks"], report["curve"]["errors"], strict=True):
        lost = float(sum(value[rank:].sum() for value in values.values()))
        assert error == pytest.approx((lost / size) ** 0.5, abs=1e-4)
    assert report["curve"]["ranks"][0] == 1 and report["curve"]["ranks"][-1] == 7
    at = report["curve"]["ranks"].index(3)
    assert report["curve"]["bytes"][at] == pytest.approx(report["files"][0]["bytes"], rel=0.05)
    energy = [value for key, value in report["facts"] if key == "energy kept"][0]
    kept = 1 - float(sum(value[3:].sum() for value in values.values())) / size
    assert float(energy.split()[0]) == pytest.approx(100 * kept, abs=0.02)
    assert report["bars"]["names"][0] == "te" and len(report["bars"]["values"]) == len(report["rows"]) == 25
    assert svd(tmp_path / "o.safetensors", models, [0.6, 0.4], "--new_rank", 3) == 0
    written = [event for event in events.read(tmp_path / "events.jsonl")[0] if event["event"] == "file"]
    assert [event["path"] for event in written] == [str(tmp_path / "o.safetensors")]


def test_clamping_precision_and_device(files: Files, tmp_path: Path, capsys) -> None:
    model = files.lora("wide", rank=12, alpha=12.0)
    for name, more in (
        ("free", []),
        ("held", ["--clamp_quantile", 0.9]),
        ("half", ["--precision", "bf16"]),
        ("gpu", ["--device", "cuda"]),
        ("saved", ["--save_precision", "fp16"]),
    ):
        assert svd(tmp_path / f"{name}.safetensors", [model], [1], "--new_rank", 12, *more) == 0
    free, held, half, gpu = (deltas(tmp_path / f"{name}.safetensors") for name in ("free", "held", "half", "gpu"))
    key = next(iter(free))
    assert float((held[key] - free[key]).norm()) > 0.05 * float(free[key].norm())
    error = float((half[key] - free[key]).norm()) / float(free[key].norm())
    assert 1e-4 < error < 1e-2
    if not torch.cuda.is_available():
        assert "Warning: cuda is not here, so the CPU computes" in capsys.readouterr().out
    assert_close(gpu, free, 1e-5)
    saved = read_lora(tmp_path / "saved.safetensors").layers[key]
    assert saved.down.dtype == torch.float16
    assert svd(tmp_path / "x.safetensors", [model], [1], "--device", "nonsense") == 2
    assert "device: must be cpu or cuda" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--clamp_quantile", 0.5], ["--precision", "bf16"], ["--save_precision", "bf16"]])
def test_the_report_is_of_the_file_as_it_is_saved(files: Files, tmp_path: Path, monkeypatch, more: list) -> None:
    model = files.lora("wide", rank=12, alpha=12.0)
    monkeypatch.setenv(events.VARIABLE, str(tmp_path / "events.jsonl"))
    assert svd(tmp_path / "o.safetensors", [model], [1], "--new_rank", 12, *more) == 0
    report = next(event for event in events.read(tmp_path / "events.jsonl")[0] if event["event"] == "report")
    made, total = deltas(tmp_path / "o.safetensors"), wanted([model], [1])
    lost = sum(float((made[key] - total[key]).square().sum()) for key in total)
    error = (lost / sum(float(delta.square().sum()) for delta in total.values())) ** 0.5
    assert float(dict(report["facts"])["error"].split()[0]) == pytest.approx(100 * error, rel=0.02) and error > 1e-3
    assert len(report["modules"]) == len(total)


def test_what_cannot_work_is_one_line(files: Files, tmp_path: Path, capsys) -> None:
    model, good = files.model("sd1"), files.lora("p")
    hada = tmp_path / "hada.safetensors"
    network = loha.create_network(1.0, 2, 2, None, model.text_encoders, model.unet)
    network.save_weights(hada)
    huge = tmp_path / "huge.safetensors"
    layers = read_lora(good).layers
    write_lora(huge, {f"{key}.lora_{name}.weight": factor * 1e7 for key, layer in layers.items()
                      for name, factor in layer.factors.items()})  # fmt: skip
    cases = [
        ([hada], [1], [], "is a LoHa, whose sum with others is no LoRA"),
        ([huge], [1], ["--save_precision", "fp16"], "save_precision: fp16 is too small for these numbers"),
        ([good], [1], ["--dynamic", "energy=2"], 'dynamic: must be "energy="'),
        ([huge], [1], ["--precision", "fp16"], "precision: fp16 is too small for these numbers"),
        ([good], [1], ["--device", "meta"], 'device: must be cpu or cuda, got "meta"'),
        ([good], [1], ["--new_rank", 0], "new_rank: must be at least 1"),
        ([good, good], [1], [], "ratios: has 1 values for 2 files"),
    ]
    before = sorted(tmp_path.iterdir())
    for models, ratios, more, message in cases:
        assert svd(tmp_path / "o.safetensors", models, ratios, *more) == 2, message
        error = capsys.readouterr().err.strip().splitlines()
        assert re.search(message, error[-1]), error
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ([], torch.float32),
        (["--precision", "fp16"], torch.float16),
        (["--precision", "bf16"], torch.bfloat16),
        (["--precision", "bf16", "--save_precision", "float"], torch.float32),
        (["--save_precision", "fp16"], torch.float16),
    ],
)
def test_numbers_are_saved_in_the_precision_that_was_asked_for(
    files: Files, tmp_path: Path, more: list[str], kind: torch.dtype
) -> None:
    assert svd(tmp_path / "o.safetensors", [files.lora("p")], [1.0], "--new_rank", 2, *more) == 0
    layers = read_lora(tmp_path / "o.safetensors").layers.values()
    assert {factor.dtype for layer in layers for factor in layer.factors.values()} == {kind}
