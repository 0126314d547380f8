"""DyLoRA (Valipour et al. 2022, arXiv 2210.07558): one training gives a network for every rank.

At a step one rank b is drawn for the whole network, uniformly over the multiples of `unit`; the first b rows are used,
with scale alpha / b. So the file cut to b rows with alpha unchanged is the network that was trained at rank b, and the
whole file is an ordinary LoRA. All of the first b rows are trained at a step: on the demo model that is better at every
rank than freezing the earlier ones, the paper's other variant (docs/measured.md, benchmarks/dylora_rows.py).
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from backend.draws import rng
from backend.errors import UserError
from backend.lora.layer import LoraLayer
from backend.networks.base import Network, Rates
from backend.networks.build import Kind, library_face
from backend.networks.dropout import DropoutRates
from backend.networks.lora import LoRAModule

__all__ = ["DyLoRANetwork", "LoRAModule", "create_network", "create_network_from_weights", "draw_rank"]


def draw_rank(seed: int, step: int, rank: int, unit: int) -> int:
    """The rank of a step: uniform over unit, 2 * unit, ..., rank, and a function of seed and step alone."""
    return unit * rng(seed, "dylora rank", step).randint(1, rank // unit)


class DyLoRANetwork(Network):
    """A network whose adapters use their first ranks alone while it is trained.

    In evaluation it has its full rank, or the one of `set_rank`. Before the first `begin_step` it trains at full rank.

    Args:
        adapters, multiplier, rates, dropout: see `Network`; the adapters are `LoRAModule`s of one rank.
        unit: ranks are drawn in steps of this.
    """

    def __init__(
        self, adapters: list[nn.Module], multiplier: float, rates: Rates, dropout: DropoutRates, unit: int
    ) -> None:
        super().__init__(adapters, multiplier, rates, dropout)
        ranks = {adapter.lora_dim for adapter in self.adapters()}
        if len(ranks) > 1:
            raise UserError(f"a DyLoRA has one rank, not {', '.join(map(str, sorted(ranks)))}", field="network_dim")
        self.rank, self.unit = ranks.pop(), unit
        self._drawn: int | None = None
        self._fixed: int | None = None

    @property
    def arguments(self) -> dict[str, object]:
        """See `Network.arguments`: extraction needs the unit."""
        return {"unit": self.unit}

    def begin_step(self, seed: int, step: int, indices: Sequence[int]) -> None:
        """Draw the rank of the step as well; see `Network.begin_step`."""
        super().begin_step(seed, step, indices)
        self._drawn = draw_rank(seed, step, self.rank, self.unit)
        self._use()

    def set_rank(self, rank: int | None) -> None:
        """The rank in evaluation; None is the full one.

        Raises:
            UserError: it is not from 1 to the network's.
        """
        if rank is not None and not 1 <= rank <= self.rank:
            raise UserError(f"must be from 1 to {self.rank}, not {rank}", field="rank")
        self._fixed = rank
        self._use()

    def train(self, mode: bool = True) -> "DyLoRANetwork":
        """As `nn.Module.train`; the rank in use follows."""
        super().train(mode)
        self._use()
        return self

    def _use(self) -> None:
        rows = self._drawn if self.training else self._fixed
        for adapter in self.adapters():
            own = rows if adapter.training == self.training else self._fixed
            adapter.rows = None if own == self.rank else own


def _network(
    adapters: list[nn.Module], multiplier: float, rates: Rates, dropout: DropoutRates, options: Any
) -> Network:
    return DyLoRANetwork(adapters, multiplier, rates, dropout, options.unit)


KIND = Kind("networks.dylora", LoRAModule, LoraLayer, _network)
create_network, create_network_from_weights = library_face(KIND)
