"""The training step against the same step of diffusers and PEFT, in pairs; ratios, peak memory and losses.

    python -m benchmarks.train                                    the demo model at 64 px and SD1.5 at 128 px on a CPU
    python -m benchmarks.train --model sd15 --pairs 5 --write     one model; the figures go into docs/performance.md
    python -m benchmarks.train --gpu_suite --write                SD1.5 at 512 and SDXL at 1024 px on a GPU, 6 minutes

Ours is a run as train_network makes it, the yardstick the loop of the library's documented example of LoRA training
(benchmarks/pairs/stock.py), each in a process of its own; they take turns. The models have random weights of full size.

With `--inputs given` both get latents, conditioning, noise and time steps ready made, and train the same weights: then
the losses agree, which shows that both do the same work. With `--inputs documented` the yardstick encodes pictures and
captions in each step, as the example does, and ours has latents cached and captions remembered, as users run it.
"""

import argparse
import dataclasses
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.pairs.machine import has_gpu, machine, today
from benchmarks.pairs.models import checkpoint_folder
from benchmarks.pairs.page import PAGE, has_section, quoted, table, write_section
from benchmarks.pairs.pictures import BATCHES, draw_pictures
from benchmarks.pairs.settings import FAMILY_OF, Settings
from benchmarks.pairs.turns import Child, Peaks, Ratio, SideFailed, Turn, on_one_line, take_turns, tell

SIDES = {"ours": "benchmarks.pairs.ours:Ours", "stock": "benchmarks.pairs.stock:Stock"}
WARM_UP = 2
PROFILED = 3
RESOLUTIONS = {"cpu": {"demo": 64, "sd15": 128, "sdxl": 128}, "cuda": {"demo": 64, "sd15": 512, "sdxl": 1024}}
# Pairs and steps of a turn where none are asked for.
LENGTHS = {"demo": (8, 5), "sd15": (5, 1), "sdxl": (3, 1)}
COLUMNS = (
    "settings",
    "inputs",
    "pictures/s, ours / stock",
    "wall time, ours / stock",
    "processor time, ours / stock",
    "peak memory of the steps in GB, ours / stock",
    "with loading",
    "losses differ by",
)
SUITE_SECONDS = 330.0


@dataclasses.dataclass(frozen=True)
class Case:
    """A comparison, how long it is, and the memory in GB that it must stay under, if it has such a limit."""

    settings: Settings
    pairs: int
    steps: int
    limit: float | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a comparison has found; see `compare`."""

    case: Case
    turns: list[list[Turn]]
    peaks: list[Peaks]

    def speeds(self) -> list[float]:
        """Pictures a second of each side, over all turns."""
        batch = self.case.settings.batch_size
        return [batch * sum(turn.count for turn in own) / sum(turn.wall for turn in own) for own in zip(*self.turns)]

    def ratio(self, name: str) -> Ratio:
        """Ours to the yardstick's, of `wall` or `processor` seconds."""
        return Ratio.of([getattr(ours, name) / getattr(stock, name) for ours, stock in self.turns])

    def difference(self) -> float | None:
        """The largest relative difference of two losses, where both sides were given the same."""
        if self.case.settings.inputs != "given":
            return None
        pairs = [pair for ours, stock in self.turns for pair in zip(ours.numbers, stock.numbers, strict=True)]
        return max(abs(ours - stock) / abs(stock) for ours, stock in pairs)

    def row(self) -> list[str]:
        """As a row of the table."""
        peaks = [[f"{number / 1e9:.2f}" for number in (side.turns, side.life)] for side in self.peaks]
        limit, difference = self.case.limit, self.difference()
        verdict = ""
        if limit is not None:
            verdict = f" (limit {limit:g}: {'kept' if self.peaks[0].life / 1e9 < limit else 'broken'})"
        return [
            self.case.settings.title(),
            self.case.settings.inputs,
            " / ".join(f"{speed:.2f}" for speed in self.speeds()),
            str(self.ratio("wall")),
            str(self.ratio("processor")),
            " / ".join(peak for peak, _ in peaks),
            " / ".join(life for _, life in peaks) + verdict,
            "" if difference is None else f"{difference:.1e}",
        ]


@contextmanager
def two_sides(settings: Settings) -> Iterator[list[Child]]:
    """Both sides, built, and at the same start where inputs are given.

    Raises:
        SideFailed: one could not be built.
    """
    sides: list[Child] = []
    try:
        # One after the other on a CPU, whose cores and disk they would fight for.
        for name, where in SIDES.items():
            sides.append(Child(name, where, settings, settings.folder))
            if settings.device == "cpu":
                sides[-1].size = sides[-1].ready()
        if settings.device != "cpu":
            for side in sides:
                side.size = side.ready()
        if len({side.size for side in sides}) > 1:
            raise SideFailed(f"the sides train {' and '.join(str(side.size) for side in sides)} numbers")
        if settings.inputs == "given":
            sides[0].ask("hand_over", settings.folder / "given.pt")
            sides[1].ask("take_over", settings.folder / "given.pt")
        yield sides
    finally:
        for side in sides:
            side.end()


def compare(case: Case, profile: bool = False) -> Outcome:
    """Let both sides take turns; tells of every pair.

    Raises:
        SideFailed: a side could not be built, or broke off.
    """
    settings = case.settings
    draw_pictures(settings.folder / "pictures", BATCHES * settings.batch_size, settings.resolution)
    with two_sides(settings) as sides:
        for side in sides:
            side.ask("turn", WARM_UP)
            side.ask("restart")
        turns = []
        for ours, stock in take_turns(sides, case.pairs, case.steps):
            turns.append([ours, stock])
            wall, processor = ours.wall / stock.wall, ours.processor / stock.processor
            seconds = f"{ours.wall / ours.count:.3f} s a step, stock {stock.wall / stock.count:.3f} s"
            tell(f"  pair {len(turns)}: ours {seconds}; wall {wall:.3f}, processor {processor:.3f}")
        outcome = Outcome(case, turns, [side.ask("peaks") for side in sides])
        if profile:
            tell(sides[0].ask("profile", PROFILED))
    return outcome


def attempt(case: Case, profile: bool = False) -> list[str]:
    """The row of a case, printed; a case that fails has a row that says why."""
    settings = case.settings
    tell(f"{settings.title()}; inputs {settings.inputs}")
    try:
        row = compare(case, profile).row()
    except SideFailed as error:
        row = [settings.title(), settings.inputs, f"failed: {on_one_line(error)}", *[""] * 5]
    tell("  " + "; ".join(f"{name}: {value}" for name, value in zip(COLUMNS[2:], row[2:], strict=True) if value))
    return row


def section(options: argparse.Namespace, device: str, rows: Sequence[Sequence[str]], ended: bool) -> str:
    """The text for the page."""
    where = "GPU" if device == "cuda" else "CPU"
    lines = [
        f"## The training step, {where}{'' if options.gpu_suite else ', ' + options.model}",
        f"`{quoted('train')}`, {today()}, on {machine(device)}.",
        table(COLUMNS, rows),
    ]
    if not ended:
        lines.append("The run was not finished.")
    return "\n\n".join(lines)


def said_of_gpus(path: Path) -> None:
    """Let the page say that nothing was measured on a GPU, where that is so."""
    if not has_gpu() and not has_section("train cuda suite", path):
        text = (
            "## The training step, GPU\n\nNot measured: the machine has no GPU. `python -m benchmarks.train "
            "--gpu_suite --write` fills this in: Stable Diffusion 1.5 at 512 px and XL at 1024 px, images per second "
            "against the yardstick, and peak memory against the limits of 6, 10 and 8 GB."
        )
        write_section("train cuda suite", text, path)


def run_cases(cases: Sequence[Case], options: argparse.Namespace, device: str, name: str) -> None:
    """One case after the other, each written down as soon as it is known."""
    rows, began = [], time.monotonic()
    for case in cases:
        if options.gpu_suite and time.monotonic() - began > options.seconds:
            row = [case.settings.title(), case.settings.inputs, "left out: no time", *[""] * 5]
            tell(f"{row[0]}: {row[2]}")
        else:
            with tempfile.TemporaryDirectory() as folder:
                settings = dataclasses.replace(case.settings, folder=Path(folder))
                row = attempt(dataclasses.replace(case, settings=settings), options.profile)
        rows.append(row)
        if options.write:
            write_section(name, section(options, device, rows, len(rows) == len(cases)), options.write)


def case_of(options: argparse.Namespace, device: str, **changes: object) -> Case:
    """A case from the command line, some settings changed."""
    model = str(changes.get("model", options.model))
    pairs, steps = LENGTHS[model] if device == "cpu" else (4, 5)
    pairs, steps = options.pairs or pairs, options.steps or steps
    on_disk = device == "cpu" or model == "demo" or options.checkpoint is not None
    values = {
        "model": model,
        "resolution": options.resolution or RESOLUTIONS[device][model],
        "batch_size": options.batch_size,
        "rank": options.rank,
        "precision": options.precision,
        "checkpointing": options.checkpointing,
        "inputs": "given",
        "extra": tuple(options.extra),
        **{name: value for name, value in changes.items() if name != "limit"},
    }
    settings = Settings(
        device=device,
        threads=options.threads,
        checkpoint=checkpoint_folder(model, options.checkpoint) if on_disk else None,
        folder=Path(),
        steps=WARM_UP + pairs * steps + PROFILED,
        **values,
    )
    return Case(settings, pairs, steps, changes.get("limit"))


def gpu_suite(options: argparse.Namespace) -> list[Case]:
    """What is asked of a GPU, the most important first."""
    small = {"model": "sd15", "rank": 32, "resolution": 512}
    large = {"model": "sdxl", "rank": 32, "resolution": 1024, "precision": "bf16", "checkpointing": True}
    rows = [
        small | {"precision": "fp16", "checkpointing": True, "limit": 6.0},
        small | {"precision": "bf16", "checkpointing": True, "limit": 6.0},
        large | {"limit": 10.0},
        large | {"limit": 8.0, "extra": ("--fp8_base",)},
        small | {"precision": "fp16", "checkpointing": False},
        small | {"precision": "bf16", "checkpointing": False},
        small | {"precision": "bf16", "checkpointing": False, "batch_size": 4},
        large | {"precision": "fp16", "limit": 10.0},
        small | {"precision": "bf16", "checkpointing": False, "inputs": "documented"},
    ]
    return [case_of(options, "cuda", **row) for row in rows]


def words_of(pairs: Sequence[str]) -> list[str]:
    """`key=value` as words of the command line; a key that is set to true is a flag."""
    words = []
    for pair in " ".join(pairs).split():
        name, _, value = pair.partition("=")
        words += [f"--{name}"] if value in ("", "true") else [f"--{name}", value]
    return words


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*FAMILY_OF, "all"], default="all", help="all: demo and sd15, sdxl on a GPU")
    parser.add_argument("--resolution", type=int, help="edge in pixels; each model has its own")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--precision", choices=("no", "fp16", "bf16"), default="no")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--inputs", choices=("given", "documented", "both"), default="both")
    parser.add_argument("--steps", type=int, help="of a turn")
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--checkpoint", type=Path, help="Diffusers folder of the model, written where there is none")
    parser.add_argument("--extra", nargs="+", default=[], metavar="KEY=VALUE", help="further options of ours")
    parser.add_argument("--profile", action="store_true", help="show what our step spends its time on")
    parser.add_argument("--gpu_suite", action="store_true", help="all that is asked of a GPU")
    parser.add_argument("--seconds", type=float, default=SUITE_SECONDS, help="no case of the suite begins later")
    parser.add_argument("--write", type=Path, nargs="?", const=PAGE, help="put the figures into this page")
    options = parser.parse_args()
    options.extra = words_of(options.extra)
    device = options.device if options.device != "auto" else "cuda" if has_gpu() else "cpu"
    if options.gpu_suite and device != "cuda":
        parser.exit(1, "not measured: --gpu_suite needs a GPU, and PyTorch finds none here\n")
    if device == "cpu":
        os.environ |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
        tell("not measured here: anything on a GPU; this run computes on the CPU")
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    tell(machine(device))
    if options.gpu_suite:
        run_cases(gpu_suite(options), options, device, "train cuda suite")
        return
    models = [options.model] if options.model != "all" else ["demo", "sd15", *(["sdxl"] if device == "cuda" else [])]
    inputs = ["given", "documented"] if options.inputs == "both" else [options.inputs]
    for options.model in models:
        cases = [case_of(options, device, inputs=kind) for kind in inputs]
        run_cases(cases, options, device, f"train {device} {options.model}")
    if options.write:
        said_of_gpus(options.write)


if __name__ == "__main__":
    main()
