"""The workspace: names that are safe, paths that stay inside, what is found in it."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import UserError
from backend.workspace import Workspace, make_slug, slug


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "w")


@pytest.mark.parametrize("name", ["cat", "My cat 2", "größe", "猫", "a.b", "v1.5+x", "a-b_c", "9"])
def test_good_names_pass(name):
    assert slug(f" {name} ") == name


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", "../x", "a/b", "a\\b", ".hidden", "-flag", "a\0", "a\nb", "x;rm", "$(x)", "<img>", "con",
     "NUL.toml", "end.", "a" * 81, "'q'", "a:b", "猫" * 81],
)  # fmt: skip
def test_names_that_could_do_harm_do_not(name):
    with pytest.raises(UserError, match="name"):
        slug(name)


@given(st.text())
def test_any_text_becomes_a_name(text):
    assert slug(make_slug(text)) == make_slug(text)


def test_paths_stay_inside(workspace, tmp_path):
    assert workspace.resolve("datasets", "a", "b.png") == workspace.root / "datasets" / "a" / "b.png"
    (workspace.datasets / "link").symlink_to(tmp_path)
    for parts in (("..",), ("datasets", "../../x"), ("/etc/passwd",), ("datasets", "link", "x"), ("a\0b",)):
        with pytest.raises(UserError):
            workspace.resolve(*parts)


def test_a_workspace_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="workspace: cannot make .*name another folder"):
        Workspace(tmp_path / "file" / "w")


def test_it_stands_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("LORALOOM_WORKSPACE", str(tmp_path / "there"))
    assert Workspace().root == tmp_path / "there" and (tmp_path / "there" / "datasets").is_dir()


def test_models_are_found_demo_first(workspace):
    (workspace.models / "sub").mkdir()
    (workspace.models / "sub" / "b.ckpt").write_text("")
    (workspace.models / "A.safetensors").write_text("")
    (workspace.models / "readme.txt").write_text("")
    (workspace.models / "diffusers" / "unet").mkdir(parents=True)
    (workspace.models / "diffusers" / "model_index.json").write_text("{}")
    (workspace.models / "diffusers" / "unet" / "model.safetensors").write_text("")
    found = workspace.list_models()
    assert found[0] == ("demo", "backend/demo/model")
    assert [label for label, _ in found[1:]] == ["models/A.safetensors", "models/diffusers", "models/sub/b.ckpt"]
    assert found[3][1] == str(workspace.models / "sub" / "b.ckpt")


def test_loras_of_jobs_come_first_the_newest_ahead(workspace):
    for index, name in enumerate(["old", "new"]):
        output = workspace.jobs / f"20260101-00000{index}-00000000" / "output"
        output.mkdir(parents=True)
        (output / f"{name}.safetensors").write_text("")
        os.utime(output / f"{name}.safetensors", (index, index))
        (output / "sample.png").write_text("")
    (workspace.loras / "mine.pt").write_text("")
    labels = [label for label, _ in workspace.list_loras()]
    assert labels == ["new (20260101-000001-00000000)", "old (20260101-000000-00000000)", "loras/mine.pt"]


def test_datasets_are_folders_with_a_toml(workspace):
    for name in ("b", "A", "empty"):
        (workspace.datasets / name).mkdir()
    for name in ("b", "A"):
        (workspace.datasets / name / "dataset.toml").write_text("")
    (workspace.datasets / "dataset.toml").write_text("")
    own = [item for item in workspace.list_datasets() if item[0] != "demo"]
    assert own == [("A", str(workspace.datasets / "A")), ("b", str(workspace.datasets / "b"))]
