"""Whether the layers of a file fit the weights of a model."""

from collections.abc import Iterable, Mapping

from backend.errors import UserError
from backend.lora.file import listing
from backend.lora.layer import Layer
from backend.lora.spelling import family_of
from backend.tables.identity import title_of

Shapes = Mapping[str, tuple[int, int]]


def check_keys(keys: Iterable[str], known: Mapping[str, object], field: str) -> None:
    """Refuse keys that match nothing.

    Raises:
        UserError: listing them.
    """
    unmatched = [key for key in keys if key not in known]
    if unmatched:
        raise UserError(f"{len(unmatched)} of its keys match no module here: {listing(unmatched)}", field=field)


def check_fit(layers: Mapping[str, Layer], shapes: Shapes, field: str) -> None:
    """Refuse a file whose keys or shapes are not those of the model.

    Args:
        shapes: outputs and inputs, times the kernel's size, of the model's weights by key.

    Raises:
        UserError: listing keys, or naming the first layer that is made for another weight.
    """
    theirs, ours = (family_of(table) for table in ({key: layer.shape for key, layer in layers.items()}, shapes))
    if theirs and ours and theirs != ours:
        raise UserError(f"is made for {title_of(theirs)}, the model is {title_of(ours)}", field=field)
    check_keys(layers, shapes, field)
    for key, layer in layers.items():
        if layer.shape != shapes[key]:
            raise UserError(
                f"{key} is made for a weight of {layer.shape}, the model's is {shapes[key]}; "
                "choose a LoRA made for this model",
                field=field,
            )
