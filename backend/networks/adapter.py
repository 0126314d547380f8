"""What a network puts on one module: an adapter, with what the adapters of every kind have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backend.lora.layer import Layer
from backend.networks.dropout import Dropout
from backend.networks.fused import is_matrix

DEFAULT_DIM = 4


@dataclass(frozen=True)
class Place:
    """Where in a model an adapter sits.

    Attributes:
        number: of the adapter in its network, from 0.
        encoder: number of the text encoder, from 0; None in the U-Net.
        block: number of the U-Net's block (see tables/blocks.py); None in a text encoder.
    """

    number: int = 0
    encoder: int | None = None
    block: int | None = None


class Adapter(nn.Module, ABC):
    """A change of what one module gives out; its tensors are saved under `lora_name`.

    A kind brings its parameters (`make`), its formula (`forward`) and the value that its files hold (`layer`,
    `fitted`). A new adapter changes nothing.

    Args:
        lora_name: its key in a LoRA file.
        org_module: a linear layer or convolution, for its shapes; it may be on the meta device and is not kept.
        multiplier: how strongly it acts.
        lora_dim: the rank.
        alpha: the scale is alpha / rank; 0 or None means the rank.
        generator: what the parameters are drawn with; None draws from torch's own state.
        place: where in a model it sits.

    Attributes:
        dropout: what its network leaves out in training, if anything.
    """

    def __init__(
        self,
        lora_name: str,
        org_module: nn.Module,
        multiplier: float = 1.0,
        lora_dim: int = DEFAULT_DIM,
        alpha: float | None = None,
        generator: torch.Generator | None = None,
        place: Place = Place(),  # noqa: B008  (frozen)
    ) -> None:
        super().__init__()
        self.lora_name = lora_name
        self.lora_dim = int(lora_dim)
        self.alpha = float(alpha or self.lora_dim)
        self.multiplier = float(multiplier)
        self.place = place
        self.dropout: Dropout | None = None
        self.make(org_module, generator)

    @abstractmethod
    def make(self, org_module: nn.Module, generator: torch.Generator | None) -> None:
        """Make the parameters for a module, such that they change nothing yet."""

    @abstractmethod
    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """The module's output with the adapter's contribution added; in the output's dtype.

        Args:
            x: input of the module.
            output: what the module, and any adapter before this one, made of it.
        """

    @abstractmethod
    def layer(self) -> Layer:
        """Its weights as the value that its files hold; the tensors are its own."""

    @abstractmethod
    def fitted(self, layer: Layer) -> dict[str, Tensor]:
        """A file's layer as tensors of this adapter, by their names in a file.

        Raises:
            ValueError: it is of another kind, rank or shape.
        """

    def through(self, adapted: "Adapted", x: Tensor) -> Tensor:
        """A module's output with the adapter's contribution, both in one where a kind can.

        Args:
            adapted: the module, with what it computes by itself.
            x: its input.
        """
        return self(x, adapted.plain(x))

    @property
    def acts(self) -> bool:
        """Whether it changes anything now."""
        if not self.multiplier:
            return False
        dropout = self.dropout
        return dropout is None or not self.training or not dropout.skips(self.place.number)

    def delta(self) -> Tensor:
        """The change of the module's weight at multiplier 1."""
        return self.layer().delta()

    def norm(self) -> Tensor:
        """Frobenius norm of the change of weight."""
        return self.layer().norm()

    def fast_parameters(self) -> list[nn.Parameter]:
        """Those that LoRA+ trains at a higher rate; none where the kind has no such."""
        return []

    def scale_by(self, factor: Tensor) -> None:
        """Make the change of weight, which is a product of the parameters, so many times as large."""
        parameters = list(self.parameters())
        for parameter in parameters:
            parameter.mul_(factor ** (1 / len(parameters)))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Alpha is a Python number here and a tensor in files."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}alpha"] = torch.tensor(self.alpha, dtype=torch.float32)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, _metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        _missing, unexpected, _messages = lists
        super()._load_from_state_dict(state_dict, prefix, _metadata, strict, *lists)
        name = f"{prefix}alpha"
        if name in state_dict:
            self.alpha = float(state_dict[name])
        if name in unexpected:
            unexpected.remove(name)


class Adapted:
    """What a module computes while adapters are on it; it stands in the place of the module's `forward`.

    Attributes:
        module: of which.
        adapters: in the order in which they act.
        is_matrix: whether what the module computes by itself is a product with its weight, and nothing else.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.adapters: list[Adapter] = []
        self.plain = module.forward

    @property
    def plain(self) -> Callable[..., Tensor]:
        """What the module computes by itself."""
        return self._plain

    @plain.setter
    def plain(self, forward: Callable[..., Tensor]) -> None:
        self._plain, self.is_matrix = forward, is_matrix(self.module, forward)

    def __call__(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        """At multiplier 0, and where dropout leaves the adapter out, the module's output stays bit for bit."""
        output = None
        for adapter in self.adapters:
            if not adapter.acts:
                continue
            if output is None and not (rest or named):
                output = adapter.through(self, x)
            else:
                output = adapter(x, self.plain(x, *rest, **named) if output is None else output)
        return self.plain(x, *rest, **named) if output is None else output


@dataclass(frozen=True)
class Attachment:
    """An adapter's hold on a module, until `remove`."""

    adapter: Adapter
    module: nn.Module

    def remove(self) -> None:
        """Take the adapter off; the others stay. A module without adapters is as it was before the first."""
        adapted = self.module.__dict__.get("forward")
        if not isinstance(adapted, Adapted):
            return
        adapted.adapters = [one for one in adapted.adapters if one is not self.adapter]
        if not adapted.adapters:
            set_plain(self.module, adapted.plain, adapters=False)


def attach(adapter: Adapter, module: nn.Module) -> Attachment:
    """Have an adapter act on a module, after those that are on it already."""
    adapted = module.__dict__.get("forward")
    if not isinstance(adapted, Adapted):
        adapted = Adapted(module)
        module.forward = adapted
    adapted.adapters = [*adapted.adapters, adapter]
    return Attachment(adapter, module)


def set_plain(module: nn.Module, forward: Callable[..., Tensor], adapters: bool = True) -> None:
    """Set what a module computes by itself, below the adapters on it; with `adapters` False those go."""
    adapted = module.__dict__.get("forward")
    if adapters and isinstance(adapted, Adapted):
        adapted.plain = forward
    elif getattr(forward, "__func__", None) is type(module).forward:
        del module.forward
    else:
        module.forward = forward
