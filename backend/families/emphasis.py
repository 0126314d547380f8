"""Weights of words in a caption: (word) and (word:1.3) count more, [word] less. Read from text, put on states."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ROUND, SQUARE = 1.1, 1 / 1.1
# A mean below this share of the mean size is what rounding or chance made of zero, and is no measure of anything.
SOUND = 0.01
_MARKS = re.compile(r"\\[\\()\[\]]|[()\[\]]|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[^\\()\[\]:]+|.", re.DOTALL)


@dataclass(frozen=True)
class Weighted:
    """A caption as pieces of text, each with its weight; no two neighbours have the same."""

    pieces: tuple[tuple[str, float], ...]


def parse_weights(text: str) -> Weighted:
    r"""Read the weights of a caption, as the WebUI writes them.

    `(a)` is a times 1.1, `[a]` a divided by 1.1, `(a:1.3)` a times 1.3; brackets within brackets multiply. `\(`, `\)`,
    `\[`, `\]` and `\\` are themselves; any other backslash is passed over. A bracket that is never closed
    reaches to the end, and a closing one without a partner is text.
    """
    found: list[tuple[str, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}  # where in `found` each open bracket begins

    def scale(start: int, factor: float) -> None:
        found[start:] = [(piece, weight * factor) for piece, weight in found[start:]]

    for mark in _MARKS.finditer(text):
        word, number = mark[0], mark[1]
        if word in opened:
            opened[word].append(len(found))
        elif number is not None and opened["("]:
            scale(opened["("].pop(), float(number))
        elif word == ")" and opened["("]:
            scale(opened["("].pop(), ROUND)
        elif word == "]" and opened["["]:
            scale(opened["["].pop(), SQUARE)
        else:
            found.append((word.removeprefix("\\"), 1.0))
    for bracket, factor in (("(", ROUND), ("[", SQUARE)):
        for start in opened[bracket]:
            scale(start, factor)
    return Weighted(tuple(_joined(found)))


_BREAK = re.compile(r"\s*\bBREAK\b\s*")


def parse_prompt(text: str) -> tuple[Weighted, ...]:
    """A prompt's weights, in the parts that the word BREAK divides it into: each begins a chunk of 75 tokens, as in
    the WebUI. A BREAK at the very end begins none."""
    parts: list[list[tuple[str, float]]] = [[]]
    for piece, weight in parse_weights(text).pieces:
        first, *rest = _BREAK.split(piece)
        parts[-1] += [(first, weight)] if first else []
        parts += [[(each, weight)] if each else [] for each in rest]
    if len(parts) > 1 and not parts[-1]:
        parts.pop()
    return tuple(Weighted(tuple(part)) for part in parts)


def _joined(pieces: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Neighbours of one weight as one piece."""
    found: list[tuple[str, float]] = []
    for text, weight in pieces:
        if found and found[-1][1] == weight:
            found[-1] = (found[-1][0] + text, weight)
        else:
            found.append((text, weight))
    return found


def emphasise(states: Tensor, weights: Tensor, widths: Sequence[int]) -> Tensor:
    """Put weights on a text encoder's states, and bring their mean back to what it was, caption by caption.

    This is the WebUI's rule. Where a mean is nothing but chance, near zero beside the states' size or of another sign
    afterwards, there is no size to bring back, and the states stay as they were weighted.

    Args:
        states: [B, T, D]; of several encoders, side by side along D.
        weights: [B, T].
        widths: how much of D is each encoder's; each keeps its own mean.

    Returns:
        [B, T, D]; a caption whose weights are all 1 is as it was, bit for bit.
    """
    parts = []
    for piece in states.split(list(widths), dim=-1):
        part = piece.contiguous()  # so that both means are taken in one order, and equal states have equal ones
        weighted = part * weights.to(part)[..., None]
        before, after = (each.float().mean(dim=(1, 2)) for each in (part, weighted))
        least = SOUND * part.float().abs().mean(dim=(1, 2))
        sound = (before.abs() > least) & (after.abs() > least) & (before * after > 0)
        factor = torch.where(sound, before / torch.where(sound, after, 1.0), 1.0)
        parts.append(weighted * factor.to(part)[:, None, None])
    return torch.cat(parts, dim=-1)
