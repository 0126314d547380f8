"""What the Train tab finds wrong with the source of pictures before a run begins."""

from pathlib import Path

import pytest
from PIL import Image

from backend.workspace import DEMO_MODEL, Workspace
from tabs.train import check


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def folders(home: Path, picture: bool = True) -> dict[str, str]:
    (home / "3_sks dog").mkdir(parents=True)
    if picture:
        Image.new("RGB", (64, 64)).save(home / "3_sks dog" / "one.png")
    return {"pretrained_model_name_or_path": DEMO_MODEL, "train_data_dir": str(home)}


def test_folders_need_a_size_and_pictures(workspace: Workspace, tmp_path: Path) -> None:
    values = folders(tmp_path / "train")
    assert check(workspace, values, {})["resolution"].startswith("is required")
    assert check(workspace, values | {"resolution": "64"}, {}) == {}
    # What stands in for a size that cannot be read is not asked for again.
    assert list(check(workspace, values | {"network_dim": 0}, {})) == ["network_dim"]
    empty = folders(tmp_path / "empty", picture=False) | {"resolution": "64"}
    assert check(workspace, empty, {}) == {"train_data_dir": "the dataset has no pictures; upload some"}
    missing = values | {"train_data_dir": str(tmp_path / "nowhere"), "resolution": "64"}
    assert "cannot be read" in check(workspace, missing, {})["train_data_dir"]


def test_a_toml_may_leave_its_size_to_the_form(workspace: Workspace, tmp_path: Path) -> None:
    values = folders(tmp_path / "train")
    toml = tmp_path / "dataset.toml"
    toml.write_text(f'[[datasets]]\n[[datasets.subsets]]\nimage_dir = "{tmp_path}/train/3_sks dog"\n')
    del values["train_data_dir"]
    values["dataset_config"] = str(toml)
    assert "resolution" in str(check(workspace, values, {}))
    assert check(workspace, values | {"resolution": "64"}, {}) == {}


def test_a_state_that_is_not_there_is_named_before_a_run(workspace: Workspace, tmp_path: Path) -> None:
    values = folders(tmp_path / "train") | {"resolution": "64", "resume": str(tmp_path / "last-state")}
    assert "there is no state in" in check(workspace, values, {})["resume"]
    assert "resume" not in check(workspace, values | {"resume": None}, {})
