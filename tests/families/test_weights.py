"""The weights that LoRAs sit on, found by names alone."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.errors import UserError
from backend.families.base import FAMILIES, write_single_file
from backend.families.build import empty_checkpoint
from backend.families.weights import open_weights, weights_of
from tests.families.checkpoints import distinct

COUNTS = {"sd1": (72, 278), "sd2": (138, 278), "sdxl": (264, 788)}


@pytest.mark.parametrize("family", COUNTS)
def test_a_full_size_model_has_as_many_as_the_reference(family: str) -> None:
    """engine.md 2.3; on the meta device, with the layer of SD2's encoder that is not used."""
    found = weights_of(*FAMILIES[family].write_original(empty_checkpoint(False, family)), "m")
    encoders = [slot for slot in found.slots.values() if slot.encoder is not None]
    assert (len(encoders), len(found.slots) - len(encoders)) == COUNTS[family]
    assert found.family == family and len({(slot.name, slot.target.third) for slot in found.slots.values()}) == len(
        found.slots
    )
    thirds = {slot.target.third for slot in encoders}
    assert thirds == ({None} if family == "sd1" else {None, 0, 1, 2})


def test_names_without_text_model_and_what_is_missing(tmp_path: Path) -> None:
    write_single_file(distinct(family="sd1"), tmp_path / "m.safetensors")
    tensors = load_file(tmp_path / "m.safetensors")
    short = {name.replace(".text_model.", "."): tensor for name, tensor in tensors.items()}
    save_file(short, tmp_path / "short.safetensors")
    whole, other = (open_weights(tmp_path / f"{name}.safetensors") for name in ("m", "short"))
    assert whole.slots.keys() == other.slots.keys()
    assert all(torch.equal(whole.weight(key), other.weight(key)) for key in whole.slots)
    name = "model.diffusion_model.middle_block.1.proj_in.weight"
    del tensors[name]
    with pytest.raises(UserError, match=f"1 of its weights are missing: {name}; use a full checkpoint"):
        weights_of(tensors, {}, "m")
