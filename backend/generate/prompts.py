"""What to draw: the request value, and prompts in sd-scripts' syntax, as lines, toml or JSON."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backend.config.base import read_table
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


# Options of sd-scripts that are for what this program does not draw with, by flag and by key.
ELSEWHERE = {
    "cn": "is a picture for a ControlNet, which is not supported",
    "g": "is the guidance of models such as FLUX; for Stable Diffusion write --l",
    "ctr": "is for Lumina models",
    "rcfg": "is for Lumina models",
    "fs": "is for models that are trained by flow matching",
}
KEYS_ELSEWHERE = {
    "controlnet_image": ELSEWHERE["cn"],
    "guidance_scale": "is for models such as FLUX; for Stable Diffusion write scale",
    "cfg_trunc_ratio": ELSEWHERE["ctr"],
    "renorm_cfg": ELSEWHERE["rcfg"],
    "flow_shift": ELSEWHERE["fs"],
}
# The keys of a prompt's table: the field it stands for, and what it takes.
KEYS: dict[str, tuple[str, type]] = {
    "prompt": ("prompt", str),
    "negative_prompt": ("negative", str),
    "width": ("width", int),
    "height": ("height", int),
    "seed": ("seed", int),
    "sample_steps": ("steps", int),
    "scale": ("scale", float),
    "sample_sampler": ("sampler", str),
    "sampler": ("sampler", str),
    "multipliers": ("multipliers", tuple),
}
KINDS = {str: "text", int: "a whole number", float: "a number", tuple: "a list of numbers"}


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
        name = name.lower()
        if name in ELSEWHERE:
            raise UserError(f"--{name} {ELSEWHERE[name]}; leave it out", field=f"prompt {prompt.strip()!r}")
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


def parse_table(table: Mapping[str, Any], defaults: Request, place: str) -> Request:
    """One prompt with its options as a table, as sd-scripts has them in toml and JSON files.

    Args:
        table: `prompt` and its options by key; what it leaves out is taken from `defaults`.
        defaults: the settings of the run.
        place: where the table stands, for messages.

    Raises:
        UserError: a key is unknown or its value is not of its kind, or there is no prompt.
    """
    changes: dict[str, Any] = {}
    for key, value in table.items():
        if key in KEYS_ELSEWHERE:
            raise UserError(f"{key} {KEYS_ELSEWHERE[key]}; leave it out", field=place)
        if key not in KEYS:
            raise UserError(f"unknown key {key}; a prompt takes {', '.join(KEYS)}", field=place)
        field, kind = KEYS[key]
        if field in changes:
            raise UserError(f"{key} says again what another key says; leave one out", field=place)
        if not _is_a(value, kind):
            raise UserError(f"{key} must be {KINDS[kind]}, got {value!r}", field=place)
        changes[field] = _sampler(value) if field == "sampler" else kind(value)
    if "prompt" not in changes:
        raise UserError('has no prompt; write prompt = "..."', field=place)
    return replace(defaults, **changes)


def _is_a(value: Any, kind: type) -> bool:
    """Whether a value of a toml or JSON file is of a kind; whole numbers are numbers, true and false are not."""
    if kind is tuple:
        return isinstance(value, list) and all(_is_a(item, float) for item in value)
    return isinstance(value, int | float if kind is float else kind) and not isinstance(value, bool)


def read_prompts(path: Path | str, defaults: Request) -> list[Request]:
    """The prompts of a file.

    A .toml file has a table [prompt] with what all prompts share and a table [[prompt.subset]] for each; a .json file
    has a list of such tables or of prompt lines. Any other file has one prompt a line; empty lines and those that start
    with `#` are left out.

    Raises:
        UserError: the file cannot be read, holds no prompt, or has a faulty line or table.
    """
    kind = Path(path).suffix.lower()
    if kind == ".toml":
        prompts = _of_toml(read_table(path, str(path)), defaults, str(path))
    elif kind == ".json":
        prompts = _of_json(_text(path), defaults, str(path))
    else:
        lines = [line for line in _text(path).splitlines() if line.strip() and not line.lstrip().startswith("#")]
        prompts = [parse_line(line, defaults) for line in lines]
    if not prompts:
        raise UserError("holds no prompt; write one a line", field=str(path))
    return prompts


def _text(path: Path | str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read as a text file of prompts ({error})", field=str(path)) from None


def _of_toml(tables: Mapping[str, Any], defaults: Request, source: str) -> list[Request]:
    shared = tables.get("prompt")
    if set(tables) != {"prompt"} or not isinstance(shared, Mapping):
        raise UserError("must have a table [prompt] and nothing else; in it, [[prompt.subset]] for each", field=source)
    subsets = shared.get("subset", [{}])
    if not isinstance(subsets, list) or not all(isinstance(subset, Mapping) for subset in subsets):
        raise UserError("subset must be written as tables [[prompt.subset]]", field=source)
    own = {key: value for key, value in shared.items() if key != "subset"}
    return [
        parse_table(_without_twin(own, subset) | dict(subset), defaults, f"prompt {number} of {source}")
        for number, subset in enumerate(subsets, start=1)
    ]


def _without_twin(shared: Mapping[str, Any], subset: Mapping[str, Any]) -> dict[str, Any]:
    """The shared keys but for those of which a subset says the same under another name."""
    said = {KEYS[key][0] for key in subset if key in KEYS}
    return {key: value for key, value in shared.items() if key not in KEYS or KEYS[key][0] not in said}


def _of_json(text: str, defaults: Request, source: str) -> list[Request]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UserError(f"is not valid JSON ({error})", field=source) from None
    if not isinstance(found, list) or not all(isinstance(item, str | dict) for item in found):
        raise UserError("must be a list of prompts, each a line of text or a table", field=source)
    return [
        parse_line(item, defaults)
        if isinstance(item, str)
        else parse_table(item, defaults, f"prompt {number} of {source}")
        for number, item in enumerate(found, start=1)
    ]
