"""The blocks of the U-Net as `network_args` has them: read from its text, drawn, and written back into it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Any

from backend.bounded import split_lines
from backend.config.network import NETWORK_ARGS, RATES, rank_problems, read_network_args
from backend.config.ranks import NetworkSize, network_size, ranks_of_blocks, rate_weights
from backend.config.text import read_pairs
from backend.errors import ConfigError, UserError
from backend.tables.blocks import PARTS, BlockRank, Blocks, Part, lr_weights
from backend.tables.identity import title_of
from backend.tables.widths import Found, find_widths
from tabs.text import figures

RANKS = "block_dims"
THRESHOLD = "block_lr_zero_threshold"
MOST_RANK = 100_000
_WORDS: dict[Part, str] = {"down": "way down", "mid": "middle", "up": "way up"}


@dataclass(frozen=True)
class Choices:
    """What the picture is made from, as the form shows it; the fields are named as the options.

    Attributes:
        network_args: one "key=value" a line.
        dim_from_weights: ranks are those of a file, which is not read here.
    """

    network_module: str
    network_dim: Any
    network_args: str
    pretrained_model_name_or_path: str
    network_train_unet_only: bool = False
    network_train_text_encoder_only: bool = False
    dim_from_weights: bool = False


@dataclass(frozen=True)
class Picture:
    """Blocks with their rates and ranks.

    Attributes:
        pairs: what `network_args` says, key by key, as text.
        options: the same as the section of the network's kind.
        dim: network_dim.
        found: widths of the model.
        ranked: ranks can differ from block to block.
        size: of the network.
    """

    pairs: dict[str, str]
    options: Any
    dim: int
    found: Found
    ranked: bool
    size: NetworkSize

    @property
    def blocks(self) -> Blocks:
        return self.found.widths.unet.shape.blocks

    @cached_property
    def rates(self) -> tuple[float, ...]:
        """Of every block, as they are given: a threshold is not applied."""
        return lr_weights(self.blocks, *(getattr(self.options, name) for name in RATES))

    @cached_property
    def used_rates(self) -> tuple[float, ...]:
        """Of every block, as they are trained with."""
        return rate_weights(self.options, self.blocks) or (1.0,) * self.blocks.count

    @cached_property
    def ranks(self) -> tuple[BlockRank, ...]:
        """Of every block, as they are given: rates of 0 are not applied."""
        return ranks_of_blocks(self.options, self.blocks, self.dim, None, None)


def read_picture(choices: Choices) -> Picture:
    """The picture of what a form shows.

    Raises:
        UserError: something in `network_args`, or the rank, is wrong.
    """
    module, dim = choices.network_module, choices.network_dim
    if not isinstance(dim, int | float) or not float(dim).is_integer() or dim < 1:
        raise UserError("must be a whole number from 1", field="network_dim")
    lines = [line.strip() for line in split_lines(choices.network_args) if line.strip()]
    typed, problems = read_network_args(module, lines)
    problems = problems or ([] if choices.dim_from_weights else rank_problems(module, int(dim), typed))
    if problems:
        raise ConfigError(problems)
    section = NETWORK_ARGS[module]
    options, found = section(**typed), find_widths(choices.pretrained_model_name_or_path)
    with_unet, with_text = not choices.network_train_text_encoder_only, not choices.network_train_unet_only
    try:
        size = network_size(options, int(dim), found.widths, with_unet, with_text)
    except UserError as error:
        raise UserError(error.message, field=f"network_args.{error.field}") from error
    ranked = RANKS in section.model_fields and not choices.dim_from_weights
    return Picture(read_pairs(lines), options, int(dim), found, ranked, size)


def write_pairs(pairs: Mapping[str, str]) -> str:
    """Key=value pairs as the text of `network_args`."""
    return "\n".join(f"{key}={value}" for key, value in pairs.items())


def with_values(picture: Picture, rates: Mapping[int, float], ranks: Mapping[int, int]) -> str:
    """The text of `network_args` with other rates and ranks of some blocks; only what differs from the default is kept.

    Args:
        picture: what the text says now.
        rates, ranks: by block, as the picture shows them: what it shows already is no change.
    """
    changes: dict[str, str | None] = {}
    for part, name in zip(PARTS, RATES, strict=True):
        own = [block for block in range(picture.blocks.count) if picture.blocks.part_of(block) == part]
        new = [_changed(picture.rates[block], rates.get(block)) for block in own]
        if new != [picture.rates[block] for block in own]:
            changes[name] = None if all(rate == 1 for rate in new) else ",".join(map(_number, new))
    if picture.ranked:
        present = [rank.dim for rank in picture.ranks]
        wanted = [ranks.get(block, rank) for block, rank in enumerate(present)]
        if wanted != present:
            changes[RANKS] = None if set(wanted) == {picture.dim} else ",".join(map(str, wanted))
    return write_pairs(_merged(picture, changes))


def with_curve(picture: Picture, curve: str, added: float, parts: Sequence[str]) -> str:
    """The text of `network_args` with a curve as the rates of some parts ("down", "mid", "up"); no curve is 1."""
    text = (f"{curve}+{_number(added)}" if added else curve) if curve else None
    return write_pairs(_merged(picture, {f"{part}_lr_weight": text for part in parts}))


def with_ranks(picture: Picture, ranks: Sequence[int]) -> str:
    """The text of `network_args` with a rank for every block."""
    return with_values(picture, {}, dict(enumerate(ranks)))


def _merged(picture: Picture, changes: Mapping[str, str | None]) -> dict[str, str]:
    """The pairs with changes, the blocks' behind all others; None takes a key away."""
    if not changes:
        return picture.pairs
    given = picture.pairs | changes
    ours = (*RATES, RANKS)
    names = [*(name for name in given if name not in ours), *(name for name in ours if name in given)]
    pairs = {name: value for name in names if (value := given[name]) is not None}
    if THRESHOLD in pairs and not any(name in pairs for name in RATES):
        # A threshold without rates is refused, and is not ours to take away.
        pairs["mid_lr_weight"] = ",".join("1" * picture.blocks.mid)
    return pairs


def _changed(present: float, shown: float | None) -> float:
    return present if shown is None or _shown(shown) == _shown(present) else shown


def _number(value: float) -> str:
    """A number as people write it, without loss: 1, 0.25."""
    return str(int(value)) if value == int(value) else repr(float(value))


def _shown(value: float) -> str:
    """A rate as the picture shows it."""
    return f"{value:.3g}"


def draw_picture(picture: Picture) -> str:
    """The blocks as HTML: the way down at the left, the middle below, the way up at the right."""
    blocks, shape = picture.blocks, picture.found.widths.unet.shape
    down, middle, up = ([block for block in range(blocks.count) if _side(blocks, block) == part] for part in PARTS)
    rows = shape.layers + 1
    deepest = len(shape.depths) - 1

    def level(block: int, first: int, reverse: bool) -> int:
        step = min(max((block - first) // rows, 0), deepest)
        return deepest - step if reverse else step

    left = "".join(_cell(picture, block, level(block, blocks.ends, False)) for block in down)
    below = "".join(_cell(picture, block, 0) for block in middle)
    right = "".join(_cell(picture, block, level(block, up[0], True)) for block in reversed(up))
    return (
        f'<div class="unet"><div class="side down"><div class="head"><b>Down</b>{_HEAD}</div>{left}</div>'
        f'<div class="side up"><div class="head"><b>Up</b>{_HEAD}</div>{right}</div>'
        f'<div class="side mid"><div class="head"><b>Mid</b>{_HEAD}</div>{below}</div></div>{_summary(picture)}'
    )


_HEAD = "<span>rate ×</span><span>rank</span>"


def _side(blocks: Blocks, block: int) -> Part:
    """Where a block is drawn: the two ends belong to no part."""
    return blocks.part_of(block) or ("down" if block < blocks.ends else "up")


def _cell(picture: Picture, block: int, level: int) -> str:
    modules, part = picture.size.reachable[block], picture.blocks.part_of(block)
    name = f"block {block}" + (f", {_WORDS[part]}" if part else "")
    style = f"--level:{level}"
    if not modules:
        return f'<div class="cell none" style="{style}" title="{name}: no module of this network"><i>{block}</i></div>'
    rate, used, rank = picture.rates[block], picture.used_rates[block], picture.ranks[block]
    off = not used or not (rank.dim or rank.conv_dim)
    style += f";--rate:{used / max(1.0, *picture.used_rates):.3f}"
    fixed = "" if picture.ranked else " disabled"
    return (
        f'<div class="cell{" off" if off else ""}" style="{style}" title="{name}: {modules} modules'
        f'{", not trained" if off else ""}"><i>{block}</i><span class="rate"></span>'
        f'<input type="number" min="0" max="{MOST_RANK}" step="any" inputmode="decimal" data-what="rates" '
        f'data-block="{block}" value="{_shown(rate)}" aria-label="learning rate weight of {name}">'
        f'<input type="number" min="0" max="{MOST_RANK}" step="1" inputmode="numeric" data-what="ranks" '
        f'data-block="{block}" value="{rank.dim}" aria-label="rank of {name}"{fixed}></div>'
    )


def _summary(picture: Picture) -> str:
    size, found = picture.size, picture.found
    hints = []
    if picture.ranked or RANKS in type(picture.options).model_fields:
        if picture.options.conv_dim or getattr(picture.options, "conv_block_dims", None):
            hints.append("Ranks of 3x3 convolutions are those of conv_dim and conv_block_dims.")
    else:
        hints.append("This kind of network has one rank, network_dim, in all blocks.")
    if RANKS in type(picture.options).model_fields and not picture.ranked:
        hints.append("dim_from_weights: ranks, and so the numbers of modules and parameters, are those of the file.")
        shown = ""
    elif not size.modules:
        hints.append("Nothing is left to be trained.")
        shown = ""
    else:
        shown = figures(
            [
                ("modules", f"{size.modules:,}"),
                ("parameters", f"{size.parameters:,}"),
                ("U-Net", f"{size.unet[0]:,} · {size.unet[1]:,}"),
                ("text encoder", f"{size.text[0]:,} · {size.text[1]:,}"),
                ("file, 16 bit", f"{size.parameters * 2 / 1e6:,.1f} MB"),
            ]
        )
    hints.append(f"{title_of(found.widths.family)}; widths {found.source}.")
    return f'<div class="sizes">{shown}<div class="hint">{escape(" ".join(hints))}</div></div>'
