"""What to draw: the request value, and prompt lines in sd-scripts' syntax."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from backend.errors import UserError
from backend.generate.samplers import SAMPLERS

OPTION = re.compile(r"\s+--(?=[A-Za-z])")
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Request:
    """Pictures to be made from one prompt.

    Attributes:
        prompt: what to draw.
        negative: what to stay away from; only counts where `scale` is not 1.
        width, height: size in pixels; None is the model's own size.
        steps: number of denoising steps.
        scale: strength of classifier-free guidance; 1 is none, and takes half the time.
        sampler: a name of `SAMPLERS`.
        seed: seed of the first picture, the next ones count up from it; None is a random one.
        count: number of pictures.
        multipliers: LoRA multipliers for this prompt alone, in the order of the LoRA files; None keeps the run's.
    """

    prompt: str
    negative: str = ""
    width: int | None = None
    height: int | None = None
    steps: int = 30
    scale: float = 7.5
    sampler: str = "ddim"
    seed: int | None = None
    count: int = 1
    multipliers: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for field, value in (("width", self.width), ("height", self.height)):
            if value is not None and value < 8:
                raise UserError(f"{value} is too small: a picture needs at least 8 pixels a side", field=field)
        if self.steps < 1:
            raise UserError(f"{self.steps} is too few: at least 1 step is needed", field="steps")
        if self.count < 1:
            raise UserError(f"{self.count} is too few: at least 1 picture is needed", field="count")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise UserError(f"{self.seed} is out of range: 0 to {MAX_SEED}", field="seed")
        if self.sampler not in SAMPLERS:
            raise UserError(f"there is no {self.sampler!r}; choose one of {', '.join(SAMPLERS)}", field="sampler")
        most = SAMPLERS[self.sampler].most
        if self.steps > most:
            raise UserError(f"{self.steps} is too many: {self.sampler} takes at most {most}", field="steps")
        if not all(map(math.isfinite, (self.scale, *(self.multipliers or ())))):
            raise UserError("guidance and multipliers are finite numbers", field="scale")


def _sampler(text: str) -> str:
    """The documents also write `k_euler` for `euler`, and so on."""
    return text.removeprefix("k_")


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


OPTIONS: dict[str, tuple[str, Callable[[str], object]]] = {
    "n": ("negative", str),
    "w": ("width", int),
    "h": ("height", int),
    "d": ("seed", int),
    "s": ("steps", int),
    "l": ("scale", float),
    "ss": ("sampler", _sampler),
    "am": ("multipliers", _numbers),
}


def parse_line(line: str, defaults: Request) -> Request:
    """One prompt line, such as `a red fox --n blurry --w 512 --h 768 --d 1 --l 7 --s 20 --ss euler_a --am 0.8,0.5`.

    Args:
        line: the prompt and its options; what an option leaves out is taken from `defaults`.
        defaults: the settings of the run.

    Raises:
        UserError: an option is unknown or its value is not of its kind.
    """
    prompt, *options = OPTION.split(" " + line.strip())
    changes: dict[str, object] = {"prompt": prompt.strip()}
    for option in options:
        name, _, text = option.partition(" ")
        if name not in OPTIONS:
            known = ", ".join(f"--{known}" for known in OPTIONS)
            raise UserError(f"unknown option --{name}; a prompt line takes {known}", field=f"prompt {prompt.strip()!r}")
        field, kind = OPTIONS[name]
        try:
            changes[field] = kind(text.strip())
        except ValueError:
            message = f"{text.strip()!r} is not a value for --{name}"
            raise UserError(message, field=f"prompt {prompt.strip()!r}") from None
    return replace(defaults, **changes)


def read_prompts(path: Path | str, defaults: Request) -> list[Request]:
    """The prompt lines of a text file; empty lines and those that start with `#` are left out.

    Raises:
        UserError: the file cannot be read, holds no prompt, or has a faulty line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read as a text file of prompts ({error})", field=str(path)) from None
    prompts = [parse_line(line, defaults) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise UserError("holds no prompt; write one a line", field=str(path))
    return prompts
