"""A job that ended early goes on as a new one, from the newest state that can be read."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from backend import events
from backend.config.base import read_toml
from backend.config.train import TrainNetwork
from backend.errors import ConfigError, UserError
from backend.header import pack_header
from backend.job import Job
from backend.jobs import Jobs
from backend.resuming import resume
from backend.states import NETWORK, OPTIMIZER, POSITION, Position, check_state, read_position
from backend.workspace import Workspace

CONFIG = """
pretrained_model_name_or_path = "backend/demo/model"
dataset_config = "d.toml"
output_name = "katze ü"
max_train_steps = 20
output_dir = "{output}"
"""


def write_state(folder: Path, step: int) -> Path:
    folder.mkdir(parents=True)
    (folder / POSITION).write_text(json.dumps(asdict(Position(step, 0, 20, 7, ""))))
    (folder / NETWORK).write_bytes(pack_header({}))
    zipfile.ZipFile(folder / OPTIMIZER, "w").close()
    return folder


def tell(job: Job, **event: object) -> None:
    with job.events.open("a") as file:
        file.write(json.dumps(event, default=str) + "\n")


def save(job: Job, step: int) -> Path:
    folder = write_state(job.output / f"katze ü-step{step:08d}-state", step)
    tell(job, event="state", step=step, path=folder)
    return folder


def end(job: Job) -> Job:
    """As a reboot leaves it."""
    (job.folder / "pid").write_text("1 2 another-boot\n")
    return job


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(Workspace(tmp_path / "work space ü"))


@pytest.fixture
def begun(jobs: Jobs) -> Callable[..., Job]:
    """begun(2, 4): a job that has saved states after these steps and was then interrupted after step 6."""

    def make(*steps: int) -> Job:
        job = jobs.start("train_network", lambda output: CONFIG.format(output=output), "my cat")
        for step in range(1, 7):
            tell(job, event="progress", step=step, total=20, loss=1 / step, epoch=1, epochs=2, seconds_per_step=1.0)
            if step in steps:
                save(job, step)
        return end(job)

    return make


def test_the_newest_state_is_gone_on_from_in_a_folder_of_its_own(jobs: Jobs, begun: Callable[..., Job]) -> None:
    job = begun(2, 4)
    tell(job, event="error", message="the disk is full")
    new = resume(jobs, job.id)
    state = new.output / "katze ü-step00000004-state"
    assert (new.state, new.title, new.resumes, new.first_step) == ("queued", "my cat", job.id, 4)
    config = read_toml(TrainNetwork, new.config)
    assert config["resume"] == str(state) and config["output_dir"] == str(new.output)
    assert config["max_train_steps"] == 20 and config["output_name"] == "katze ü"
    told, _ = events.read(new.events)
    curve = [(event["step"], event["loss"]) for event in told if "loss" in event]
    assert curve == [(step, 1 / step) for step in (1, 2, 3, 4)]
    newest = [event for event in told if event["event"] == "progress"][-1]
    assert (newest["step"], newest["total"], newest["epochs"]) == (4, 20, 2) and "seconds_per_step" not in newest
    assert events.read_errors(new.events) == []
    # Neither needs the other.
    jobs.delete(job.id)
    assert check_state(state).step == 4


def test_the_options_are_those_that_the_run_had_resolved(jobs: Jobs, begun: Callable[..., Job]) -> None:
    job = begun(2)
    (job.output / "katze ü.config.toml").write_text(CONFIG.format(output=job.output) + "seed = 7\nnetwork_dim = 5\n")
    config = read_toml(TrainNetwork, resume(jobs, job.id).config)
    assert (config["seed"], config["network_dim"]) == (7, 5)


@pytest.mark.parametrize(
    "damage",
    [
        shutil.rmtree,
        lambda folder: (folder / POSITION).write_text('{"step": "4"}'),
        lambda folder: (folder / POSITION).write_text(json.dumps(asdict(Position(4, 0, 20, 7, ""))).replace("4", "-4")),
        lambda folder: (folder / NETWORK).write_bytes(pack_header({})[:-1]),
        lambda folder: (folder / OPTIMIZER).write_bytes(b"PK"),
        lambda folder: (folder / OPTIMIZER).unlink(),
    ],
)
def test_one_that_is_gone_or_broken_is_passed_over(jobs: Jobs, begun: Callable[..., Job], damage) -> None:
    job = begun(2, 4)
    damage(job.output / "katze ü-step00000004-state")
    new = resume(jobs, job.id)
    assert new.first_step == 2
    assert [event["step"] for event in events.read(new.events)[0] if "loss" in event] == [1, 2]


def test_a_state_that_was_being_replaced_is_found(jobs: Jobs, begun: Callable[..., Job]) -> None:
    job = begun(2, 4)
    os.rename(job.output / "katze ü-step00000004-state", job.output / ".katze ü-step00000004-state.old")
    assert resume(jobs, job.id).first_step == 4


def test_a_resumed_job_is_resumed_from_its_own_state_or_the_one_it_began_with(
    jobs: Jobs, begun: Callable[..., Job]
) -> None:
    second = end(resume(jobs, begun(2, 4).id))
    third = resume(jobs, second.id)
    assert (third.resumes, third.first_step) == (second.id, 4)
    for step in (5, 6):
        tell(third, event="progress", step=step, total=20, loss=0.1)
    save(third, 6)
    fourth = resume(jobs, end(third).id)
    steps = [event["step"] for event in events.read(fourth.events)[0] if "loss" in event]
    assert (fourth.first_step, steps) == (6, [1, 2, 3, 4, 5, 6])


def test_what_cannot_be_resumed_says_why_and_makes_no_job(jobs: Jobs, begun: Callable[..., Job]) -> None:
    def refused(job: Job, why: str) -> None:
        before = [other.id for other in jobs.list()]
        with pytest.raises(UserError, match=f"cannot be resumed: {why}"):
            resume(jobs, job.id)
        assert [other.id for other in jobs.list()] == before

    refused(begun(), "no state was saved")
    waiting = jobs.start("train_network", lambda output: CONFIG.format(output=output))
    refused(waiting, "it has not ended")
    job = begun(2)
    (job.folder / "exit").write_text("0")
    refused(job, "it is finished")
    (job.folder / "exit").write_text("1")
    new = resume(jobs, job.id)
    refused(job, "a run goes on from it")
    end(new)
    shutil.rmtree(job.output / "katze ü-step00000002-state")
    refused(job, "its states are gone or broken")
    for job_id in ("", "../x", "20260101-000000-00000000"):
        with pytest.raises(UserError, match="there is no job"):
            resume(jobs, job_id)


def test_options_that_no_longer_hold_are_named(jobs: Jobs, begun: Callable[..., Job]) -> None:
    job = begun(2)
    job.config.write_text(CONFIG.format(output=job.output) + "network_dmi = 5\n")
    with pytest.raises(ConfigError, match="network_dmi"):
        resume(jobs, job.id)
    assert [other.id for other in jobs.list()] == [job.id]


def test_sample_pictures_come_along_and_nothing_else(jobs: Jobs, begun: Callable[..., Job], tmp_path: Path) -> None:
    job = begun(4)
    (tmp_path / "secret.png").write_text("secret")
    (job.folder / "x.png").write_text("not in its output")
    (job.output / "sample").mkdir()
    (job.output / "sample" / "link.png").symlink_to(tmp_path / "secret.png")
    for step, name in ((2, "a.png"), (4, "b.png"), (5, "late.png")):
        (job.output / "sample" / name).write_text(name)
        tell(job, event="sample", step=step, path=job.output / "sample" / name, prompt="p", index=0)
    for path in (tmp_path / "secret.png", job.output / "sample" / "link.png", job.output / ".." / "x.png"):
        tell(job, event="sample", step=1, path=path, prompt="p", index=0)
    new = resume(jobs, job.id)
    own = [Path(event["path"]) for event in events.read(new.events)[0] if event["event"] == "sample"]
    assert own == [new.output / "sample" / "a.png", new.output / "sample" / "b.png"]
    assert [path.read_text() for path in own] == ["a.png", "b.png"]
    assert sorted(path.name for path in (new.output / "sample").iterdir()) == ["a.png", "b.png"]


def test_where_the_disk_knows_no_second_names_copies_are_made(jobs: Jobs, begun, monkeypatch) -> None:
    job = begun(4)

    def fail(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("backend.resuming.os.link", fail)
    new = resume(jobs, job.id)
    assert check_state(new.output / "katze ü-step00000004-state").step == 4


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "3",
        '{"step": true, "epochs_done": 0, "total_steps": 2, "seed": 1, "pictures": ""}',
        '{"step": 1, "epochs_done": 0, "total_steps": 2, "seed": 1, "pictures": "", "saved": {"x": []}}',
        '{"step": 1, "epochs_done": 0, "total_steps": 2, "seed": 1, "pictures": "", "saved": {"steps": [null]}}',
        "[" * 100_000,
    ],
)
def test_a_position_that_makes_no_sense_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / POSITION).write_text(text)
    with pytest.raises(UserError, match="^resume: the state in .* cannot be read"):
        read_position(tmp_path)


def test_epochs_that_are_over_where_an_epoch_has_become_another() -> None:
    def over(step: int, epochs_done: int, steps_per_epoch: int) -> int:
        return Position(step, epochs_done, 100, 1, "").epochs_over(steps_per_epoch)

    # In an epoch; at the end of one, before and after what is done there.
    assert [over(25, 2, 10), over(20, 1, 10), over(20, 2, 10), over(0, 0, 10)] == [2, 1, 2, 0]
    assert [over(25, 2, 20), over(25, 2, 5), over(20, 2, 5), over(20, 3, 5), over(25, 2, 1)] == [1, 5, 4, 3, 25]
