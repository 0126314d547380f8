"""What lies in a job's folder may be anything: the list of all jobs goes on, and nothing hangs or fills the memory."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some

from backend import events
from backend.errors import UserError
from backend.job import is_alive, read_job, read_pid
from backend.resuming import outlook, states_of
from backend.states import read_position
from backend.worker import _parse
from backend.workspace import Workspace
from tabs.watch import Watch, follow

GOOD = {"command": "train_network", "title": "good", "created": 1e9}
DEEP = "[" * 100_000
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(),
    lambda below: some.lists(below, max_size=3) | some.dictionaries(some.text(max_size=8), below, max_size=3),
    max_leaves=8,
)
BAD = {
    "deep": DEEP,
    "deep in a field": '{"command": "x", "title": "x", "created": 1, "y": ' + DEEP,
    "huge number": '{"command": "x", "title": "x", "created": ' + "9" * 5000 + "}",
    "larger than a float": '{"command": "x", "title": "x", "created": 1' + "0" * 400 + "}",
    "NaN": '{"command": "x", "title": "x", "created": NaN}',
    "infinite": '{"command": "x", "title": "x", "created": Infinity}',
    "negative": '{"command": "x", "title": "x", "created": -1e300}',
    "first step": '{"command": "x", "title": "x", "created": 1, "first_step": Infinity}',
    "first step of many digits": '{"command": "x", "title": "x", "created": 1, "first_step": "' + "9" * 5000 + '"}',
    "surrogate": '{"command": "x", "title": "\\ud800", "created": 1}',
    "NUL": '{"command": "train\\u0000network", "title": "x", "created": 1}',
    "no command": '{"command": "../x", "title": "x", "created": 1}',
    "types": '{"command": ["x"], "title": {"x": 1}, "created": {}}',
    "a list": "[1]",
    "nothing": "",
    "no text": b"\xff\xfe\xfd",
    "huge": " " * (2 * 2**20),
}


@pytest.fixture
def place(workspace: Workspace) -> Path:
    """A folder for a job with a good one beside it."""
    for number in (1, 2):
        folder = workspace.jobs / f"20260101-000000-0000000{number}"
        (folder / "output").mkdir(parents=True)
        (folder / "job.json").write_text(json.dumps(GOOD))
    return folder


def write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def put(path: Path, kind: str) -> None:
    """Something in place of a file."""
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(path)


ODD = ("fifo", "folder", "device", "loop")


@pytest.mark.parametrize("name", BAD)
def test_a_bad_job_is_passed_over_with_a_line(jobs, place, name, capsys) -> None:
    write(place / "job.json", BAD[name])
    for _ in range(2):
        assert [job.title for job in jobs.list()] == ["good"]
    told = capsys.readouterr().err.strip().split("\n")
    assert len(told) == 1 and told[0].startswith(f"the run in {place} is passed over: ") and len(told[0]) < 600
    assert not jobs.busy() and jobs.list()[0].state == "queued"


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", ["job.json", "pid", "exit", "stop", "log.txt", "events.jsonl", "output"])
def test_something_else_in_place_of_a_file_stops_nothing(jobs, place, name, kind) -> None:
    if name == "output":
        (place / name).rmdir()
    put(place / name, kind)

    def look() -> None:
        listed = jobs.list()
        assert jobs.list()[-1].title == "good" and len(listed) in (1, 2)
        for job in listed:
            follow(jobs, Watch(job.id), job)
            jobs.reason(job.id)
        done.append(True)

    done: list[bool] = []
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(20)
    assert done == [True]


@given(some.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()) | some.builds(
    lambda base, key, value: json.dumps(base | {key: value}).encode(),
    some.just(GOOD), some.sampled_from([*GOOD, "resumes", "first_step"]), JSON,
))  # fmt: skip
@SHARED
def test_any_job_json_is_a_job_or_none(place, data) -> None:
    write(place / "job.json", data)
    found = read_job(place)
    assert found is None or (isinstance(found.first_step, int) and 0 <= found.created < 1e12)
    assert found is None or "\0" not in found.command


@given(some.binary(max_size=40) | some.integers(-(10**30), 10**30).map(lambda pid: f"{pid} x".encode()))
@SHARED
def test_any_pid_is_one_that_may_be_asked_for_or_none(place, data) -> None:
    write(place / "pid", data)
    assert isinstance(is_alive(place), bool)
    try:
        pid, _ = read_pid(place)
    except ValueError:
        return
    assert 1 < pid < 2**22


def test_our_own_group_is_nobodys_job(jobs, place, monkeypatch) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "killpg", lambda *words: killed.append(words))
    monkeypatch.setattr(os, "kill", lambda *words: killed.append(words))
    for pid in ("0", "-1", "1", "99999999999999999999"):
        write(place / "pid", f"{pid} 5 {boot}\n")
        jobs.stop(place.name)
        jobs.stop(place.name)
    assert [words for words in killed if words[1] in (signal.SIGTERM, signal.SIGKILL)] == []


# Events


@given(some.lists(some.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()), max_size=5))
@SHARED
def test_any_lines_are_events_or_passed_over(jobs, place, lines) -> None:
    good = b'{"event": "progress", "step": 7, "total": 9, "loss": 0.5}\n'
    write(place / "events.jsonl", good + b"\n".join(lines) + b"\n" + good)
    found, _ = events.read(place / "events.jsonl")
    assert all(isinstance(one, dict) for one in found) and found[0]["step"] == found[-1]["step"] == 7


EVENT = some.fixed_dictionaries(
    {"event": some.sampled_from(["progress", "validation", "phase", "report", "warning", "sample", "state", "error"])},
    optional={
        name: JSON | some.integers(-5, 5) | some.sampled_from(["/etc/passwd", "a\0b", "x" * 5000, "output"])
        for name in ("step", "loss", "name", "message", "path", "prompt", "seed", "index", "lr", "weight_norm",
                     "gradient_norm", "total", "field", "time")
    },
)  # fmt: skip


@given(some.lists(EVENT, max_size=4))
@example([{"event": "sample", "path": "x" * 5000}])
@SHARED
def test_whatever_an_event_says_the_page_goes_on(jobs, place, told) -> None:
    write(place / "events.jsonl", "".join(json.dumps(one) + "\n" for one in told))
    write(place / "exit", "1")
    job, watch = jobs.get(place.name), Watch(place.name)
    follow(jobs, watch, job)
    assert isinstance(jobs.reason(job.id), str)
    assert isinstance(outlook(job, jobs.list(), states_of(told)), str)


def test_long_files_and_lines_are_read_in_pieces(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(events, "READ_BYTES", 100)
    monkeypatch.setattr(events, "LINE_BYTES", 60)
    path = tmp_path / "e"
    lines = [json.dumps({"event": "error", "step": number}) for number in range(30)]
    lines.insert(10, json.dumps({"event": "error", "text": "x" * 70}))
    lines.insert(20, json.dumps({"event": "error", "text": "x" * 500}))
    path.write_text("\n".join(lines) + "\n" + '{"event": "unfinished')
    assert [one["step"] for one in events.every(path)] == list(range(30))
    assert len(events.read(path)[0]) < 5
    assert [one["step"] for one in events.read_errors(path)] == list(range(14, 30))


def test_an_endless_line_is_passed_over(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(events, "READ_BYTES", 100)
    path = tmp_path / "e"
    path.write_bytes(b"x" * 1000)
    assert list(events.every(path)) == []
    with path.open("ab") as file:
        file.write(b'\n{"step": 1}\n')
    assert list(events.every(path)) == [{"step": 1}]


# The rest


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", ["state.json", "network.safetensors", "optimizer.pt"])
def test_a_state_with_something_else_in_place_of_a_file_is_none(tmp_path, name, kind) -> None:
    put(tmp_path / name, kind)
    with pytest.raises(UserError, match="state"):
        read_position(tmp_path)


POSITION = {"step": 1, "epochs_done": 0, "total_steps": 9, "seed": 1, "pictures": "", "saved": {}}


@given(some.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()) | some.builds(
    lambda key, value: json.dumps(POSITION | {key: value}).encode(),
    some.sampled_from(["step", "saved", "seed", "pictures", "else"]), JSON | some.dictionaries(some.text(), JSON),
))  # fmt: skip
@SHARED
def test_any_state_json_is_a_position_or_one_line(place, data) -> None:
    write(place / "state.json", data)
    try:
        assert read_position(place).step >= 0
    except UserError as error:
        assert error.field == "resume"


@given(some.text() | JSON.map(json.dumps))
def test_any_line_of_the_worker_is_an_answer_or_none(line) -> None:
    assert isinstance(_parse(line), dict)
    assert _parse(DEEP) == {}


# Starting


@pytest.mark.parametrize("text", ['vae = "a\\u0000b"\n', 'vae = "a\0b"\n', 'vae = "\ud800"\n', 'vae = "\\U00000000"\n'])
def test_a_field_with_a_nul_starts_nothing_and_is_named(jobs, text) -> None:
    with pytest.raises(UserError, match="^vae: has a NUL character or half") as refused:
        jobs.start("train_network", f"steps = 1\n{text}")
    assert refused.value.field == "vae" and jobs.list() == []


def test_a_title_of_any_characters_is_kept_as_far_as_it_can_be(jobs) -> None:
    assert jobs.start("train_network", "steps = 1\n", "a\0b \ud800 \\u0000").title == "a\0b ? \\u0000"


def test_a_command_line_that_cannot_be_made_fails_its_job_alone(jobs, workspace) -> None:
    job = jobs.start("train_network", "steps = 1\n")
    jobs._argv = lambda job: ["a\0b"]
    with pytest.raises(UserError, match="cannot be started"):
        jobs.dispatch()
    assert jobs.get(job.id).state == "failed" and jobs.dispatch() is None


def test_outputs_with_a_broken_config_are_listed(workspace, place) -> None:
    write(place / "output" / "a.ckpt", b"x")
    for content in ("x = " + "[" * 5000, "\xff", "a." * 5000 + "b = 1"):
        write(place / "config.toml", content)
        assert isinstance(workspace.list_loras(), list) and isinstance(workspace.list_models(), list)
    put(place / "config.toml", "fifo")
    assert len(workspace.list_models()) == 1


