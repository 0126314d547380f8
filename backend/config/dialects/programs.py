"""Which program has written a config that is none of ours, told by the names in it.

Some are taken over (`taken`), the others refused by name, so that nobody trains with a tenth of what was meant.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Program:
    """A program whose configs are recognised.

    Attributes:
        title: what the file is, as in "is a config of OneTrainer".
        taken: `import_config` and the page's Import take it over.
    """

    title: str
    taken: bool = False


EASY = Program("a config of LoRA_Easy_Training_Scripts", taken=True)
ONE_TRAINER = Program("a config of OneTrainer", taken=True)
LORA_SCRIPTS = Program("a config of lora-scripts (SD-Trainer)", taken=True)
GUI = Program("a config of kohya_ss' GUI", taken=True)
AI_TOOLKIT = Program("a config of ai-toolkit")
SIMPLE_TUNER = Program("a config of SimpleTuner")
DIFFUSION_PIPE = Program("a config of diffusion-pipe")
MUSUBI = Program("a config of musubi-tuner")
INVOKE = Program("a config of invoke-training")

_ONE_TRAINER_KEYS = (
    *("training_method", "model_type", "base_model_name", "output_model_destination", "output_model_format"),
    *("concept_file_name", "lora_rank", "workspace_dir", "learning_rate_scheduler", "sample_definition_file_name"),
)
_GUI_KEYS = (
    *("LoRA_type", "max_resolution", "lr_warmup", "noise_offset_type", "additional_parameters", "model_list"),
    *("stop_text_encoder_training", "stop_text_encoder_training_pct", "save_as_bool", "epoch", "optimizer", "sdxl"),
)
_SIMPLE_TUNER_KEYS = ("data_backend_config", "model_family", "model_type", "validation_prompt", "lora_type")
_MUSUBI_KEYS = ("dit", "vae_dtype", "text_encoder1", "text_encoder2", "fp8_llm", "video_length", "dit_dtype")
_MUSUBI_DATA = ("image_directory", "video_directory", "image_jsonl_file", "video_jsonl_file", "control_directory")
_PIPE_KEYS = ("pipeline_stages", "micro_batch_size_per_gpu", "activation_checkpointing")
_OLD_EASY_KEYS = ("base_model", "img_folder", "output_folder", "change_output_name", "lora_model_for_resume")


def _count(table: Any, keys: tuple[str, ...]) -> int:
    return sum(key in table for key in keys) if isinstance(table, Mapping) else 0


def _is_easy(tables: Mapping[str, Any]) -> bool:
    sections = (value for key, value in tables.items() if key.endswith("_args") and isinstance(value, Mapping))
    return any("args" in section or "dataset_args" in section for section in sections)


def _is_toolkit(tables: Mapping[str, Any]) -> bool:
    config = tables.get("config")
    return isinstance(config, Mapping) and isinstance(config.get("process"), list)


def _is_pipe(tables: Mapping[str, Any]) -> bool:
    model = tables.get("model")
    return _count(tables, _PIPE_KEYS) > 0 and isinstance(model, Mapping) and "type" in model


def _is_musubi(tables: Mapping[str, Any]) -> bool:
    datasets = tables.get("datasets")
    entries = datasets if isinstance(datasets, list) else []
    flat = [tables, *(value for value in tables.values() if isinstance(value, Mapping))]
    return any(_count(entry, _MUSUBI_DATA) for entry in entries) or any(_count(table, _MUSUBI_KEYS) for table in flat)


def _is_tuner(tables: Mapping[str, Any]) -> bool:
    plain = {str(key).lstrip("-"): value for key, value in tables.items()}
    return _count(plain, _SIMPLE_TUNER_KEYS) >= 2 or any(str(key).startswith("--") for key in tables)


# The first that fits, so the surest signs come first.
_SIGNS: tuple[tuple[Program, Callable[[Mapping[str, Any]], bool]], ...] = (
    (EASY, _is_easy),
    (Program("an old config of LoRA_Easy_Training_Scripts"), lambda tables: _count(tables, _OLD_EASY_KEYS) >= 3),
    (LORA_SCRIPTS, lambda tables: isinstance(tables.get("model_train_type"), str)),
    (ONE_TRAINER, lambda tables: _count(tables, _ONE_TRAINER_KEYS) >= (1 if "__version" in tables else 3)),
    (AI_TOOLKIT, _is_toolkit),
    (DIFFUSION_PIPE, _is_pipe),
    (MUSUBI, _is_musubi),
    (GUI, lambda tables: "LoRA_type" in tables or _count(tables, _GUI_KEYS) >= 2),
    (Program("a workflow of ComfyUI"), lambda tables: "last_node_id" in tables or _is_prompt(tables)),
    (Program("a config of Accelerate"), lambda tables: "compute_environment" in tables),
    (Program("a config of DeepSpeed"), lambda tables: "zero_optimization" in tables),
    (Program("the adapter_config.json of a PEFT adapter"), lambda tables: "peft_type" in tables and "r" in tables),
    (Program("a part of a Diffusers model"), lambda tables: "_class_name" in tables),
    (Program("a part of a Transformers model"), lambda tables: "architectures" in tables),
    (Program("a Jupyter notebook"), lambda tables: "cells" in tables and "nbformat" in tables),
    (Program("the settings of the WebUI"), lambda tables: _count(tables, ("samples_save", "sd_model_checkpoint")) == 2),
    (Program("a config of the DreamBooth extension"), lambda tables: "concepts_list" in tables),
    (Program("a config of EveryDream"), lambda tables: _count(tables, ("resume_ckpt", "data_root")) == 2),
    (SIMPLE_TUNER, _is_tuner),
)


def _is_prompt(tables: Mapping[str, Any]) -> bool:
    """A workflow as ComfyUI's API has it: numbered nodes, each with its class."""
    return bool(tables) and all(isinstance(node, Mapping) and "class_type" in node for node in tables.values())


def program_of(tables: Mapping[str, Any]) -> Program | None:
    """The program whose config these tables are; None for ours, sd-scripts' and unknown ones."""
    return next((program for program, fits in _SIGNS if fits(tables)), None)


def program_of_text(text: str) -> Program | None:
    """The program that has written a text which is neither toml nor JSON."""
    if re.match(r"#!|(export )?\w+=|\s*(accelerate|python3?|torchrun)\s", text):
        return Program("a script for the shell, whose options are those of its command line")
    if not re.search(r"^[ \t]*(- )?[\w\"'-]+:(\s|$)", text, re.MULTILINE):
        return None
    for program, sign in (
        (AI_TOOLKIT, r"^\s*process:"),
        (AI_TOOLKIT, r"^job:\s*['\"]?(extension|train|generate)"),
        (INVOKE, r"^type:\s*['\"]?(SD|SDXL|FLUX)\w*_"),
        (Program("a config of Accelerate"), r"^compute_environment:"),
        (SIMPLE_TUNER, r"^\s*(data_backend_config|model_family):"),
    ):
        if re.search(sign, text, re.MULTILINE):
            return program
    return Program("a YAML file")


def refusal(program: Program) -> str:
    """The message for a file of a program that is not taken over."""
    return f"is {program.title}, which cannot be taken over; set its values by hand, in the form or in a toml of ours"


def advice(program: Program, path: object) -> str:
    """The message where a config of ours was expected, on how to bring the other one over."""
    if not program.taken:
        return refusal(program)
    return f"is {program.title}: bring it over with `python -m backend import_config {path} NEW.toml`"
