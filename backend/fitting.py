"""Whether a picture of a size can be drawn: what the model takes, and what fits into the memory that there is.

Knows no torch. What is let through may still be too much: only what cannot fit in any case is refused.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from backend import gpus
from backend.bounded import CONFIG_BYTES, read_json, read_text, read_toml, split_lines
from backend.config.paths import meant_path
from backend.errors import UserError
from backend.tables.sizes import FULL_SIZE
from backend.tables.widths import find_widths
from backend.workspace import PROJECT

# A picture's sides in pixels: a U-Net that halves three times has nothing left of smaller ones, and its VAE takes tens
# of gigabytes for the largest.
GRID, LEAST, MOST, MOST_PIXELS = 8, 64, 8192, 4096 * 4096
# What one pixel takes while it is decoded on a CPU, in bytes for each channel of the U-Net's first level: feature maps
# of the VAE in float32, 256 and 128 wide where the U-Net begins with 320. Measured with Stable Diffusion 1's: 3600.
# A GPU whose memory is full decodes in tiles, so there the U-Net's own maps in float16 are what must fit.
PIXEL_BYTES, GPU_PIXEL_BYTES = 10, 2
_PROMPT_SIZE = re.compile(r"\s--([wh])\s+(\S+)", re.IGNORECASE)
_SIDES = {"w": "width", "h": "height"}
_RESOLUTION = {"sd1": 512, "sd2": 768, "sdxl": 1024}


@dataclass(frozen=True)
class Memory:
    """What pictures are drawn in.

    Attributes:
        free: bytes that can be had.
        words: what they are.
        pixel_bytes: what a pixel takes for each channel of the U-Net's first level.
    """

    free: int
    words: str = "of memory that are free"
    pixel_bytes: int = PIXEL_BYTES


@lru_cache(maxsize=1)
def gpu_memory() -> Memory | None:
    """The memory of the GPU that runs will use; None without one, or where nobody tells."""
    if not gpus.verdict().usable:
        return None
    sizes = [card.memory for card in gpus.look().cards if card.memory is not None]
    return Memory(max(sizes) * 2**20, "of the GPU", GPU_PIXEL_BYTES) if sizes else None


def drawing_memory() -> Memory | None:
    """The memory that pictures are drawn in; None where it is not known how much there is."""
    return gpu_memory() if gpus.verdict().usable else machine_memory()


def machine_memory(root: Path = Path("/")) -> Memory | None:
    """Memory that this machine, or the container that this runs in, has free; None where it does not say.

    Args:
        root: where the system's own folders lie.
    """
    found = [_number_of(root / "proc/meminfo", r"MemAvailable:\s+(\d+) kB", 1024)]
    for limit, used in (
        ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        whole, taken = (_number_of(root / name, r"(\d+)\s*", 1) for name in (limit, used))
        found.append(None if whole is None or taken is None else max(0, whole - taken))
    known = [number for number in found if number is not None]
    return Memory(min(known)) if known else None


def _number_of(path: Path, pattern: str, unit: int) -> int | None:
    try:
        match = re.search(pattern, path.read_text(encoding="ascii", errors="replace"))
    except OSError:
        return None
    return int(match[1]) * unit if match else None


def size_problems(
    width: int | None, height: int | None, model: str, memory: Memory | None = None
) -> dict[str, str]:
    """What is wrong with a picture's size, by "width" and "height".

    What is let through may still be too much: only what cannot fit in any case is refused.

    Args:
        width, height: in pixels; None is the model's own.
        model: which draws it.
        memory: what there is; None asks the machine.
    """
    found = {}
    for name, value in (("width", width), ("height", height)):
        if value is not None and value < LEAST:
            found[name] = f"must be at least {LEAST}"
        elif value is not None and value > MOST:
            found[name] = f"must be at most {MOST}"
        elif value is not None and value % GRID:
            found[name] = f"must be a multiple of {GRID}"
    if found or (width is None and height is None):
        return found
    memory = memory or drawing_memory()
    most = most_pixels(model, memory)
    sides = {"width": width or _own_side(model, height), "height": height or _own_side(model, width)}
    if sides["width"] * sides["height"] <= most:
        return {}
    given = [name for name, value in (("width", width), ("height", height)) if value is not None]
    side = int(most**0.5) // GRID * GRID
    message = f"{sides['width']} x {sides['height']} is too large: {side} x {side} is the most that fits"
    if memory is not None and most < MOST_PIXELS:
        message += f" into the {memory.free / 1e9:.1f} GB {memory.words}"
    return {max(given, key=sides.__getitem__): f"{message}, or another size of {most / 1e6:.1f} megapixels"}


def most_pixels(model: str, memory: Memory | None) -> int:
    """The largest area of a picture that is let through."""
    if memory is None:
        return MOST_PIXELS
    return min(MOST_PIXELS, memory.free // (memory.pixel_bytes * find_widths(model).widths.unet.channels[0]))


def _own_side(model: str, other: int | None) -> int:
    """A side that is the model's own; of a small model, which may be any, the other side."""
    return _RESOLUTION[find_widths(model).widths.family] if is_full_size(model) else other or LEAST


def is_full_size(model: str) -> bool:
    """Whether a model is as large as those that people use, rather than one to try things out with."""
    known = find_widths(model).widths
    return known.unet.channels[0] >= FULL_SIZE[known.family].unet.channels[0]


def prompts_problem(text: str, model: str, memory: Memory | None = None) -> str:
    """What is wrong with the sizes of a file of sample prompts; "" if nothing is.

    Args:
        text: the file's path.
        model: which draws them.
        memory: what there is; None asks the machine.
    """
    memory = memory or drawing_memory()
    try:
        path = PROJECT / meant_path(text)
        for place, sides in _prompt_sizes(path):
            wrong = _side_problems(sides, model, memory)
            if wrong:
                return f"{place}: {wrong}"
    except UserError as error:
        return error.message
    except ValueError as error:
        return str(error)
    return ""


def _side_problems(sides: Mapping[str, Any], model: str, memory: Memory | None) -> str:
    numbers: dict[str, int] = {}
    for name, value in sides.items():
        try:
            numbers[name] = int(value)
        except (TypeError, ValueError):
            return f"{name} must be a whole number, got {value}"
    wrong = size_problems(numbers.get("width"), numbers.get("height"), model, memory)
    for name, message in wrong.items():
        return f"{name} {message}, got {numbers[name]}" if message.startswith("must") else f"{name} {message}"
    return ""


def _prompt_sizes(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Each prompt that names a size: where it stands, and its sides as they are written."""
    kind = path.suffix.lower()
    if kind == ".toml":
        return _of_tables(read_toml(path, None, limit=CONFIG_BYTES).get("prompt"))
    if kind == ".json":
        return _of_tables(read_json(path, None, limit=CONFIG_BYTES))
    lines = enumerate(split_lines(read_text(path, None, limit=CONFIG_BYTES)), start=1)
    return [
        (f"line {number}", sides)
        for number, line in lines
        if not line.lstrip().startswith("#") and (sides := _of_line(line))
    ]


def _of_line(line: str) -> dict[str, Any]:
    return {_SIDES[flag.lower()]: value for flag, value in _PROMPT_SIZE.findall(f" {line}")}


def _of_tables(found: Any) -> list[tuple[str, dict[str, Any]]]:
    """The same of a toml's table `prompt` with its subsets, and of a JSON's list; what is neither is left to others."""
    table = found if isinstance(found, Mapping) else {}
    shared = {key: value for key, value in table.items() if key in _SIDES.values()}
    subsets = table.get("subset", [{}]) if table else found
    if not isinstance(subsets, Sequence) or isinstance(subsets, str):
        return []
    sizes = []
    for number, one in enumerate(subsets, start=1):
        own = _of_line(one) if isinstance(one, str) else {}
        if isinstance(one, Mapping):
            own = {key: value for key, value in one.items() if key in _SIDES.values()}
        if shared or own:
            sizes.append((f"prompt {number}", {**shared, **own}))
    return sizes
