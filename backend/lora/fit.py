"""Whether the layers of a file fit the weights of a model, and where they go."""

from collections.abc import Iterable, Mapping

from backend.errors import UserError
from backend.lora.family import families_of, family_keys, is_xl_spelling, titles_of
from backend.lora.file import LoraFile, listing
from backend.lora.layer import Layer

Shapes = Mapping[str, tuple[int, int]]
LEAVE_OUT = "give --allow_unmatched to leave them out"


def check_keys(keys: Iterable[str], known: Mapping[str, object], field: str) -> None:
    """Refuse keys that match nothing.

    Raises:
        UserError: listing them.
    """
    unmatched = [key for key in keys if key not in known]
    if unmatched:
        raise UserError(f"{len(unmatched)} of its keys match no module here: {listing(unmatched)}", field=field)


def fitted(
    file: LoraFile, shapes: Shapes, field: str, family: str | None = None, allow_unmatched: bool = False
) -> tuple[dict[str, Layer], list[str]]:
    """The layers of a file by the keys of the model's modules.

    Args:
        file: as it was read.
        shapes: outputs and inputs, times the kernel's size, of the model's weights by key.
        field: the name under which errors are reported.
        family: of the model, where it is known; left out, what its shapes tell.
        allow_unmatched: leave out layers that match no module, instead of refusing the file.

    Returns:
        The layers, and what is to be told of the file: what was left out, one line each.

    Raises:
        UserError: the file is for another family, or it names keys, or the first layer that is made for another weight.
    """
    layers = respelled(file.layers, shapes)
    unmatched = [key for key in layers if key not in shapes]
    wrong = [key for key, layer in layers.items() if key in shapes and layer.shape != shapes[key]]
    notes = list(file.notes)
    if unmatched or wrong:
        theirs, ours = file.families, frozenset([family]) if family else families_of(shapes)
        if theirs and ours and not theirs & ours:
            raise UserError(f"is made for {titles_of(theirs)}, the model is {titles_of(ours)}", field=field)
    if unmatched:
        message = f"{len(unmatched)} of its keys match no module here: {listing(unmatched)}"
        if len(unmatched) == len(layers):
            raise UserError(f"{message}; choose a LoRA made for this model", field=field)
        if not allow_unmatched:
            raise UserError(f"{message}; {LEAVE_OUT}", field=field)
        notes.append(f"{message}; left out")
        layers = {key: layer for key, layer in layers.items() if key in shapes}
    if wrong:
        key = wrong[0]
        raise UserError(
            f"{key} is made for a weight of {layers[key].shape}, the model's is {shapes[key]}; "
            "choose a LoRA made for this model",
            field=field,
        )
    return layers, notes


def respelled(layers: Mapping[str, Layer], known: Iterable[str] | Shapes) -> dict[str, Layer]:
    """Layers by their keys as a model spells them.

    Args:
        layers: of a file, by key.
        known: the model's keys; with its shapes, these tell SDXL's text encoders apart.
    """
    family = "sdxl" if any(is_xl_spelling(key) for key in known) else "sd1"
    own = {key: layer.shape for key, layer in layers.items()}
    names = family_keys(own, family)
    if family == "sdxl" and isinstance(known, Mapping):
        names |= _second_if_it_fits(own, names, known)
    return {names[key]: layer for key, layer in layers.items()}


def _second_if_it_fits(own: Shapes, names: Mapping[str, str], shapes: Shapes) -> dict[str, str]:
    """Keys of a text encoder without a number, moved from SDXL's first to its second where only that has such weights.

    An adapter of PEFT does not say which of the two its text encoder was.
    """
    bare = {key: names[key] for key in own if key.startswith("lora_te_")}
    moved = {key: name.replace("lora_te1_", "lora_te2_", 1) for key, name in bare.items()}
    fits = [sum(shapes.get(table[key]) == own[key] for key in bare) for table in (bare, moved)]
    taken = set(moved.values()) & {names[key] for key in own if key not in bare}
    return moved if fits[1] > fits[0] and not taken else {}
