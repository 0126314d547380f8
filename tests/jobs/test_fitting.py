"""Sizes of pictures that are refused before anything is drawn."""

import json
from pathlib import Path

import pytest

from backend.errors import UserError
from backend.fitting import MOST_PIXELS, Memory, is_full_size, machine_memory, prompts_problem, size_problems
from backend.generate.prompts import check_size
from backend.workspace import DEMO_MODEL

PLENTY = Memory(64 * 10**9)
FULL = "stabilityai/sd-turbo"


@pytest.mark.parametrize(
    ("width", "height", "wrong"),
    [
        (None, None, {}),
        (64, 64, {}),
        (512, None, {}),
        (708, 512, {"width": "must be a multiple of 8"}),
        (512, 1, {"height": "must be at least 64"}),
        (0, -8, {"width": "must be at least 64", "height": "must be at least 64"}),
    ],
)
def test_a_size_is_a_multiple_of_8(width: int | None, height: int | None, wrong: dict[str, str]) -> None:
    found = size_problems(width, height, FULL, PLENTY)
    assert found.keys() == wrong.keys()
    assert all(found[name].startswith(message) for name, message in wrong.items())


@pytest.mark.parametrize("size", [(63, 64), (64, 56), (64, 8200), (708, 512), (8192, 4096), (64, 64), (4096, 4096)])
def test_the_page_and_the_engine_take_the_same_sizes(size: tuple[int, int]) -> None:
    refused = False
    try:
        check_size(*size)
    except UserError:
        refused = True
    assert bool(size_problems(*size, DEMO_MODEL, Memory(10**15))) is refused


def test_what_cannot_fit_is_refused_with_the_largest_size_that_can() -> None:
    found = size_problems(8192, 4096, FULL, Memory(8 * 10**9))
    assert found == {
        "width": "8192 x 4096 is too large: 1576 x 1576 is the most that fits into the 8.0 GB of memory that are "
        "free, or another size of 2.5 megapixels"
    }
    assert size_problems(1576, 1576, FULL, Memory(8 * 10**9)) == {}
    # The side that is left out is the model's own.
    assert "height" in size_problems(None, 8192, FULL, Memory(8 * 10**9))
    assert size_problems(None, 4096, FULL, PLENTY) == {}


def test_a_small_model_takes_less() -> None:
    assert "width" in size_problems(4096, 4096, FULL, Memory(8 * 10**9))
    assert size_problems(4096, 4096, DEMO_MODEL, Memory(8 * 10**9)) == {}
    assert size_problems(None, 4096, DEMO_MODEL, Memory(8 * 10**9)) == {}
    # However much memory there is, the worker draws no larger ones.
    found = size_problems(8192, 8192, DEMO_MODEL, Memory(10**15))["width"]
    assert f"{MOST_PIXELS / 1e6:.1f} megapixels" in found and "GB" not in found


def test_full_size_is_told_from_small() -> None:
    assert is_full_size(FULL) and not is_full_size(DEMO_MODEL)


def test_a_container_s_limit_counts(tmp_path: Path) -> None:
    assert machine_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    8000000 kB\n")
    memory = machine_memory(tmp_path)
    assert memory is not None and memory.free == 8000000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("5\n")
    assert machine_memory(tmp_path) == memory
    (group / "memory.max").write_text("1000005\n")
    assert machine_memory(tmp_path) == Memory(1000000)


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("a.txt", "a fox --w 512 --h 768\n# --w 7\na --with dash\n", ""),
        ("a.txt", "a fox --n bad\n\na cat --w 708 --s 4", "line 3: width must be a multiple of 8, got 708"),
        ("a.txt", "a cat --h tall", "line 1: height must be a whole number, got tall"),
        ("a.txt", "a cat --W 8192 --h 8192", "line 1: width 8192 x 8192 is too large"),
        ("a.txt", "a cat --w 90000", "line 1: width must be at most 8192, got 90000"),
        ("a.json", json.dumps(["a --w 100", {"prompt": "b"}]), "prompt 1: width must be a multiple of 8, got 100"),
        ("a.json", json.dumps([{"prompt": "b", "height": 4}]), "prompt 1: height must be at least 64, got 4"),
        ("a.toml", '[prompt]\nwidth = 510\n[[prompt.subset]]\nprompt = "a"', "prompt 1: width must be"),
        ("a.toml", '[prompt]\nwidth = 512\n[[prompt.subset]]\nprompt = "a"\nheight = 3', "height must be at least"),
        ("a.toml", "[prompt]\nwidth = 512\nprompt = 'a'", ""),
        ("a.toml", "broken", "is not valid toml"),
        ("a.json", "3", ""),
    ],
)
def test_sample_prompts_are_judged_line_by_line(tmp_path: Path, name: str, text: str, wrong: str) -> None:
    (tmp_path / name).write_text(text)
    found = prompts_problem(str(tmp_path / name), FULL, PLENTY)
    assert wrong in found and bool(found) == bool(wrong)
