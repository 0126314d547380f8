"""The conversion command: both ways, bit for bit, and nothing destroyed by accident."""

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.__main__ import main
from backend.config.argv import from_argv
from backend.config.tools import ConvertModel
from backend.errors import UserError
from backend.families.base import save_diffusers
from backend.families.build import random_model
from backend.tools.convert import convert, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("convert") / "model"
    save_diffusers(random_model(seed=4), path, torch.float16)
    return path


def test_there_and_back_is_the_same_to_the_bit(folder: Path, tmp_path: Path) -> None:
    convert(str(folder), tmp_path / "one.safetensors")
    convert(str(tmp_path / "one.safetensors"), tmp_path / "back")
    convert(str(tmp_path / "back"), tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    names = ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"]
    for name in names:
        ours, theirs = (load_file(root / f"{name}.safetensors") for root in (folder, tmp_path / "back"))
        assert sorted(ours) == sorted(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert json.loads((tmp_path / "back/unet/config.json").read_text())["sample_size"] == 8


def test_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["convert_diffusers20_original_sd", str(folder), str(tmp_path / "m.ckpt")]
    assert main(command) == 0
    assert f"saved {tmp_path / 'm.ckpt'}" in capsys.readouterr().out
    tensors = torch.load(tmp_path / "m.ckpt", weights_only=True)["state_dict"]
    assert tensors["model.diffusion_model.input_blocks.0.0.weight"].dtype == torch.float16
    assert main(command) == 2
    assert capsys.readouterr().err == f"dst: {tmp_path / 'm.ckpt'} exists; give --overwrite to replace it\n"


def test_precision_and_overwriting(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_text("something else")
    run(from_argv(ConvertModel, [str(folder), str(path), "--save_precision", "bf16", "--overwrite"]))
    floats = {tensor.dtype for tensor in load_file(path).values() if tensor.is_floating_point()}
    assert floats == {torch.bfloat16}


def test_other_files_of_an_overwritten_folder_stay(folder: Path, tmp_path: Path) -> None:
    convert(str(folder), tmp_path / "m.safetensors")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists; give --overwrite"):
        convert(str(tmp_path / "m.safetensors"), tmp_path / "out")
    convert(str(tmp_path / "m.safetensors"), tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "out" / "model_index.json").is_file()


def test_destinations_of_the_wrong_form(folder: Path, tmp_path: Path) -> None:
    convert(str(folder), tmp_path / "m.safetensors")
    single = str(tmp_path / "m.safetensors")
    (tmp_path / "file").write_text("x")
    (tmp_path / "d.safetensors").mkdir()
    cases = [
        (single, tmp_path / "n.ckpt", "must name a folder"),
        (single, tmp_path / "file", "is a file; name a folder"),
        (str(folder), tmp_path / "n", "must end in .safetensors or .ckpt"),
        (str(folder), tmp_path / "d.safetensors", "is a folder; name a file"),
    ]
    for source, destination, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            convert(source, destination)
        assert caught.value.field == "dst"


def test_a_failed_conversion_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    config = folder / "vae" / "config.json"
    before = config.read_text()
    config.write_text(json.dumps(json.loads(before) | {"scaling_factor": 0.3}))
    try:
        with pytest.raises(UserError, match="scaling_factor = 0.3"):
            convert(str(folder), tmp_path / "m.safetensors")
    finally:
        config.write_text(before)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_written_whole_or_not_at_all(folder: Path, tmp_path: Path, monkeypatch) -> None:
    convert(str(folder), tmp_path / "m.safetensors")
    convert(str(tmp_path / "m.safetensors"), tmp_path / "old")
    (tmp_path / "old" / "unet" / "config.json").write_text("mine")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    # The last thing that is written.
    monkeypatch.setattr("backend.families.folder._write_tokenizer", fail)
    for name in ("new", "old"):
        with pytest.raises(OSError) as caught:
            convert(str(tmp_path / "m.safetensors"), tmp_path / name, overwrite=True)
        assert caught.value.filename == str(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.safetensors", "old"]
    assert (tmp_path / "old" / "unet" / "config.json").read_text() == "mine"
    assert not list((tmp_path / "old").glob(".*"))
    monkeypatch.undo()
    convert(str(tmp_path / "m.safetensors"), tmp_path / "old", overwrite=True)
    assert (tmp_path / "old" / "unet" / "config.json").read_text() != "mine"


def test_the_revision_of_a_model_on_the_hub(folder: Path, tmp_path: Path, monkeypatch) -> None:
    asked = []

    def locate(source: str, revision: str | None = None) -> Path:
        asked.append((source, revision))
        return folder

    monkeypatch.setattr("backend.tools.convert.locate", locate)
    monkeypatch.setattr("backend.families.base.locate", locate)
    run(from_argv(ConvertModel, ["org/repo", str(tmp_path / "m.safetensors"), "--revision", "v2"]))
    assert asked == [("org/repo", "v2")] * 2


def test_an_incomplete_model_is_not_converted(folder: Path, tmp_path: Path) -> None:
    convert(str(folder), tmp_path / "m.safetensors")
    tensors = load_file(tmp_path / "m.safetensors")
    del tensors["model.diffusion_model.out.0.weight"]
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="1 tensors are missing: unet.conv_norm_out.weight"):
        convert(str(tmp_path / "m.safetensors"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_source(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        convert(str(tmp_path / "none.safetensors"), tmp_path / "out")
