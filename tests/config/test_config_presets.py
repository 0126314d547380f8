"""Presets: partial configs by name, shipped ones read-only, a user's own in the workspace."""

import errno
from pathlib import Path

import pytest

from backend.commands import COMMANDS
from backend.config import presets
from backend.config.base import from_argv, to_toml
from backend.config.train import TrainNetwork
from backend.errors import ConfigError, UserError

REQUIRED = ["--pretrained_model_name_or_path=m", "--dataset_config=d", "--output_dir=o"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A workspace, and a folder of shipped presets with one in it."""
    shipped = tmp_path / "shipped" / "train_network"
    shipped.mkdir(parents=True)
    (shipped / "fast.toml").write_text("[optim]\nlearning_rate = 0.01\nmax_train_steps = 5\n", encoding="utf-8")
    monkeypatch.setattr(presets, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setenv("LORALOOM_WORKSPACE", str(tmp_path / "workspace"))
    return tmp_path / "workspace"


def names(root):
    return [(preset.name, preset.shipped) for preset in presets.listed(TrainNetwork, root)]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_shipped_preset_is_valid(name):
    command_class = COMMANDS[name].config_class()
    for preset in presets.listed(command_class):
        if preset.shipped:
            assert presets.read(command_class, preset.name), f"{preset.path} says nothing"


def test_the_demo_preset_is_shipped():
    shipped = [preset.name for preset in presets.listed(TrainNetwork) if preset.shipped]
    assert "demo" in shipped


def test_save_list_read_rename_delete(root):
    presets.save(TrainNetwork, "my own", {"optim": {"seed": 3}, "unet_lr": None, "network_dim": 16}, root)
    assert names(root) == [("fast", True), ("my own", False)]
    assert presets.read(TrainNetwork, "my own", root) == {"seed": 3, "network_dim": 16}
    presets.save(TrainNetwork, "my own", {"seed": 4}, root)
    presets.rename(TrainNetwork, "my own", "other", root)
    assert names(root) == [("fast", True), ("other", False)]
    assert presets.read(TrainNetwork, "other", root) == {"seed": 4}
    presets.delete(TrainNetwork, "other", root)
    assert names(root) == [("fast", True)]
    assert [path.name for path in (root / "presets/train_network").iterdir()] == [], "a temporary file was left"


def test_shipped_presets_stay_as_they_are(root):
    before = presets.read(TrainNetwork, "fast", root)
    presets.save(TrainNetwork, "mine", {"seed": 1}, root)
    for attempt in (
        lambda: presets.save(TrainNetwork, "fast", {"seed": 1}, root),
        lambda: presets.rename(TrainNetwork, "fast", "other", root),
        lambda: presets.rename(TrainNetwork, "mine", "fast", root),
        lambda: presets.delete(TrainNetwork, "fast", root),
    ):
        with pytest.raises(UserError, match="shipped"):
            attempt()
    assert presets.read(TrainNetwork, "fast", root) == before


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "a\\b", "con"])
def test_names_cannot_leave_the_folder(root, name):
    with pytest.raises(UserError):
        presets.save(TrainNetwork, name, {"seed": 1}, root)
    with pytest.raises(UserError):
        presets.delete(TrainNetwork, name, root)
    assert not list(root.rglob("*.toml"))


def test_reading_never_follows_a_path(root):
    (root / "presets").mkdir(parents=True)
    (root / "presets" / "outside.toml").write_text("seed = 1\n", encoding="utf-8")
    with pytest.raises(UserError, match="there is no preset"):
        presets.read(TrainNetwork, "../outside", root)


def test_renaming_onto_another_or_from_nothing_is_refused(root):
    presets.save(TrainNetwork, "a", {"seed": 1}, root)
    presets.save(TrainNetwork, "b", {"seed": 2}, root)
    with pytest.raises(UserError, match="already"):
        presets.rename(TrainNetwork, "a", "b", root)
    with pytest.raises(UserError, match="there is no preset"):
        presets.rename(TrainNetwork, "c", "d", root)
    assert presets.read(TrainNetwork, "b", root) == {"seed": 2}


def test_wrong_values_are_not_saved(root):
    with pytest.raises(ConfigError, match="seed: must be from 0"):
        presets.save(TrainNetwork, "bad", {"seed": -1}, root)
    with pytest.raises(ConfigError, match="did you mean seed"):
        presets.save(TrainNetwork, "bad", {"sed": 1}, root)
    assert names(root) == [("fast", True)]


def test_import_and_export_are_each_others_inverse():
    values = {"seed": 3, "learning_rate": 0.5, "training_comment": 'a "quoted"\nline'}
    assert presets.imported(TrainNetwork, to_toml(values, TrainNetwork)) == values
    with pytest.raises(UserError, match="upload.toml is not valid toml"):
        presets.imported(TrainNetwork, "seed =", "upload.toml")
    with pytest.raises(ConfigError, match=r"sed: is not an option of train_network \(in upload.toml\)"):
        presets.imported(TrainNetwork, "sed = 1", "upload.toml")


def test_a_preset_on_the_command_line_lies_below_files_and_flags(root, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("max_train_steps = 6\nseed = 1\n", encoding="utf-8")
    config = from_argv(TrainNetwork, [*REQUIRED, "--seed=2", f"--config_file={path}", "--preset", "fast"])
    assert (config.optim.learning_rate, config.optim.max_train_steps, config.optim.seed) == (0.01, 6, 2)
    presets.save(TrainNetwork, "mine", {"seed": 7}, root)
    assert from_argv(TrainNetwork, [*REQUIRED, "--preset=mine"]).optim.seed == 7


def test_an_unknown_preset_is_named_with_the_nearest(root):
    with pytest.raises(ConfigError) as caught:
        from_argv(TrainNetwork, ["--preset", "fats"])
    assert str(caught.value) == "preset: there is no preset fats for train_network; did you mean fast?"


def test_a_full_disk_is_one_line_and_leaves_nothing(root, monkeypatch):
    presets.save(TrainNetwork, "mine", {"seed": 3}, root)

    def full(path, *_, **__):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="preset: the workspace's disk is full; delete old jobs or files"):
        presets.save(TrainNetwork, "mine", {"seed": 4}, root)
    monkeypatch.undo()
    assert presets.read(TrainNetwork, "mine", root) == {"seed": 3}
    assert [path.name for path in (root / "presets" / "train_network").iterdir()] == ["mine.toml"]
    monkeypatch.setattr(
        presets.os, "replace", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    with pytest.raises(UserError, match="preset: cannot write to the workspace: Permission denied"):
        presets.rename(TrainNetwork, "mine", "other", root)
