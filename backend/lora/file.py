"""Reading and writing LoRA files: every spelling in, kohya's spelling out.

In memory a file is `{key: layer}`, with keys as in tables/names.py. On disk each key has the layer's factors, such as
`<key>.lora_down.weight` and `<key>.lora_up.weight`, and `<key>.alpha`. A further kind of layer is a row of LAYERS.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from backend.errors import UserError
from backend.header import METADATA_KEY, pack_header
from backend.lora.family import families_of, family_keys, family_of, spelled_for
from backend.lora.kinds import Stranger, architecture_of, embedding_of, kind_of_file, methods_of, stranger
from backend.lora.layer import Layer, LoraLayer, without_core
from backend.lora.loha import LohaLayer
from backend.lora.metadata import MODEL_HASH, MODEL_SPEC, MODEL_SPEC_HASH, hashes
from backend.lora.peft_settings import PeftSettings, read_settings
from backend.lora.pickled import save_pickled
from backend.lora.source import PICKLES, SAFETENSORS, read_tensors
from backend.lora.spelling import ALPHA, Named, module_key, read_name
from backend.lora.stream import bytes_of, entries_of, pour
from backend.replacing import replacing
from backend.tables.names import UNET_KEY_PREFIX

LISTED = 8
LONGEST = 160
LAYERS: tuple[type[Layer], ...] = (LoraLayer, LohaLayer)


@dataclass(frozen=True)
class LoraFile:
    """What stands in a LoRA file.

    Attributes:
        layers: by key, in the order of the file.
        metadata: the file's text fields; empty for `.ckpt` and `.pt`.
        notes: what was left out, one line each, to be told.
    """

    layers: dict[str, Layer]
    metadata: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def family(self) -> str | None:
        """The family of models that the file is for; None where its keys and shapes leave it open."""
        return family_of(self.shapes)

    @property
    def families(self) -> frozenset[str]:
        """The families that the file can be for; none for one of another architecture."""
        return families_of(self.shapes)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs, times the kernel's size, of the weights that the layers are for, by key."""
        return {key: layer.shape for key, layer in self.layers.items()}


def listing(names: Iterable[str]) -> str:
    """Names for an error message: all of them, or the first few and how many more there are."""
    names = [printable(name) for name in names]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def printable(name: str) -> str:
    """A name out of a file as it can stand in a message: on one line, without control characters, not too long."""
    text = name if name.isprintable() else name.encode("unicode_escape").decode("ascii")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def read_lora(path: str | Path, allow_unmatched: bool = False) -> LoraFile:
    """Read a LoRA file in any known spelling.

    Args:
        path: `.safetensors`, or `.ckpt`, `.pt`, `.pth`, `.bin`, of which nothing but tensors is loaded; or the folder
            of a PEFT adapter.
        allow_unmatched: leave out modules with tensors that are no LoRA's, instead of refusing the file.

    Raises:
        UserError: the file is missing, broken, no LoRA, or has numbers that are not finite.
    """
    tensors, metadata = read_tensors(path)
    return parse(tensors, metadata, str(path), allow_unmatched)


def layers_of(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, field: str = "weights_sd"
) -> dict[str, Layer]:
    """The layers that tensors in any known spelling make up, by key; see `parse`."""
    return parse(tensors, metadata, field).layers


def parse(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    field: str = "weights_sd",
    allow_unmatched: bool = False,
) -> LoraFile:
    """The LoRA that tensors in any known spelling make up.

    A missing alpha is the rank, or what PEFT's settings in the metadata say. Embeddings that come bundled with a LoRA
    are left out and named in the notes.

    Args:
        tensors: by name.
        metadata: of the file they come from.
        field: the name under which errors are reported.
        allow_unmatched: see `read_lora`.

    Raises:
        UserError: a name is no LoRA's, half of a pair is missing, shapes do not fit, or a number is not finite.
    """
    metadata = dict(metadata or {})
    words = dict.fromkeys(word for name in tensors if (word := embedding_of(name)) is not None)
    found = _sorted_out([name for name in tensors if embedding_of(name) is None], field)
    if not found.modules and not found.strangers:
        raise UserError(f"holds {'an embedding and ' if words else ''}no LoRA layers", field=field)
    notes = [f"has the embedding of {listing(words)} in it, which is left out; its LoRA is used"] if words else []
    notes += _leave_strangers(found, allow_unmatched, field)
    settings = read_settings(metadata, field)
    layers = {}
    for key, names in found.modules.items():
        parts = {role: _plain(name.text, tensors[name.text], field) for role, name in names.items()}
        layers[key] = _layer(key, parts, _settings_for(settings, names), field)
    return LoraFile(_spelled(layers, field), metadata, tuple(notes))


@dataclass(frozen=True)
class _Name:
    """The name of a tensor as it stands in the file, and what it says."""

    text: str
    said: Named


@dataclass(frozen=True)
class _Sorted:
    """Names of a file: by module and role those that are a LoRA's, and the others."""

    modules: dict[str, dict[str, _Name]]
    strangers: list[Stranger]


def _sorted_out(names: Iterable[str], field: str) -> _Sorted:
    """The names by module.

    Raises:
        UserError: a part of a layer stands there twice, or the LoRA is for another architecture.
    """
    modules: dict[str, dict[str, _Name]] = {}
    strangers, twice = [], []
    for text in names:
        said = read_name(text)
        if said is None:
            strangers.append(stranger(text))
        elif said.role in modules.setdefault(said.key, {}):
            twice.append((text, said))
        else:
            modules[said.key][said.role] = _Name(text, said)
    if twice:
        ones = [said for _, said in twice] + [modules[said.key][said.role].said for _, said in twice]
        adapters = sorted({said.adapter for said in ones if said.adapter})
        if len(adapters) > 1:
            raise UserError(f"holds several adapters ({listing(adapters)}); save one of them alone", field=field)
        raise UserError(f"these names stand there twice: {listing(text for text, _ in twice)}", field=field)
    return _Sorted(modules, strangers)


def _leave_strangers(found: _Sorted, allow_unmatched: bool, field: str) -> list[str]:
    """Take modules that cannot be used out of what was found.

    Returns:
        What was left out.

    Raises:
        UserError: nothing is left, or nothing may be left out.
    """
    if not found.strangers:
        return []
    names = [one.name for one in found.strangers]
    spoiled = {module_key(one.module) for one in found.strangers if one.whole and one.module}
    kept = {key: roles for key, roles in found.modules.items() if key not in spoiled and roles.keys() != {"alpha"}}
    methods = methods_of(names)
    # A LoRA of another architecture may have layers on a CLIP that Stable Diffusion has too.
    foreign = architecture_of(names) is not None and not any(key.startswith(UNET_KEY_PREFIX) for key in kept)
    if not kept or foreign:
        kind = kind_of_file(names)
        if kind is None:
            raise UserError(f"these names are no LoRA's: {listing(names)}", field=field)
        raise UserError(f"is {kind}, which cannot be used here ({printable(names[0])})", field=field)
    message = f"{len(names)} of its names are no LoRA's"
    if methods:
        message += f" ({', '.join(methods)})"
    if not allow_unmatched:
        raise UserError(f"{message}: {listing(names)}; give --allow_unmatched to use the rest", field=field)
    found.modules.clear()
    found.modules.update(kept)
    return [f"{message}: {listing(names)}; left out"]


def _settings_for(
    settings: Mapping[str, PeftSettings], names: Mapping[str, _Name]
) -> tuple[PeftSettings, str] | None:
    """PEFT's settings for a module, and the path under which they know it."""
    said = next(iter(names.values())).said
    part = {"te": "text_encoder.", "te1": "text_encoder.", "te2": "text_encoder_2."}.get(said.part, f"{said.part}.")
    if part in settings:
        return settings[part], said.inner
    return (settings[""], said.path) if "" in settings else None


def _spelled(layers: dict[str, Layer], field: str) -> dict[str, Layer]:
    """The layers under the names that files of their family have.

    Raises:
        UserError: two are the same then, or they are for another architecture.
    """
    shapes = {key: layer.shape for key, layer in layers.items()}
    other = architecture_of(layers)
    denoiser = {key: shape for key, shape in shapes.items() if key.startswith(UNET_KEY_PREFIX)}
    if other is not None and not families_of(denoiser):
        raise UserError(f"is a LoRA for {other}, which is not supported", field=field)
    names = family_keys(shapes, spelled_for(shapes))
    twice = [key for key, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise UserError(f"these names stand there twice, in different spellings: {listing(twice)}", field=field)
    return {names[key]: layer for key, layer in layers.items()}


def _plain(name: str, tensor: Tensor, field: str) -> Tensor:
    """The tensor in a type that can be computed with.

    Raises:
        UserError: it is sparse or complex, or of whole numbers in a type that torch hardly knows.
    """
    if tensor.layout is not torch.strided or tensor.is_complex():
        raise UserError(f"{printable(name)} is a sparse or complex tensor, which no LoRA has", field=field)
    if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64) or tensor.is_quantized:
        raise UserError(f"{printable(name)} is of type {tensor.dtype}, which no LoRA has", field=field)
    eight_bits = tensor.is_floating_point() and tensor.dtype.itemsize == 1
    return tensor.float() if eight_bits else tensor


def _layer(
    key: str, parts: Mapping[str, Tensor], settings: tuple[PeftSettings, str] | None, field: str
) -> Layer:
    """One module's layer from its tensors by role.

    Args:
        settings: PEFT's, for files without alpha, and the module's path there.
    """
    if "alpha" in parts and parts["alpha"].numel() != 1:
        raise UserError(f"{key} has an alpha that is no single number", field=field)
    if not all(tensor.is_meta or bool(torch.isfinite(tensor).all()) for tensor in parts.values()):
        raise UserError(f"{key} has numbers that are not finite (NaN); the file is of no use", field=field)
    if not all(tensor.is_floating_point() for role, tensor in parts.items() if role != "alpha"):
        raise UserError(f"{key} has factors of whole numbers, as quantised files do; use one in fp16 or bf16", field)
    try:
        factors, alpha = without_core({role: tensor for role, tensor in parts.items() if role != "alpha"})
        kind = next((kind for kind in LAYERS if factors and factors.keys() <= kind.SUFFIXES.keys()), None)
        if kind is None:
            raise UserError(f"{key} mixes factors of different kinds, or has none: {', '.join(parts)}", field=field)
        missing = [role for role in kind.NEEDED if role not in factors]
        if missing:
            raise UserError(f"{key} lacks its {' and '.join(missing)} weight", field=field)
        layer = kind.of(factors, float(parts["alpha"].item()) * alpha if "alpha" in parts else None)
        if "alpha" not in parts and settings is not None:
            layer = replace(layer, alpha=settings[0].alpha_of(settings[1], layer.rank))
        if not math.isfinite(layer.alpha):
            raise ValueError("its alpha is no finite number")
        return layer
    except ValueError as error:
        raise UserError(f"{key}: {error}", field=field) from error


def tensors_of(layers: Mapping[str, Layer]) -> dict[str, Tensor]:
    """The tensors of layers under the names of a LoRA file; alpha in float32, since half precision would change it."""
    tensors: dict[str, Tensor] = {}
    for key, layer in layers.items():
        tensors |= {f"{key}{layer.SUFFIXES[name]}": factor for name, factor in layer.factors.items()}
        tensors[f"{key}{ALPHA}"] = torch.tensor(layer.alpha, dtype=torch.float32)
    return tensors


def write_lora(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a LoRA file, whole or not at all.

    Args:
        path: `.safetensors`, with the metadata and the hashes of what is written; or `.ckpt` or `.pt`, tensors alone.
        tensors: under the names of a LoRA file.
        metadata: text fields; hashes in it are replaced.
        dtype: of the weights in the file; None keeps each tensor's own. Alpha stays as it is.

    Raises:
        UserError: the path has another ending.
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    if path.suffix.lower() not in SAFETENSORS + PICKLES:
        raise UserError(f"a LoRA file ends in {', '.join(SAFETENSORS + PICKLES)}", field=str(path))
    ready = {
        name: tensor.detach().to("cpu", None if name.endswith(ALPHA) else dtype) for name, tensor in tensors.items()
    }
    with replacing(path, durable=True) as temporary:
        if path.suffix.lower() in PICKLES:
            # A pickle drags the whole storage of a view into the file.
            save_pickled({name: tensor.clone() for name, tensor in ready.items()}, temporary)
        else:
            _write_safetensors(temporary, ready, metadata or {})


def _write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Hash exactly the bytes that are written after the header that has the hashes.

    The header is written here and not by the library, which shuffles the metadata: equal input gives equal bytes.
    """
    entries = entries_of({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()})
    body = [bytes_of(tensors[name]) for name in entries]
    kept = {name: str(value) for name, value in metadata.items()}
    kept |= hashes(kept, entries, body)
    if MODEL_SPEC in kept:
        kept[MODEL_SPEC_HASH] = f"0x{kept[MODEL_HASH]}"
    with open(path, "wb") as file:
        file.write(pack_header({METADATA_KEY: kept, **entries}))
        pour(file, iter(body))
