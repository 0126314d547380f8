"""What is told of a machine's GPU, beside stand-ins of nvidia-smi and of PyTorch's own account of its build."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from backend import gpus
from backend.gpus import Build, Card, Machine, Verdict, describe, look

CPU, CUDA13, CUDA126 = Build("2.13.0+cpu"), Build("2.13.0+cu130", "13.0"), Build("2.13.0+cu126", "12.6")
RTX3090 = Card("NVIDIA GeForce RTX 3090", 24576, 8.6)
BLACKWELL = Card("NVIDIA GeForce RTX 5090", 32607, 12.0)
VERSION = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\nGCC version: 12\n"


def judged(card: Card, driver: str, build: Build, **environment: str) -> Verdict:
    return describe(Machine((card,), driver), build, environment)


def test_a_gpu_that_runs_will_use_is_named_with_its_memory() -> None:
    assert judged(RTX3090, "580.65.06", CUDA13) == Verdict("GPU: NVIDIA GeForce RTX 3090, 24 GB", True, True)
    assert judged(RTX3090, "535.183.01", CUDA126).usable and judged(RTX3090, "560.35", CUDA126).usable


@pytest.mark.parametrize("driver", ["470.1", "535.183.01", "560.35.03", "575.64"])
def test_a_driver_that_is_too_old_for_the_build_is_told_with_the_remedy(driver: str) -> None:
    found = judged(RTX3090, driver, CUDA13)
    assert found.unused and "\n" not in found.line
    for word in ("RTX 3090, 24 GB", "CUDA 13.0", "580", driver, "update the driver" if driver < "5" else "./webui.sh"):
        assert word in found.line


@pytest.mark.parametrize(
    ("card", "driver", "build", "environment", "words"),
    [
        (RTX3090, "580.1", CPU, {}, "torch 2.13.0+cpu is built without CUDA"),
        (RTX3090, "580.1", Build(), {}, "not installed"),
        (RTX3090, "580.1", CUDA13, {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES hides it"),
        (RTX3090, "580.1", CUDA13, {"CUDA_VISIBLE_DEVICES": "-1"}, "CUDA_VISIBLE_DEVICES hides it"),
        (BLACKWELL, "575.1", CUDA126, {}, "no code for compute capability 12.0"),
        (Card("NVIDIA TITAN X (Pascal)", 12288, 6.1), "580.1", CUDA13, {}, "no code for compute capability 6.1"),
    ],
)
def test_what_stands_between_a_gpu_and_a_run_is_told(card, driver, build, environment, words) -> None:
    found = judged(card, driver, build, **environment)
    assert found.unused and words in found.line and "\n" not in found.line


def test_several_gpus_are_counted() -> None:
    found = describe(Machine((RTX3090, BLACKWELL, RTX3090), "580.1"), CUDA13, {"CUDA_VISIBLE_DEVICES": "0,1"})
    assert found.line == "GPU: 2 x NVIDIA GeForce RTX 3090, 24 GB; NVIDIA GeForce RTX 5090, 32 GB" and found.usable


@pytest.mark.parametrize(
    ("version", "build"),
    [
        ("from typing import Optional\n__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: X = None\n", CPU),
        ("__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", CUDA13),
        ("__version__ = '2.13.0+rocm7.1'\ncuda = None\nhip = '7.1.2'\n", Build("2.13.0+rocm7.1", "", "7.1.2")),
        ("", Build()),
    ],
)
def test_what_torch_was_built_for_is_read_from_its_own_file(version: str, build: Build) -> None:
    assert gpus.build_of(version) == build


def test_the_installed_torch_is_asked_without_being_imported() -> None:
    import torch

    found = gpus.installed()
    assert (found.version, found.cuda or None) == (torch.__version__, torch.version.cuda)
    code = "import sys; from backend import gpus; print(gpus.verdict().line); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=gpus.__file__[:-16])
    assert done.returncode == 0 and len(done.stdout.strip().split("\n")) == 1, done.stderr


class Box:
    """A machine of files: `nvidia-smi` is a script, the driver and the devices are files below a folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.programs = folder / "root", folder / "bin"
        self.programs.mkdir()
        for name in ("dev", "proc", "sys"):
            (self.root / name).mkdir(parents=True)
        monkeypatch.setattr(gpus, "PLACES", ())
        monkeypatch.setenv("PATH", f"{self.programs}{os.pathsep}/usr/bin{os.pathsep}/bin")

    def has(self, path: str, text: str = "") -> "Box":
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        return self

    def says(self, text: str, status: int = 0, stream: int = 1, unless: str = "") -> "Box":
        """An nvidia-smi that says this; asked for the field `unless` it says that there is no such field."""
        program = self.programs / "nvidia-smi"
        refuse = f'case "$*" in *{unless}*) echo "Field \\"{unless}\\" is not a valid field to query."; exit 2;; esac'
        program.write_text(
            f"#!/bin/sh\n{refuse if unless else ''}\ncat >&{stream} <<'EOF'\n{text}\nEOF\nexit {status}\n"
        )
        program.chmod(0o755)
        return self

    def told(self, build: Build = CUDA13) -> Verdict:
        found = describe(look(self.root), build, {})
        assert "\n" not in found.line
        return found


@pytest.fixture
def box(tmp_path, monkeypatch) -> Box:
    return Box(tmp_path, monkeypatch)


def test_a_machine_without_a_gpu(box) -> None:
    assert box.told() == Verdict("No GPU was found, so everything runs on the CPU", False, False)
    # As in the images of rented boxes: the program is there and the GPU is not.
    box.says("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9)
    assert not box.told().there


def test_nvidia_smi_is_asked(box) -> None:
    box.says("NVIDIA A10, PCIe, 23028, 535.183.01, 8.6, [N/A]\nTesla T4, 15360, 535.183.01, 7.5, [N/A]")
    assert look(box.root) == Machine((Card("NVIDIA A10, PCIe", 23028, 8.6), Card("Tesla T4", 15360, 7.5)), "535.183.01")
    assert box.told(CUDA126).line == "GPU: NVIDIA A10, PCIe, 22 GB; Tesla T4, 15 GB" and box.told().unused


def test_a_gpu_in_mig_mode_tells_no_memory_of_the_whole(box) -> None:
    box.says("NVIDIA A100-SXM4-80GB, 81920, 580.65.06, 8.0, Enabled")
    found = box.told()
    assert found.usable and "MIG" in found.line and "80 GB" not in found.line


def test_memory_that_may_not_be_told_is_left_out(box) -> None:
    box.says("NVIDIA GB10, [N/A], 580.95.05, 12.1, [N/A]")
    assert box.told().line == "GPU: NVIDIA GB10"


def test_an_old_nvidia_smi_is_asked_for_what_it_knows(box) -> None:
    box.says("Tesla K80, 11441, 470.256.02", unless="compute_cap")
    assert look(box.root) == Machine((Card("Tesla K80", 11441),), "470.256.02")
    assert "update the driver" in box.told().line


@pytest.mark.parametrize(
    ("text", "status", "stream"),
    [("Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 560.35", 18, 1),
     ("No devices were found", 0, 2), ("", 139, 1)],
)  # fmt: skip
def test_a_broken_nvidia_smi_is_told_where_there_is_a_gpu(box, text, status, stream) -> None:
    box.has("dev/nvidia0").has("proc/driver/nvidia/version", VERSION).says(text, status, stream)
    found = box.told()
    assert found.unused and "nvidia-smi" in found.line and (text.split("\n")[0] or "nothing") in found.line


def test_without_nvidia_smi_the_drivers_own_file_is_enough(box) -> None:
    box.has("dev/nvidia0").has("proc/driver/nvidia/version", VERSION)
    assert look(box.root) == Machine(driver="535.183.01", unasked="an NVIDIA GPU")
    assert box.told(CUDA126).usable and "535.183.01" in box.told().line


def test_device_files_alone_are_taken_for_a_gpu_that_works(box) -> None:
    box.has("dev/nvidia0")
    assert box.told() == Verdict("GPU: an NVIDIA GPU", True, True) and box.told(CPU).unused


def test_a_gpu_is_looked_for_without_waiting_for_the_driver(box, monkeypatch) -> None:
    box.has("dev/nvidia0").has("proc/driver/nvidia/version", VERSION).says("would be asked", 1)
    found = look(box.root, asking=False)
    assert not describe(found, CUDA13, {}).usable and describe(found, CUDA126, {}).usable
    monkeypatch.setattr(gpus, "look", lambda asking: found)
    monkeypatch.setattr(gpus, "installed", lambda: CUDA126)
    assert gpus.likely()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert not gpus.likely()


def test_a_container_that_was_given_no_device(box) -> None:
    assert "--gpus all" in box.has("proc/driver/nvidia/version", VERSION).told().line


def test_a_card_without_a_driver_and_one_of_another_maker(box) -> None:
    box.has("sys/bus/pci/devices/0/vendor", "0x10de\n").has("sys/bus/pci/devices/0/class", "0x040300\n")
    assert not box.told().there  # its sound device
    box.has("sys/bus/pci/devices/1/vendor", "0x10de\n").has("sys/bus/pci/devices/1/class", "0x030000\n")
    assert "no driver" in box.told().line and box.told().unused


def test_a_gpu_of_amd(box) -> None:
    box.has("dev/kfd")
    assert "ROCm" in box.told().line and box.told().unused
    assert box.told(Build("2.13.0+rocm7.1", "", "7.1")) == Verdict("GPU: an AMD GPU", True, True)
