"""LoRA files from a browser: what is taken, under which name, and what is not."""

import os
from pathlib import Path

import pytest

from backend.errors import UserError
from backend.workspace import Workspace
from tabs import lora_upload
from tabs.lora_upload import take_lora
from tests.ui.fake_tool import weights

LORA = weights("lora_unet_mid.alpha")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def sent(tmp_path: Path, name: str, data: bytes = LORA) -> Path:
    folder = tmp_path / "sent"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    return folder / name


def test_a_lora_is_moved_into_the_workspace(workspace: Workspace, tmp_path: Path) -> None:
    file = sent(tmp_path, "horns.safetensors")
    assert take_lora(workspace, file) == workspace.loras / "horns.safetensors"
    assert (workspace.loras / "horns.safetensors").read_bytes() == LORA and not file.exists()
    assert [path.name for path in workspace.loras.iterdir()] == ["horns.safetensors"]


def test_the_same_file_is_kept_once_and_another_of_its_name_beside_it(workspace: Workspace, tmp_path: Path) -> None:
    first = take_lora(workspace, sent(tmp_path, "a.safetensors"))
    assert take_lora(workspace, sent(tmp_path, "a.safetensors")) == first
    other = weights("lora_unet_other.alpha")
    second = take_lora(workspace, sent(tmp_path, "a.safetensors", other))
    assert second.name == "a-2.safetensors" and first.read_bytes() == LORA and second.read_bytes() == other
    assert take_lora(workspace, sent(tmp_path, "a.safetensors", other)) == second


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("..;rm -rf.safetensors", "rm_-rf.safetensors"),
        ("<img src=x>.PT", "img_src_x.pt"),
        (".hidden.ckpt", "hidden.ckpt"),
        ("con.pt", "con_.pt"),
        ("...pt", "lora.pt"),
    ],
)
def test_names_become_safe(workspace: Workspace, tmp_path: Path, name: str, kept: str) -> None:
    assert take_lora(workspace, sent(tmp_path, name)).name == kept


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("a.exe", b"MZ", "is no LoRA file; send one that ends in .safetensors, .ckpt, .pt"),
        ("a.safetensors", b"not at all", "is no safetensors file"),
        ("a.safetensors", LORA[:-1], "should have"),
        ("a.safetensors", weights(), "holds nothing"),
        ("a.safetensors", weights("model.diffusion_model.out.2.bias"), "is a whole model and no LoRA"),
        ("a.ckpt", b"", "is empty"),
    ],
)
def test_what_is_no_lora_is_refused_and_leaves_nothing(
    workspace: Workspace, tmp_path: Path, name: str, data: bytes, why: str
) -> None:
    file = sent(tmp_path, name, data)
    with pytest.raises(UserError, match=why):
        take_lora(workspace, file)
    assert not list(workspace.loras.iterdir()) and not file.exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The folder that uploads come to may lie on another disk.
    monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link")))
    assert take_lora(workspace, sent(tmp_path, "fits.pt")).read_bytes() == LORA
    monkeypatch.setattr(lora_upload, "SPARE_BYTES", 2**70)
    with pytest.raises(UserError, match="disk is full"):
        take_lora(workspace, sent(tmp_path, "large.pt"))
    assert [path.name for path in workspace.loras.iterdir()] == ["fits.pt"]
