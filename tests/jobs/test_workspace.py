"""The workspace: names that are safe, paths that stay inside, what is found in it."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

import backend.workspace as module
from backend.errors import UserError
from backend.header import pack_header, read_header
from backend.workspace import CHECKPOINT, LORA, Workspace, kind_of, make_slug, module_of, slug


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "w")


@pytest.mark.parametrize("name", ["cat", "My cat 2", "größe", "猫", "a.b", "v1.5+x", "a-b_c", "9"])
def test_good_names_pass(name):
    assert slug(f" {name} ") == name


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", "../x", "a/b", "a\\b", ".hidden", "-flag", "a\0", "a\nb", "x;rm", "$(x)", "<img>", "con",
     "NUL.toml", "end.", "a" * 81, "'q'", "a:b", "猫" * 81,
     "\ud800x"],
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


def weights(*names, metadata=None):
    entries = {name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * n, 4 * n + 4]} for n, name in enumerate(names)}
    return pack_header({"__metadata__": metadata or {}, **entries}) + b"\0\0\0\0" * len(names)


def output_of(workspace, second, name, data=b"", config=""):
    output = workspace.jobs / f"20260101-00000{second}-00000000" / "output"
    output.mkdir(parents=True, exist_ok=True)
    (output.parent / "config.toml").write_text(config)
    (output / name).write_bytes(data)
    os.utime(output / name, (second, second))


def test_a_merged_checkpoint_is_a_model_and_a_lora_is_none_wherever_they_lie(workspace):
    checkpoint, lora = weights("model.diffusion_model.out.0.weight", "lora_x"), weights("lora_unet_a.alpha", "x.lora_A")
    for name, data in (("whole.safetensors", checkpoint), ("small.safetensors", lora), ("odd.safetensors", b"{")):
        (workspace.models / name).write_bytes(data)
        (workspace.loras / name).write_bytes(data)
    output_of(workspace, 1, "merged.safetensors", checkpoint)
    output_of(workspace, 2, "sum.safetensors", lora)
    output_of(workspace, 3, "unfinished.safetensors", b"weights")
    models, loras = ([label for label, _ in found] for found in (workspace.list_models(), workspace.list_loras()))
    # What cannot be told stays where it was put.
    assert models == ["demo", "merged (20260101-000001-00000000)", "models/odd.safetensors", "models/whole.safetensors"]
    assert loras == [
        "unfinished (20260101-000003-00000000)",
        "sum (20260101-000002-00000000)",
        "loras/odd.safetensors",
        "loras/small.safetensors",
    ]


def test_a_pickled_result_is_what_its_job_was_asked_for(workspace):
    output_of(workspace, 1, "model.ckpt", config='[base]\nsd_model = "m"\n')
    output_of(workspace, 2, "lora.ckpt", config='[mixture]\nmodels = ["sd_model"]\n')
    output_of(workspace, 3, "broken.pt", config="[")
    assert [label.split()[0] for label, _ in workspace.list_models()] == ["demo", "model"]
    assert [label.split()[0] for label, _ in workspace.list_loras()] == ["broken", "lora"]


def test_a_header_is_read_once_and_again_when_the_file_has_changed(workspace, monkeypatch):
    file = workspace.loras / "a.safetensors"
    file.write_bytes(weights("lora_a.alpha", metadata={"ss_network_module": "networks.dylora"}))
    read = []
    monkeypatch.setattr(module, "read_header", lambda path: read.append(path) or read_header(path))
    assert [kind_of(file), kind_of(file), module_of(file)] == [LORA, LORA, "networks.dylora"]
    assert len(read) == 1
    file.write_bytes(weights("model.diffusion_model.a", "b"))
    assert kind_of(file) == CHECKPOINT and module_of(file) == ""
    assert kind_of(workspace.loras / "none.safetensors") == "" and len(read) == 2
