"""The blocks of the U-Net that block-wise learning rates and ranks refer to. Knows no torch.

SD1 and SD2 have 25: 0 is empty, then every row of the way down (two residual rows and a downsampler per level), the
middle as one, and every row of the way up. A row is `level * rows_per_level + layer`. SDXL has 23, which are those of
its original layout: 0 for the embeddings, 1 to 9 for `input_blocks`, 10 to 12 for the three modules of `middle_block`,
13 to 21 for `output_blocks`, 22 for the output.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Part = Literal["down", "mid", "up"]
PARTS: tuple[Part, ...] = ("down", "mid", "up")


@dataclass(frozen=True)
class Blocks:
    """How the blocks of a U-Net are counted.

    Attributes:
        down, mid, up: blocks of each part.
        ends: blocks before the way down and after the way up, which hold no module that a network sits on and are
            not named in lists of rates.
    """

    down: int = 12
    mid: int = 1
    up: int = 12
    ends: int = 0

    @property
    def count(self) -> int:
        """All blocks, which is the length of a list of ranks."""
        return self.down + self.mid + self.up + 2 * self.ends

    def size(self, part: Part) -> int:
        """Blocks of a part, which is the length of its list of rates."""
        return {"down": self.down, "mid": self.mid, "up": self.up}[part]

    def part_of(self, block: int) -> Part | None:
        """The part that a block belongs to; None for the two ends."""
        rest = block - self.ends
        for part in PARTS:
            if 0 <= rest < self.size(part):
                return part
            rest -= self.size(part)
        return None


SD = Blocks()
SDXL = Blocks(down=9, mid=3, up=9, ends=1)


def block_index(part: Part, row: int, levels: int = 4, rows_per_level: int = 3) -> int:
    """The block of SD1's numbering that a row of the U-Net belongs to.

    Args:
        part: the way down, the middle or the way up.
        row: `level * rows_per_level + layer`; the sampler of a level counts as its last layer. The middle has no rows.
        levels: resolutions of the U-Net.
        rows_per_level: residual rows per level on the way down, plus one for the downsampler.
    """
    middle = levels * rows_per_level
    return {"down": 1 + row, "mid": middle, "up": middle + 1 + row}[part]


def xl_block_index(part: Part, row: int, levels: int = 3, rows_per_level: int = 3) -> int:
    """The block of SDXL's numbering: as `block_index`, but one further on, and with three blocks in the middle.

    Args:
        part, levels, rows_per_level: as in `block_index`.
        row: as there; in the middle 0 to 2, residual block, attention, residual block.
    """
    middle = 1 + levels * rows_per_level
    return {"down": 2 + row, "mid": middle + row, "up": middle + 3 + row}[part]


# Weights over the n blocks of a part; the sine and the straight line rise, the others are the same reversed.
_CURVES = {
    "sine": lambda i, n: math.sin(math.pi / 2 * i / (n - 1)),
    "cosine": lambda i, n: math.sin(math.pi / 2 * (n - 1 - i) / (n - 1)),
    "linear": lambda i, n: i / (n - 1),
    "reverse_linear": lambda i, n: (n - 1 - i) / (n - 1),
    "zeros": lambda i, n: 0.0,
}
CURVES = tuple(_CURVES)


def read_weights(text: str) -> str | tuple[float, ...]:
    """What `down_lr_weight` and its like say: a curve with what is added to it, in one spelling, or numbers.

    `sine+.5` is a curve; `0,,1.5` are numbers, of which an empty one is 0.

    Raises:
        ValueError: it is neither; the message says what is expected.
    """
    name, plus, added = (part.strip() for part in text.strip().partition("+"))
    if name.lower() in _CURVES:
        return name.lower() + (f"+{_number(added, text)!r}" if plus else "")
    return tuple(_number(item.strip(), text) if item.strip() else 0.0 for item in text.split(","))


def _number(item: str, text: str) -> float:
    try:
        number = float(item)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        expected = f"numbers from 0 with commas between them, or one of {', '.join(CURVES)} (each with +number)"
        raise ValueError(f'must be {expected}, got "{text}"')
    return number


def part_weights(text: str, size: int) -> tuple[float, ...]:
    """The weights of a part's blocks.

    Args:
        text: as `read_weights` takes it; a single number for a single block.
        size: number of blocks of the part.

    Raises:
        ValueError: it is no list of weights, or has another length.
    """
    found = read_weights(text)
    if isinstance(found, str):
        name, _, added = found.partition("+")
        # A part of one block has the curve's end.
        values = [_CURVES[name](i, size) if size > 1 else _CURVES[name](1, 2) for i in range(size)]
        return tuple(value + float(added or 0) for value in values)
    if len(found) != size:
        raise ValueError(f"has {len(found)} weights, but must have {size}, one per block")
    return found


def lr_weights(
    blocks: Blocks, down: str | None, mid: str | None, up: str | None, threshold: float = 0.0
) -> tuple[float, ...]:
    """The weight of every block's learning rate. A part that is not given has 1, a weight up to the threshold is 0.

    Raises:
        ValueError: naming the argument (`down_lr_weight: ...`) that is wrong.
    """
    weights: list[float] = []
    for part, text in zip(PARTS, (down, mid, up), strict=True):
        try:
            weights += [1.0] * blocks.size(part) if text is None else part_weights(text, blocks.size(part))
        except ValueError as error:
            raise ValueError(f"{part}_lr_weight: {error}") from None
    ends = [1.0] * blocks.ends
    return tuple(weight if weight > threshold else 0.0 for weight in (*ends, *weights, *ends))


@dataclass(frozen=True)
class BlockRank:
    """Ranks and alphas of the modules of one block.

    Attributes:
        dim, alpha: of linear layers and 1x1 convolutions; a rank of 0 leaves them out.
        conv_dim, conv_alpha: of 3x3 convolutions; a rank of 0 leaves them out.
    """

    dim: int
    alpha: float
    conv_dim: int
    conv_alpha: float


def block_ranks(
    blocks: Blocks,
    everywhere: BlockRank,
    lists: tuple[Sequence[float] | None, ...],
    weights: Sequence[float] | None = None,
) -> tuple[BlockRank, ...]:
    """Ranks and alphas of every block.

    Args:
        blocks: the family's.
        everywhere: what a block has for which no list says anything.
        lists: `block_dims`, `block_alphas`, `conv_block_dims`, `conv_block_alphas`.
        weights: learning-rate weights; a block with 0 is left out of the network.

    Raises:
        ValueError: naming the list that has a wrong length.
    """
    names = ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")
    standard = (everywhere.dim, everywhere.alpha, everywhere.conv_dim, everywhere.conv_alpha)
    columns = []
    for name, values, value in zip(names, lists, standard, strict=True):
        if values is not None and len(values) != blocks.count:
            raise ValueError(f"{name}: has {len(values)} values, but must have {blocks.count}, one per block")
        columns.append([value] * blocks.count if values is None else values)
    found = []
    for block in range(blocks.count):
        dim, alpha, conv_dim, conv_alpha = (column[block] for column in columns)
        off = weights is not None and weights[block] == 0
        found.append(BlockRank(0 if off else int(dim), float(alpha), 0 if off else int(conv_dim), float(conv_alpha)))
    return tuple(found)


# What the ends of a U-Net have of the middle's rank.
_LEAST = 0.25


def rising_ranks(blocks: Blocks, dim: int) -> tuple[int, ...]:
    """A rank for every block, rising in a straight line from a quarter of `dim` at both ends to `dim` in the middle."""
    last = blocks.count - 1
    heights = (1 - abs(2 * block - last) / last for block in range(blocks.count))
    return tuple(max(1, round(dim * (_LEAST + (1 - _LEAST) * height))) for height in heights)
