"""How long a run takes to its first step on the demo model, against importing the libraries that it stands on.

    python -m benchmarks.start [--pairs 10] [--threads 1] [--write]
    python -m benchmarks.start --commands          how long the commands take to show their help or do their least

Ours is the ordinary `python -m backend train_network --preset demo`, followed until it tells of its first step; theirs
is a process that imports torch, diffusers' U-Net and transformers' CLIP and ends. They take turns, and so does who goes
first; one round before the others warms the disk's cache. Ours is also compared with the moment at which the imports
are done, and with the same imports on a machine without the optional packages (bitsandbytes, PEFT, xformers), which
diffusers imports where it finds them. A run of ours holds latents in memory, or on the disk: at its first start (they
are made), or at a later one (they are there). Prints the medians of the ratios of wall and of processor time and their
quartiles; `--write` keeps them in docs/performance.md.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from backend.data.store import FOLDER
from backend.events import VARIABLE
from backend.workspace import PROJECT
from benchmarks.pairs.machine import machine
from benchmarks.pairs.page import table, write_section

IMPORTS = "import torch; from diffusers import UNet2DConditionModel; from transformers import CLIPTextModel"
TOLD = "import os; os.write(1, b'x')"
BARE = "import sys; sys.modules.update(dict.fromkeys(('bitsandbytes', 'peft', 'xformers')))"
WHOLE = "the whole process"
TICKS = os.sysconf("SC_CLK_TCK")
PATIENCE = 300
LEAST = {
    "--help": ["--help"],
    "train_network --help": ["train_network", "--help"],
    "inspect_lora": ["inspect_lora", "LORA"],
    "merge_lora": ["merge_lora", "--models", "LORA", "--ratios", "0.5", "--save_to", "OUT/merged.safetensors"],
    "resize_images_to_resolution": ["resize_images_to_resolution", "PICTURES", "OUT/small"],
    "gen_img": ["gen_img", "--ckpt", "backend/demo/model", "--prompt", "a red monster", "--steps", "1", "--W", "64",
                "--H", "64", "--outdir", "OUT"],
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Seconds of a process: on the clock, and of the processor for all of its threads, the system's part included."""

    wall: float
    processor: float


def environment(threads: int, events: Path | None = None) -> dict[str, str]:
    """What both sides run in: compiled modules are kept, as on any machine, and threads are as many."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    own |= {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(PROJECT)}
    return own if events is None else own | {VARIABLE: str(events)}


def spent(process: subprocess.Popen) -> float:
    """Processor seconds of a living process so far, from fields 14 and 15 of proc(5)'s stat, and of its children."""
    fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS


def ended(process: subprocess.Popen, began: float) -> Cost:
    """What a process has cost, once it ends by itself."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{process.args} ended with {process.returncode}")
    return Cost(time.monotonic() - began, usage.ru_utime + usage.ru_stime)


def first_step(words: Sequence[str], threads: int) -> Cost:
    """Train until the first step is told of, and end the process there."""
    with tempfile.TemporaryDirectory() as folder:
        events = Path(folder) / "events.jsonl"
        command = [sys.executable, "-m", "backend", "train_network", *words, "--output_dir", folder]
        with (Path(folder) / "log").open("wb") as log:
            began = time.monotonic()
            process = subprocess.Popen(command, cwd=PROJECT, env=environment(threads, events), stdout=log, stderr=log)
        try:
            while not told_of_a_step(events):
                if process.poll() is not None or time.monotonic() - began > PATIENCE:
                    raise SystemExit((Path(folder) / "log").read_text(encoding="utf-8", errors="replace"))
                time.sleep(0.005)
            return Cost(time.monotonic() - began, spent(process))
        finally:
            process.kill()
            process.wait()


def told_of_a_step(events: Path) -> bool:
    """Whether the run has told of a step that it has done."""
    lines = events.read_text(encoding="utf-8").splitlines() if events.exists() else []
    return any(json.loads(line).get("step", 0) >= 1 for line in lines if '"progress"' in line)


def imports(threads: int, before: str = "") -> tuple[Cost, Cost]:
    """What the imports cost, and the whole process."""
    code = "; ".join(filter(None, [before, IMPORTS, TOLD]))
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment(threads), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        os.read(process.stdout.fileno(), 1)
        done = Cost(time.monotonic() - began, spent(process))
        return done, ended(process, began)


@contextmanager
def on_the_disk(keep: bool) -> Iterator[Callable[[int], Cost]]:
    """A run whose latents are kept beside the pictures, of which there is a copy; at each start none are there yet."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(PROJECT / "backend/demo/dataset", folder, dirs_exist_ok=True)
        text = (Path(folder) / "dataset.toml").read_text(encoding="utf-8").replace("backend/demo/dataset", folder)
        (Path(folder) / "dataset.toml").write_text(text, encoding="utf-8")
        words = ["--preset", "demo", "--dataset_config", f"{folder}/dataset.toml", "--cache_latents_to_disk"]

        def run(threads: int) -> Cost:
            for cache in () if keep else Path(folder).rglob(FOLDER):
                shutil.rmtree(cache)
            return first_step(words, threads)

        yield run


def compared(pairs: int, threads: int) -> dict[tuple[str, str], list[tuple[Cost, Cost]]]:
    """Pairs of costs, ours and theirs, by where latents are and what ours is compared with."""
    found: dict[tuple[str, str], list[tuple[Cost, Cost]]] = {}
    with on_the_disk(keep=False) as first, on_the_disk(keep=True) as later:
        turns = {
            "in memory": lambda: first_step(["--preset", "demo"], threads),
            "imports": lambda: imports(threads),
            "on the disk, first start": lambda: first(threads),
            "bare": lambda: imports(threads, BARE),
            "on the disk, later start": lambda: later(threads),
        }
        for number in range(pairs + 1):
            begin = number % len(turns)
            costs = {name: turns[name]() for name in [*turns][begin:] + [*turns][:begin]}
            if number == 0:
                continue
            print(f"round {number}: in memory {costs['in memory']}, imports {costs['imports'][1]}", flush=True)
            done, whole = costs.pop("imports")
            against = {WHOLE: whole, "until the imports are done": done, "no optional packages": costs.pop("bare")[1]}
            for latents, own in costs.items():
                for other, cost in against.items() if latents == "in memory" else [(WHOLE, whole)]:
                    found.setdefault((latents, other), []).append((own, cost))
    return found


def spread(values: Sequence[float]) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def rows_of(found: dict[tuple[str, str], list[tuple[Cost, Cost]]]) -> list[list[str]]:
    """Rows of the table: latents, compared with, ratio of processor time, of wall time, seconds of both."""
    rows = []
    for (latents, other), pairs in found.items():
        processor = spread([own.processor / theirs.processor for own, theirs in pairs])
        wall = spread([own.wall / theirs.wall for own, theirs in pairs])
        medians = [statistics.median(pair[side].processor for pair in pairs) for side in (0, 1)]
        rows.append([latents, other, processor, wall, f"{medians[0]:.1f} s, {medians[1]:.1f} s"])
    return rows


def commands(pairs: int, threads: int) -> None:
    """Print what each command costs when it has next to nothing to do."""
    from backend.families.base import load_model
    from backend.networks.lora import create_network

    with tempfile.TemporaryDirectory() as folder:
        model = load_model(PROJECT / "backend/demo/model")
        network = create_network(1.0, 4, 4, model.vae, model.text_encoders, model.unet)
        for parameter in network.parameters():
            parameter.data.fill_(0.01)
        network.save_weights(Path(folder) / "lora.safetensors", None, {})
        shutil.copytree(PROJECT / "backend/demo/dataset/images", f"{folder}/pictures")
        for name, words in LEAST.items():
            costs = []
            for number in range(pairs):
                places = {"OUT": f"{folder}/{name[:5]}{number}", "LORA": f"{folder}/lora.safetensors"}
                places["PICTURES"] = f"{folder}/pictures"
                given = [re.sub("OUT|LORA|PICTURES", lambda found, at=places: at[found[0]], word) for word in words]
                began = time.monotonic()
                process = subprocess.Popen(
                    [sys.executable, "-m", "backend", *given], cwd=PROJECT, env=environment(threads),
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
                costs.append(ended(process, began))
            median = Cost(*(statistics.median(values) for values in zip(*((c.wall, c.processor) for c in costs))))
            print(f"{name}: {median.processor:.2f} s of the processor, {median.wall:.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch, on both sides")
    parser.add_argument("--write", action="store_true", help="keep the result in docs/performance.md")
    parser.add_argument("--commands", action="store_true")
    options = parser.parse_args()
    if options.commands:
        commands(options.pairs, options.threads)
        return
    rows = rows_of(compared(options.pairs, options.threads))
    columns = ["latents", "against", "processor time", "wall time", "processor time of both"]
    found = table(columns, rows)
    print(found)
    if options.write:
        write_section("start", section(found, options.pairs, options.threads))


def section(rows: str, pairs: int, threads: int) -> str:
    """The section of the document."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return f"""## Start to first step

`python -m benchmarks.start`: from `python -m backend train_network` to the first step on the demo model, against a
process that imports torch, diffusers' U-Net and transformers' CLIP. Ratios are medians of {pairs} pairs each, with the
quartiles in brackets; the aim is at most 1.5. "Until the imports are done" leaves out what that process takes to end,
"no optional packages" is its whole time where bitsandbytes, PEFT and xformers are not installed; PEFT is installed for
the tests only.

{rows}

{today}, {threads} thread(s) of PyTorch: {machine("cpu")}."""


if __name__ == "__main__":
    main()
