"""What the LoRA tools cost on a full-size Stable Diffusion 1.5, against what reading and writing the files costs.

    python -m benchmarks.tools [--folder DIR] [--pairs 3] [svd merge extract resize]

Makes the files itself: a checkpoint with random weights, a tuned one (the first, plus a change of rank 64 whose
singular values fall off, plus 1 % of noise), and two LoRA-C3Lier files of rank 32 and 16. Every time is that of a whole
process, from its start to its end; ours and the one that it is compared with take turns, and the median of the pairs'
ratios is printed. Memory is the process's own (RssAnon, highest seen), without mapped files.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from backend.families.base import empty_modules
from backend.families.build import empty_checkpoint
from backend.families.storage import write_safetensors
from backend.families.weights import ModelWeights, open_weights
from backend.lora.algebra import side_by_side
from backend.lora.file import read_lora, write_lora
from backend.lora.layer import LoraLayer
from backend.networks.lora import create_network
from benchmarks.make_checkpoint import write

PYTHON = [sys.executable, "-c"]
COPY = "import torch, shutil, sys; shutil.copyfile(sys.argv[1], sys.argv[2])"
READ_AND_WRITE = (
    "import sys, torch; from safetensors.torch import load_file, save_file; "
    "a, b = load_file(sys.argv[1]), load_file(sys.argv[2]); save_file(load_file(sys.argv[3]), sys.argv[4])"
)
DIM, CONV_DIM = 32, 16


def measured(command: list[str]) -> tuple[float, float]:
    """Seconds and the highest RssAnon in GB of a process; everything is on the disk before it begins."""
    os.sync()
    began, peak = time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.005)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.monotonic() - began, peak / 1e9


def anonymous(process: int) -> int:
    """Bytes of a process's own memory; 0 once it has ended."""
    try:
        text = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    found = [line.split()[1] for line in text.splitlines() if line.startswith("RssAnon")]
    return int(found[0]) * 1024 if found else 0


def backend(*words: object) -> list[str]:
    """A command of ours."""
    return [sys.executable, "-m", "backend", *map(str, words)]


def paired(
    ours: list[str], theirs: list[str], pairs: int, made: tuple[Path, ...] = ()
) -> tuple[list[float], list[float], float]:
    """Seconds of both, run in turns, and our highest memory; files that they make are not there before."""
    own, other, memory = [], [], 0.0
    for number in range(pairs):
        for which in (ours, theirs) if number % 2 else (theirs, ours):
            for path in made:
                path.unlink(missing_ok=True)
            seconds, peak = measured(which)
            if which is ours:
                own.append(seconds)
                memory = max(memory, peak)
            else:
                other.append(seconds)
    return own, other, memory


def make_files(folder: Path) -> None:
    """What is missing of the four files."""
    original, tuned = folder / "original.safetensors", folder / "tuned.safetensors"
    if not original.exists():
        write(original)
    if not tuned.exists():
        tune(open_weights(original), tuned)
    for rank in (32, 16):
        path = folder / f"rank{rank}.safetensors"
        if not path.exists():
            make_lora(path, rank)


def tune(weights: ModelWeights, path: Path) -> None:
    """The checkpoint with a change of rank 64 and noise on every weight that a LoRA can sit on."""
    slots = {slot.name: slot for slot in weights.slots.values()}
    generator = torch.Generator().manual_seed(1)

    def value_of(name: str) -> Tensor:
        tensor = weights.tensors[name]
        if name not in slots:
            return tensor
        flat = tensor.float().flatten(1)
        rank = min(64, *flat.shape)
        change = torch.randn(flat.shape[0], rank, generator=generator) * 0.93 ** torch.arange(rank)
        change = change @ torch.randn(rank, flat.shape[1], generator=generator)
        change *= 0.2 * flat.norm() / change.norm()
        noise = torch.randn(flat.shape, generator=generator)
        change += noise * (0.01 * change.norm() / noise.norm())
        return (flat + change).view_as(tensor).to(tensor.dtype)

    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in weights.tensors.items()}
    write_safetensors(path, shapes, value_of, {})


def make_lora(path: Path, rank: int) -> None:
    """A LoRA-C3Lier with random weights."""
    modules = empty_modules(empty_checkpoint(small=False))
    network = create_network(1.0, rank, rank, None, modules["text_encoder"], modules["unet"], conv_dim=rank)
    generator = torch.Generator().manual_seed(rank)
    tensors = {}
    for name, tensor in network.state_dict().items():
        if name.endswith(".alpha"):
            tensors[name] = torch.tensor(float(rank))
            continue
        value = torch.randn(tensor.shape, generator=generator) * 0.02
        if "lora_down" in name:
            value *= 0.97 ** torch.arange(rank).view(-1, *[1] * (tensor.ndim - 1))
        tensors[name] = value.half()
    write_lora(path, tensors, {"ss_network_module": "networks.lora"})


def svd(folder: Path, pairs: int) -> list[str]:
    """Two LoRAs into one of rank 32."""
    first, second, result = folder / "rank32.safetensors", folder / "rank16.safetensors", folder / "svd.safetensors"
    command = backend("svd_merge_lora", "--models", first, second, "--ratios", 0.6, 0.4, "--new_rank", 32)
    command += ["--save_to", str(result), "--overwrite"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    files = [str(path) for path in (first, second, result, folder / "copy.safetensors")]
    ours, theirs, memory = paired(command, [*PYTHON, READ_AND_WRITE, *files], pairs)
    worst = worst_of_svd([first, second], [0.6, 0.4], result)
    return row("svd_merge_lora to rank 32", ours, theirs, "import torch, read, write", memory, worst)


def worst_of_svd(sources: list[Path], ratios: list[float], result: Path) -> float:
    """The largest ratio of a module's error to the least that its rank allows, in float64."""
    files, made = [read_lora(path).layers for path in sources], read_lora(result).layers
    worst = 0.0
    for key, layer in made.items():
        layers = [LoraLayer(f[key].down.double(), f[key].up.double(), f[key].alpha) for f in files]
        left, right = side_by_side(layers, ratios)
        values = torch.linalg.svdvals(torch.linalg.qr(left).R @ torch.linalg.qr(right.T).R.T)
        own = LoraLayer(layer.down.double(), layer.up.double(), layer.alpha)
        difference = side_by_side([own, *layers], [-1.0, *ratios])
        error = torch.linalg.svdvals(torch.linalg.qr(difference[0]).R @ torch.linalg.qr(difference[1].T).R.T).norm()
        worst = max(worst, float(error / values[layer.rank :].norm()))
    return worst


def merge(folder: Path, pairs: int) -> list[str]:
    """One LoRA into a checkpoint."""
    original, result = folder / "original.safetensors", folder / "merged.safetensors"
    command = backend("merge_lora", "--sd_model", original, "--models", folder / "rank32.safetensors")
    command += ["--ratios", "0.8", "--save_to", str(result)]
    copy = [*PYTHON, COPY, str(original), str(folder / "copy.safetensors")]
    made = (result, folder / "copy.safetensors")
    ours, theirs, memory = paired(command, copy, pairs, made)
    for path in made:
        path.unlink(missing_ok=True)
    return row("merge_lora into 2.1 GB", ours, theirs, "import torch, copy", memory)


def extract(folder: Path, pairs: int) -> list[str]:
    """The difference of two checkpoints, against a thin SVD of the same matrices."""
    original, tuned, result = (folder / f"{name}.safetensors" for name in ("original", "tuned", "extracted"))
    command = backend("extract_lora_from_models", "--model_org", original, "--model_tuned", tuned, "--dim", DIM)
    command += ["--conv_dim", str(CONV_DIM), "--min_diff", "0", "--save_to", str(result), "--overwrite"]
    runs = [measured(command) for _ in range(pairs)]
    before, after = open_weights(original), open_weights(tuned)
    full = thin_svd(before, after)
    worst = worst_of_extract(before, after, result)
    seconds = [run[0] for run in runs]
    return row("extract_lora_from_models", seconds, [full] * pairs, "thin SVD", max(run[1] for run in runs), worst)


def thin_svd(before: ModelWeights, after: ModelWeights) -> float:
    """Seconds of torch.linalg.svd over all matrices, from one of each shape."""
    shapes = Counter(before.shapes.values())
    examples = {shape: key for key, shape in before.shapes.items()}
    total = 0.0
    for shape, count in sorted(shapes.items()):
        key = examples[shape]
        difference = (after.weight(key).float() - before.weight(key).float()).flatten(1)
        began = time.monotonic()
        torch.linalg.svd(difference, full_matrices=False)
        total += count * (time.monotonic() - began)
    return total


def worst_of_extract(before: ModelWeights, after: ModelWeights, result: Path) -> float:
    """As `worst_of_svd`; singular values from the Gram matrix in float64, the error from what is left."""
    worst = 0.0
    for key, layer in read_lora(result).layers.items():
        difference = (after.weight(key).double() - before.weight(key).double()).flatten(1)
        flat = difference if difference.shape[0] <= difference.shape[1] else difference.T
        squares = torch.linalg.eigvalsh(flat @ flat.T).clamp(min=0)
        least = squares[: len(squares) - layer.rank].sum().sqrt()
        own = LoraLayer(layer.down.double(), layer.up.double(), layer.alpha)
        worst = max(worst, float((difference - own.delta().flatten(1)).norm() / least))
    return worst


def row(
    name: str, ours: list[float], theirs: list[float], what: str, memory: float, worst: float | None = None
) -> list[str]:
    """A line of the table."""
    ratios = [own / other for own, other in zip(ours, theirs, strict=True)]
    accuracy = "" if worst is None else f"{worst:.5f}"
    return [
        name,
        f"{min(ours):.1f} s",
        f"{what} {min(theirs):.1f} s",
        f"{statistics.median(ratios):.3g} (best {min(ours) / min(theirs):.3g})",
        f"{memory:.2f} GB",
        accuracy,
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", default=["svd", "merge", "extract", "resize"])
    parser.add_argument("--folder", type=Path, help="where the files are kept; left out, they are made anew")
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    tools = [name for name in options.which if name != "resize"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if tools:
            make_files(folder)
            print("tool | ours, best | against, best | median ratio | own memory | error against the least")
        for name in tools:
            print(" | ".join(globals()[name](folder, options.pairs)), flush=True)
    if "resize" in options.which:
        print("resize_images_to_resolution, one process against one per core:", flush=True)
        subprocess.run([sys.executable, "-m", "benchmarks.resize", "--pictures", "240"], check=True)


if __name__ == "__main__":
    main()
