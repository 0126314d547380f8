"""Captions: found beside a picture, and rewritten for each sample of each epoch."""

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from backend.bounded import read_text, split_lines
from backend.picture_folder import CAPTION_EXTENSIONS, CaptionFiles, caption_extensions

__all__ = ["CAPTION_EXTENSIONS", "caption_extensions"]

# Options that make a caption another one from sample to sample.
CHANGING = (
    "shuffle_caption",
    "enable_wildcard",
    "caption_dropout_rate",
    "caption_dropout_every_n_epochs",
    "caption_tag_dropout_rate",
    "token_warmup_step",
)


class CaptionOptions(Protocol):
    """What `build_caption` reads of a subset's options."""

    @property
    def shuffle_caption(self) -> bool: ...
    @property
    def keep_tokens(self) -> int: ...
    @property
    def caption_separator(self) -> str: ...
    @property
    def caption_prefix(self) -> str | None: ...
    @property
    def caption_suffix(self) -> str | None: ...
    @property
    def keep_tokens_separator(self) -> str | None: ...
    @property
    def secondary_separator(self) -> str | None: ...
    @property
    def enable_wildcard(self) -> bool: ...
    @property
    def caption_dropout_rate(self) -> float: ...
    @property
    def caption_dropout_every_n_epochs(self) -> int: ...
    @property
    def caption_tag_dropout_rate(self) -> float: ...
    @property
    def token_warmup_min(self) -> int: ...
    @property
    def token_warmup_step(self) -> float: ...


@dataclass(frozen=True)
class Moment:
    """When in training a caption is made.

    Attributes:
        epoch: from 0.
        step: optimizer steps done before.
        total_steps: of the whole run.
    """

    epoch: int = 0
    step: int = 0
    total_steps: int = 0


@dataclass(frozen=True)
class Caption:
    """The text that stands for a picture.

    Attributes:
        text: of the caption.
        source: the file it was read from; None where there is no caption file.
        unread: lines of the file that are not in the text.
    """

    text: str
    source: Path | None
    unread: int = field(default=0, compare=False)


def find_caption(
    path: Path,
    extensions: Sequence[str],
    class_tokens: str | None,
    all_lines: bool = False,
    files: CaptionFiles | None = None,
) -> Caption:
    """Read the caption of a picture.

    Args:
        path: of the picture; the caption has the same name with one of the extensions.
        extensions: with their dot; the first file that exists counts, even when it is empty.
        class_tokens: stands in where there is no caption file.
        all_lines: take every line that is not empty, for one of them to be chosen later; else the first line.
        files: of the picture's folder; left out, it is listed.

    Returns:
        The line or lines of the file, stripped; or `class_tokens`, or nothing, with source None.

    Raises:
        UserError: the file cannot be read, or is no text in UTF-8 (or in UTF-16 with its mark); names it.
    """
    source = (files or CaptionFiles(path.parent)).find(path, extensions)
    if source is None:
        return Caption((class_tokens or "").strip(), None)
    text = read_text(source, "caption_extension", "caption")
    lines = lines_of(text)
    if all_lines:
        return Caption("\n".join(lines), source)
    first = first_line(text)
    return Caption(first, source, len(lines) - bool(first))


def first_line(text: str) -> str:
    """The first line, stripped."""
    return next(iter(split_lines(text)), "").strip()


def lines_of(text: str) -> list[str]:
    """All lines, stripped, without empty ones."""
    return [line for each in split_lines(text) if (line := each.strip())]


def build_caption(text: str, options: CaptionOptions, rng: random.Random, moment: Moment = Moment()) -> str:  # noqa: B008
    """Make the caption of one sample.

    In this order, which is the reference trainer's: a line is chosen (`enable_wildcard`), prefix and suffix are put to
    it, it is dropped or not, its wildcards are replaced, its parts are kept, cut to those that are learnt already,
    shuffled and left out, and secondary separators become plain ones. So the prefix is part of the first tag that
    `keep_tokens` counts. Parts that were taken apart are joined by ", " whatever separated them.

    Args:
        text: the picture's caption.
        options: of its subset.
        rng: the draws of this sample; the dropout takes the first one at any rate, so that the rate does not change
            how a kept caption is shuffled.
        moment: when it will be trained.
    """
    dropped = rng.random() < options.caption_dropout_rate
    every = options.caption_dropout_every_n_epochs
    if dropped or (every and (moment.epoch + 1) % every == 0):
        return ""
    if options.enable_wildcard:
        lines = lines_of(text)
        text = rng.choice(lines) if len(lines) > 1 else "".join(lines)
    caption = " ".join(part for part in (options.caption_prefix, text, options.caption_suffix) if part)
    if options.enable_wildcard:
        caption = fill_wildcards(caption, rng)
    caption = _arrange(caption, options, rng, moment)
    if options.secondary_separator:
        caption = caption.replace(options.secondary_separator, options.caption_separator)
    return caption


def _arrange(caption: str, options: CaptionOptions, rng: random.Random, moment: Moment) -> str:
    """Keep, cut, shuffle and leave out the parts of a caption; as it is where nothing of this is asked for."""
    parted = bool(options.keep_tokens_separator) and options.keep_tokens_separator in caption
    warming = options.token_warmup_step > 0
    if not (parted or warming or options.shuffle_caption or options.caption_tag_dropout_rate > 0):
        return caption
    if parted:
        pieces = caption.split(options.keep_tokens_separator, 2)
        head, rest, tail = (split_tags(piece, options.caption_separator) for piece in (*pieces, "")[:3])
    else:
        tags = split_tags(caption, options.caption_separator)
        head, rest, tail = tags[: options.keep_tokens], tags[options.keep_tokens :], []
    if warming:
        rest = rest[: warmed_up(len(rest), options.token_warmup_min, options.token_warmup_step, moment)]
    if options.shuffle_caption:
        rng.shuffle(rest)
    if options.caption_tag_dropout_rate > 0:
        rest = [tag for tag in rest if rng.random() >= options.caption_tag_dropout_rate]
    return ", ".join(head + rest + tail)


def warmed_up(count: int, least: int, over: float, moment: Moment) -> int:
    """How many of `count` parts a caption has at a moment: from `least`, evenly to all of them after `over` steps.

    Args:
        count: parts that are not kept.
        least: `token_warmup_min`.
        over: `token_warmup_step`; below 1 it is a fraction of all steps.
        moment: when.
    """
    steps = math.floor(over * moment.total_steps) if over < 1 else int(over)
    if moment.step >= steps or least >= count:
        return count
    return least + moment.step * (count - least) // steps


_BRACES = re.compile(r"\{\{|\}\}|[{}|]|[^{}|]+")


def fill_wildcards(text: str, rng: random.Random) -> str:
    """Replace {a|b|c} by one of its choices, each as likely; they may have wildcards of their own.

    `{{` and `}}` stand for the braces themselves, but that `}}` closes two wildcards where two are open. Braces without
    a partner, and empty ones, stay as they are.
    """
    stack: list[list[str]] = [[""]]  # of each open brace, the choices so far
    for mark in _BRACES.findall(text):
        if mark == "{":
            stack.append([""])
        elif mark == "|" and len(stack) > 1:
            stack[-1].append("")
        elif mark == "}" or (mark == "}}" and len(stack) > 2):
            for _ in mark:
                _close(stack, rng)
        else:
            stack[-1][-1] += {"{{": "{", "}}": "}"}.get(mark, mark)
    while len(stack) > 1:
        unclosed = stack.pop()
        stack[-1][-1] += "{" + "|".join(unclosed)
    return stack[0][0]


def _close(stack: list[list[str]], rng: random.Random) -> None:
    """A closing brace: the innermost wildcard becomes one of its choices."""
    if len(stack) == 1:
        stack[0][-1] += "}"
        return
    choices = stack.pop()
    stack[-1][-1] += "{}" if choices == [""] else rng.choice(choices)


def split_tags(caption: str, separator: str = ",") -> list[str]:
    """The tags of a caption, stripped, without empty ones."""
    return [tag for part in caption.split(separator) if (tag := part.strip())]


def tag_frequency(captions: Iterable[str]) -> dict[str, int]:
    """Count the comma-separated tags of captions in lower case, as `ss_tag_frequency` holds them."""
    lines = (line for caption in captions for line in split_lines(caption))
    return dict(Counter(tag.lower() for line in lines for tag in split_tags(line)))
