"""`kill -9` at any moment of a run: every file stays readable, and the run goes on to the very same weights."""

import json
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from backend import events
from backend.states import NETWORK, OPTIMIZER, check_state
from tests.train.conftest import draw_pictures
from tests.train.forge import Forge, wait_for

KILLS, SHORT, STEPS, SEED = 20, (4, 9, 15), 20, 20
FLAGS = {
    "pretrained_model_name_or_path": "backend/demo/model",
    "train_batch_size": 1,
    "resolution": 64,
    "output_name": "test",
    "network_dim": 16,
    "learning_rate": 1e-3,
    "lr_scheduler": "cosine",
    "max_train_steps": STEPS,
    "save_every_n_steps": 2,
    "save_last_n_steps": 6,
    "seed": 3,
}
ARGV = ["train_network", *(f"--{name}={value}" for name, value in FLAGS.items()), "--save_state", "--cache_latents"]
HIDDEN = re.compile(r"\.test-step\d{8}-state\..*\.tmp")


@dataclass(frozen=True)
class Moment:
    """When a run is killed.

    Attributes:
        step: after so many steps; None where the writing of a state is watched for.
        state: how many states have been begun by then.
        later: after that, in steps by the pace so far, or in seconds after a state has been begun.
    """

    step: int | None
    state: int = 0
    later: float = 0.0


def moments() -> list[Moment]:
    """Spread over the whole run, two in three by the clock, one while a state is written."""
    draw = random.Random(SEED)
    found = []
    for number in range(KILLS):
        if number % 3 == 0:
            found.append(Moment(None, 1 + number * (STEPS // 2) // KILLS, draw.uniform(0, 0.03)))
        else:
            # Counted in steps, as machines are now faster and now slower.
            found.append(Moment(number * STEPS // KILLS, later=draw.uniform(0, 1.9)))
    return found


class Runs:
    """Runs of the same options into folders of their own."""

    def __init__(self, forge: Forge, home: Path) -> None:
        self.forge, self.home = forge, home
        draw_pictures(home / "pictures" / "1_disc", 4)

    def begin(self, folder: Path, *more: str) -> int:
        """Start one, and wait for its training to begin; gives the process id."""
        (folder / "events.jsonl").unlink(missing_ok=True)
        folder.mkdir(exist_ok=True)
        environment = {events.VARIABLE: str(folder / "events.jsonl")}
        pid = self.forge.start(
            [*ARGV, f"--train_data_dir={self.home / 'pictures'}", f"--output_dir={folder}", *more],
            environment,
            folder / "log.txt",
        )
        assert wait_for(lambda: b'"training"' in told(folder), lambda: lives(pid)), (folder / "log.txt").read_text()
        return pid

    def whole(self, folder: Path, *more: str) -> dict[str, torch.Tensor]:
        """Let one run to its end; gives what it has learnt."""
        self.begin(folder, *more)
        assert self.forge.wait() == 0, (folder / "log.txt").read_text()
        return load_file(folder / "test.safetensors")

    def killed(self, folder: Path, moment: Moment) -> bool:
        """Kill one; False where it was done before its moment came."""
        pid, begun = self.begin(folder), time.monotonic()
        if moment.step is None:
            seen: set[str] = set()

            def writing() -> bool:
                seen.update(name for name in os.listdir(folder) if HIDDEN.fullmatch(name))
                return len(seen) >= moment.state

            wait_for(writing, lambda: lives(pid))
            time.sleep(moment.later)
        else:
            wait_for(lambda: steps_done(folder) >= moment.step, lambda: lives(pid))
            pace = (time.monotonic() - begun) / moment.step if moment.step else 0.1
            time.sleep(moment.later * pace)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        code = self.forge.wait()
        assert code in (0, -signal.SIGKILL), (folder / "log.txt").read_text()
        return code != 0


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def told(folder: Path) -> bytes:
    try:
        return (folder / "events.jsonl").read_bytes()
    except OSError:
        return b""


def steps_done(folder: Path) -> int:
    found = re.findall(rb'"step": (\d+)', told(folder).rpartition(b"\n")[0])
    return int(found[-1]) if found else 0


def states_that_can_be_read(folder: Path) -> dict[int, Path]:
    """The states of a folder by step. Every file that has its name is read, whole."""
    for path in folder.glob("*.safetensors"):
        assert load_file(path)
    found = {}
    for state in folder.glob("*-state"):
        assert load_file(state / NETWORK) and torch.load(state / OPTIMIZER, weights_only=True)["kind"] == "AdamW"
        found[check_state(state).step] = state
    for path in folder.glob("*.config.toml"):
        assert "max_train_steps = 20" in path.read_text()
    return found


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with Forge() as forge:
        yield Runs(forge, tmp_path_factory.mktemp("kill"))


@pytest.fixture(scope="module")
def expected(runs: Runs) -> dict[str, torch.Tensor]:
    """What the run that nobody kills has learnt."""
    return runs.whole(runs.home / "whole")


@pytest.mark.parametrize(
    "number", [pytest.param(number, marks=[] if number in SHORT else pytest.mark.long) for number in range(KILLS)]
)
def test_a_killed_run_leaves_whole_files_and_ends_the_same(
    runs: Runs, expected: dict[str, torch.Tensor], number: int, record_property
) -> None:
    folder, moment = runs.home / f"killed-{number}", moments()[number]
    while not runs.killed(folder, moment):
        # It was done before the moment came.
        assert moment.later > 0.01
        moment = replace(moment, later=moment.later / 2)
        folder = runs.home / f"{folder.name}-again"
    left, states = hidden(folder), states_that_can_be_read(folder)
    newest = max(states, default=0)
    rest = runs.whole(folder, *([f"--resume={states[newest]}"] if newest else ["--overwrite"]))
    assert rest.keys() == expected.keys() and all(torch.equal(rest[name], expected[name]) for name in rest)
    assert hidden(folder) == []
    assert max(states_that_can_be_read(folder)) == STEPS
    names = {path.name for path in folder.glob("test-*")}
    # Those of before the kill are removed in their time, as they would have been.
    assert names == {path.name for path in (runs.home / "whole").glob("test-*")}
    figures = {"kill": number, "moment": vars(moment), "newest": newest, "hidden": left}
    record_property("figures", json.dumps(figures))
    print(json.dumps(figures))
