"""Several processes: results in order, few at a time, an end without remains however it comes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from backend.errors import UserError
from backend.tools.processes import in_order
from backend.workspace import PROJECT


def sleep_and_say(item: tuple[float, int]) -> tuple[int, int, int]:
    time.sleep(item[0])
    return item[1], os.getpid(), cv2.getNumThreads()


def die(_item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(item: int) -> int:
    if item == 3:
        raise ValueError("three")
    return item


def test_results_are_in_order_and_come_from_several_processes_of_one_thread() -> None:
    items = [(0.3, 0), (0.0, 1), (0.2, 2), (0.0, 3), (0.1, 4), (0.0, 5)]
    found = list(in_order(sleep_and_say, items, 2, lambda _: 1, 99))
    assert [number for number, _, _ in found] == [0, 1, 2, 3, 4, 5]
    assert len({process for _, process, _ in found}) == 2 and {threads for _, _, threads in found} == {1}
    before = cv2.getNumThreads()
    assert list(in_order(sleep_and_say, items[1:2], 1, lambda _: 1, 99)) == [(1, os.getpid(), 1)]
    assert cv2.getNumThreads() == before


@pytest.mark.parametrize(("weights", "most", "ahead"), [([1] * 12, 99, 4), ([10] * 6, 25, 2), ([99] * 3, 25, 1)])
def test_few_are_given_out_at_a_time(weights: list[int], most: int, ahead: int) -> None:
    taken = []

    def items() -> Iterator[int]:
        for number, weight in enumerate(weights):
            taken.append(number)
            yield weight

    results = in_order(fail, items(), 2, lambda weight: weight, most)
    next(results)
    assert len(taken) == min(len(weights), ahead + 1)  # one that waits for its turn
    assert list(results) == weights[1:]


def test_an_error_is_raised_in_its_place_and_the_rest_never_begins() -> None:
    taken = []
    results = in_order(fail, (taken.append(number) or number for number in range(100)), 2, lambda _: 1, 99)
    assert [next(results), next(results), next(results)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert len(taken) < 10


def test_a_process_that_is_killed_is_one_line() -> None:
    with pytest.raises(UserError, match="ended from outside, most likely because the machine's memory is full"):
        list(in_order(die, [1, 2, 3], 2, lambda _: 1, 99))


@contextmanager
def resizing(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The command at work, in a group of its own, some files written already."""
    (folder / "s").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "s" / "000.jpg", quality=90)
    for number in range(1, 400):
        os.link(folder / "s" / "000.jpg", folder / "s" / f"{number:03}.jpg")
    argv = [sys.executable, "-m", "backend", "resize_images_to_resolution", str(folder / "s"), str(folder / "d")]
    environment = {name: value for name, value in os.environ.items() if name != "LORALOOM_EVENTS"}
    process = subprocess.Popen(
        argv, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(lambda: len(list(folder.glob("d/*.jpg"))) > 5)
        yield process
    finally:
        if members(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def members(group: int) -> list[int]:
    """The processes of a group that are alive."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found


@pytest.mark.parametrize("to_group", [True, False])
def test_a_stop_leaves_only_whole_files(tmp_path: Path, to_group: bool) -> None:
    """Ctrl-C reaches every process of the group, a job's stop only the first."""
    with resizing(tmp_path) as process:
        if to_group:
            os.killpg(process.pid, signal.SIGINT)
        else:
            os.kill(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (130, "stopped by an interrupt\n")
        wait_for(lambda: not members(process.pid))
    made = sorted(path for path in (tmp_path / "d").iterdir())
    assert 5 < len(made) < 1000 and not [path for path in made if path.suffix == ".tmp"]
    for path in made:
        with Image.open(path) as image:
            image.load()


def test_no_process_outlives_a_killed_one(tmp_path: Path) -> None:
    with resizing(tmp_path) as process:
        assert len(members(process.pid)) > 1 or len(os.sched_getaffinity(0)) == 1
        process.kill()
        process.communicate(timeout=60)
        wait_for(lambda: not members(process.pid))
