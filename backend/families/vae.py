"""A VAE in place of a model's own: a file in either layout, a Diffusers folder, or a name on the hub."""

from collections.abc import Mapping

from torch import Tensor

from backend.errors import UserError
from backend.families import hub
from backend.families.folder import normal_names, read_json, read_weights
from backend.families.model import Part
from backend.families.original import few, vae_from_original
from backend.families.storage import read_tensors
from backend.families.widths import vae_widths
from backend.tables import layout

# In front of the names in whole checkpoints, and in some files of a VAE alone.
_PREFIXES = (layout.VAE_PREFIX, "vae.", "model.")
_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")


def read_vae(source: str, own: Part) -> Part:
    """The VAE at `source`, to be used where `own` was.

    A folder's configuration is obeyed; a file has none, so that widths come from its tensors and all else, the scale of
    the latents too, stays as it was.

    Raises:
        UserError: there is none, it is damaged, or its latents are not like those of `own`.
    """
    path = hub.locate_vae(source)
    if path.is_dir():
        folder = path / "vae" if (path / "vae" / "config.json").is_file() else path
        tensors = read_weights(folder, "vae")
        config = own.config | read_json(folder / "config.json")
    else:
        tensors = _of_file(read_tensors(path)[0], source)
        config = own.config | vae_widths(tensors, source)
    for what, of in (("channels", _channels), ("pixels to a latent", _grid)):
        if of(config) != of(own.config):
            message = f"its latents have {of(config)} {what}, the model's {of(own.config)}; take a VAE made for it"
            raise UserError(message, field="vae")
    return Part(config, tensors)


def _channels(config: Mapping[str, object]) -> object:
    return config["latent_channels"]


def _grid(config: Mapping[str, object]) -> int:
    return 2 ** (len(config["block_out_channels"]) - 1)


def _of_file(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    prefix = next((prefix for prefix in _PREFIXES if any(name.startswith(prefix + "encoder.") for name in tensors)), "")
    inner = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    kept = {name: tensor for name, tensor in inner.items() if name.startswith(_PARTS)}
    if not kept:
        raise UserError(f"{source} holds no VAE; name one that does", field="vae")
    if any(name.startswith("encoder.down_blocks.") for name in kept):
        return normal_names("vae", kept)
    found, unknown = vae_from_original(kept)
    if unknown:
        raise UserError(f"{source} has {few('tensors that a VAE does not have', unknown)}", field="vae")
    return found
