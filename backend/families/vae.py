"""A VAE in place of a model's own: a file in either layout, a Diffusers folder, or a name on the hub."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from backend.errors import UserError
from backend.families import hub
from backend.families.folder import read_part, read_weights
from backend.families.model import Part
from backend.families.original import few, vae_from_original
from backend.families.recognize import recognize
from backend.families.storage import read_tensors
from backend.families.widths import vae_widths
from backend.tables import layout

_FIRST = "encoder.conv_in.weight"
# In front of the names in whole checkpoints; others stand in files of a VAE alone.
_PREFIXES = (layout.VAE_PREFIX, "")


def read_vae(source: str, own: Part) -> Part:
    """The VAE at `source`, to be used where `own` was.

    A folder's configuration is obeyed; a file has none, so that widths come from its tensors and all else, the scale of
    the latents too, stays as it was.

    Raises:
        UserError: there is none, it is damaged, or its latents are not like those of `own`.
    """
    path = hub.locate_vae(source)
    if path.is_dir():
        part = _of_folder(path, own, source)
    else:
        tensors = _of_file(read_tensors(path)[0], source)
        part = Part(own.config | vae_widths(tensors, source), tensors)
    for what, of in (("channels", _channels), ("pixels to a latent", _grid)):
        if of(part.config) != of(own.config):
            message = f"its latents have {of(part.config)} {what}, the model's {of(own.config)}"
            raise UserError(f"{message}; take a VAE made for it", field="vae")
    return part


def _of_folder(path: Path, own: Part, source: str) -> Part:
    folder = path / "vae" if (path / "vae").is_dir() else path
    if (folder / "config.json").exists():
        return read_part(folder, "vae", own.config)
    tensors = read_weights(folder, "vae")
    return Part(own.config | vae_widths(tensors, source), tensors)


def _channels(config: Mapping[str, object]) -> object:
    return config["latent_channels"]


def _grid(config: Mapping[str, object]) -> int:
    return 2 ** (len(config["block_out_channels"]) - 1)


def _of_file(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    found = [name.removesuffix(_FIRST) for name in tensors if name.endswith(_FIRST)]
    prefixes = sorted(found, key=lambda prefix: (prefix not in _PREFIXES, len(prefix)))
    if not prefixes:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        kind = recognize(shapes)
        words = "" if kind is None or kind.name == "vae" else f"; it is {kind.words}"
        raise UserError(f"{source} holds no VAE{words}; name one that does", field="vae")
    prefix = prefixes[0]
    inner = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    renamed, unknown = vae_from_original(inner)
    if unknown:
        raise UserError(f"{source} has {few('tensors that a VAE does not have', unknown)}", field="vae")
    return renamed
