"""Diffusers folders: read and written."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from backend.errors import UserError
from backend.families import prediction
from backend.families.added_tokens import AddedTokens, read_added_tokens, write_added_tokens
from backend.families.model import Checkpoint, Family, Part, tokenizer_names
from backend.families.original import few, part_words, to_matrix
from backend.families.recognize import supported
from backend.families.relatives import checked, class_words, folder_words, read_object, relative_words
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
_SHARD = re.compile(r"-\d+-of-\d+\.")


def weight_names(part: str) -> tuple[str, ...]:
    """File names a part's weights may have, best first: whole precision before half, safetensors before pickles."""
    return TEXT_FILES if part.startswith("text_encoder") else MODEL_FILES


def read_weights(folder: Path, part: str) -> dict[str, Tensor]:
    """The tensors of one part's folder, under today's names, whatever file they lie in.

    Raises:
        UserError: there are none, or a file is damaged.
    """
    return normal_names(part, _weights(folder, part))


def _weights(folder: Path, part: str) -> dict[str, Tensor]:
    """The tensors of the first file, or set of files, that is whole.

    Raises:
        UserError: none is; the message is that of the first.
    """
    problems: list[UserError] = []
    files = [folder / name for name in weight_names(part)]
    known, stem = set(files), weight_names(part)[0].removesuffix(".safetensors")
    # Variants of other names, such as .bf16. and .non_ema., the plain averages last.
    others = sorted(folder.glob(f"{stem}.*.safetensors"), key=lambda path: ("non_ema" in path.name, path.name))
    for file in [*files, *(path for path in others if path not in known and not _SHARD.search(path.name))]:
        if file.exists():
            try:
                return read_tensors(file)[0]
            except UserError as error:
                problems.append(error)
    # Whole precision before a variant of it.
    for index in sorted(folder.glob("*.index*.json"), key=lambda path: (path.name.count("."), path.name)):
        try:
            return _sharded(folder, index)
        except UserError as error:
            problems.append(error)
    raise problems[0] if problems else UserError(f"no weights here; expected {stem}.safetensors", field=str(folder))


def _sharded(folder: Path, index: Path) -> dict[str, Tensor]:
    """A model in several files: the index says which tensor lies where.

    Raises:
        UserError: the index is broken, or a file or a tensor is missing.
    """
    where = read_object(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
        raise UserError("does not say which tensor lies in which file", field=str(index))
    files = {file: folder / PurePosixPath(file).name for file in sorted(set(where.values()))}
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise UserError(f"names {few('files that are not there', missing)}; fetch them", field=str(index))
    held = {file: read_tensors(path)[0] for file, path in files.items()}
    lost = [name for name, file in where.items() if name not in held[file]]
    if lost:
        raise UserError(f"names {few('tensors that its files do not have', lost)}", field=str(index))
    return {name: held[file][name] for name, file in where.items()}


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
    file = folder / "unet" / "config.json"
    if not file.exists():
        raise _another(folder, folder_words(folder))
    unet = read_object(file)
    words = relative_words(unet)
    if words:
        raise _another(folder, words)
    if unet.get("addition_embed_type") or (folder / "text_encoder_2").is_dir():
        name = "sdxl"
        if not (folder / "text_encoder").is_dir() and (folder / "text_encoder_2").is_dir():
            raise _another(folder, "a Stable Diffusion XL refiner, or its first text encoder is missing")
    elif unet.get("cross_attention_dim") == 1024 or unet.get("use_linear_projection"):
        name = "sd2"
    else:
        name = "sd1"
    expected = family_config(name)["unet"]
    for key in ("down_block_types", "up_block_types", "layers_per_block"):
        given = unet.get(key, expected[key])
        if given != expected[key] and given != [expected[key]] * len(expected["down_block_types"]):
            message = f"its U-Net has {key} = {str(given)[:120]}; {families[name].title} has {expected[key]}"
            raise UserError(message, field=str(file))
    depths = unet.get("transformer_layers_per_block")
    if isinstance(depths, list) and any(isinstance(depth, list) for depth in depths):
        raise _another(folder, "a distilled Stable Diffusion XL (such as SSD-1B)")
    return name


def _another(folder: Path, words: str) -> UserError:
    return UserError(f"this is {words}; a {supported()} model is needed", field=str(folder))


def read_folder(folder: Path, families: Mapping[str, Family], own_vae: bool = True) -> Checkpoint:
    """A Diffusers folder as a checkpoint, tensors as they are in its files; one without a VAE has no such part.

    Args:
        own_vae: its VAE is used; else it only tells what another has to be like, and may be broken.

    Raises:
        UserError: a file is missing or damaged, or the model is of another family.
    """
    family = families[family_of_folder(folder, families)]
    parts = {}
    defaults = family.config()
    for name in family.parts:
        if name == "vae" and not own_vae:
            parts |= _vae_config(folder / name, defaults[name])
            continue
        if name == "vae" and not (folder / name).is_dir():
            continue
        if not (folder / name).is_dir():
            raise UserError(f"the {part_words(name)} is missing: there is no folder {name}", field=str(folder))
        parts[name] = read_part(folder / name, name, defaults[name])
    file = folder / "scheduler" / "scheduler_config.json"
    own = read_object(file) if file.exists() else {}
    kind = str(own.get("_class_name", ""))
    if "FlowMatch" in kind or "EDM" in kind:
        raise _another(folder, f"a model with another process of noise ({kind[:60]})")
    scheduler = checked(own, defaults["scheduler"], file)
    if scheduler["prediction_type"] not in (prediction.EPSILON, prediction.V):
        message = f"prediction_type = {scheduler['prediction_type'][:60]}; only epsilon and v_prediction are supported"
        raise UserError(message, field=str(file))
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


def _vae_config(folder: Path, usual: Mapping[str, Any]) -> dict[str, Part]:
    """The VAE's configuration, as a part without tensors; none where it cannot be read."""
    try:
        return {"vae": Part(checked(read_object(folder / "config.json"), usual, folder / "config.json"), {})}
    except UserError:
        return {}


def read_part(folder: Path, name: str, usual: Mapping[str, Any]) -> Part:
    """One part of a Diffusers folder, with what its configuration leaves unsaid taken from `usual`.

    Raises:
        UserError: its configuration is missing, broken or another kind's, or its weights are missing.
    """
    file = folder / "config.json"
    if not file.exists():
        raise UserError("there is no such file; a Diffusers folder has one", field=str(file))
    config = read_object(file)
    if name == "vae":
        check_vae(config, folder)
    return Part(checked(config, usual, file), read_weights(folder, name))


def check_vae(config: Mapping[str, Any], folder: Path) -> None:
    """See that a configuration is that of a VAE as the families here have it.

    Raises:
        UserError: it is not; the message says what it is.
    """
    if config.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        raise UserError(f"this is {class_words(config) or 'another part'}; an AutoencoderKL is needed", str(folder))
    moved = [key for key in ("latents_mean", "latents_std", "shift_factor") if config.get(key) not in (None, 0, 0.0)]
    if moved:
        message = f"its latents are shifted ({moved[0]}), as those of Playground v2.5 and of newer models"
        raise UserError(f"{message}; take a VAE of a {supported()} model", field=str(folder))


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
