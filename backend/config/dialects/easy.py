"""Configs that LoRA_Easy_Training_Scripts saves as toml: `[general_args.args]`, `[bucket_args.dataset_args]` and so on.

Its keys are sd-scripts' own, sorted by the boxes of its window; what belongs to the pictures becomes a dataset toml.
"""

from collections.abc import Mapping
from typing import Any

from backend.config.dialects.dataset_text import MOST, dataset_toml, dataset_values
from backend.config.dialects.judging import finish
from backend.config.dialects.reading import OPEN, Imported, Note, Reading
from backend.config.dialects.scripts import sort_scripts
from backend.config.messages import shown
from backend.errors import UserError

PROGRAM = "LoRA_Easy_Training_Scripts"
# Of the window itself, and what it writes beside a run.
OF_THE_WINDOW = (
    *("easy_name", "save_toml", "save_toml_location", "tag_occurrence", "tag_file_location", "sdxl", "name"),
    *("skip_network_args_warning", "skip_optimizer_args_warning", "skip_extra_args_warning", "cache_latents_enable"),
)
OWN_CODE = "LoraEasyCustomOptimizer"
RENAMED = {"shuffle_captions": "shuffle_caption"}
COMMENT = "From a config of LoRA_Easy_Training_Scripts."


def read_easy(tables: Mapping[str, Any], name: str) -> Imported:
    """The options of a config of LoRA_Easy_Training_Scripts.

    Args:
        tables: of the file, as they stand.
        name: of the file, for messages.

    Raises:
        UserError: it is for another kind of training.
    """
    mode = tables.get("train_mode")
    kind = mode.get("train_mode") if isinstance(mode, Mapping) else mode
    if kind not in (None, "lora"):
        raise UserError(f"is a config of {PROGRAM} for {shown(kind)}; only LoRAs are trained here", name)
    reading, general = _opened(tables)
    reading.drop(*OF_THE_WINDOW)
    _take_network(reading)
    _take_own_code(reading)
    if reading.number("warmup_ratio"):
        reading.change("warmup_ratio", "is lr_warmup_steps here, a fraction of all steps below 1")
        reading.take("warmup_ratio", "lr_warmup_steps")
    reading.drop("warmup_ratio")
    _take_pictures(reading, general, tables.get("subsets"))
    sort_scripts(reading, PROGRAM)
    return finish(reading, f"config of {PROGRAM}")


def _opened(tables: Mapping[str, Any]) -> tuple[Reading, dict[str, Any]]:
    """The options of all boxes, and those about pictures."""
    reading, general = Reading({}), {}

    def put(key: str, value: Any) -> None:
        if key in reading.left:
            reading.lose(key, "is given twice; the last is taken")
        reading.left[key] = value

    for section, table in tables.items():
        if section in ("subsets", "train_mode"):
            continue
        if not isinstance(table, Mapping):
            put(section, table)
            continue
        for key, value in table.items():
            if key == "dataset_args" and isinstance(value, Mapping):
                general |= value
            elif key == "args" and isinstance(value, Mapping):
                for inner, given in value.items():
                    put(inner, given)
            else:
                put(f"{section}.{key}", value)
    return reading, general


def _take_network(reading: Reading) -> None:
    arguments = reading.left.get("network_args")
    arguments = arguments if isinstance(arguments, Mapping) else {}
    if reading.on("fa"):
        module = "networks.lora_fa"
    elif "algo" in arguments:
        module = "lycoris.kohya"
    else:
        module = "networks.dylora" if arguments.get("unit") else "networks.lora"
    reading.drop("fa")
    if not reading.text("network_module"):
        reading.drop("network_module")
        reading.values["network_module"] = module


def _take_own_code(reading: Reading) -> None:
    for key, arguments in (("optimizer_type", "optimizer_args"), ("lr_scheduler_type", "lr_scheduler_args")):
        if reading.text(key).startswith(OWN_CODE):
            reading.lose(key, f"is code of {PROGRAM}, which is not here")
            if arguments in reading.left:
                reading.lose(arguments, f"belongs to that {key}")
            if key == "lr_scheduler_type":
                reading.drop("lr_scheduler")


def _take_pictures(reading: Reading, general: Mapping[str, Any], subsets: Any) -> None:
    lost: list[Note] = []
    tables = []
    for subset in (subsets if isinstance(subsets, list) else [])[:MOST]:
        if isinstance(subset, Mapping):
            own = {RENAMED.get(key, key): value for key, value in subset.items() if key not in ("name", "image_dir")}
            folder = subset.get("image_dir")
            tables.append((folder if isinstance(folder, str) else "", dataset_values(own, "subsets ", lost), None))
    options = dataset_values(general, "dataset_args ", lost)
    reading.notes += list(dict.fromkeys(lost))
    reading.taken += [f"dataset_args.{key}" for key in options]
    if not tables and not options:
        return
    reading.dataset = dataset_toml(options, [({}, tables)], COMMENT)
    count = len(tables)
    text = f"the file names {count} folder{'s' * (count != 1)} of pictures: look at the paths in the dataset toml below"
    reading.notes.append(Note("dataset_config", "", text, OPEN))
