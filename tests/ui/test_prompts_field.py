"""The prompts of a form as they are kept, and what an exported toml says of them."""

import tomllib
from pathlib import Path

import pytest

from backend.workspace import Workspace
from tabs.preset_row import warning_of
from tabs.train import SHIPPED_PROMPTS, _codec


def test_shipped_prompts_are_named_as_they_are_shipped_and_others_kept_once(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    shown, kept = _codec(workspace)
    for shipped in SHIPPED_PROMPTS:
        assert kept(shown(shipped)) == kept(f"\n{shown(shipped)}  \n") == shipped
    assert not (tmp_path / "prompts").exists()
    path = kept("a red fox\n")
    assert path == kept(" a red fox") and shown(path) == "a red fox"
    assert [file.name for file in (tmp_path / "prompts").iterdir()] == [Path(path).name]


def test_files_of_tables_are_shown_and_kept_by_their_names(tmp_path: Path) -> None:
    shown, kept = _codec(Workspace(tmp_path))
    for name in ("mine.toml", "mine.JSON"):
        (tmp_path / name).write_text('[prompt]\nprompt = "a"', encoding="utf-8")
        path = str(tmp_path / name)
        assert shown(path) == kept(f" {path} ") == path


def test_prompts_that_do_not_fit_on_the_disk_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, kept = _codec(Workspace(tmp_path))

    def full(path: Path, _data: bytes) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match="cannot be kept: No space left on device; free some space"):
        kept("a red fox")
    assert list((tmp_path / "prompts").iterdir()) == []


def test_an_exported_toml_says_what_holds_in_this_workspace_only(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    _, kept = _codec(workspace)
    assert warning_of({"seed": 3, "sample_prompts": SHIPPED_PROMPTS[0]}, workspace.root) == ""
    text = warning_of({"seed": 3, "sample_prompts": kept("a red fox\na # dog")}, workspace.root)
    assert text.splitlines()[0].startswith("# sample_prompts names a file of this workspace")
    assert text.splitlines()[1:] == ["#   a red fox", "#   a # dog"] and text.endswith("\n")
    assert tomllib.loads(text) == {}
