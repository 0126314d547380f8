"""Diffusers folders: read and written."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backend.errors import UserError
from backend.families import prediction
from backend.families.added_tokens import AddedTokens, read_added_tokens, write_added_tokens
from backend.families.model import Checkpoint, Family, Part, tokenizer_names
from backend.families.original import few, to_matrix
from backend.families.recognize import supported
from backend.families.storage import read_tensors, replacing_folder, write_tensors
from backend.families.tokenizer import END, MERGES, START, clip_vocabulary
from backend.families.widths import family_config
from backend.replacing import replacing
from backend.tables import layout

TEXT_FILES = ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "pytorch_model.fp16.bin")
MODEL_FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.fp16.bin",
)


def weight_names(part: str) -> tuple[str, ...]:
    """File names a part's weights may have, best first: whole precision before half, safetensors before pickles."""
    return TEXT_FILES if part.startswith("text_encoder") else MODEL_FILES


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: missing, unreadable or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError("there is no such file; a Diffusers folder has one", field=str(path)) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"not readable as JSON ({error})", field=str(path)) from error
    if not isinstance(content, dict):
        raise UserError("holds no JSON object", field=str(path))
    return content


def read_weights(folder: Path, part: str) -> dict[str, Tensor]:
    """The tensors of one part's folder, under today's names, whatever file they lie in.

    Raises:
        UserError: there are none, or a file is damaged.
    """
    return normal_names(part, _weights(folder, part))


def _weights(folder: Path, part: str) -> dict[str, Tensor]:
    for name in weight_names(part):
        if (folder / name).is_file():
            return read_tensors(folder / name)[0]
    for index in sorted(folder.glob("*.index*.json")):
        # A model in several files: the index says which tensor lies where.
        files = sorted(set(read_json(index).get("weight_map", {}).values()))
        return {name: tensor for file in files for name, tensor in read_tensors(folder / Path(file).name)[0].items()}
    raise UserError(f"no weights here; expected {weight_names(part)[0]}", field=str(folder))


def normal_names(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Present-day names and shapes for what older libraries wrote."""
    if part == "vae":
        renamed = {layout.vae_modern(name): tensor for name, tensor in tensors.items()}
        return {name: to_matrix(name, tensor) for name, tensor in renamed.items()}
    if part.startswith("text_encoder"):
        renamed = {layout.clip_to_diffusers(name): tensor for name, tensor in tensors.items()}
        # Some folders have a projection where the pipeline reads none.
        unused = (layout.POSITION_IDS, layout.TEXT_PROJECTION if part == "text_encoder" else "")
        return {name: tensor for name, tensor in renamed.items() if name not in unused}
    return dict(tensors)


def family_of_folder(folder: Path, families: Mapping[str, Family]) -> str:
    """The family of a Diffusers folder, or an error that says what the folder is.

    Raises:
        UserError: no Diffusers folder, or one of another family.
    """
    if not (folder / "unet" / "config.json").is_file():
        transformer = (folder / "transformer").is_dir()
        what = (
            "a transformer model (SD3, FLUX or newer)" if transformer else "no Diffusers folder (no unet/config.json)"
        )
        raise UserError(f"this is {what}; a {supported()} model is needed", field=str(folder))
    unet = read_json(folder / "unet" / "config.json")
    if unet.get("addition_embed_type") not in (None, "text_time"):
        what = f"a model with {unet['addition_embed_type']} conditioning"
        raise UserError(f"this is {what}; a {supported()} model is needed", field=str(folder))
    if unet.get("addition_embed_type") or (folder / "text_encoder_2").is_dir():
        name = "sdxl"
        if not (folder / "text_encoder").is_dir():
            message = f"this is a Stable Diffusion XL refiner; a {supported()} model is needed"
            raise UserError(message, field=str(folder))
    elif unet.get("cross_attention_dim") == 1024 or unet.get("use_linear_projection"):
        name = "sd2"
    else:
        name = "sd1"
    if unet.get("in_channels", 4) != 4:
        message = f"its U-Net takes {unet['in_channels']} channels (inpainting or editing); use a text-to-image model"
        raise UserError(message, field=str(folder))
    expected = family_config(name)["unet"]
    for key in ("down_block_types", "up_block_types", "layers_per_block"):
        if unet.get(key, expected[key]) != expected[key]:
            message = f"its U-Net has {key} = {unet[key]}; {families[name].title} has {expected[key]}"
            raise UserError(message, field=str(folder / "unet" / "config.json"))
    return name


def read_folder(folder: Path, families: Mapping[str, Family]) -> Checkpoint:
    """A Diffusers folder as a checkpoint, tensors as they are in its files.

    Raises:
        UserError: a file is missing or damaged, or the model is of another family.
    """
    family = families[family_of_folder(folder, families)]
    parts = {}
    defaults = family.config()
    for name in family.parts:
        config = defaults[name] | read_json(folder / name / "config.json")
        parts[name] = Part(config, read_weights(folder / name, name))
    scheduler_file = folder / "scheduler" / "scheduler_config.json"
    scheduler, own = defaults["scheduler"], {}
    if scheduler_file.is_file():
        own = read_json(scheduler_file)
    scheduler |= own
    if scheduler["prediction_type"] not in (prediction.EPSILON, prediction.V):
        message = f"prediction_type = {scheduler['prediction_type']}; only epsilon and v_prediction are supported"
        raise UserError(message, field=str(scheduler_file))
    found = {name: read_added_tokens(folder / name, clip_vocabulary()) for name in tokenizer_names(family)}
    added, notes = known_tokens(found, parts, str(folder))
    stated = "prediction_type" in own
    return Checkpoint(family.name, parts, scheduler, str(folder), stated, added, notes)


def known_tokens(
    found: Mapping[str, AddedTokens], parts: Mapping[str, Part], source: str
) -> tuple[dict[str, AddedTokens], tuple[str, ...]]:
    """Of added words by tokenizer, those that the text encoder has vectors for; and lines about the others."""
    added: dict[str, AddedTokens] = {}
    notes = []
    for name, tokens in found.items():
        part = parts.get(name.replace("tokenizer", "text_encoder"))
        table = part and part.tensors.get("embeddings.token_embedding.weight")
        rows = 0 if table is None else len(table)
        known = {number: token for number, token in tokens.items() if number < rows}
        if known:
            added[name] = known
        if len(known) < len(tokens):
            strange = few("added tokens", [token.content for number, token in tokens.items() if number >= rows])
            notes.append(f"{source}, {name}: {strange}: the text encoder has no vectors for them; they are plain text")
    return added, tuple(notes)


def _write_json(path: Path, content: Mapping[str, Any] | list[Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_tokenizer(folder: Path, pad_token: str, added: AddedTokens) -> None:
    _write_json(folder / "vocab.json", clip_vocabulary())
    with replacing(folder / "merges.txt") as temporary:
        shutil.copyfile(MERGES, temporary)
    tokens = {"bos_token": START, "eos_token": END, "pad_token": pad_token, "unk_token": END}
    _write_json(folder / "special_tokens_map.json", tokens)
    extra = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, "errors": "replace"}
    if added:
        extra |= {"added_tokens_decoder": write_added_tokens(added)}
        _write_json(folder / "added_tokens.json", {token.content: number for number, token in added.items()})
    _write_json(folder / "tokenizer_config.json", tokens | extra | {"add_prefix_space": False})


def write_folder(
    checkpoint: Checkpoint, family: Family, folder: Path, dtype: torch.dtype | None = None, tokenizer: bool = True
) -> None:
    """Write a Diffusers folder that the family's pipeline reads with `from_pretrained`, whole or not at all.

    Args:
        family: the checkpoint's.
        dtype: cast floating-point tensors to this type; None keeps each as it is.
        tokenizer: write the vocabulary (1.6 MB) as well. This program does not need it there, others do.
    """
    with replacing_folder(folder) as place:
        _write_parts(checkpoint, family, place, dtype, tokenizer)


def _write_parts(
    checkpoint: Checkpoint, family: Family, folder: Path, dtype: torch.dtype | None, tokenizer: bool
) -> None:
    for name, part in checkpoint.parts.items():
        text = name.startswith("text_encoder")
        # CLIP's files say text_model. whatever the installed transformers calls its modules.
        tensors = {(layout.clip_to_original(key) if text else key): tensor for key, tensor in part.tensors.items()}
        write_tensors(folder / name / weight_names(name)[0], tensors, dtype, {"format": "pt"})
        _write_json(folder / name / "config.json", part.config)
    _write_json(folder / "scheduler" / "scheduler_config.json", checkpoint.scheduler)
    tokenizers = dict(zip(tokenizer_names(family), family.tokenizers(), strict=True))
    for name, own in tokenizers.items():
        added = checkpoint.added_tokens.get(name, {})
        if tokenizer:
            _write_tokenizer(folder / name, own.pad_token, added)
        elif added:
            _write_json(folder / name / "tokenizer_config.json", {"added_tokens_decoder": write_added_tokens(added)})
    index = {
        "_class_name": family.pipeline,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", checkpoint.scheduler.get("_class_name", "PNDMScheduler")],
    }
    if family.pipeline == "StableDiffusionPipeline":
        index |= {"requires_safety_checker": False, "safety_checker": [None, None]}
    else:
        index |= {"force_zeros_for_empty_prompt": True}
    index |= {name: ["transformers", "CLIPTokenizer"] if tokenizer else [None, None] for name in tokenizers}
    index |= {name: list(place) for name, place in family.parts.items()}
    _write_json(folder / "model_index.json", index)
