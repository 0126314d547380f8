"""Which torch and which xformers set-up takes, beside stand-ins of NVIDIA's driver; nothing is installed."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
INDEX = "https://download.pytorch.org/whl"
NEWEST = re.search(r"^torch==(.+)$", (PROJECT / "requirements.txt").read_text(), re.MULTILINE)[1]
# What pip and the environment would do is only told.
STAND_INS = """
set -euo pipefail
. docker/environment.sh
make_venv() { echo "make_venv"; rm -f torch; }
pip_install() { echo "pip: $*"; case $1 in torch==*) echo "${1#torch==} 12.6" >torch;; esac; [ ! -e no_$PIP_FAILS ]; }
installed_torch() { cat torch 2>/dev/null; }
"""


class Box:
    """A project of its own beside a driver of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.programs = folder / "project", folder / "bin"
        (self.folder / "docker").mkdir(parents=True)
        self.programs.mkdir()
        for name in ("requirements.txt", "docker/environment.sh"):
            shutil.copy(PROJECT / name, self.folder / name)

    def driver(self, version: str, *capabilities: str) -> "Box":
        """An nvidia-smi that tells of GPUs of these compute capabilities."""
        lines = "\n".join(f"{version}, {capability}" for capability in capabilities)
        return self.smi(f"cat <<'EOF'\n{lines}\nEOF\n").module(version)

    def module(self, version: str) -> "Box":
        """The file in /proc of a driver that is loaded."""
        text = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Thu 2024\nGCC version:  gcc 12.3.0\n"
        (self.folder / "driver").write_text(text)
        return self

    def smi(self, body: str) -> "Box":
        program = self.programs / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{body}")
        program.chmod(0o755)
        return self

    def run(self, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        own = {"PATH": f"{self.programs}:/usr/bin:/bin", "driver_file": str(self.folder / "driver"), "PIP_FAILS": "x"}
        own |= environment
        return subprocess.run(
            ["bash", "-c", STAND_INS + code], cwd=self.folder, env=own, capture_output=True, text=True
        )  # fmt: skip

    def wanted(self, **environment: str) -> str:
        done = self.run("wanted_torch", **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture
def box(tmp_path) -> Box:
    return Box(tmp_path)


@pytest.mark.parametrize(
    ("driver", "capabilities", "expected"),
    [
        ("535.183.01", ["8.6"], f"{NEWEST}+cu126"),
        ("525.60.13", ["7.0"], f"{NEWEST}+cu126"),
        ("560.35.03", ["8.9", "8.9"], f"{NEWEST}+cu126"),
        ("580.65.06", ["9.0"], NEWEST),
        ("590.44", ["12.0"], NEWEST),
        ("575.57.08", ["12.0"], "2.11.0+cu128"),  # Blackwell, for which 12.6 has no code
        ("580.65.06", ["6.1"], f"{NEWEST}+cu126"),  # Pascal, for which 13.0 has none
        ("580.65.06", ["6.1", "12.0"], NEWEST),  # nothing runs on both; the newer one counts
        ("580.65.06", ["[N/A]"], NEWEST),
        ("535.183.01", ["8.0", "8.0", "7.5"], f"{NEWEST}+cu126"),
    ],
)
def test_the_newest_torch_that_the_driver_can_run(box, driver, capabilities, expected) -> None:
    version, _, index = box.driver(driver, *capabilities).wanted().partition(" ")
    assert version == expected
    assert index == (f"{INDEX}/{expected.split('+')[1]}" if "+" in expected else "")


def test_without_a_gpu_it_is_the_pin(box) -> None:
    assert box.wanted() == NEWEST
    # An image of a rented box brings the program along.
    failed = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    box.smi(f'echo "{failed}"\nexit 9\n')
    assert box.wanted() == NEWEST


@pytest.mark.parametrize("body", ["echo 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n", ""])
def test_a_broken_nvidia_smi_leaves_the_drivers_own_word(box, body) -> None:
    if body:
        box.smi(body)
    assert box.module("560.35.03").wanted() == f"{NEWEST}+cu126 {INDEX}/cu126"


def test_an_old_nvidia_smi_that_knows_no_capabilities(box) -> None:
    box.smi("echo 'Field \"compute_cap\" is not a valid field to query.'\nexit 2\n").module("470.256.02")
    done = box.run("wanted_torch")
    assert done.stdout.strip() == NEWEST and "470.256.02 is too old" in done.stderr


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ("2.12.1", "2.12.1"),
        ("2.11.0+cu128", f"2.11.0+cu128 {INDEX}/cu128"),
        ("2.13.0+cpu", f"2.13.0+cpu {INDEX}/cpu"),
        ("2.12.0+rocm7.1", f"2.12.0+rocm7.1 {INDEX}/rocm7.1"),
        ("2.12.0@https://mirror.example/simple", "2.12.0 https://mirror.example/simple"),
        ("2.12.0+cu126@https://mirror.example/whl", "2.12.0+cu126 https://mirror.example/whl"),
    ],
)
def test_another_torch_can_be_named(box, wish, expected) -> None:
    assert box.driver("535.1", "8.6").wanted(LORALOOM_TORCH=wish) == expected


@pytest.mark.parametrize("wish", ["newest", "2.9.1", "1.13+cu117", "torch==2.12", "2.12 -q", "$(touch x)", "2.12.0+"])
def test_a_torch_that_cannot_be_meant_is_refused_in_a_line(box, wish) -> None:
    done = box.run("make_environment webui requirements.txt", LORALOOM_TORCH=wish)
    assert done.returncode == 1 and done.stderr.startswith("LORALOOM_TORCH ") and done.stderr.count("\n") == 1
    assert not done.stdout and not (box.folder / "x").exists()


@pytest.mark.parametrize(
    ("installed", "driver", "wish", "fits"),
    [
        ("2.13.0+cu130 13.0", "535.1", "", False),
        ("2.13.0+cu130 13.0", "580.1", "", True),
        ("2.13.0+cu126 12.6", "535.1", "", True),
        ("2.13.0+cu126 12.6", "580.1", "", True),
        ("2.11.0+cu128 12.8", "570.1", "", True),
        ("2.13.0+cu130 13.0", "580.1 6.1", "", False),  # Pascal, for which 13.0 has no code
        ("2.13.0+cu126 12.6", "580.1 6.1", "", True),
        ("2.13.0+cu126 12.6", "570.1 12.0", "", False),  # Blackwell, for which 12.6 has none
        ("2.11.0+cu128 12.8", "570.1 12.0", "", True),
        ("2.13.0+cu130 13.0", "580.1 12.0", "", True),
        ("2.13.0+cpu none", "580.1", "", False),
        ("2.13.0+cpu none", "", "", True),
        ("2.13.0+cu130 13.0", "", "", True),
        ("2.13.0+cu130 13.0", "470.1", "", True),  # no other would be better
        ("2.13.0+cu130 13.0", "580.1", "2.12.1", False),
        ("2.13.0+cu130 13.0", "580.1", "2.13.0", True),
        ("2.13.0+cu130 13.0", "580.1", "2.13.0+cu126", False),
        ("2.13.0+cu126 12.6", "", "2.13.0+cu126@https://mirror.example", True),
    ],
)
def test_what_is_installed_stays_where_it_runs(box, installed, driver, wish, fits) -> None:
    if driver:
        version, _, capability = driver.partition(" ")
        box.driver(version, capability or "8.6")
    found = box.run(f"if torch_fits {installed}; then echo yes; else echo no; fi", LORALOOM_TORCH=wish).stdout.strip()
    assert found == ("yes" if fits else "no")


SET_UP = "make_environment webui requirements.txt"


def made(box: Box) -> Box:
    """With an environment that has a pip."""
    (box.folder / ".venv/bin").mkdir(parents=True)
    (box.folder / ".venv/bin/python").write_text("#!/bin/sh\ncase $2 in *version*) echo 2.13.0;; esac\n")
    (box.folder / ".venv/bin/python").chmod(0o755)
    return box


def test_setting_up_installs_the_torch_of_the_driver_and_the_xformers_of_that(box) -> None:
    lines = made(box).driver("535.183.01", "8.6").run(SET_UP).stdout.split("\n")
    assert lines[0] == f"pip: torch=={NEWEST}+cu126 --extra-index-url {INDEX}/cu126"
    assert lines[1].startswith("pip: -r ") and lines[2].startswith("pip: --no-deps xformers==")
    assert INDEX not in lines[2]
    rest = (box.folder / ".venv/requirements.txt").read_text()
    assert "xformers" not in rest and not re.search("^torch==", rest, re.MULTILINE) and "gradio==" in rest
    # The next start does nothing.
    assert box.run(SET_UP).stdout == ""


def test_without_a_gpu_all_is_as_pip_has_it(box) -> None:
    lines = made(box).run(SET_UP).stdout.split("\n")
    assert lines[0] == f"pip: torch=={NEWEST}" and "--index-url" not in "".join(lines)


def test_the_xformers_for_cuda_13_comes_from_pytorchs_index_or_is_left_out(box) -> None:
    made(box).driver("580.65.06", "8.6")
    (box.folder / "torch").write_text("2.13.0+cu130 13.0\n")
    line = next(line for line in box.run(SET_UP).stdout.split("\n") if "xformers" in line)
    assert line.startswith(f"pip: --no-deps --index-url {INDEX}/cu130 xformers==")
    (box.folder / "no_it").touch()
    done = box.run("install_xformers requirements.txt", PIP_FAILS="it")
    assert done.returncode == 0 and "PyTorch's own attention" in done.stderr and done.stderr.count("\n") == 1


def test_a_torch_that_a_driver_cannot_run_is_replaced_once(box) -> None:
    made(box)
    (box.folder / "torch").write_text("2.13.0+cu130 13.0\n")
    assert "make_venv" not in box.run(SET_UP).stdout  # as in an image that was made without a GPU
    done = box.driver("550.54.15", "8.9").run(SET_UP)
    assert done.stdout.startswith("make_venv\n") and f"torch=={NEWEST}+cu126" in done.stdout
    assert "2.13.0+cu130 does not fit" in done.stderr
    assert box.run(SET_UP).stdout == ""
    assert box.driver("580.65.06", "8.9").run(SET_UP).stdout == ""  # which runs the older build as well


def test_a_cpu_build_is_replaced_when_a_gpu_comes_and_a_named_one_is_not(box) -> None:
    made(box)
    (box.folder / "torch").write_text("2.13.0+cpu none\n")
    box.run(SET_UP)
    assert "make_venv" in box.driver("535.1", "8.6").run(SET_UP).stdout
    (box.folder / "torch").write_text("2.13.0+cpu none\n")
    done = box.run(SET_UP, LORALOOM_TORCH="2.13.0+cpu")
    assert "make_venv" not in done.stdout and "torch==" not in done.stdout


def test_a_torch_that_cannot_be_had_says_where_to_name_another(box) -> None:
    (made(box).driver("535.1", "8.6").folder / "no_it").touch()
    done = box.run(SET_UP, PIP_FAILS="it")
    assert done.returncode == 1 and "LORALOOM_TORCH" in done.stderr and "cu126" in done.stderr
    assert not (box.folder / ".venv/.webui").exists()


def test_the_machine_of_these_tests_is_set_up_as_ever() -> None:
    if os.path.exists("/proc/driver/nvidia/version") or shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU here")
    done = subprocess.run(
        ["bash", "-c", ". docker/environment.sh; wanted_torch"], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.stdout.strip() == NEWEST
