"""Threads by the work and by the processors that are to be had; what the user has set wins."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend import threads
from backend.threads import NUMBER, SMALL, SPINS, WAITING, Processors, arrange, plan, size_of

LARGE = 2_000_000_000
DEMO = Path(threads.__file__).parent / "demo" / "model"


@pytest.mark.parametrize(
    ("size", "processors", "expected", "why"),
    [
        (SMALL, Processors(2, 2), 1, "small"),
        (SMALL + 1, Processors(2, 2), 2, ""),
        (None, Processors(64, 64), 64, ""),
        (LARGE, Processors(64, 4), 4, ""),  # all that it may run on: nothing to tell
        (LARGE, Processors(64, 64, quota=2), 2, "quota of 2"),
        (LARGE, Processors(16, 16, busy=4), 12, "others keep 4 busy"),
        (LARGE, Processors(16, 16, busy=40), 8, "others keep 40 busy"),  # they end some day
        (LARGE, Processors(64, 64, quota=2, busy=40), 2, "quota"),  # there is room for two
        (LARGE, Processors(1, 1, busy=9), 1, ""),
        (0, Processors(1, 1), 1, ""),
    ],
)
def test_threads_are_by_the_work_and_by_what_is_to_be_had(size, processors, expected, why) -> None:
    found = plan(size, processors)
    assert found.threads == expected and (why in found.reason if why else not found.reason)


@given(
    st.one_of(st.none(), st.integers(0, 2**45)),
    st.integers(1, 512), st.integers(1, 512), st.one_of(st.none(), st.integers(1, 512)), st.integers(0, 2000),
)  # fmt: skip
def test_there_are_always_threads_and_never_more_than_processors(size, total, allowed, quota, busy) -> None:
    processors = Processors(total, min(allowed, total), quota, busy)
    found = plan(size, processors)
    assert 1 <= found.threads <= processors.usable
    assert size is None or size > SMALL or found.threads == 1
    assert (found.threads == processors.allowed) == (not found.reason)


@pytest.fixture
def two(monkeypatch) -> None:
    """A machine with two processors and nothing else to do."""
    monkeypatch.setattr(threads, "find", lambda: Processors(2, 2))


def test_a_small_model_gets_one_thread_and_the_log_says_so(two, tmp_path) -> None:
    environment: dict[str, str] = {}
    line = arrange("train_network", {"pretrained_model_name_or_path": str(DEMO)}, False, environment)
    assert line.startswith("Using 1 of 2 processors: what it works on is small") and "OMP_NUM_THREADS" in line
    assert environment == {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": str(SPINS)}


def test_a_full_size_model_gets_all_with_nothing_to_tell(two, tmp_path) -> None:
    model = tmp_path / "model.safetensors"
    with model.open("wb") as file:
        file.truncate(LARGE)
    for source in (str(model), "someone/a-model-of-the-hub"):
        environment: dict[str, str] = {}
        assert arrange("train_network", {"pretrained_model_name_or_path": source}, False, environment) == ""
        assert environment == {"GOMP_SPINCOUNT": str(SPINS)}


@pytest.mark.parametrize("name", [*NUMBER, *WAITING])
def test_what_the_user_has_set_wins(two, name) -> None:
    environment = {name: "7"}
    line = arrange("train_network", {"pretrained_model_name_or_path": str(DEMO)}, False, environment)
    assert environment[name] == "7"
    if name in NUMBER:
        assert not line and environment == {name: "7", "GOMP_SPINCOUNT": str(SPINS)}
    else:
        assert line and environment == {name: "7", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("command", "options", "gpu", "changed"),
    [
        ("train_network", {"pretrained_model_name_or_path": str(DEMO)}, True, False),
        ("gen_img", {"ckpt": str(DEMO), "device": None}, True, False),
        ("gen_img", {"ckpt": str(DEMO), "device": "cpu"}, True, True),
        ("gen_img", {"ckpt": str(DEMO), "device": "cuda"}, False, False),
        ("merge_lora", {"sd_model": None, "models": (DEMO / "unet" / "config.json",)}, True, True),
        ("svd_merge_lora", {"models": (DEMO / "unet" / "config.json",), "device": "cuda"}, True, False),
        ("import_config", {}, False, False),
    ],
)
def test_where_a_gpu_computes_torch_has_its_own_way(two, command, options, gpu, changed) -> None:
    environment: dict[str, str] = {}
    assert bool(arrange(command, options, gpu, environment)) == bool(environment) == changed


def test_a_report_is_not_begun_with_a_line_about_threads(two) -> None:
    environment: dict[str, str] = {}
    assert arrange("inspect_lora", {"file": DEMO / "unet" / "config.json"}, False, environment) == ""
    assert environment["OMP_NUM_THREADS"] == "1"


def test_every_command_that_computes_is_known() -> None:
    from backend.commands import COMMANDS
    from backend.config.base import leaves

    other = {"resize_images_to_resolution", "import_config", "export_config"}
    assert {*threads.FILES} == {*COMMANDS} - other
    for command, names in threads.FILES.items():
        assert {*names} <= {*leaves(COMMANDS[command].config_class())}


def test_sizes_are_those_of_weights(tmp_path) -> None:
    inner = tmp_path / "unet"
    inner.mkdir()
    (inner / "a.safetensors").write_bytes(bytes(1000))
    (tmp_path / "b.ckpt").write_bytes(bytes(10))
    (tmp_path / "notes.txt").write_bytes(bytes(77))
    assert size_of([tmp_path]) == 1010 and size_of([tmp_path / "b.ckpt", inner]) == 1010
    for paths in ([], [tmp_path / "none"], [Path("a\0b")], [tmp_path, Path("runwayml/x")]):
        assert size_of(paths) is None


def group_files(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "400000 100000\n"}, 4),
        ("0::/a/b\n", {"a/b/cpu.max": "50000 100000\n", "a/cpu.max": "400000 100000\n"}, 1),
        ("0::/outer/name\n", {"cpu.max": "300000 100000"}, 3),  # seen from inside as the root
        ("4:cpu,cpuacct:/x\n1:name=systemd:/x\n",
         {"cpu,cpuacct/x/cpu.cfs_quota_us": "200000\n", "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"}, 2),
        ("4:cpuacct,cpu:/docker/0\n", {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("4:cpuset:/\n0::/\n", {"cpu.max": "rubbish"}, None),
        ("no colon\n\n", {}, None),
    ],
)  # fmt: skip
def test_the_quota_of_a_control_group(tmp_path, cgroup, files, expected) -> None:
    assert threads.quota(group_files(tmp_path, cgroup, files)) == expected


def test_no_quota_where_nobody_tells(tmp_path) -> None:
    assert threads.quota(tmp_path) is None and threads.busy(tmp_path) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3.60 1.0 0.5 5/300 99\n", 4), ("9.0 9 9 1/300 1\n", 0), ("0.1 0 0 9/300 1\n", 0), ("0.0 0 0 0/1 1", 0), ("", 0)],
)
def test_others_count_where_they_were_and_are_busy(tmp_path, text, expected) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/loadavg").write_text(text)
    assert threads.busy(tmp_path) == expected


def test_a_real_command_computes_with_what_was_decided(tmp_path) -> None:
    """The environment is set before OpenMP is loaded, so torch itself says so."""
    code = """
import sys, backend.__main__ as entry
class Told:
    def config_class(self): return TrainNetwork
    def function(self, config):
        import torch
        return lambda config: print("threads", torch.get_num_threads())
from backend.config.train import TrainNetwork
entry.find = lambda name: Told()
entry.main(sys.argv[1:], lean=True)
"""
    own = {name: value for name, value in os.environ.items() if name not in (*NUMBER, *WAITING)}
    words = [sys.executable, "-c", code, "train_network", f"--pretrained_model_name_or_path={DEMO}"]
    words += ["--dataset_config=x.toml", f"--output_dir={tmp_path}"]
    found = []
    for more in ({"ACCELERATE_USE_CPU": "1"}, {"OMP_NUM_THREADS": "2"}):
        done = subprocess.run(words, env=own | more, capture_output=True, text=True, cwd=DEMO.parents[2])
        assert done.returncode == 0, done.stderr
        found.append(done.stdout)
    assert "threads 1\n" in found[0] and found[1] == f"threads {min(2, os.cpu_count() or 1)}\n"
