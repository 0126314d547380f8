"""The table of families, and models from wherever they lie: single files, Diffusers folders, the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from backend.errors import UserError
from backend.families import folder as folders
from backend.families import hub
from backend.families.added_tokens import OWN_TOKENS, from_metadata, to_metadata
from backend.families.hashes import model_hashes
from backend.families.model import Checkpoint, Conditioning, Family, Model, Part, tokenizer_names
from backend.families.options import LoadOptions, settle
from backend.families.original import few, part_words
from backend.families.recognize import family_in
from backend.families.scaled import read_weights
from backend.families.sd import SD1, SD2
from backend.families.sdxl import SDXL
from backend.families.storage import write_tensors
from backend.families.tokenizer import EOS, added_to, clip_tokenizer
from backend.families.vae import read_vae
from backend.tables import layout

__all__ = [
    "FAMILIES",
    "Checkpoint",
    "Conditioning",
    "Family",
    "LoadOptions",
    "Model",
    "Part",
    "assemble",
    "checkpoint_of",
    "empty_modules",
    "load_model",
    "locate",
    "model_hashes",
    "read_checkpoint",
    "save_diffusers",
    "save_single_file",
    "write_folder",
    "write_single_file",
]

# What libraries raise on numbers that make no network.
_NO_MODULE = (
    StrictDataclassError,
    ValueError,
    TypeError,
    RuntimeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
)
LEGACY_EOS = 2

FAMILIES: Mapping[str, Family] = {family.name: family for family in (SD1, SD2, SDXL)}


def locate(source: str | Path, revision: str | None = None) -> Path:
    """The local file or folder of a model, fetched from the hub where it has to be; see `hub.locate`."""
    return hub.locate(str(source), FAMILIES, revision)


def read_checkpoint(
    source: str | Path, revision: str | None = None, vae: str | None = None, needs_vae: bool = True
) -> Checkpoint:
    """Read a model's tensors and configurations; tensors stay mapped to their files where that is possible.

    Args:
        source: a single file in the original layout (`.safetensors`, `.ckpt`), a Diffusers folder, a hub name
            `org/repo`, or `org/repo/file.safetensors`. What exists on the disk never touches the network.
        revision: branch, tag or commit on the hub.
        vae: where the VAE to use in place of its own lies; its own may be broken then, or missing.
        needs_vae: refuse a model that has no VAE; else it comes without that part.

    Raises:
        UserError: nothing there, damaged, or not a model of a supported family; the message says what it is.
    """
    path = locate(source, revision)
    if path.is_dir():
        checkpoint = folders.read_folder(path, FAMILIES, own_vae=vae is None)
    else:
        tensors, metadata = read_weights(path)
        family = family_in({name: tuple(tensor.shape) for name, tensor in tensors.items()}, str(path))
        checkpoint = FAMILIES[family].read_original(tensors, metadata, str(path), own_vae=vae is None)
        told = from_metadata(metadata, str(path))
        checkpoint.added_tokens, checkpoint.notes = folders.known_tokens(told, checkpoint.parts, str(path))
    checkpoint.source = str(source)
    if vae is not None:
        own = checkpoint.parts.get("vae") or Part(FAMILIES[checkpoint.family].config()["vae"], {})
        checkpoint.parts["vae"] = read_vae(vae, own)
        # Here, so that what does not fit is told of the VAE and not of the model.
        empty_modules(Checkpoint(checkpoint.family, {"vae": checkpoint.parts["vae"]}, {}, vae))
    elif needs_vae and "vae" not in checkpoint.parts:
        message = "the VAE is missing (a NoVAE model); name one with --vae"
        raise UserError(message, field=checkpoint.source)
    order = FAMILIES[checkpoint.family].parts
    checkpoint.parts = {name: checkpoint.parts[name] for name in order if name in checkpoint.parts}
    return checkpoint


def empty_modules(checkpoint: Checkpoint) -> dict[str, nn.Module]:
    """A module per part on the meta device, after checking that the checkpoint's tensors fit it one to one.

    Raises:
        UserError: tensors are missing, left over or of the wrong shape; the message names a few.
    """
    family, modules = FAMILIES[checkpoint.family], {}
    for name, part in checkpoint.parts.items():
        try:
            with torch.device("meta"):
                module = family.build(name, part.config)
        except _NO_MODULE as error:
            words = " ".join(str(error).split())[:300] or type(error).__name__
            message = f"the {part_words(name)}'s configuration makes no model ({words})"
            raise UserError(message, checkpoint.source) from error
        expected = {layout.clip_to_diffusers(key): value.shape for key, value in module.state_dict().items()}
        missing = [f"{name}.{key}" for key in expected if key not in part.tensors]
        extra = [f"{name}.{key}" for key in part.tensors if key not in expected]
        wrong = [
            f"{name}.{key} {list(part.tensors[key].shape)} instead of {list(shape)}"
            for key, shape in expected.items()
            if key in part.tensors and part.tensors[key].shape != shape
        ]
        whole = [f"{name}.{key} {value.dtype}" for key, value in part.tensors.items() if not _is_weight(key, value)]
        found = [("missing", missing), ("unexpected", extra), ("of the wrong shape", wrong)]
        found += [("of a type that is no weight's, so it is quantised", whole)]
        problems = [few(f"tensors are {what}", names) for what, names in found if names]
        if problems:
            remedy = "; name another VAE with --vae" if name == "vae" else ""
            message = f"the {'VAE' if len(checkpoint.parts) == 1 else 'model'} does not fit together"
            message += f": {'; '.join(problems)}{remedy}"
            raise UserError(message, field=checkpoint.source)
        modules[name] = module
    return modules


def _is_weight(name: str, tensor: Tensor) -> bool:
    return tensor.is_floating_point() or name.endswith(layout.POSITION_IDS)


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> nn.Module:
    """Give a module on the meta device its tensors, without copying those that already have the type."""
    rename = layout.clip_to_original if hasattr(module, "text_model") else str
    state = {rename(name): tensor if dtype is None else tensor.to(dtype) for name, tensor in tensors.items()}
    module.load_state_dict(state, strict=True, assign=True)
    for path, child in module.named_modules():
        # Buffers that no file holds are made anew.
        for name, buffer in child.named_buffers(recurse=False):
            if name == "position_ids":
                setattr(child, name, torch.arange(buffer.shape[-1])[None])
            elif buffer.is_meta:
                raise RuntimeError(f"the buffer {path}.{name} has no value")
    _pool_at_the_end(module)
    return module.requires_grad_(False).eval()


def _pool_at_the_end(module: nn.Module) -> None:
    """Have a text encoder's pooled state taken at the end of the text, where that is not its highest token any more.

    Configurations from before added words say 2 for the number of the end; transformers then takes the highest one.
    """
    encoder = getattr(module, "text_model", module)
    if getattr(encoder, "eos_token_id", None) == LEGACY_EOS and module.config.vocab_size > OWN_TOKENS:
        encoder.eos_token_id = EOS


def assemble(checkpoint: Checkpoint, dtype: torch.dtype | None = torch.float32) -> Model:
    """A model from a checkpoint. The checkpoint's tensors are used up: each part is dropped when it has been placed.

    Raises:
        UserError: the tensors do not fit their configurations.
    """
    family = FAMILIES[checkpoint.family]
    modules = empty_modules(checkpoint)
    for name, module in modules.items():
        tensors = checkpoint.parts.pop(name).tensors
        _fill(module, tensors, dtype)
    encoders = [module for name, module in modules.items() if name.startswith("text_encoder")]
    tokenizers = [
        clip_tokenizer(own.pad_token, checkpoint.added_tokens[name]) if name in checkpoint.added_tokens else own
        for name, own in zip(tokenizer_names(family), family.tokenizers(), strict=True)
    ]
    return Model(family, modules["unet"], encoders, tokenizers, modules["vae"], checkpoint.scheduler, checkpoint.source)


def load_model(
    source: str | Path,
    revision: str | None = None,
    options: LoadOptions | None = None,
    dtype: torch.dtype | None = torch.float32,
) -> Model:
    """Load a model on the CPU, frozen and in evaluation mode.

    Args:
        source: see `read_checkpoint`.
        revision: branch, tag or commit on the hub.
        options: what is asked of the model; the ones that its files contradict are refused.
        dtype: type of all weights; None keeps each as it is in the file, mapped from there and not read twice.

    Raises:
        UserError: see `read_checkpoint`; tensors missing, left over or of the wrong shape; options that cannot be met.
    """
    options = options or LoadOptions()
    checkpoint = read_checkpoint(source, revision, options.vae)
    notes = settle(checkpoint, FAMILIES[checkpoint.family], options)
    model = assemble(checkpoint, dtype)
    model.clip_skip, model.max_token_length = options.clip_skip, options.max_token_length
    model.notes = (*checkpoint.notes, *notes)
    return model


def _config(module: nn.Module) -> dict[str, Any]:
    config = module.config.to_dict() if hasattr(module.config, "to_dict") else dict(module.config)
    return {key: value for key, value in config.items() if not key.startswith("_") and key != "dtype"}


def checkpoint_of(model: Model) -> Checkpoint:
    """The model as a checkpoint: the modules' own tensors, not copies."""
    parts = {}
    for (name, (library, kind)), module in zip(model.family.parts.items(), model.modules(), strict=True):
        tensors = {layout.clip_to_diffusers(key): value for key, value in module.state_dict().items()}
        head = {"_class_name": kind} if library == "diffusers" else {"architectures": [kind]}
        parts[name] = Part(_config(module) | head, tensors)
    added = {name: added_to(own) for name, own in zip(tokenizer_names(model.family), model.tokenizers, strict=True)}
    added = {name: tokens for name, tokens in added.items() if tokens}
    return Checkpoint(model.family.name, parts, dict(model.scheduler), model.source, added_tokens=added)


def write_folder(
    checkpoint: Checkpoint, folder: str | Path, dtype: torch.dtype | None = None, tokenizer: bool = True
) -> None:
    """Write a checkpoint as a Diffusers folder that diffusers' pipelines read with `from_pretrained`.

    Args:
        dtype: cast floating-point tensors to this type; None keeps each as it is.
        tokenizer: write the vocabulary (1.6 MB) as well. This program does not need it there, others do.
    """
    folders.write_folder(checkpoint, FAMILIES[checkpoint.family], Path(folder), dtype, tokenizer)


def save_diffusers(model: Model, folder: str | Path, dtype: torch.dtype | None = None, tokenizer: bool = True) -> None:
    """Write a model as a Diffusers folder; see `write_folder`."""
    write_folder(checkpoint_of(model), folder, dtype, tokenizer)


def write_single_file(checkpoint: Checkpoint, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a checkpoint in the original single-file layout, `.safetensors` or `.ckpt` by its name.

    Raises:
        UserError: the checkpoint has a setting that the layout cannot hold, or the name ends in something else.
    """
    tensors, metadata = FAMILIES[checkpoint.family].write_original(checkpoint)
    write_tensors(Path(path), tensors, dtype, metadata | to_metadata(checkpoint.added_tokens))


def save_single_file(model: Model, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a model as one file; see `write_single_file`."""
    write_single_file(checkpoint_of(model), path, dtype)
