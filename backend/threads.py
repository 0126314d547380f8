"""How many threads PyTorch computes with on the CPU, and how long one of them waits in vain before it sleeps.

PyTorch shares every operation out to the threads of OpenMP, and one that is ready before the others turns in a loop
until there is more to do. For small matrices that takes longer than what it saves, and where the machine has other work
it takes the processor from whoever has something to do. So small models and files get one thread, and the others as
many as there are processors to be had. All of that is read when OpenMP is loaded, so it is decided before torch is
imported. What the user has set in the environment is left as it is. `python -m benchmarks.busy` measures it.
"""

import math
import os
from collections.abc import Collection, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

# Whoever sets one of these decides himself on the number of threads, or on how they wait.
NUMBER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_THREAD_LIMIT")
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
# Turns of the loop before a thread sleeps. libgomp's own 300,000 are a hundredth of a second, as long as an operation
# of a full-size model; these are half a thousandth, which is longer than the pause between two of them.
SPINS = 10_000
# Up to here the matrices are too small to be shared out; the smallest model that people train is twice as large.
SMALL = 256 * 2**20
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
# By command, the options that name the files that its work is on. The others compute nothing with torch.
FILES: Mapping[str, tuple[str, ...]] = {
    "train_network": ("pretrained_model_name_or_path",),
    "gen_img": ("ckpt",),
    "merge_lora": ("sd_model", "models"),
    "svd_merge_lora": ("models",),
    "extract_lora_from_dylora": ("model",),
    "extract_lora_from_models": ("model_org", "model_tuned"),
    "convert_diffusers20_original_sd": ("src",),
    "inspect_lora": ("file",),
}
# These take the GPU without being told to.
ON_GPU = ("train_network", "gen_img")
QUIET = ("inspect_lora",)


@dataclass(frozen=True)
class Processors:
    """What a machine has, and what of it this process gets.

    Attributes:
        total: processors of the machine.
        allowed: those that this process may run on (its affinity).
        quota: as many it gets by the quota of its control group, rounded up; None where there is none.
        busy: as many were taken by others when it started.
    """

    total: int
    allowed: int
    quota: int | None = None
    busy: int = 0

    @property
    def usable(self) -> int:
        """As many as this process can ever have."""
        return max(1, min(self.allowed, self.quota or self.allowed))


@dataclass(frozen=True)
class Plan:
    """A number of threads, and why it is not the number of processors, "" where it is."""

    threads: int
    reason: str = ""


def plan(size: int | None, processors: Processors) -> Plan:
    """Threads for work on files of so many bytes; None stands for work of unknown size, which may be large.

    Where others keep the machine busy, large work leaves them their part, but never takes less than half of what it
    could have: it goes on when they have ended.
    """
    usable = processors.usable
    if size is not None and size <= SMALL:
        return Plan(1, "what it works on is small" if processors.allowed > 1 else "")
    free = min(usable, max(processors.total - processors.busy, math.ceil(usable / 2)))
    if free < usable:
        return Plan(free, f"others keep {processors.busy} busy")
    if usable < processors.allowed:
        return Plan(usable, f"its control group has a quota of {processors.quota}")
    return Plan(usable)


def arrange(command: str, options: Mapping[str, Any], gpu: bool, environment: MutableMapping[str, str]) -> str:
    """Set the environment for one command, before torch is imported.

    Args:
        command: its name.
        options: their values by name.
        gpu: whether torch will use a GPU where a command takes one.
        environment: of this process.

    Returns:
        A line for the log where threads are fewer than processors, else "".
    """
    if command not in FILES or computes_elsewhere(command, options.get("device"), gpu):
        return ""
    set_waiting(environment)
    if any(environment.get(name) for name in NUMBER):
        return ""
    processors = find()
    found = plan(size_of(named(options.get(name) for name in FILES[command])), processors)
    if not found.reason:
        return ""
    environment["OMP_NUM_THREADS"] = str(found.threads)
    if command in QUIET:
        return ""
    used = f"Using {found.threads} of {processors.allowed} processors: {found.reason}"
    return f"{used} (OMP_NUM_THREADS sets another number)"


def computes_elsewhere(command: str, device: object, gpu: bool) -> bool:
    """Whether a command's work is done by a GPU."""
    if device is None:
        return gpu and command in ON_GPU
    return not str(device).startswith("cpu")


def set_waiting(environment: MutableMapping[str, str]) -> None:
    """Let threads that have nothing to do sleep early, unless the user has said how they are to wait."""
    if not any(environment.get(name) for name in WAITING):
        environment["GOMP_SPINCOUNT"] = str(SPINS)


def named(values: Iterable[object]) -> list[Path]:
    """The paths among the values of options, lists of them too."""
    found: list[Path] = []
    for value in values:
        found += [Path(str(one)) for one in (value if isinstance(value, list | tuple) else (value,)) if one is not None]
    return found


def size_of(paths: Collection[Path]) -> int | None:
    """Bytes of the files, and of the weights in the folders; None where one is not here, as a name on a hub."""
    total = 0
    for path in paths:
        try:
            if path.is_dir():
                inner = [*path.glob("*"), *path.glob("*/*")]
                total += sum(one.stat().st_size for one in inner if one.suffix.lower() in WEIGHTS and one.is_file())
            else:
                total += path.stat().st_size
        except (OSError, ValueError):
            return None
    return total if paths else None


def cpu_count() -> int:
    """The processors that this process can have, by its affinity and its control group's quota; at least 1."""
    return _fixed().usable


def find(root: Path = Path("/")) -> Processors:
    """What there is at this moment."""
    fixed = _fixed(root)
    return Processors(fixed.total, fixed.allowed, fixed.quota, busy(root))


@lru_cache(maxsize=4)
def _fixed(root: Path = Path("/")) -> Processors:
    total = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    return Processors(total, allowed, quota(root))


def busy(root: Path = Path("/")) -> int:
    """Processors that others keep busy: both over the last minute and right now, so no short rush counts."""
    try:
        fields = (root / "proc/loadavg").read_text(encoding="ascii").split()
        minute, running = float(fields[0]), int(fields[3].partition("/")[0]) - 1  # but for this process
    except (OSError, ValueError, IndexError):
        return 0
    return max(0, min(round(minute), running))


def quota(root: Path = Path("/")) -> int | None:
    """Processors that the control group of this process gets, rounded up; None where nothing bounds them.

    Quota and period stand in cpu.max of version 2, and in cpu.cfs_quota_us and cpu.cfs_period_us of version 1; every
    group above has a say too.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return None
    groups = root / "sys/fs/cgroup"
    found = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            homes = [groups, groups / "unified"]
        elif "cpu" in controllers.split(","):
            homes = [groups / "cpu", groups / controllers]
        else:
            continue
        for home in homes:
            own = home / path.lstrip("/")
            # A container may see its own group as the root, under the name that it has outside.
            places = [own, *(parent for parent in own.parents if parent == home or home in parent.parents)]
            found += [count for place in places if (count := _quota_of(place)) is not None]
    return min(found, default=None)


def _quota_of(group: Path) -> int | None:
    """What one group's own files allow."""
    if (words := _words(group / "cpu.max")) is None:
        limit, period = _words(group / "cpu.cfs_quota_us"), _words(group / "cpu.cfs_period_us")
        words = [*(limit or []), *(period or [])]
    try:
        microseconds, period = int(words[0]), int(words[1])
    except (ValueError, IndexError):  # "max" in version 2
        return None
    return math.ceil(microseconds / period) if microseconds > 0 and period > 0 else None


def _words(path: Path) -> list[str] | None:
    try:
        return path.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
