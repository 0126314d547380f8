"""What to draw: the request value, and prompts in sd-scripts' syntax, as lines, toml or JSON."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from backend.errors import UserError
from backend.families.prompt_text import CHUNKS
from backend.generate.lora_tags import Tag, has_tags, take_tags
from backend.generate.samplers import SAMPLERS
from backend.tables.picture import GRID, LEAST, MOST, MOST_PIXELS

OPTION = re.compile(r"\s+--(?=[A-Za-z])")
MAX_SEED = 2**63 - 1


def check_size(width: int | None, height: int | None) -> None:
    """See that a picture can have a size in pixels; None is left to the model.

    Raises:
        UserError: names the side and the nearest one that fits.
    """
    for side, value in (("width", width), ("height", height)):
        if value is None:
            continue
        if value < LEAST:
            raise UserError(f"{value} is too small: a picture needs at least {LEAST} pixels a side", field=side)
        if value > MOST:
            shown = value if value < 10**9 else "this"
            raise UserError(f"{shown} is too large: a picture has at most {MOST} pixels a side", field=side)
        if value % GRID:
            raise UserError(f"{value} is not a multiple of {GRID}; take {round(value / GRID) * GRID}", field=side)
    if width and height and width * height > MOST_PIXELS:
        raise UserError(f"{width}x{height} is too large: a picture has at most 4096x4096 pixels in all", field="width")


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
        loras: what `<lora:...>` in the prompt asks for beside these.
        chunks: of 75 tokens of a prompt that count.
        source: where it stands, for messages: file and line.
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
    loras: tuple[Tag, ...] = ()
    chunks: int = CHUNKS
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        check_size(self.width, self.height)
        if self.steps < 1:
            raise UserError(f"{self.steps} is too few: at least 1 step is needed", field="steps")
        if self.count < 1:
            raise UserError(f"{self.count} is too few: at least 1 picture is needed", field="count")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            what = f"{self.seed} is out of range: 0 to {MAX_SEED}"
            raise UserError(f"{what}; leave the seed out for a random one", field="seed")
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


_WHOLE = re.compile(r"[+-]?\d{1,20}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|[+-]?inf|nan", re.ASCII | re.IGNORECASE)


def _whole(text: str) -> int:
    if not _WHOLE.fullmatch(text):
        raise ValueError("a whole number such as 20")
    return int(text)


def _number(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ValueError("a number such as 7.5")
    return float(text)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(_number(part.strip()) for part in text.split(","))
    except ValueError:
        raise ValueError("numbers with commas between them, such as 0.8,0.5") from None


OPTIONS: dict[str, tuple[str, Callable[[str], object]]] = {
    "n": ("negative", str),
    "w": ("width", _whole),
    "h": ("height", _whole),
    "d": ("seed", _whole),
    "s": ("steps", _whole),
    "l": ("scale", _number),
    "ss": ("sampler", _sampler),
    "am": ("multipliers", _numbers),
}
# What people write for an option that has another name here.
MEANT = {
    "steps": "s",
    "seed": "d",
    "width": "w",
    "height": "h",
    "neg": "n",
    "negative": "n",
    "negative_prompt": "n",
    "cfg": "l",
    "scale": "l",
    "sampler": "ss",
}
_NAMES = "|".join(sorted([*OPTIONS, *MEANT], key=len, reverse=True))
# En dashes and their like, as phones and word processors write "--", and the hyphens of East Asian keyboards.
_DASHES = "\u2010-\u2015\u2212\ufe58\ufe63\uff0d"
# Marks that are meant for an option and are none: what stands there, and what to write.
SLIPS = (
    (re.compile(rf"(?:^|\s)((?:[{_DASHES}]-?|-[{_DASHES}])+({_NAMES}))(?=[\s=]|$)", re.I), "--{}"),
    (re.compile(rf"(?<=\S)(?<!-)(--({_NAMES}))(?=[\s=]|$)", re.I), "a space in front, and --{}"),
    (re.compile(rf"(?:^|\s)(--\s+({_NAMES})(?=\s+[\d.]))", re.I), "--{} without a space in it"),
)

# What the WebUI writes under its pictures, and people copy from there.
_WEBUI = re.compile(r"^\s*(Negative prompt:|Steps: \d+, (?=\w))", re.MULTILINE)

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
    place = f"prompt {_short(prompt.strip())!r}"
    for slip, instead in SLIPS:
        found = slip.search(line)
        if found:
            right = instead.format(MEANT.get(found[2].lower(), found[2].lower()))
            raise UserError(f"{found[1]} is no option; write {right}", field=place)
    webui = _WEBUI.search(line)
    if webui:
        message = f"{webui[1].strip()} is how the WebUI writes it; write one line, as in: a cat --n blurry --s 20 --d 1"
        raise UserError(message, field=place)
    changes: dict[str, object] = {"prompt": prompt.strip()}
    for option in options:
        name, text = re.fullmatch(r"(\S+)\s*(.*)", option, re.DOTALL).groups()
        name, text = name.lower(), text.strip()
        if "=" in name and name.partition("=")[0] in (*OPTIONS, *MEANT):
            name, _, glued = name.partition("=")
            raise UserError(f"--{option.strip()}: write --{MEANT.get(name, name)} {glued}, with a space", field=place)
        if name in ELSEWHERE:
            raise UserError(f"--{name} {ELSEWHERE[name]}; leave it out", field=place)
        if name not in OPTIONS:
            known = ", ".join(f"--{known}" for known in OPTIONS)
            meant = f"; write --{MEANT[name]}" if name in MEANT else f"; a prompt line takes {known}"
            raise UserError(f"unknown option --{_short(name)}{meant}", field=place)
        field, kind = OPTIONS[name]
        try:
            changes[field] = kind(text)
        except ValueError as error:
            message = f"{_short(text)!r} is not a value for --{name}; write {error}"
            raise UserError(message, field=place) from None
    return with_tags(replace(defaults, **changes))


def with_tags(request: Request) -> Request:
    """The request with the LoRAs that its prompt names taken out of the text.

    Raises:
        UserError: a tag cannot be read, or stands in the negative prompt.
    """
    if has_tags(request.negative):
        message = "a LoRA in a negative prompt is not applied; name it in the prompt, with a multiplier below 0"
        raise UserError(message, field="negative prompt")
    prompt, tags = take_tags(request.prompt)
    return replace(request, prompt=prompt, loras=(*request.loras, *tags))


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "..."


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
    return with_tags(replace(defaults, **changes))


def _is_a(value: Any, kind: type) -> bool:
    """Whether a value of a toml or JSON file is of a kind; whole numbers are numbers, true and false are not."""
    if kind is tuple:
        return isinstance(value, list) and all(_is_a(item, float) for item in value)
    return isinstance(value, int | float if kind is float else kind) and not isinstance(value, bool)
