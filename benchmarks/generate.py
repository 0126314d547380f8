"""Drawing with a LoRA against drawing without one, and against diffusers with the LoRA loaded or fused; in turns.

    python -m benchmarks.generate                             the demo model
    python -m benchmarks.generate --model sd15 --write        SD1.5; the figures go into docs/performance.md

Each side is a process of its own, and before every picture its slider is moved to another multiplier: what a picture
takes and what the move takes are told apart. Ours with the LoRA against ours without must stay below 1.03. The largest
difference of a pixel between ours and diffusers' picture, of 255, shows that both draw the same.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.pairs.drawing import write_lora
from benchmarks.pairs.machine import has_gpu, machine, today
from benchmarks.pairs.models import checkpoint_folder
from benchmarks.pairs.page import PAGE, quoted, table, write_section
from benchmarks.pairs.settings import Drawing
from benchmarks.pairs.turns import Child, Ratio, SideFailed, Turn, on_one_line, take_turns, tell

SIDES = {
    "ours": "benchmarks.pairs.drawing:Ours",
    "without": "benchmarks.pairs.drawing:Plain",
    "loaded": "benchmarks.pairs.drawing:Loaded",
    "fused": "benchmarks.pairs.drawing:Fused",
}
MULTIPLIERS = (0.0, 0.5, 1.0, -1.0)
RESOLUTIONS = {"demo": 64, "sd15": 128}
LIMIT = 1.03


class Found:
    """What was measured of one multiplier."""

    def __init__(self, multiplier: float) -> None:
        self.multiplier = multiplier
        self.turns: list[dict[str, Turn]] = []
        self.switches: list[dict[str, float]] = []
        self.pixels: dict[str, list[int]] = {}

    def ratio(self, against: str, kind: str) -> Ratio:
        """Ours to another side's, of `wall` or `processor` seconds a picture."""
        return Ratio.of([getattr(turn["ours"], kind) / getattr(turn[against], kind) for turn in self.turns])

    def switch(self, name: str) -> float:
        """Seconds of a move of the slider, the middle one."""
        return Ratio.of([seconds[name] for seconds in self.switches]).median

    def difference(self, name: str) -> int:
        """The largest difference of a pixel to another side's picture, of 255."""
        return max(abs(own - other) for own, other in zip(self.pixels["ours"], self.pixels[name], strict=True))


def measure(drawing: Drawing, names: Sequence[str], pairs: int, pictures: int, folder: Path) -> list[Found]:
    """Let the sides take turns at every multiplier.

    Raises:
        SideFailed: one could not be built, or broke off.
    """
    sides: list[Child] = []
    found = [Found(multiplier) for multiplier in MULTIPLIERS]
    try:
        for name in names:
            sides.append(Child(name, SIDES[name], drawing, folder))
            sides[-1].ready()
        # One picture of each first: of the moves, the first reads the file.
        for multiplier in (1.0, 0.5):
            for side in sides:
                side.ask("switch", multiplier)
                side.ask("turn", 1)
        for pair in range(pairs):
            for one in found:
                one.switches.append({side.name: side.ask("switch", one.multiplier) for side in sides})
                # Who begins changes from pair to pair; the first of three is the first or the last.
                order = sides if pair % 2 == 0 else sides[::-1]
                (turns,) = take_turns(order, 1, pictures)
                one.turns.append({side.name: turn for side, turn in zip(order, turns, strict=True)})
                one.pixels = {side.name: side.ask("pixels") for side in sides}
                told = ", ".join(f"{name} {one.turns[-1][name].wall / pictures:.3f} s" for name in names)
                tell(f"  pair {pair + 1}, multiplier {one.multiplier:g}: {told}")
    finally:
        for side in sides:
            side.end()
    return found


def rows_of(found: Sequence[Found], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The table: its columns and rows."""
    others = [name for name in names if name not in ("ours", "without")]
    columns = ["multiplier", "wall time to ours without a LoRA", "processor time"]
    columns += [f"wall time to diffusers, {name}" for name in others]
    columns += [f"move of the slider in s: {', '.join(['ours', *others])}", "pixels differ by, of 255"]
    rows = []
    for one in found:
        row = [f"{one.multiplier:g}", str(one.ratio("without", "wall")), str(one.ratio("without", "processor"))]
        row += [str(one.ratio(name, "wall")) for name in others]
        row += [", ".join(f"{one.switch(name):.3f}" for name in ("ours", *others))]
        row += [", ".join(str(one.difference(name)) for name in others)]
        rows.append(row)
    return columns, rows


def verdict(found: Sequence[Found], pictures: int) -> str:
    """What is asked of it, and what it costs to move the slider for every picture, in a line."""
    ratios = [value for one in found for value in (t["ours"].wall / t["without"].wall for t in one.turns)]
    processor = [value for one in found for value in (t["ours"].processor / t["without"].processor for t in one.turns)]
    moved = [
        (seconds["ours"] + turn["ours"].wall / pictures) / (turn["without"].wall / pictures)
        for one in found
        for turn, seconds in zip(one.turns, one.switches, strict=True)
    ]
    return (
        f"Over all multipliers {Ratio.of(ratios)} of the wall time without a LoRA and {Ratio.of(processor)} of the "
        f"processor time (at most {LIMIT} is asked); with a move of the slider before every picture {Ratio.of(moved)}."
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("demo", "sd15"), default="demo")
    parser.add_argument("--resolution", type=int, help="edge in pixels; each model has its own")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--precision", choices=("no", "fp16", "bf16"))
    parser.add_argument("--steps", type=int, default=10, help="of denoising")
    parser.add_argument("--scale", type=float, default=7.5)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=1, help="drawn in a turn")
    parser.add_argument("--against", nargs="*", choices=("loaded", "fused"), default=["loaded", "fused"])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--checkpoint", type=Path, help="Diffusers folder of the model, written where there is none")
    parser.add_argument("--write", type=Path, nargs="?", const=PAGE, help="put the figures into this page")
    options = parser.parse_args()
    device = options.device if options.device != "auto" else "cuda" if has_gpu() else "cpu"
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        tell("not measured here: anything on a GPU; this run computes on the CPU")
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    on_disk = device == "cpu" or options.model == "demo" or options.checkpoint is not None
    tell(machine(device))
    with tempfile.TemporaryDirectory() as folder:
        drawing = Drawing(
            model=options.model,
            resolution=options.resolution or (512 if device == "cuda" else RESOLUTIONS[options.model]),
            precision=options.precision or ("fp16" if device == "cuda" else "no"),
            steps=options.steps,
            scale=options.scale,
            device=device,
            threads=options.threads,
            checkpoint=checkpoint_folder(options.model, options.checkpoint) if on_disk else None,
            lora=Path(folder) / "lora.safetensors",
        )
        write_lora(drawing.lora, drawing, options.rank)
        names = ["ours", "without", *options.against]
        try:
            found = measure(drawing, names, options.pairs, options.pictures, Path(folder))
        except SideFailed as error:
            parser.exit(1, f"failed: {on_one_line(error)}\n")
    columns, rows = rows_of(found, names)
    what = (
        f"{options.model} at {drawing.resolution} px, {drawing.steps} steps, rank {options.rank}, "
        f"{'float32' if drawing.precision == 'no' else drawing.precision}"
    )
    text = f"{table(columns, rows)}\n\n{verdict(found, options.pictures)}"
    tell(f"{what}\n\n{text}")
    if options.write:
        command = f"`{quoted('generate')}`, {today()}, on {machine(device)}; {what}."
        title = f"## Drawing with a LoRA, {'GPU' if device == 'cuda' else 'CPU'}, {options.model}"
        write_section(f"generate {device} {options.model}", f"{title}\n\n{command}\n\n{text}", options.write)


if __name__ == "__main__":
    main()
