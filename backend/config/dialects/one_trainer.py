"""Configs that OneTrainer saves as JSON, for LoRAs of Stable Diffusion 1, 2 and XL.

Its files may leave out what is at its default, which is often not ours; what counts is what it would train. Its
concepts become a dataset toml and its samples a file of prompts, where the config holds them itself.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from backend.config.dialects.dataset_text import MOST, dataset_toml, dataset_values
from backend.config.dialects.judging import finish
from backend.config.dialects.one_trainer_fields import (
    BETAS,
    DEFAULTS,
    FAMILIES,
    LOST,
    NETWORKS,
    OF_THE_MACHINE,
    OF_THE_PROGRAM,
    OPTIMIZERS,
    PRECISIONS,
    PROGRAM,
    RENAMED,
    SAVED,
    SCHEDULES,
    SILENT,
    WITH_BETAS,
)
from backend.config.dialects.reading import NO_COUNTERPART, OPEN, UNSET, Imported, Note, Reading, as_number, same
from backend.config.messages import shown
from backend.errors import UserError

TIMES = 1000
COMMENT = "From a config of OneTrainer: look at every image_dir."


def read_one_trainer(data: Mapping[str, Any], name: str) -> Imported:
    """The options of a config of OneTrainer.

    Args:
        data: the JSON object of the file.
        name: of the file, for messages.

    Raises:
        UserError: it is for another kind of training or another model family.
    """
    method, family = data.get("training_method", "FINE_TUNE"), data.get("model_type", "STABLE_DIFFUSION_15")
    if method != "LORA":
        raise UserError(f"is a config of {PROGRAM} for {shown(method)}; only LoRAs are trained here", name)
    if family not in FAMILIES:
        raise UserError(f"is a config of {PROGRAM} for {shown(family)}, which cannot be trained here", name)
    reading = Reading({**DEFAULTS, **data})
    reading.drop(*OF_THE_MACHINE)
    for key, value in DEFAULTS.items():
        if key not in data:
            reading.change(key, f"is not given; this is what {PROGRAM} does by itself", value)
    _take_parts(reading, "XL" in str(family))
    _take_output(reading)
    _take_optimizer(reading)
    _take_schedule(reading)
    _take_noise(reading)
    _take_times(reading)
    _take_size(reading)
    _take_kind(reading)
    _take_concepts(reading)
    for key, (option, silent) in RENAMED.items():
        if key in reading.left and (reading.left[key] in UNSET or same(reading.left[key], silent)):
            reading.drop(key)
        elif key in reading.left:
            reading.take(key, option)
    for key, silent in LOST.items():
        if key in reading.left and (reading.left[key] in UNSET or same(reading.left[key], silent)):
            reading.drop(key)
        elif key in reading.left:
            reading.lose(key, NO_COUNTERPART)
    reading.drop(*OF_THE_PROGRAM)
    reading.by_name({}, {}, PROGRAM)
    return finish(reading, f"config of {PROGRAM}")


def _part(reading: Reading, key: str) -> Mapping[str, Any]:
    found = reading.left.get(key)
    return found if isinstance(found, Mapping) else {}


def _take_parts(reading: Reading, is_xl: bool) -> None:
    """Rates and switches of the U-Net and of each text encoder, the VAE, and checkpointing."""
    unet, texts = _part(reading, "unet"), [_part(reading, "text_encoder")]
    texts += [_part(reading, "text_encoder_2")] if is_xl else []
    trained = [text.get("train", True) is not False for text in texts]
    rates = [as_number(text.get("learning_rate")) for text in texts]
    if not any(trained):
        reading.values["network_train_unet_only"] = True
    elif unet.get("train", True) is False:
        reading.values["network_train_text_encoder_only"] = True
    if (rate := as_number(unet.get("learning_rate"))) is not None:
        reading.values["unet_lr"] = rate
    general = as_number(reading.left.get("learning_rate"))
    if any(trained) and (not all(trained) or any(rate is not None for rate in rates)):
        each = [(general if rate is None else rate) if on else 0.0 for rate, on in zip(rates, trained, strict=True)]
        reading.values["text_encoder_lr"] = [rate for rate in each if rate is not None]
    checkpointing = [part.get("gradient_checkpointing") for part in (unet, *texts) if part]
    if "gradient_checkpointing" in reading.left:
        reading.take("gradient_checkpointing", value=reading.text("gradient_checkpointing").lower() in ("true", "on"))
    elif True in checkpointing:
        reading.values["gradient_checkpointing"] = True
    if (vae := _part(reading, "vae").get("model_name")) not in UNSET:
        reading.values["vae"] = vae
    for key, part in (("unet", unet), ("text_encoder", texts[0]), ("text_encoder_2", texts[-1])):
        if part.get("stop_training_after") not in UNSET and part.get("stop_training_after_unit") not in (None, "NEVER"):
            reading.notes.append(Note(f"{key}.stop_training_after", "", NO_COUNTERPART))
        if key in reading.left:
            reading.left.pop(key)
            reading.taken.append(key)
    reading.drop("vae")
    skip = reading.number("text_encoder_layer_skip") or 0
    if skip > 0 and not is_xl:
        reading.change("text_encoder_layer_skip", f"is clip_skip {int(skip) + 1} here, which counts from 1")
        reading.take("text_encoder_layer_skip", "clip_skip", int(skip) + 1)
    reading.drop("text_encoder_layer_skip")


def _take_output(reading: Reading) -> None:
    path = PurePosixPath(reading.text("output_model_destination").replace("\\", "/"))
    if path.name:
        reading.change("output_model_destination", f'is output_dir "{path.parent}" and output_name "{path.stem}" here')
        reading.values["output_name"] = path.stem
        reading.take("output_model_destination", "output_dir", str(path.parent))
    reading.drop("output_model_destination")
    precisions = (("output_dtype", "save_precision", SAVED), ("train_dtype", "mixed_precision", PRECISIONS))
    for key, option, known in precisions:
        value = reading.text(key)
        if value in known:
            reading.take(key, option, known[value])
        elif value:
            reading.lose(key, NO_COUNTERPART)
        else:
            reading.drop(key)


def _take_optimizer(reading: Reading) -> None:
    given = reading.left.get("optimizer")
    table: Mapping[str, Any] = given if isinstance(given, Mapping) else {"optimizer": given}
    name = str(table.get("optimizer") or "ADAMW")
    if "optimizer" not in reading.left:
        return
    if name not in OPTIMIZERS:
        reading.lose("optimizer", f"{NO_COUNTERPART}: choose an optimizer_type", name)
        return
    known, fields = OPTIMIZERS[name]
    arguments = {key: table[key] for key in fields if table.get(key) not in SILENT}
    betas = [as_number(table.get(key)) for key in BETAS]
    if name in WITH_BETAS and None not in betas:
        arguments["betas"] = tuple(betas)
    if name == "ADAFACTOR":
        arguments = {"relative_step": False, "scale_parameter": False} | arguments
    silent = ("optimizer", *BETAS, *arguments)
    others = [key for key, value in table.items() if key not in silent and value not in (*SILENT, True, {}, 0)]
    if others:
        reading.notes.append(Note("optimizer", "", f"these of its arguments have no counterpart: {', '.join(others)}"))
    reading.take("optimizer", "optimizer_type", known)
    if arguments:
        reading.values["optimizer_args"] = arguments


def _take_schedule(reading: Reading) -> None:
    key, name = "learning_rate_scheduler", reading.text("learning_rate_scheduler")
    warmup = reading.number("learning_rate_warmup_steps") or 0
    steps = reading.number("gradient_accumulation_steps") or 1
    schedule = SCHEDULES.get(name, "")
    if not schedule:
        reading.lose(key, f"{NO_COUNTERPART}: choose an lr_scheduler")
        reading.drop("learning_rate_cycles", "learning_rate_warmup_steps")
        return
    if warmup > 0 and schedule == "constant":
        schedule = "constant_with_warmup"
    if warmup > 0 and schedule != "adafactor":
        # It counts micro-batches.
        share = int(warmup / max(steps, 1)) if warmup > 1 else warmup
        reading.take("learning_rate_warmup_steps", "lr_warmup_steps", share)
    reading.take(key, "lr_scheduler", schedule)
    cycles = reading.number("learning_rate_cycles")
    if schedule == "cosine_with_restarts" and cycles and cycles.is_integer():
        reading.take("learning_rate_cycles", "lr_scheduler_num_cycles", int(cycles))
    reading.drop("learning_rate_cycles", "learning_rate_warmup_steps")


def _take_noise(reading: Reading) -> None:
    if reading.number("perturbation_noise_weight"):
        reading.take("perturbation_noise_weight", "ip_noise_gamma")
    reading.drop("perturbation_noise_weight")
    for key, option, silent in (
        ("min_noising_strength", "min_timestep", 0),
        ("max_noising_strength", "max_timestep", 1),
    ):
        value = reading.number(key)
        if value is not None and value != silent:
            reading.take(key, option, round(value * TIMES))
        reading.drop(key)
    weight, strength = reading.text("loss_weight_fn"), reading.number("loss_weight_strength")
    if weight == "MIN_SNR_GAMMA" and strength:
        reading.take("loss_weight_fn", "min_snr_gamma", strength)
    elif weight == "DEBIASED_ESTIMATION":
        reading.take("loss_weight_fn", "debiased_estimation_loss", True)
    elif weight not in ("", "CONSTANT"):
        reading.lose("loss_weight_fn", NO_COUNTERPART)
    reading.drop("loss_weight_fn", "loss_weight_strength")
    squared, absolute = reading.number("mse_strength"), reading.number("mae_strength")
    if absolute and squared == 0:
        reading.take("mae_strength", "loss_type", "l1")
    elif absolute or squared not in (None, 1):
        reading.lose("mse_strength", "errors are weighed by one loss_type here, l2 or l1")
    reading.drop("mse_strength", "mae_strength")


def _take_times(reading: Reading) -> None:
    """When files are saved and samples drawn: epochs and steps are options, minutes are not."""
    for key, unit, stem in (("save_every", "save_every_unit", "save"), ("sample_after", "sample_after_unit", "sample")):
        count, kind = reading.number(key) or 0, reading.text(unit) or "NEVER"
        if count >= 1 and kind in ("EPOCH", "STEP"):
            reading.take(key, f"{stem}_every_n_{'epochs' if kind == 'EPOCH' else 'steps'}", int(count))
        elif count and kind not in ("NEVER", "ALWAYS") and key in reading.left and stem == "save":
            reading.lose(key, f"{NO_COUNTERPART}: epochs or steps are", f"{count:g} {kind}")
        reading.drop(key, unit)
    lines = [line for sample in _tables(reading, "samples") if (line := _prompt_line(sample))]
    reading.drop("samples")
    asked = [name for name in ("sample_every_n_epochs", "sample_every_n_steps") if name in reading.values]
    if lines and asked:
        reading.prompts = "\n".join(lines)
    else:
        for name in asked:
            del reading.values[name]


def _tables(reading: Reading, key: str) -> list[Mapping[str, Any]]:
    found = reading.left.get(key)
    return [item for item in (found if isinstance(found, list) else [])[:MOST] if isinstance(item, Mapping)]


def _prompt_line(sample: Mapping[str, Any]) -> str:
    """A sample as a line of a file of prompts."""
    prompt = " ".join(str(sample.get("prompt") or "").split())
    if not prompt or sample.get("enabled") is False:
        return ""
    flags = (("w", "width"), ("h", "height"), ("s", "diffusion_steps"), ("l", "cfg_scale"), ("d", "seed"))
    parts = [f"--{flag} {value:g}" for flag, key in flags if (value := as_number(sample.get(key))) is not None]
    negative = " ".join(str(sample.get("negative_prompt") or "").split())
    return " ".join([prompt, *parts, *([f"--n {negative}"] if negative else [])])


def _take_size(reading: Reading) -> None:
    sides = reading.text("resolution").replace("x", ",").split(",")
    given = reading.text("resolution")
    numbers = [number for side in sides if (number := as_number(side)) is not None]
    if len(numbers) == len(sides) and (len(numbers) == 1 or (len(numbers) == 2 and "x" in given)):
        reading.take("resolution", value=",".join(f"{number:g}" for number in numbers))
    elif given:
        reading.lose("resolution", "several sizes are several [[datasets]] of a dataset toml here")
    reading.drop("resolution")
    attention = reading.text("attention_mechanism").upper()
    if attention in ("XFORMERS", "SDP"):
        option = "xformers" if attention == "XFORMERS" else "sdpa"
        reading.take("attention_mechanism", option, True)
    reading.drop("attention_mechanism")
    if "clip_grad_norm" in reading.left:
        reading.take("clip_grad_norm", "max_grad_norm", reading.number("clip_grad_norm") or 0.0)


def _take_kind(reading: Reading) -> None:
    kind = reading.text("peft_type") or "LORA"
    if kind in NETWORKS:
        reading.values["network_module"] = NETWORKS[kind]
        reading.drop("peft_type")
    else:
        for key in ("peft_type", "lora_rank", "lora_alpha"):
            reading.lose(key, f"belongs to {kind}, which {NO_COUNTERPART}")
    preset = reading.text("layer_filter_preset")
    if preset not in ("", "attn-mlp"):
        text = "layers are chosen by block_dims and the like here; a LoRA sits on the attention's and their neighbours"
        reading.lose("layer_filter_preset", text)
    reading.drop("layer_filter_preset", "layer_filter")


def _take_concepts(reading: Reading) -> None:
    lost: list[Note] = []
    subsets = []
    for concept in _tables(reading, "concepts"):
        if concept.get("enabled") is False:
            continue
        image, text = concept.get("image"), concept.get("text")
        image, text = (part if isinstance(part, Mapping) else {} for part in (image, text))
        repeats = as_number(concept.get("balancing")) or 1
        if text.get("prompt_source") not in (None, "sample"):
            source = shown(text["prompt_source"])
            lost.append(Note("concepts prompt_source", source, "captions stand beside pictures here"))
        values = {
            "num_repeats": max(1, round(repeats)),
            "is_reg": "PRIOR" in str(concept.get("type")),
            "flip_aug": image.get("enable_random_flip") is True,
            "shuffle_caption": text.get("enable_tag_shuffling") is True,
            "keep_tokens": text.get("keep_tags_count") if text.get("enable_tag_shuffling") is True else None,
        }
        folder = concept.get("path")
        subsets.append((folder if isinstance(folder, str) else "", dataset_values(values, "concepts ", lost), None))
    reading.notes += list(dict.fromkeys(lost))
    if subsets:
        reading.dataset = dataset_toml({}, [({}, subsets)], COMMENT)
        reading.notes.append(Note("dataset_config", "", "look at the paths in the dataset toml below", OPEN))
    elif reading.text("concept_file_name"):
        text = "the folders of pictures are named in another file; make a dataset of them"
        reading.notes.append(Note("concept_file_name", shown(reading.left["concept_file_name"]), text, OPEN))
    reading.drop("concepts", "concept_file_name")
