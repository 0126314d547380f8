"""Captions: found beside a picture, and rewritten for each sample of each epoch."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from backend.errors import UserError

CAPTION_EXTENSIONS = (".txt", ".caption")


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
    def caption_dropout_rate(self) -> float: ...


@dataclass(frozen=True)
class Caption:
    """The text that stands for a picture, and the file it was read from; None where there is no caption file."""

    text: str
    source: Path | None


def caption_extensions(explicit: str | None) -> tuple[str, ...]:
    """The caption file extensions to try, in order: the given one, then the two that trainers use."""
    if not explicit:
        return CAPTION_EXTENSIONS
    first = explicit if explicit.startswith(".") else f".{explicit}"
    return (first, *(e for e in CAPTION_EXTENSIONS if e != first))


def find_caption(path: Path, extensions: Sequence[str], class_tokens: str | None) -> Caption:
    """Read the caption of a picture.

    Args:
        path: of the picture; the caption has the same name with one of the extensions.
        extensions: with their dot; the first file that exists counts, even when it is empty.
        class_tokens: stands in where there is no caption file.

    Returns:
        The first line of the file, stripped; or `class_tokens`, or nothing, with source None.

    Raises:
        UserError: if the file is not UTF-8 (a byte-order mark is fine) or cannot be read.
    """
    for extension in extensions:
        source = path.with_name(path.stem + extension)
        if not source.is_file():
            continue
        try:
            lines = source.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            message = f"the caption {source} is not UTF-8 (byte {error.start}): save it as UTF-8"
            raise UserError(message, "caption_extension") from error
        except OSError as error:
            message = f"the caption {source} cannot be read ({error.strerror}): check its permissions"
            raise UserError(message, "caption_extension") from error
        return Caption(lines[0].strip() if lines else "", source)
    return Caption((class_tokens or "").strip(), None)


def build_caption(text: str, options: CaptionOptions, rng: random.Random) -> str:
    """Make the caption of one sample: prefix and suffix, dropout, shuffled tags.

    The order is the reference trainer's: prefix and suffix belong to the caption that is dropped or shuffled, so the
    prefix is part of the first tag that `keep_tokens` counts. Tags that were shuffled are joined by ", " whatever
    separated them.

    Args:
        text: the picture's caption.
        options: of its subset.
        rng: the draws of this sample; the dropout takes the first one at any rate, so that the rate does not change
            how a kept caption is shuffled.
    """
    caption = " ".join(part for part in (options.caption_prefix, text, options.caption_suffix) if part)
    if rng.random() < options.caption_dropout_rate:
        return ""
    if not options.shuffle_caption:
        return caption
    tags = split_tags(caption, options.caption_separator)
    kept, rest = tags[: options.keep_tokens], tags[options.keep_tokens :]
    rng.shuffle(rest)
    return ", ".join(kept + rest)


def split_tags(caption: str, separator: str = ",") -> list[str]:
    """The tags of a caption, stripped, without empty ones."""
    return [tag for part in caption.split(separator) if (tag := part.strip())]


def tag_frequency(captions: Iterable[str]) -> dict[str, int]:
    """Count the comma-separated tags of captions in lower case, as `ss_tag_frequency` holds them."""
    return dict(Counter(tag.lower() for caption in captions for tag in split_tags(caption)))
