"""What can be seen to be wrong with a command before it is queued: files that are not there, sizes that cannot fit.

The page asks to mark the field, the launcher asks again for whoever comes another way. Knows no torch, reads no
tensors, asks no network.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from backend.config.declare import Command, leaves
from backend.config.paths import meant_path
from backend.errors import UserError
from backend.fitting import prompts_problem
from backend.header import read_header
from backend.tables.identity import title_of
from backend.tables.sizes import FULL_SIZE
from backend.tables.widths import find_widths
from backend.workspace import LORA, PROJECT, WEIGHTS, kind_of

# What a command writes is not looked for. Datasets and states are judged by those who can read them.
UNJUDGED = ("dst", "save_to", "dataset_toml", "in_json")
LORA_FILES = ("network_weights", "base_weights")
# A PEFT adapter: its folder, or its weights beside their config.
ADAPTER, ADAPTER_SUFFIX = "adapter_config.json", ".bin"
# The options that name the model which LoRAs are used with.
MODELS = ("pretrained_model_name_or_path", "sd_model", "ckpt")
_SEES_TEXT = re.compile(r"attn2[._]to_[kv][._].*(?:lora_down|lora_A|lora\.down)\b")
_NAME = r"[A-Za-z0-9][\w.-]*"
_REPO = re.compile(rf"{_NAME}/{_NAME}")


def problems(command_class: type[Command], values: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with a command's values beyond what its config says, by option.

    Args:
        command_class: whose options they are.
        values: by option name; those that are not given are not judged.
    """
    found: dict[str, str] = {}
    for name, leaf in leaves(command_class).items():
        judge = _judge_of(name, leaf.widget)
        given = values.get(name)
        if judge is None or not given:
            continue
        for one in given if isinstance(given, tuple | list) else [given]:
            text = judge(str(one))
            if text:
                found.setdefault(name, text)
    if values.get("sample_prompts") and "sample_prompts" not in found:
        model = str(values.get("pretrained_model_name_or_path") or "")
        text = prompts_problem(str(values["sample_prompts"]), model)
        if text:
            found["sample_prompts"] = text
    return found | {name: text for name, text in _families(values).items() if name not in found}


def _families(values: Mapping[str, Any]) -> dict[str, str]:
    """The options whose LoRAs are for a model of another family than the one that they are to be used with."""
    model = next((str(values[name]) for name in MODELS if values.get(name)), "")
    found = {}
    for name in (*LORA_FILES, "models"):
        given = values.get(name) or ()
        for one in given if isinstance(given, tuple | list) else [given]:
            text = family_problem(str(one), model) if model else ""
            if text:
                found.setdefault(name, text)
    return found


def family_problem(lora: str, model: str) -> str:
    """One sentence where a LoRA is for a model of another family; "" where it is not, or where that cannot be seen.

    Told by the width of the text that the U-Net's attention sees, in the shapes of the LoRA's tensors.
    """
    path = _path(lora)
    known = find_widths(model)
    if path is None or path.suffix.lower() != ".safetensors" or not path.is_file() or not known.is_own:
        return ""
    try:
        tensors = read_header(path).tensors
    except UserError:
        return ""
    wide = {info.shape[1] for name, info in tensors.items() if len(info.shape) > 1 and _SEES_TEXT.search(name)}
    theirs = known.widths.unet.cross
    if not wide or theirs in wide:
        return ""
    return (
        f"{path.name} is for {_family_of(min(wide))}, and the model is {_family_of(theirs)}; choose a LoRA that was "
        "made for it"
    )


def _family_of(cross: int) -> str:
    known = {one.unet.cross: family for family, one in FULL_SIZE.items()}
    return title_of(known[cross]) if cross in known else f"one with a text of width {cross}"


def _judge_of(name: str, widget: str) -> Callable[[str], str] | None:
    if name in UNJUDGED:
        return None
    if name in LORA_FILES or widget in ("lora", "loras"):
        return lora_problem
    return {
        "model": model_problem,
        "checkpoint": checkpoint_problem,
        "file": file_problem,
    }.get(widget)


def model_problem(text: str) -> str:
    """What is wrong with a model that may also be a name on the hub; "" if nothing can be seen to be."""
    return _weights_problem(text, hub=True)


def checkpoint_problem(text: str) -> str:
    """What is wrong with a model that must be on this machine; "" if nothing can be seen to be."""
    return _weights_problem(text, hub=False)


def _weights_problem(text: str, hub: bool) -> str:
    path = _path(text)
    if path is None:
        return _no_path(text)
    if path.is_file():
        if path.suffix.lower() not in (*WEIGHTS, ADAPTER_SUFFIX):
            return f"{text} is none of {', '.join(WEIGHTS)}"
        return f"{text} is a LoRA, not a model; choose a model" if kind_of(path) == LORA else ""
    if path.is_dir():
        parts = ("model_index.json", "config.json", "unet")
        return "" if any((path / part).exists() for part in parts) else f"{text} is no Diffusers folder"
    if hub and is_hub_name(meant_path(text)):
        return ""
    more = "choose one of the list, or give a path, or org/repo for the hub" if hub else "choose another"
    return f"there is no file or folder {text}; {more}"


def is_hub_name(text: str) -> bool:
    """Whether a text that is no path here reads as `org/repo` or `org/repo/file.safetensors`."""
    pieces = text.split("/")
    # A misspelt path below a folder that exists is no name on the hub.
    if (PROJECT / pieces[0]).is_dir() or ".." in pieces:
        return False
    if not text.lower().endswith(WEIGHTS):
        return bool(_REPO.fullmatch(text))
    return len(pieces) >= 3 and bool(_REPO.fullmatch("/".join(pieces[:2])))


def lora_problem(text: str) -> str:
    """What is wrong with the path of a LoRA; "" if nothing can be seen to be."""
    path = _path(text)
    if path is None:
        return _no_path(text)
    if path.is_file():
        known = path.suffix.lower() in (*WEIGHTS, ADAPTER_SUFFIX)
        return "" if known else f"{text} is none of {', '.join(WEIGHTS)}"
    if path.is_dir():
        return "" if (path / ADAPTER).is_file() else f"{text} is a folder without {ADAPTER}; choose a file"
    return f"there is no file {text}; choose another"


def file_problem(text: str) -> str:
    """Whether a file is there; "" if it is."""
    path = _path(text)
    if path is None:
        return _no_path(text)
    if path.is_dir():
        return f"{text} is a folder; name a file"
    return "" if path.exists() else f"there is no file {text}; choose another"


def _path(text: str) -> Path | None:
    """Where a path of a config lies: commands run from the project's root. None for what can be no path."""
    try:
        path = PROJECT / meant_path(text)
        path.stat()
    except FileNotFoundError:
        return path
    except (OSError, ValueError, RuntimeError):
        return None
    return path


def _no_path(text: str) -> str:
    return f"{text[:80]!r} cannot be read as a path; choose another"
