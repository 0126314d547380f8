"""Configs that the LoRA tab of kohya_ss' GUI (bmaltais/kohya_ss) saves as JSON.

The GUI has names of its own for some options and writes 0 or "" where an option is unset; what it makes of its fields
when it writes sd-scripts' toml is what counts here. Files of older versions spell some fields otherwise.
"""

import shlex
from collections.abc import Mapping
from typing import Any

from backend.config.declare import leaves
from backend.config.dialects.gui_fields import (
    ARGUMENTS,
    BEGINNINGS,
    FAMILIES,
    HUBER,
    LAUNCH,
    LYCORIS,
    LYCORIS_COMMON,
    LYCORIS_NAMES,
    LYCORIS_OWN,
    NATIVE,
    NOISE,
    OF_A_FAMILY,
    OF_SDXL,
    OF_THE_PAGE,
    OWN_LAUNCH,
    PLUS,
    PROGRAM,
    RENAMED,
    TYPES,
    ZERO_IS_UNSET,
)
from backend.config.dialects.judging import finish
from backend.config.dialects.programs import GUI, program_of
from backend.config.dialects.reading import NO_COUNTERPART, UNSET, Imported, Reading, same
from backend.config.dialects.scripts import PROMPT_FILES, sort_scripts
from backend.config.train import TrainNetwork

ALL_TIMESTEPS = 1000


def looks_like_gui(data: Mapping[str, Any]) -> bool:
    """Whether these are the keys of a config of the GUI."""
    return program_of(data) is GUI


def read_gui(data: Mapping[str, Any]) -> Imported:
    """The options of a config of the GUI's LoRA tab."""
    reading = Reading(dict(data))
    is_sdxl = reading.on("sdxl")
    reading.drop(*OF_THE_PAGE)
    _take_families_out(reading)
    _take_launch_out(reading)
    _sort_noise(reading)
    _take_network(reading)
    reading.drop(*(key for key in ZERO_IS_UNSET if reading.number(key) == 0))
    _take_rates(reading)
    _take_warmup(reading)
    _take_length(reading)
    _take_attention(reading)
    _take_prompts(reading)
    if not is_sdxl:
        reading.drop(*OF_SDXL)
    _take_parameters(reading)
    _rename(reading)
    sort_scripts(reading, PROGRAM)
    return finish(reading, f"config of {PROGRAM}")


def _take_families_out(reading: Reading) -> None:
    chosen = [name for switch, name in FAMILIES.items() if reading.on(switch)]
    for key in list(reading.left):
        if key in FAMILIES and reading.on(key):
            reading.lose(key, f"{FAMILIES[key]} is a model family that cannot be trained here yet")
        elif key in FAMILIES or key in OF_A_FAMILY or key.startswith(BEGINNINGS):
            if chosen and not same(reading.left[key], None):
                reading.lose(key, f"belongs to {' or '.join(chosen)}, which cannot be trained here yet")
            else:
                reading.drop(key)


def _take_launch_out(reading: Reading) -> None:
    for key, default in LAUNCH.items():
        if reading.left.get(key) in UNSET or same(reading.left[key], default):
            reading.drop(key)
        elif key == "num_machines":
            reading.lose(
                key, "needs machine_rank and main_process_ip too, which the file has not; set the three by hand"
            )
        elif key not in OWN_LAUNCH:
            reading.lose(key, "is given to `accelerate launch` and not to the trainer")


def _sort_noise(reading: Reading) -> None:
    kind = reading.text("noise_offset_type").lower() or "original"
    reading.drop("noise_offset_type", *(key for name, keys in NOISE.items() if name != kind for key in keys))
    if not reading.number("noise_offset"):
        reading.drop("adaptive_noise_scale", "noise_offset_random_strength")
    if not reading.number("multires_noise_iterations"):
        reading.drop("multires_noise_discount")
    if not reading.number("ip_noise_gamma"):
        reading.drop("ip_noise_gamma_random_strength")
    if reading.number("max_timestep") == ALL_TIMESTEPS:
        reading.drop("max_timestep")
    if reading.text("loss_type") not in ("huber", "smooth_l1"):
        reading.drop(*HUBER)


def _take_network(reading: Reading) -> None:
    kind = reading.text("LoRA_type").lower() or "standard"
    if kind.startswith(LYCORIS):
        _take_lycoris(reading, kind.removeprefix(LYCORIS))
    elif kind in TYPES:
        module, fields = TYPES[kind]
        reading.take("LoRA_type", "network_module", module)
        for key in (*fields, *PLUS):
            value = reading.left.get(key)
            # The text "0" is a weight like any other, the number 0 an empty field.
            if key in reading.left and value not in UNSET and (isinstance(value, str) or value != 0):
                reading.argument(key, "network_args", key)
    elif reading.text("LoRA_type"):
        text = f"belongs to the network {reading.text('LoRA_type')}, which {NO_COUNTERPART}"
        for key in ("LoRA_type", "network_dim", "network_alpha"):
            if key in reading.left:
                reading.lose(key, text)
    reading.drop(*ARGUMENTS)


def _take_lycoris(reading: Reading, kind: str) -> None:
    algorithm = "full" if kind == NATIVE else kind
    reading.values["network_args"] = {"algo": algorithm}
    reading.take("LoRA_type", "network_module", "lycoris.kohya")
    for key in (*LYCORIS_COMMON, *LYCORIS_OWN.get(algorithm, ()), *PLUS):
        if reading.left.get(key) not in UNSET and not (key in PLUS and same(reading.left[key], 0)):
            reading.argument(key, "network_args", LYCORIS_NAMES.get(key, key))


def _take_rates(reading: Reading) -> None:
    """A rate of 0 leaves a part untrained in the GUI, and both of them leave learning_rate for all."""
    rates = {key: reading.number(key) for key in ("unet_lr", "text_encoder_lr")}
    only = ""
    if rates["text_encoder_lr"] == 0 and rates["unet_lr"]:
        only = "network_train_unet_only"
        reading.change("text_encoder_lr", f"is {only} here")
        reading.take("text_encoder_lr", only, True)
    elif rates["unet_lr"] == 0 and rates["text_encoder_lr"]:
        only = "network_train_text_encoder_only"
        reading.change("unet_lr", f"is {only} here")
        reading.take("unet_lr", only, True)
    reading.drop(*(key for key, rate in rates.items() if rate == 0))
    if reading.number("learning_rate") == 0 and (only or all(rates.values())):
        reading.drop("learning_rate")


def _take_warmup(reading: Reading) -> None:
    steps, percent = reading.number("lr_warmup_steps") or 0, reading.number("lr_warmup") or 0
    if steps > 0:
        reading.take("lr_warmup_steps", value=int(steps))
    elif 0 < percent < 100:
        reading.change("lr_warmup", f"percent are lr_warmup_steps {percent / 100:g} here, a fraction of all steps")
        reading.take("lr_warmup", "lr_warmup_steps", percent / 100)
    elif percent:
        reading.lose("lr_warmup", "percent leave nothing but a warm-up; lr_warmup_steps takes a fraction below 1")
    reading.drop("lr_warmup", "lr_warmup_steps")


def _take_length(reading: Reading) -> None:
    steps, epochs = reading.number("max_train_steps"), reading.number("max_train_epochs")
    epoch = reading.number("epoch") or 0
    if reading.left.get("lr_scheduler_num_cycles") in UNSET and reading.text("lr_scheduler") == "cosine_with_restarts":
        reading.drop("lr_scheduler_num_cycles")
        if epoch and "lr_scheduler_num_cycles" in leaves(TrainNetwork):
            reading.change("epoch", "is lr_scheduler_num_cycles too, which is not given")
            reading.values["lr_scheduler_num_cycles"] = int(epoch)
            reading.origin["lr_scheduler_num_cycles"] = "epoch"
    reading.drop(*(key for key, given in (("max_train_steps", steps), ("max_train_epochs", epochs)) if not given))
    # With a dataset toml the GUI cannot count pictures and leaves epochs alone.
    if not steps and not epochs and epoch and not reading.text("dataset_config"):
        reading.change("epoch", f"is max_train_epochs {epoch:g} here")
        reading.take("epoch", "max_train_epochs", int(epoch))
    reading.drop("epoch")


def _take_attention(reading: Reading) -> None:
    kind = reading.text("xformers").lower()
    if kind == "sdpa":
        reading.change("xformers", "is the option sdpa here")
        reading.take("xformers", "sdpa", True)
    elif kind == "xformers":
        reading.take("xformers", value=True)
    elif kind == "none":
        reading.drop("xformers")


def _take_prompts(reading: Reading) -> None:
    """The GUI's field holds the prompts themselves; without them, or without a time, it draws nothing."""
    times = [key for key in ("sample_every_n_epochs", "sample_every_n_steps") if reading.number(key)]
    text = reading.text("sample_prompts")
    if not times or not text:
        reading.drop("sample_prompts", *times)
    elif "\n" in text or not text.lower().endswith(PROMPT_FILES):
        reading.prompts = text
        reading.left.pop("sample_prompts")
        reading.taken.append("sample_prompts")


def _take_parameters(reading: Reading) -> None:
    """Flags that the GUI puts behind its own, which they override."""
    key = "additional_parameters"
    text = reading.text(key)
    if not text:
        reading.drop(key)
        return
    try:
        words = shlex.split(text)
    except ValueError as error:
        reading.lose(key, f"is no command line: {error}")
        return
    flags: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            flags[name] = [value] if equals else []
        elif name:
            flags[name].append(word)
        else:
            reading.lose(f"{key} {word}", "is a value without an option")
    reading.left.pop(key)
    reading.taken.append(key)
    for name, given in flags.items():
        old = next((old for old, new in RENAMED.items() if new == name), name)
        reading.drop(*dict.fromkeys((name, old)))
        reading.override(name)
        reading.left[name] = given if len(given) > 1 else given[0] if given else True


def _rename(reading: Reading) -> None:
    for old, new in RENAMED.items():
        if old not in reading.left:
            continue
        if reading.left[old] in UNSET or (old in OF_SDXL and same(reading.left[old], False)):
            reading.drop(old)
        elif reading.left.get(new) not in UNSET:
            reading.lose(old, f"is given twice; {new} is taken")
        elif new in leaves(TrainNetwork):
            reading.drop(new)
            reading.take(old, new)
        else:
            reading.lose(old, NO_COUNTERPART)
