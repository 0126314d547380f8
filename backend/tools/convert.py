"""A model between its two layouts: single file in the original layout <-> Diffusers folder, by what the source is."""

from pathlib import Path

import torch

from backend.config.tools import ConvertModel
from backend.errors import UserError
from backend.events import emit
from backend.families.base import Checkpoint, empty_modules, locate, read_checkpoint, write_folder, write_single_file
from backend.families.original import few
from backend.families.storage import SAFETENSORS_SUFFIXES
from backend.terminal import warn

PRECISIONS = {"float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def _check_destination(path: Path, to_folder: bool, overwrite: bool) -> None:
    """Refuse early what would fail or destroy something late."""
    is_file_name = path.suffix.lower() in (*SAFETENSORS_SUFFIXES, ".ckpt")
    if to_folder and is_file_name:
        raise UserError(f"the source is a single file, so {path} must name a folder", field="dst")
    if not to_folder and not is_file_name:
        raise UserError(f"the source is a folder, so {path} must end in .safetensors or .ckpt", field="dst")
    if to_folder and path.is_file():
        raise UserError(f"{path} is a file; name a folder", field="dst")
    if not to_folder and path.is_dir():
        raise UserError(f"{path} is a folder; name a file", field="dst")
    if not overwrite and path.exists() and (not to_folder or any(path.iterdir())):
        raise UserError(f"{path} exists; give --overwrite to replace it", field="dst")


def _lost(checkpoint: Checkpoint, destination: Path) -> list[str]:
    """A line about words that the model's folder has added to the vocabulary: single files have no place for them."""
    words = {token.content: None for tokens in checkpoint.added_tokens.values() for token in tokens.values()}
    if not words:
        return []
    what = few("added tokens", list(words))
    if destination.suffix.lower() in SAFETENSORS_SUFFIXES:
        return [f"{what}; {destination} tells of them in its metadata, where only this program looks for them"]
    return [f"{what}; they are lost, as a .ckpt has no place for them; take .safetensors, or keep the folder"]


def convert(
    source: str,
    destination: Path,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    revision: str | None = None,
    vae: str | None = None,
) -> None:
    """Convert a model tensor by tensor; without a type every number stays as it is, bit for bit.

    Args:
        source: single file or Diffusers folder, on the disk or on the hub.
        destination: folder for a file, `.safetensors` or `.ckpt` for a folder.
        dtype: type of the saved numbers.
        overwrite: replace what is there. Other files in a destination folder are left alone.
        revision: branch, tag or commit on the hub.
        vae: the VAE to put in place of the model's own.

    Raises:
        UserError: the source is no model, the destination has the wrong form or exists.
    """
    to_folder = not locate(source, revision).is_dir()
    _check_destination(destination, to_folder, overwrite)
    emit("phase", name="loading", step=0, total=2)
    checkpoint = read_checkpoint(source, revision, vae)
    empty_modules(checkpoint)
    for note in (*checkpoint.notes, *(() if to_folder else _lost(checkpoint, destination))):
        warn(note)
    emit("phase", name="saving", step=1, total=2)
    if to_folder:
        write_folder(checkpoint, destination, dtype)
    else:
        write_single_file(checkpoint, destination, dtype)
    emit("file", path=str(destination), final=True)


def run(config: ConvertModel) -> None:
    """The command `convert_diffusers20_original_sd`."""
    options = config.convert
    dtype = PRECISIONS.get(options.save_precision or "")
    convert(str(options.src), options.dst, dtype, options.overwrite, options.revision, options.vae)
    print(f"saved {options.dst}")
