"""What threads that wait for each other cost: whole processes on an idle machine, and beside two that keep it busy.

    python -m benchmarks.busy [demo] [merge] [sd15] [--rounds 5] [--steps 80] [--all] [--write]

"before" is what PyTorch does by itself: as many threads as processors, each of which turns 300,000 times in a loop
before it sleeps (libgomp's default). "after" is what `python -m backend` chooses (backend/threads.py). `--all` adds
other answers that the environment can give. All take turns, each round in another order, so that what else the machine
does disturbs them alike; medians are printed. `demo` trains the demo LoRA, `merge` merges two LoRAs of the demo model,
and `sd15` trains a full-size Stable Diffusion 1.5 with random weights for a few steps, which takes minutes a round.
`--write` keeps the table in docs/performance.md.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from backend.threads import NUMBER, WAITING, cpu_count
from backend.workspace import PROJECT
from benchmarks.make_checkpoint import write
from benchmarks.pairs.machine import machine, today
from benchmarks.pairs.page import quoted, table, write_section
from benchmarks.start import Cost, ended

HOGS = 2
LIBGOMP = 300_000
WORK = {"demo": "train the demo, {steps} steps", "merge": "merge two small LoRAs", "sd15": "train SD 1.5, {few} steps"}
FEW = 4


def policies(everything: bool) -> dict[str, dict[str, str]]:
    """What is compared, by name: what each sets in the environment."""
    many = {"OMP_NUM_THREADS": str(cpu_count())}
    found = {"before": many | {"GOMP_SPINCOUNT": str(LIBGOMP)}, "after": {}}
    if everything:
        found["GOMP_SPINCOUNT 10,000"] = many | {"GOMP_SPINCOUNT": "10000"}
        found["GOMP_SPINCOUNT 100,000"] = many | {"GOMP_SPINCOUNT": "100000"}
        found["OMP_WAIT_POLICY PASSIVE"] = many | {"OMP_WAIT_POLICY": "PASSIVE"}
        found["one thread"] = {"OMP_NUM_THREADS": "1"}
    return found


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute without end, while it is entered."""
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def cost(words: Sequence[str], environment: Mapping[str, str]) -> Cost:
    """One command from its start to its end."""
    own = {name: value for name, value in os.environ.items() if name not in (*NUMBER, *WAITING)}
    own |= {"PYTHONPATH": str(PROJECT), **environment}
    began = time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "backend", *words], cwd=PROJECT, env=own, stdout=log, stderr=log
        )
        return ended(process, began)


def command(work: str, folder: Path, steps: int) -> list[str]:
    """The command line of a piece of work; what it needs lies in the folder."""
    if work == "merge":
        loras = [str(folder / f"{name}.safetensors") for name in ("first", "second")]
        words = ["merge_lora", "--models", *loras, "--ratios", "0.5", "0.5", "--save_to"]
        return [*words, str(folder / "merged.safetensors"), "--overwrite"]
    words = ["train_network", "--preset", "demo", "--output_dir", str(folder / "out"), "--overwrite"]
    if work == "demo":
        return [*words, "--max_train_steps", str(steps)]
    model = str(folder / "sd15.safetensors")
    return [*words, "--max_train_steps", str(FEW), "--pretrained_model_name_or_path", model, "--resolution", "256"]


def make_files(works: Sequence[str], folder: Path) -> None:
    """What the commands read: two LoRAs, and a checkpoint of full size."""
    if "merge" in works:
        from backend.families.base import load_model
        from backend.networks.lora import create_network

        model = load_model(PROJECT / "backend/demo/model")
        for name, value in (("first", 0.01), ("second", -0.02)):
            network = create_network(1.0, 4, 4, model.vae, model.text_encoders, model.unet)
            for parameter in network.parameters():
                parameter.data.fill_(value)
            network.save_weights(folder / f"{name}.safetensors", None, {})
    if "sd15" in works:
        write(folder / "sd15.safetensors")


def measured(works: Sequence[str], rounds: int, steps: int, everything: bool) -> list[list[str]]:
    """The rows of the table."""
    chosen, rows = policies(everything), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(works, folder)
        for work in works:
            words = command(work, folder, steps)
            for hogs in (0, HOGS):
                costs: dict[str, list[Cost]] = {policy: [] for policy in chosen}
                with busy(hogs):
                    for number in range(rounds):
                        order = list(chosen)
                        turn = number % len(order)
                        for policy in order[turn:] + order[:turn]:
                            costs[policy].append(cost(words, chosen[policy]))
                where = f"{hogs} busy processes beside" if hogs else "idle machine"
                what = WORK[work].format(steps=steps, few=FEW)
                rows.append([f"{what}, {where}", *(told(costs[policy]) for policy in chosen)])
                print(" | ".join(rows[-1]), flush=True)
    return rows


def told(costs: Sequence[Cost]) -> str:
    """A cell: medians of the seconds on the clock and of the processor."""
    wall, processor = (statistics.median(getattr(one, name) for one in costs) for name in ("wall", "processor"))
    return f"{wall:.1f} s, {processor:.1f} s"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", choices=[*WORK, []], metavar="demo merge sd15")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, in turns")
    parser.add_argument("--steps", type=int, default=80, help="of the demo training")
    parser.add_argument("--all", action="store_true", help="other settings of the environment too")
    parser.add_argument("--write", action="store_true", help="keep the table in docs/performance.md")
    options = parser.parse_args()
    works = options.works or ["demo", "merge"]
    columns = ["wall time, processor time", *policies(options.all)]
    print(" | ".join(columns), flush=True)
    rows = measured(works, options.rounds, options.steps, options.all)
    if options.write:
        write_section("busy", section(table(columns, rows), options.rounds))


def section(rows: str, rounds: int) -> str:
    """The section of the document."""
    return f"""## Beside other work

`{quoted("busy")}`, {today()}: whole processes with as many threads as processors that spin as libgomp has it
("before"), and with what `python -m backend` chooses ("after"). Medians of {rounds} runs each, in turns; seconds on the
clock, and of the processor.

{rows}

{machine("cpu")}."""


if __name__ == "__main__":
    main()
