"""Which GPU this machine has, and whether the PyTorch that is installed here can use it. Knows no torch.

The driver is asked by `nvidia-smi`; where that is missing, the files of the driver tell its version. What PyTorch was
built for stands in a file of its own, `torch/version.py`. A command asks torch itself.
"""

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

# The oldest driver for what was built for a CUDA of this number before the point (NVIDIA's CUDA Compatibility, "minor
# version compatibility"), and the compute capabilities that PyTorch's builds have code for (its release notes).
DRIVERS: Mapping[int, int] = {11: 450, 12: 525, 13: 580}
CAPABILITIES: Mapping[str, tuple[float, float]] = {
    "12.6": (5.0, 9.0),
    "12.8": (7.0, 12.1),
    "12.9": (7.0, 12.1),
    "13.0": (7.5, 12.1),
    "13.2": (7.5, 12.1),
}
NVIDIA_PCI, DISPLAY_CLASS = "0x10de", "0x03"
# What nvidia-smi is asked for; drivers before 510 do not know all of it.
FIELDS = ("name", "memory.total", "driver_version", "compute_cap", "mig.mode.current")
OLD_FIELDS = FIELDS[:3]
SECONDS = 20.0
# WSL keeps it outside of the search path.
PLACES = ("/usr/lib/wsl/lib/nvidia-smi",)


@dataclass(frozen=True)
class Card:
    """One GPU: its name, its memory in MiB and its compute capability, the last two None where nobody tells."""

    name: str
    memory: int | None = None
    capability: float | None = None

    def __str__(self) -> str:
        return self.name if self.memory is None else f"{self.name}, {in_gigabytes(self.memory * 2**20)}"


@dataclass(frozen=True)
class Machine:
    """What the machine has.

    Attributes:
        cards: NVIDIA's GPUs, as far as they can be asked.
        driver: the version of NVIDIA's driver, "" without one and where nobody tells.
        fault: what `nvidia-smi` complained about.
        unasked: of what kind a GPU is there that cannot be asked, such as "an NVIDIA GPU".
        passed_in: whether it has device files; a container may have a driver without them.
    """

    cards: tuple[Card, ...] = ()
    driver: str = ""
    fault: str = ""
    unasked: str = ""
    passed_in: bool = True


@dataclass(frozen=True)
class Build:
    """What the installed PyTorch was built for: a CUDA such as "13.0", a ROCm, or "" and "" for CPUs alone."""

    version: str = ""
    cuda: str = ""
    hip: str = ""


@dataclass(frozen=True)
class Verdict:
    """What is to be told of this machine's GPU.

    Attributes:
        line: one line for a reader: the GPU and its memory, or why it is not used and what to do.
        there: whether the machine has a GPU at all.
        usable: whether runs will use it.
    """

    line: str
    there: bool
    usable: bool

    @property
    def unused(self) -> bool:
        """Whether there is a GPU that runs will not use."""
        return self.there and not self.usable


@lru_cache(maxsize=1)
def verdict() -> Verdict:
    """What is to be told of this machine's GPU; asked once in a process, as asking a driver can take seconds."""
    return describe(look(), installed(), os.environ)


def likely() -> bool:
    """Whether runs will use a GPU, as far as files tell: nobody has to wait for a driver's answer."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on"):
        return False
    return describe(look(asking=False), installed(), os.environ).usable


def describe(machine: Machine, build: Build, environment: Mapping[str, str]) -> Verdict:
    """Judge a machine with a build of PyTorch.

    Args:
        machine: what it has.
        build: what PyTorch was built for.
        environment: its CUDA_VISIBLE_DEVICES may hide GPUs.
    """
    name = several(machine.cards) or machine.unasked
    if not name and not machine.fault:
        return Verdict("No GPU was found, so everything runs on the CPU", there=False, usable=False)
    reason = obstacle(machine, build, environment)
    if reason:
        return Verdict(f"The GPU is not used ({name or 'NVIDIA'}): {reason}", there=True, usable=False)
    return Verdict(f"GPU: {name}", there=True, usable=True)


def obstacle(machine: Machine, build: Build, environment: Mapping[str, str]) -> str:
    """Why PyTorch cannot use the GPU and what to do about it; "" where nothing is in the way."""
    if "AMD" in machine.unasked and not machine.cards:
        return "" if build.hip else f"{of(build)} is not built for it; name a build for ROCm with LORALOOM_TORCH"
    if machine.fault:
        return f"nvidia-smi says: {machine.fault}; repair the driver or restart the machine"
    if not machine.passed_in:
        if not machine.driver:
            return f"it has no driver; install NVIDIA's, {DRIVERS[13]} or newer"
        return f"the driver {machine.driver} is there and no device file is; start the container with --gpus all"
    if environment.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides it; unset that variable"
    if not build.cuda:
        return f"{of(build)} is built without CUDA; {remedy(machine)}"
    needed, number = DRIVERS.get(int(build.cuda.split(".")[0]), 0), major(machine.driver)
    if machine.driver and number < needed:
        return (
            f"{of(build)} is built for CUDA {build.cuda}, which needs a driver of {needed} or newer, and this one is "
            f"{machine.driver}; {remedy(machine)}"
        )
    least, most = CAPABILITIES.get(build.cuda, (0.0, 99.0))
    known = [card.capability for card in machine.cards if card.capability is not None]
    if known and not any(least <= capability <= most for capability in known):
        return (
            f"{of(build)} for CUDA {build.cuda} has no code for compute capability {max(known)}, only for {least} to "
            f"{most}; {remedy(machine)}"
        )
    return ""


def remedy(machine: Machine) -> str:
    """What to do about a PyTorch that does not fit the machine."""
    if machine.driver and major(machine.driver) < DRIVERS[12]:
        return f"update the driver, to {DRIVERS[13]} or newer"
    return "start ./webui.sh again, which installs one that fits this driver (docs/gpus.md)"


def of(build: Build) -> str:
    """A build's name."""
    return f"torch {build.version}" if build.version else "torch, which is not installed,"


def several(cards: Sequence[Card]) -> str:
    """The cards in a few words, equal ones counted."""
    counts = Counter(map(str, cards))
    return "; ".join(card if count == 1 else f"{count} x {card}" for card, count in counts.items())


def in_gigabytes(size: float) -> str:
    """Bytes of a GPU's memory as its maker counts them, in GiB: 24564 MiB are 24 GB."""
    return f"{size / 2**30:.0f} GB" if size >= 2**31 else f"{size / 2**30:.1f} GB"


def major(driver: str) -> int:
    """The number before the first point of a driver's version, 0 where it has none."""
    found = re.match(r"\d+", driver)
    return int(found[0]) if found else 0


def look(root: Path = Path("/"), asking: bool = True) -> Machine:
    """What this machine has.

    Args:
        root: where dev, proc and sys are.
        asking: whether nvidia-smi is asked too, which can take seconds.
    """
    driver = driver_of(root)
    passed_in = any((root / "dev").glob("nvidia[0-9]*")) or (root / "dev/dxg").exists()
    cards, said, fault = ask() if asking else ((), "", "")
    if cards:
        return Machine(cards, said or driver)
    if driver or passed_in or fault:
        # Without nvidia-smi the driver's own word is enough; with one that fails it is not.
        unasked = "an NVIDIA GPU" if passed_in or driver or on_bus(root) else ""
        return Machine((), driver, fault if unasked else "", unasked, passed_in)
    if on_bus(root):
        return Machine(unasked="an NVIDIA GPU", passed_in=False)
    if (root / "dev/kfd").exists():
        return Machine(unasked="an AMD GPU")
    return Machine()


def ask() -> tuple[tuple[Card, ...], str, str]:
    """What nvidia-smi tells: the cards and the driver's version, or what it complains about."""
    program = shutil.which("nvidia-smi") or next((place for place in PLACES if os.access(place, os.X_OK)), None)
    if program is None:
        return (), "", ""
    try:
        for fields in (FIELDS, OLD_FIELDS):
            words = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
            result = subprocess.run(
                words, capture_output=True, text=True, errors="replace", timeout=SECONDS, stdin=subprocess.DEVNULL
            )
            said = result.stdout + result.stderr
            if "valid field" not in said:
                break
    except subprocess.TimeoutExpired:
        return (), "", f"nothing for {SECONDS:.0f} seconds"
    except OSError as error:
        return (), "", str(error.strerror).lower()
    return read_answer(result.stdout if result.returncode == 0 else "", said, fields)


def read_answer(table: str, said: str, fields: Sequence[str] = FIELDS) -> tuple[tuple[Card, ...], str, str]:
    """Read nvidia-smi's lines of comma-separated values; where there are none, the first line that it said at all."""
    cards, driver = [], ""
    for line in table.split("\n"):
        values = [value.strip() for value in line.split(",")]
        if len(values) < len(fields):
            continue
        others = dict(zip(fields[1:], values[1 - len(fields) :], strict=True))
        name, driver = ", ".join(values[: 1 - len(fields)]), others["driver_version"]
        shared = others.get("mig.mode.current") == "Enabled"
        # Where it may not tell it says so in brackets.
        memory, capability = (others.get(field, "") for field in ("memory.total", "compute_cap"))
        cards.append(
            Card(
                f"{name} in MIG mode, of which a run sees one instance" if shared else name,
                int(memory) if memory.isdecimal() and not shared else None,
                float(capability) if is_number(capability) else None,
            )
        )
    if cards:
        return tuple(cards), driver, ""
    lines = [line.strip() for line in said.split("\n") if line.strip()]
    return (), "", (lines[0][:200].rstrip(".") if lines else "nothing")


def is_number(word: str) -> bool:
    """Whether this is a number such as 8.6."""
    return re.fullmatch(r"\d+(\.\d+)?", word) is not None


def driver_of(root: Path) -> str:
    """The version of NVIDIA's driver by its own file; "" where there is none."""
    try:
        text = (root / "proc/driver/nvidia/version").read_bytes()[:4096].decode("utf-8", "replace")
    except OSError:
        return ""
    found = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", text)
    return found[1] if found else ""


def on_bus(root: Path) -> bool:
    """Whether a graphics card of NVIDIA is on the PCI bus, with a driver or without."""
    for device in (root / "sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = ((device / name).read_text(encoding="ascii").strip() for name in ("vendor", "class"))
        except (OSError, ValueError):
            continue
        if vendor == NVIDIA_PCI and kind.startswith(DISPLAY_CLASS):
            return True
    return False


def installed() -> Build:
    """What the installed PyTorch was built for, by its file version.py; nothing is imported."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return Build()
    try:
        text = (Path(spec.origin).parent / "version.py").read_bytes()[:65536].decode("utf-8", "replace")
    except OSError:
        return Build()
    return build_of(text)


def build_of(text: str) -> Build:
    """Read torch/version.py."""

    def value(name: str) -> str:
        found = re.search(rf"^{name}(?::[^=\n]*)? *= *['\"]([^'\"\n]*)['\"]", text, re.MULTILINE)
        return found[1] if found else ""

    return Build(value("__version__"), value("cuda"), value("hip"))
