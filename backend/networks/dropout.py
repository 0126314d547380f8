"""Dropout of a network: of activations, of ranks, of modules. Every draw is a function of where in training it stands.

Until `Dropout.begin` has said where that is, draws come from torch's own state, as in any module.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from backend.draws import draw_key


@dataclass(frozen=True)
class DropoutRates:
    """Shares that are left out in training, each from 0 to below 1.

    Attributes:
        neuron: of the activations between the two factors (`network_dropout`).
        rank: of the ranks, per picture.
        module: of the modules, per step.
    """

    neuron: float = 0.0
    rank: float = 0.0
    module: float = 0.0

    @property
    def any(self) -> bool:
        """Whether anything is left out."""
        return bool(self.neuron or self.rank or self.module)


@dataclass
class Dropout:
    """The dropout of one network at one step.

    Attributes:
        rates: shares that are left out.
        modules: number of modules, which are numbered from 0.
        largest: the largest rank of them.
    """

    rates: DropoutRates
    modules: int
    largest: int
    _seed: int = 0
    _step: int = 0
    _indices: Sequence[int] = ()
    _kept: Sequence[bool] = ()
    _masks: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict)

    def begin(self, seed: int, step: int, indices: Sequence[int]) -> None:
        """Say where in training the next forward passes stand.

        Args:
            seed: of the run.
            step: steps done before.
            indices: of the batch's samples in the global batch of the step.
        """
        self._seed, self._step, self._indices, self._masks = seed, step, tuple(indices), {}
        if self.rates.module:
            # Per step and not per sample: all devices and micro-batches of a step leave out the same modules.
            draws = torch.rand(self.modules, generator=_generator(seed, "module dropout", step))
            self._kept = (draws >= self.rates.module).tolist()

    def skips(self, number: int) -> bool:
        """Whether the module of this number is left out of this step."""
        if not self.rates.module:
            return False
        if self._kept:
            return not self._kept[number]
        return bool(torch.rand(()) < self.rates.module)

    def apply(self, inner: Tensor, number: int, channels: int) -> Tensor:
        """Leave out activations and ranks of what stands between two factors.

        Args:
            inner: [B, ..., rank] or [B, rank, H, W].
            number: of the module.
            channels: the dimension of the ranks.
        """
        if self.rates.neuron:
            inner = self._neurons(inner, number)
        if self.rates.rank:
            mask = self._ranks(len(inner), number, inner.shape[channels], inner.device).to(inner.dtype)
            shape = [len(inner)] + [1] * (inner.dim() - 1)
            shape[channels] = inner.shape[channels]
            inner = inner * mask.view(shape)
        return inner

    def _neurons(self, inner: Tensor, number: int) -> Tensor:
        if not self._indices:
            return torch.nn.functional.dropout(inner, self.rates.neuron)
        kept = torch.stack(
            [
                torch.rand(
                    inner.shape[1:],
                    device=inner.device,
                    generator=_generator(self._seed, "dropout", self._step, *place, number, device=inner.device),
                )
                >= self.rates.neuron
                for place in self._places(len(inner))
            ]
        )
        return inner * kept.to(inner.dtype) / (1 - self.rates.neuron)

    def _ranks(self, count: int, number: int, ranks: int, device: torch.device) -> Tensor:
        """[count, ranks]: 0 for a rank that is left out, else what makes up for those."""
        if not self._indices:
            return (torch.rand(count, ranks, device=device) >= self.rates.rank) / (1 - self.rates.rank)
        # Each sample's for the whole network in one draw, moved to the device once.
        key, shape = (count, device), (self.modules, self.largest)
        if key not in self._masks:
            drawn = [
                torch.rand(shape, generator=_generator(self._seed, "rank dropout", self._step, *place))
                for place in self._places(count)
            ]
            self._masks[key] = ((torch.stack(drawn) >= self.rates.rank) / (1 - self.rates.rank)).to(device)
        return self._masks[key][:, number, :ranks]

    def _places(self, count: int) -> list[tuple[int, int]]:
        """For each row of a batch: the index of its sample, and which of the sample's rows it is (long captions)."""
        rows = max(1, count // max(1, len(self._indices)))
        return [(self._indices[row // rows % len(self._indices)], row % rows) for row in range(count)]


def _generator(seed: int, purpose: str, *index: int, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(draw_key(seed, purpose, *index))
