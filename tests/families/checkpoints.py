"""Small checkpoints in which every tensor is distinct, so that a swapped name cannot go unnoticed."""

import torch
from torch import Tensor

from backend.families.base import Checkpoint
from backend.families.build import empty_checkpoint


def distinct(dtype: torch.dtype = torch.float16, seed: int = 1, family: str = "sd1") -> Checkpoint:
    """A small checkpoint of random numbers in every tensor, norms and biases too."""
    checkpoint = empty_checkpoint(family=family)
    generator = torch.Generator().manual_seed(seed)
    for part in checkpoint.parts.values():
        part.tensors = {
            name: (torch.randn(value.shape, generator=generator) * 0.1).to(dtype)
            for name, value in part.tensors.items()
        }
    return checkpoint


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Same names, and the same bytes under each."""
    assert sorted(ours) == sorted(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


def assert_same_checkpoint(ours: Checkpoint, theirs: Checkpoint) -> None:
    """The same tensors in every part."""
    assert sorted(ours.parts) == sorted(theirs.parts)
    for name, part in ours.parts.items():
        assert_same(part.tensors, theirs.parts[name].tensors)
