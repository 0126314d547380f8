"""Pictures as PNG files that say how they were made, in the text chunk `parameters` that other programs read too."""

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image, PngImagePlugin
from torch import Tensor

from backend.errors import UserError
from backend.generate.lora_tags import Dose
from backend.generate.prompts import Request

PAIR = re.compile(r'\s*(\w[\w ]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """Pixels [B, 3, H, W] in [-1, 1] as 8-bit RGB pictures; values outside are clamped."""
    bytes_ = ((pixels.detach().float().cpu() / 2 + 0.5).clamp(0, 1) * 255).round().byte()
    return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in bytes_]


def describe(request: Request, model: str, loras: Sequence[Dose] = ()) -> str:
    """The `parameters` text: prompt, negative prompt, then one line of settings, as the web UIs around us write it."""
    settings = {
        "Steps": request.steps,
        "Sampler": request.sampler,
        "CFG scale": request.scale,
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model": _quoted(model),
    }
    if loras:
        settings["LoRA"] = _quoted("; ".join(map(str, loras)))
    lines = [request.prompt]
    if request.negative:
        lines.append(f"Negative prompt: {request.negative}")
    lines.append(", ".join(f"{name}: {value}" for name, value in settings.items()))
    return "\n".join(lines)


def _quoted(text: str) -> str:
    if not re.search(r'[,:"\n]', text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'


def parse_parameters(text: str) -> dict[str, str]:
    """A `parameters` text as names and values; the prompts are under `Prompt` and `Negative prompt`."""
    *lines, settings = text.strip().split("\n")
    values = {name: _unquoted(value) for name, value in PAIR.findall(settings)}
    if "Steps" not in values:
        lines, values = [*lines, settings], {}
    prompt, _, negative = "\n".join(["", *lines]).partition("\nNegative prompt: ")
    return {"Prompt": prompt.removeprefix("\n"), "Negative prompt": negative, **values}


def _unquoted(value: str) -> str:
    value = value.strip()
    if len(value) >= 2 and value.startswith('"') and value.endswith('"'):
        return re.sub(r"\\(.)", r"\1", value[1:-1])
    return value


def save_png(picture: Image.Image, path: Path, parameters: str) -> None:
    """Write a PNG under a temporary name beside `path`, then rename it.

    Raises:
        UserError: the folder cannot be written to.
    """
    info = PngImagePlugin.PngInfo()
    info.add_itxt("parameters", parameters) if not parameters.isascii() else info.add_text("parameters", parameters)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}", suffix=".tmp")
    except PermissionError as error:
        raise UserError(f"cannot be written to ({error.strerror})", field=str(path.parent)) from None
    try:
        with os.fdopen(handle, "wb") as file:
            picture.save(file, format="PNG", pnginfo=info)
        Path(name).chmod(0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_parameters(path: Path | str) -> dict[str, str]:
    """What a PNG says about how it was made; an empty dict if it says nothing."""
    with Image.open(path) as picture:
        picture.load()
        text = getattr(picture, "text", {}).get("parameters")
    return parse_parameters(text) if text else {}


def numbered(request: Request, index: int) -> Request:
    """The request for picture number `index` of a request that has a seed: one picture, its own seed."""
    return replace(request, seed=request.seed + index, count=1)
