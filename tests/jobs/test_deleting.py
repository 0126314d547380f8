"""Single files of the workspace are deleted, and those that something uses are not."""

import json
from pathlib import Path

import pytest

from backend.deleting import LORA, MADE, PICTURE, delete, items
from backend.errors import UserError
from backend.jobs import Jobs
from backend.workspace import Workspace

RUN = "20260101-000000-00000000"


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    """A workspace with a LoRA of each place, a picture, and things that are neither."""
    workspace = Workspace(tmp_path / "workspace")
    for name in (
        "loras/horns.safetensors",
        "loras/more/stripes.pt",
        "loras/notes.txt",
        "loras/.hidden.safetensors",
        f"jobs/{RUN}/output/last.safetensors",
        f"jobs/{RUN}/output/last.config.toml",
        "jobs/notes/output/last.safetensors",
        "outputs/fox.png",
    ):
        path = workspace.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")
    return Jobs(workspace, check=lambda *_: None)


def test_what_can_be_deleted_is_listed_by_kind(jobs: Jobs) -> None:
    found = {(item.kind, item.name, item.size) for item in items(jobs.workspace)}
    assert found == {
        (LORA, "horns.safetensors", 7),
        (LORA, "more/stripes.pt", 7),
        (MADE, f"{RUN}/last.safetensors", 7),
        (PICTURE, "fox.png", 7),
    }
    made = next(item for item in items(jobs.workspace) if item.kind == MADE)
    assert made.job_id == RUN


def test_files_are_deleted_and_nothing_else(jobs: Jobs) -> None:
    root = jobs.workspace.root
    chosen = [root / "loras/horns.safetensors", root / f"jobs/{RUN}/output/last.safetensors"]
    assert [item.path for item in delete(jobs, chosen)] == chosen
    assert not any(path.exists() for path in chosen)
    assert (root / "outputs/fox.png").exists() and (root / f"jobs/{RUN}/output/last.config.toml").exists()


@pytest.mark.parametrize("name", ["loras/notes.txt", "../elsewhere.safetensors", "loras/../presets/x.pt", "loras"])
def test_what_is_not_listed_is_not_deleted(jobs: Jobs, name: str) -> None:
    path = jobs.workspace.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_dir():
        path.write_bytes(b"kept")
    with pytest.raises(UserError, match="not there any more"):
        delete(jobs, [jobs.workspace.root / "loras/horns.safetensors", path])
    # All or nothing.
    assert path.exists() and (jobs.workspace.root / "loras/horns.safetensors").exists()


def test_a_link_is_deleted_and_not_what_it_names(jobs: Jobs, tmp_path: Path) -> None:
    (tmp_path / "far.safetensors").write_bytes(b"weights")
    link = jobs.workspace.loras / "far.safetensors"
    link.symlink_to(tmp_path / "far.safetensors")
    (jobs.workspace.loras / "folder").symlink_to(tmp_path)
    delete(jobs, [link])
    assert not link.is_symlink() and (tmp_path / "far.safetensors").exists()
    assert not any("folder" in item.name for item in items(jobs.workspace))


def test_what_a_run_uses_or_writes_is_kept(jobs: Jobs) -> None:
    root = jobs.workspace.root
    job = jobs.start("merge_lora", f'[mixture]\nmodels = ["{root}/loras/horns.safetensors"]\n', "two together")
    (job.output / "merged.safetensors").write_bytes(b"weights")
    for path, words in (
        (root / "loras/horns.safetensors", "is used by the run two together"),
        (job.output / "merged.safetensors", "belongs to the run two together"),
    ):
        with pytest.raises(UserError, match=words):
            delete(jobs, [path])
        assert path.exists()
    jobs.stop(job.id)
    assert delete(jobs, [root / "loras/horns.safetensors", job.output / "merged.safetensors"])


def test_a_folder_that_a_run_names_keeps_its_files(jobs: Jobs) -> None:
    root = jobs.workspace.root
    jobs.start("merge_lora", json.dumps(f"{root}/loras/more").join(["models = [", "]"]))
    with pytest.raises(UserError, match="is used by the run"):
        delete(jobs, [root / "loras/more/stripes.pt"])


def test_what_a_picture_is_drawn_with_is_kept(jobs: Jobs) -> None:
    path = jobs.workspace.loras / "horns.safetensors"
    with pytest.raises(UserError, match="is being drawn; cancel it or wait"):
        delete(jobs, [path], {"backend/demo/model", str(path)})
    assert delete(jobs, [path], {"org/repo"})
