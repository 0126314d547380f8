"""The `ss_*` metadata of a LoRA file: how it was trained, as far as its trainer has written that down."""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from backend.config.declare import leaves
from backend.config.dialects.dataset_text import take_dataset
from backend.config.dialects.judging import finish
from backend.config.dialects.networks import settle_network
from backend.config.dialects.reading import UNSET, Imported, Reading, same
from backend.config.dialects.scripts import DEFAULTS, REASONS
from backend.config.messages import shown
from backend.config.train import TrainNetwork
from backend.errors import UserError

PROGRAM = "the file's trainer"
PREFIX = "ss_"
# Not options: when, how long and on what a run was, and what came of it.
_FACTS = """
session_id training_started_at training_finished_at num_train_images num_validation_images num_reg_images
num_batches_per_epoch num_epochs epoch steps sd_scripts_commit_hash sd_model_hash new_sd_model_hash vae_hash
new_vae_hash tag_frequency bucket_info total_batch_size base_model_version
"""
FACTS = tuple(_FACTS.split())
RENAMED = {"debiased_estimation": "debiased_estimation_loss"}
# Classes whose optimizer has another name on the command line.
OPTIMIZERS = {
    "torch.optim.sgd.SGD": "SGDNesterov",
    "bitsandbytes.optim.sgd.SGD8bit": "SGDNesterov8bit",
    "dadaptation.experimental.dadapt_adam_preprint.DAdaptAdamPreprint": "DAdaptAdamPreprint",
    "dadaptation.experimental.dadapt_adan_ip.DAdaptAdanIP": "DAdaptAdanIP",
}
# What they were given by their names on the command line, and need not be told again.
IMPLIED = {"SGDNesterov": ("nesterov",), "SGDNesterov8bit": ("nesterov",)}
MODELSPEC = (
    *("title", "author", "description", "license", "tags", "usage_hint", "thumbnail", "merged_from"),
    *("trigger_phrase", "preprocessor", "is_negative_embedding"),
)
OTHER_FAMILIES = ("flux", "sd3", "lumina", "hunyuan", "anima", "chroma")


def read_metadata(metadata: Mapping[str, str], name: str) -> Imported:
    """The options that a LoRA file's metadata tells.

    Args:
        metadata: the text fields of the file.
        name: of the file, for messages.

    Raises:
        UserError: the file tells nothing of its training.
    """
    if not any(key.startswith(PREFIX) for key in metadata):
        raise UserError("holds no metadata of its training, so there is nothing to take from it", name)
    reading = Reading({})
    _sort_fields(reading, metadata)
    version = metadata.get("ss_base_model_version", "")
    if any(version.lower().startswith(family) for family in OTHER_FAMILIES):
        reading.lose("ss_base_model_version", "is a model of another family, which cannot be trained here yet", version)
    _take_optimizer(reading)
    _take_model(reading)
    _take_tables(reading)
    take_dataset(reading)
    for key, option in RENAMED.items():
        if key in reading.left and same(reading.left[key], DEFAULTS[option]):
            reading.drop(key)
        elif key in reading.left and option in leaves(TrainNetwork):
            reading.take(key, option)
    reading.by_name(DEFAULTS, REASONS, PROGRAM)
    settle_network(reading)
    return finish(reading, "metadata of a LoRA file")


def _sort_fields(reading: Reading, metadata: Mapping[str, str]) -> None:
    """Fields of training go on by the names of their options; others are facts, but for what a user has written."""
    for key, text in metadata.items():
        plain = key.removeprefix(PREFIX)
        if key.startswith(PREFIX) and plain not in FACTS:
            reading.left[plain] = None if text == "None" else text
        elif key.startswith("modelspec.") and (written := key.removeprefix("modelspec.")) in MODELSPEC:
            _take_written(reading, key, f"metadata_{written}", text)
        else:
            reading.facts.append(key)


def _take_written(reading: Reading, key: str, option: str, text: str) -> None:
    # A title is written in any case; nobody has to have given it.
    if option == "metadata_title":
        reading.facts.append(key)
    elif option in leaves(TrainNetwork):
        reading.take(key, option, text)
    else:
        reading.lose(key, "has no counterpart here", text)


def _take_optimizer(reading: Reading) -> None:
    written = re.fullmatch(r"([\w.]+)(?:\((.*)\))?", reading.text("optimizer"), re.DOTALL)
    if not written:
        return
    path, arguments = written.group(1), written.group(2) or ""
    name = OPTIMIZERS.get(path, path.rpartition(".")[2])
    leaf = leaves(TrainNetwork)["optimizer_type"]
    known = {choice.lower() for choice in leaf.choices}
    # Where any class may be named, one of a library of its own keeps its full name.
    if leaf.kind == "str" and name.lower() not in known and not path.startswith(KNOWN_LIBRARIES):
        name = path
    reading.take("optimizer", "optimizer_type", name)
    implied = IMPLIED.get(name, ())
    pairs = [pair for pair in split_arguments(arguments) if pair.partition("=")[0].strip() not in implied]
    if pairs:
        reading.values["optimizer_args"] = pairs
        reading.origin["optimizer_args"] = "optimizer"


KNOWN_LIBRARIES = (
    "torch.",
    "bitsandbytes.",
    "dadaptation.",
    "prodigyopt.",
    "transformers.",
    "lion_pytorch.",
    "schedulefree.",
)


def split_arguments(text: str) -> list[str]:
    """`a=1,b=(2, 3)` as its pairs; commas within brackets or quotes part nothing."""
    pairs, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth <= 0 and re.match(r"\s*[A-Za-z_]\w*\s*=", text[place + 1 :]):
            pairs.append(text[start:place])
            start = place + 1
    return [pair.strip() for pair in (*pairs, text[start:]) if pair.strip()]


def _take_model(reading: Reading) -> None:
    for key, option in (("sd_model_name", "pretrained_model_name_or_path"), ("vae_name", "vae")):
        name = reading.text(key)
        if not name:
            reading.drop(key)
        elif re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
            reading.take(key, option)
        else:
            reading.open(key, f"only this name is known: choose the file or folder for {option}")


def _take_tables(reading: Reading) -> None:
    arguments = _json(reading, "network_args", dict)
    if arguments is not None:
        reading.left["network_args"] = [f"{key}={value}" for key, value in arguments.items() if value not in UNSET]
        if not arguments:
            reading.drop("network_args")
    rates = reading.text("text_encoder_lr")
    if rates.startswith("["):
        try:
            reading.left["text_encoder_lr"] = ast.literal_eval(rates)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            reading.lose("text_encoder_lr", f"must be a list of numbers, got {shown(rates)}")


def _json(reading: Reading, key: str, kind: type) -> Any:
    """A field that holds JSON, None where it does not hold what it should."""
    if key not in reading.left or reading.left[key] in UNSET:
        return None
    try:
        found = json.loads(reading.left[key])
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, kind):
        reading.lose(key, "cannot be read")
        return None
    return found
