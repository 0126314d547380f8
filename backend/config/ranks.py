"""What a network's arguments make of a model: the rank of every module, the rate of every block, the size of all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from backend.errors import UserError
from backend.tables.blocks import BlockRank, Blocks, block_ranks, lr_weights
from backend.tables.names import Target
from backend.tables.sizes import ModelWidths, sized_targets

DEFAULT_CONV_ALPHA = 1.0


def rate_weights(options: Any, blocks: Blocks) -> tuple[float, ...] | None:
    """The weight of each block's learning rate, None if none is given.

    Raises:
        UserError: naming the argument that is wrong.
    """
    texts = (options.down_lr_weight, options.mid_lr_weight, options.up_lr_weight)
    if all(text is None for text in texts):
        return None
    return _checked(lambda: lr_weights(blocks, *texts, options.block_lr_zero_threshold))


def ranks_of_blocks(
    options: Any, blocks: Blocks, dim: int, alpha: float | None, weights: Sequence[float] | None
) -> tuple[BlockRank, ...]:
    """Ranks and alphas of each block. A kind that has no ranks by block has the same everywhere.

    Raises:
        UserError: naming the argument that is wrong.
    """
    names = ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")
    lists = tuple(getattr(options, name, None) for name in names)
    conv_alpha = DEFAULT_CONV_ALPHA if options.conv_alpha is None else options.conv_alpha
    everywhere = BlockRank(dim, alpha or 0.0, options.conv_dim or 0, conv_alpha)
    return _checked(lambda: block_ranks(blocks, everywhere, lists, weights))


def has_conv(options: Any) -> bool:
    """Whether 3x3 convolutions are trained, and with them the layers that LierLa leaves out."""
    return options.conv_dim is not None or getattr(options, "conv_block_dims", None) is not None


def module_rank(
    target: Target, ranks: Sequence[BlockRank], text: tuple[int, float | None], conv: bool
) -> tuple[int, float | None]:
    """Rank and alpha of one module; rank 0 leaves it out.

    The convolutions' apply to 3x3 alone, not to the 1x1 and linear layers around them.

    Args:
        target: the module; one without a block is part of a text encoder.
        ranks: of every block.
        text: rank and alpha in text encoders.
        conv: whether 3x3 convolutions are trained.
    """
    if target.block is None:
        return text
    if target.conv_only and not conv:
        return 0, None
    block = ranks[target.block]
    return (block.conv_dim, block.conv_alpha) if target.kind == "conv3x3" else (block.dim, block.alpha)


@dataclass(frozen=True)
class NetworkSize:
    """How large a network is.

    Attributes:
        unet, text: number of modules and of parameters in the U-Net and in the text encoders.
        reachable: of each block, how many modules a network of this kind can sit on there.
    """

    unet: tuple[int, int]
    text: tuple[int, int]
    reachable: tuple[int, ...]

    @property
    def modules(self) -> int:
        return self.unet[0] + self.text[0]

    @property
    def parameters(self) -> int:
        return self.unet[1] + self.text[1]


def network_size(
    options: Any, dim: int, widths: ModelWidths, with_unet: bool = True, with_text: bool = True
) -> NetworkSize:
    """How many modules and parameters a network has.

    Args:
        options: the arguments, as the section of the network's kind.
        dim: network_dim.
        widths: of the model.
        with_unet, with_text: whether the U-Net and the text encoders are trained.

    Raises:
        UserError: naming the argument that is wrong.
    """
    blocks = widths.unet.shape.blocks
    ranks = ranks_of_blocks(options, blocks, dim, None, rate_weights(options, blocks))
    conv = has_conv(options)
    found = {True: [0, 0], False: [0, 0]}
    reachable = [0] * blocks.count
    for one in sized_targets(widths):
        if one.target.block is not None and (conv or not one.target.conv_only):
            reachable[one.target.block] += 1
        rank, _ = module_rank(one.target, ranks, (dim, None), conv)
        if rank and (with_unet if one.encoder is None else with_text):
            count = found[one.encoder is None]
            count[0] += 1
            count[1] += options.pairs * one.parameters(rank)
    (unet, unet_size), (text, text_size) = found[True], found[False]
    return NetworkSize((unet, unet_size), (text, text_size), tuple(reachable))


def _checked(make: Callable[[], Any]) -> Any:
    """The plain functions of tables/ say `name: what is wrong`."""
    try:
        return make()
    except ValueError as error:
        field, _, message = str(error).partition(": ")
        raise UserError(message, field=field) from None
