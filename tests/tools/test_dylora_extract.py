"""Cutting a DyLoRA: each file is the network that was trained at that rank."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from backend.__main__ import main
from backend.lora.file import read_lora
from backend.lora.metadata import file_hashes
from backend.networks import dylora
from tests.networks.tiny import make_model
from tests.tools.loras import Files, deltas, fill


def extract(source: Path, target: Path, *more: str) -> int:
    return main(["extract_lora_from_dylora", "--model", str(source), "--save_to", str(target), *more])


@pytest.mark.parametrize("arguments", [{}, {"conv_dim": 8, "conv_alpha": 3}], ids=["lierla", "c3lier"])
def test_one_file_per_rank_and_the_full_one(files: Files, tmp_path: Path, arguments: dict) -> None:
    source = files.dylora(f"dy{len(arguments)}", 8, 2, **arguments)
    assert extract(source, tmp_path / "out.safetensors") == 0
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert names == [f"out-{rank:04d}.safetensors" for rank in (2, 4, 6, 8)]
    whole = read_lora(source).layers
    for rank in (2, 4, 6, 8):
        path = tmp_path / f"out-{rank:04d}.safetensors"
        cut = read_lora(path)
        assert set(cut.layers) == set(whole)
        for key, layer in cut.layers.items():
            assert torch.equal(layer.down, whole[key].down[:rank]) and torch.equal(layer.up, whole[key].up[:, :rank])
            assert layer.alpha == whole[key].alpha == (3.0 if layer.down[:1, :1].numel() == 9 else 4.0)
        assert cut.metadata["ss_network_dim"] == str(rank) and cut.metadata["ss_network_alpha"] == "4"
        assert cut.metadata["ss_network_module"] == "networks.lora"
        assert json.loads(cut.metadata["ss_network_args"]) == (
            {"conv_dim": str(rank), "conv_alpha": "3"} if arguments else {}
        )
        assert file_hashes(path).items() <= cut.metadata.items()
        assert cut.metadata["ss_training_comment"] == f"split from DyLoRA, rank 8 to {rank}"


def test_a_cut_file_is_the_network_at_that_rank(tmp_path: Path) -> None:
    model, other = make_model(), make_model()
    network = fill(dylora.create_network(1.0, 8, 4.0, None, model.text_encoder, model.unet, unit=4), "x")
    network.save_weights(tmp_path / "dy.safetensors", None, {"ss_network_args": '{"unit": "4"}'})
    assert extract(tmp_path / "dy.safetensors", tmp_path / "out.safetensors") == 0
    network.apply_to(model.text_encoder, model.unet)
    network.eval()
    network.set_rank(4)
    from backend.networks.lora import create_network_from_weights

    parts = (None, other.text_encoder, other.unet)
    cut, _ = create_network_from_weights(1.0, tmp_path / "out-0004.safetensors", *parts)
    cut.apply_to(other.text_encoder, other.unet)
    with torch.no_grad():
        torch.testing.assert_close(model.predict(), other.predict(), rtol=1e-6, atol=1e-6)


def test_ckpt_half_precision_and_a_file_without_alpha(files: Files, tmp_path: Path) -> None:
    source = files.dylora("plain", 4, 2)
    tensors = {f"{key}.lora_{name}.weight": factor.half() for key, layer in read_lora(source).layers.items()
               for name, factor in layer.factors.items()}  # fmt: skip
    torch.save(tensors, tmp_path / "a.ckpt")
    assert extract(tmp_path / "a.ckpt", tmp_path / "b.ckpt", "--unit", "2") == 0
    cut = read_lora(tmp_path / "b-0002.ckpt").layers
    assert {(layer.rank, layer.alpha, layer.down.dtype) for layer in cut.values()} == {(2, 4.0, torch.float16)}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--unit", "3"], "unit: must divide the rank 8, 3 does not"),
        (["--unit", "8"], "unit: is the whole rank 8"),
        (["--unit", "0"], "unit: must be at least 1"),
        (["--save_to", "x.txt"], "save_to: must end in"),
    ],
)
def test_what_cannot_work_is_one_line(files: Files, tmp_path: Path, capsys, more: list[str], message: str) -> None:
    assert extract(files.dylora("wrong", 8, 2), tmp_path / "out.safetensors", *more) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1] and not list(tmp_path.iterdir())


def test_a_file_that_does_not_say_its_unit_and_one_of_several_ranks(files: Files, tmp_path: Path, capsys) -> None:
    silent = files.lora("silent", metadata={"ss_network_module": ""})
    assert extract(silent, tmp_path / "o.safetensors") == 2
    assert "does not say that it is a DyLoRA; give the unit" in capsys.readouterr().err
    mixed = files.lora("mixed", rank=4, conv_dim=2)
    assert extract(mixed, tmp_path / "o.safetensors", "--unit", "2", "--force") == 2
    assert "has layers of rank 2, 4; a DyLoRA has one" in capsys.readouterr().err
    assert extract(tmp_path / "none.safetensors", tmp_path / "o.safetensors") == 2
    assert "none.safetensors: cannot be read" in capsys.readouterr().err


def test_nothing_is_replaced_unless_asked_and_a_dry_run_writes_nothing(files: Files, tmp_path: Path, capsys) -> None:
    source = files.dylora("again", 8, 4)
    (tmp_path / "out-0008.safetensors").write_text("mine")
    assert extract(source, tmp_path / "out.safetensors") == 2
    assert "out-0008.safetensors exists; give --overwrite" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out-0008.safetensors"]
    assert extract(source, tmp_path / "other.safetensors", "--dry_run") == 0
    told = capsys.readouterr().out
    assert "would write" in told and (tmp_path / "out-0008.safetensors").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1
    assert extract(source, tmp_path / "out.safetensors", "--overwrite") == 0
    assert len(deltas(tmp_path / "out-0008.safetensors")) > 200


def test_all_files_or_none_and_never_the_source(files: Files, tmp_path: Path, monkeypatch, capsys) -> None:
    source = files.dylora("whole", 8, 2)
    written = []

    def fail(path: Path, *_rest: object) -> None:
        path.write_text("x")
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("backend.tools.files.write_lora", fail)
        patch.setattr("backend.tools.dylora_extract.save", lambda path, *_rest: fail(path))
        assert extract(source, tmp_path / "out.safetensors") == 2
    assert "the disk is full" in capsys.readouterr().err and not list(tmp_path.iterdir())
    own = tmp_path / "dd-0008.safetensors"
    own.write_bytes(source.read_bytes())
    assert extract(own, tmp_path / "dd.safetensors", "--overwrite") == 2
    assert "is the DyLoRA itself" in capsys.readouterr().err and own.read_bytes() == source.read_bytes()


def test_hostile_metadata_is_no_accident(files: Files, tmp_path: Path, capsys) -> None:
    for number, text in enumerate(('["' * 3, "[" * 200_000, '{"unit": "' + "9" * 5000 + '"}', "7")):
        source = files.dylora(f"hostile{number}", 4, 2, metadata={"ss_network_args": text})
        assert extract(source, tmp_path / f"{number}.safetensors", "--unit", "2") == 0
    assert extract(files.dylora("huge", 4, 2, metadata={"ss_network_args": '{"unit": "' + "9" * 5000 + '"}'}),
                   tmp_path / "h.safetensors") == 2  # fmt: skip
    assert "unit: must divide the rank 4" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["networks.lora", "networks.loha", "lycoris.kohya", " networks.lora_fa"])
def test_a_file_that_says_it_is_no_dylora_is_refused_but_for_force(
    module: str, files: Files, tmp_path: Path, capsys
) -> None:
    source = files.lora(f"said {module.strip()}", metadata={"ss_network_module": module})
    target = tmp_path / "o.safetensors"
    assert extract(source, target, "--unit", "2") == 2
    error = capsys.readouterr().err
    assert f"says that it was made by '{module.strip()}', so it is no DyLoRA" in error and "--force" in error
    assert not list(tmp_path.iterdir())
    assert extract(source, target, "--unit", "2", "--force") == 0
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_dylora_of_lycoris_counts_its_scale_in_another_way(files: Files, tmp_path: Path, capsys) -> None:
    metadata = {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "dylora", "block_size": "2"}'}
    source, target = files.lora("of lycoris", metadata=metadata), tmp_path / "o.safetensors"
    assert extract(source, target, "--unit", "2") == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "is a DyLoRA of LyCORIS" in error and "give --force" in error and not list(tmp_path.iterdir())
    assert extract(source, target, "--unit", "2", "--force") == 0


def test_a_loha_has_no_ranks_to_cut(tmp_path: Path, capsys) -> None:
    pieces = {"hada_w1_a": (8, 2), "hada_w1_b": (2, 8), "hada_w2_a": (8, 2), "hada_w2_b": (2, 8)}
    name = "lora_unet_mid_block_attentions_0_proj_in"
    save_file({f"{name}.{piece}": torch.ones(shape) for piece, shape in pieces.items()}, tmp_path / "h.safetensors")
    assert extract(tmp_path / "h.safetensors", tmp_path / "o.safetensors", "--unit", "1", "--force") == 2
    assert "is a LoHa, not a DyLoRA" in capsys.readouterr().err
