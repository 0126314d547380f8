"""Two processes in turns: what is measured, and what becomes of a side that breaks."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from backend.workspace import PROJECT
from benchmarks.pairs.settings import Settings
from benchmarks.pairs.turns import Child, Ratio, SideFailed, Turn, take_turn, take_turns
from benchmarks.train import Case, Outcome, words_of


class Asked:
    """Stands for a side; remembers who was asked when."""

    def __init__(self, name: str, order: list[str]) -> None:
        self.name, self.order = name, order

    def ask(self, method: str, count: int) -> str:
        self.order.append(self.name)
        return self.name


def test_who_goes_first_changes_and_the_pairs_stay_in_order() -> None:
    order: list[str] = []
    sides = [Asked("ours", order), Asked("stock", order)]
    assert list(take_turns(sides, 3, 1)) == [["ours", "stock"]] * 3
    assert order == ["ours", "stock", "stock", "ours", "ours", "stock"]


def test_a_turn_is_timed_without_what_gets_it_ready() -> None:
    side = SimpleNamespace(get_ready=lambda count: time.sleep(1), steps=lambda count: [0.5] * count)
    turn = take_turn(side, 3)
    assert turn.wall < 0.9 and turn.numbers == (0.5, 0.5, 0.5)


def test_a_ratio_is_the_middle_of_the_pairs_with_its_quartiles() -> None:
    assert Ratio.of([4.0, 1.0, 2.0, 3.0, 5.0]) == Ratio(3.0, 2.0, 4.0)
    assert str(Ratio.of([0.5])) == "0.500 (0.500-0.500)"


def test_the_row_has_ratios_of_pairs_and_the_largest_difference_of_losses() -> None:
    settings = Settings("demo", 64, 2, 4, "no", False, "given", "cpu", 1, None, Path(), 4)
    turns = [
        [Turn(1, 1.0, 3.0, (1.0,)), Turn(1, 2.0, 2.0, (1.0,))],
        [Turn(1, 3.0, 1.0, (0.99,)), Turn(1, 2.0, 2.0, (1.0,))],
    ]
    outcome = Outcome(Case(settings, 2, 1), turns, [])
    assert outcome.ratio("wall") == Ratio(1.0, 0.75, 1.25) and outcome.ratio("processor") == Ratio(1.0, 0.75, 1.25)
    assert outcome.difference() == pytest.approx(0.01)
    assert outcome.speeds() == [1.0, 1.0]


def test_a_side_that_breaks_tells_its_last_line(tmp_path: Path) -> None:
    child = Child("ours", "benchmarks.pairs.nowhere:Ours", SimpleNamespace(device="cpu", threads=1), tmp_path)
    with pytest.raises(SideFailed, match="ours: .*benchmarks.pairs.nowhere"):
        child.ready()
    child.end()


METER = """
import time, numpy
from benchmarks.pairs.memory import Meter

meter = Meter("cpu")
before = meter.peak
block = numpy.ones(64 << 20, numpy.uint8)
deadline = time.monotonic() + 60  # a busy machine lets the watching thread wait
while meter._since < before + (56 << 20) and time.monotonic() < deadline:
    time.sleep(0.01)
del block
assert meter.peak > before + (56 << 20)
meter.restart()
assert meter.peak < before + (32 << 20) and meter.life > before + (56 << 20)
"""


def test_the_meter_sees_memory_that_is_given_back_and_begins_anew() -> None:
    # In a process of its own, as what other tests have left in this one may be given back meanwhile.
    subprocess.run([sys.executable, "-c", METER], cwd=PROJECT, check=True, timeout=300)


def test_extra_options_become_words_of_the_command_line() -> None:
    assert words_of(["fp8_base=true network_dim=8", "sdpa"]) == ["--fp8_base", "--network_dim", "8", "--sdpa"]
