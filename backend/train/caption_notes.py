"""What of a training set's captions does not count: told once, at the start of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from backend.config.dataset import SubsetOptions
from backend.data.captions import build_caption
from backend.data.dataset import TrainingSet
from backend.families.clip_text import weighed
from backend.families.emphasis import parse_weights
from backend.families.model import Model
from backend.families.tokenizer import added_to, text_tokens
from backend.generate.lora_tags import has_tags

T = TypeVar("T")
# Options of a subset that only take something away from a caption.
TAKING = {
    "caption_dropout_rate": 0.0,
    "caption_dropout_every_n_epochs": 0,
    "caption_tag_dropout_rate": 0.0,
    "token_warmup_step": 0,
}


class _Longest:
    """In the place of a generator: of several choices the longest, and nothing moves."""

    def random(self) -> float:
        return 1.0

    def choice(self, options: Sequence[str]) -> str:
        return max(options, key=len)

    def shuffle(self, items: list[T]) -> None:
        """Leave them as they are."""


def longest_captions(training_set: TrainingSet) -> dict[str, Path]:
    """The captions that will be trained, each as long as it can become, with the first picture that each is of."""
    whole: dict[int, SubsetOptions] = {}
    found: dict[str, Path] = {}
    for picture in training_set.every_picture:
        options = training_set.datasets[picture.dataset].subsets[picture.subset]
        if id(options) not in whole:
            whole[id(options)] = options.model_copy(update=TAKING)
        found.setdefault(build_caption(picture.caption, whole[id(options)], _Longest()), picture.path)
    return found


def count_tokens(tokenizers: Sequence[Any], captions: Sequence[str], weighted: bool = False) -> list[int]:
    """How many tokens each caption has for the encoder that makes most of it, without start and end.

    Args:
        tokenizers: the model's.
        captions: as they will be trained.
        weighted: brackets are weights and no text.
    """
    # SDXL's two have the same vocabulary, but where words were added to one of them.
    tokenizers = list({str(added_to(tokenizer)): tokenizer for tokenizer in tokenizers}.values())
    if weighted:
        parsed = [parse_weights(caption) for caption in captions]
        rows = [[len(weighed(tokenizer, each)) for each in parsed] for tokenizer in tokenizers]
    else:
        rows = [[len(row) for row in text_tokens(tokenizer, list(captions))] for tokenizer in tokenizers]
    return [max(counts) for counts in zip(*rows, strict=True)]


def caption_notes(model: Model, training_set: TrainingSet) -> list[str]:
    """Lines about captions whose end does not count, and about syntax of prompts in them."""
    captions = longest_captions(training_set)
    counts = dict(zip(captions, count_tokens(model.tokenizers, list(captions), model.weighted_captions), strict=True))
    return [*_too_long(counts, captions, model.max_token_length), *_tagged(captions)]


def _too_long(counts: Mapping[str, int], captions: Mapping[str, Path], most: int) -> list[str]:
    cut = [caption for caption, count in counts.items() if count > most]
    if not cut:
        return []
    longest = max(cut, key=lambda caption: counts[caption])
    needed = next((length for length in (150, 225) if length > most and counts[longest] <= length), 225)
    remedy = f"; set max_token_length to {needed}" if most < needed else ""
    return [
        f"{len(cut)} of {len(captions)} captions are longer than the {most} tokens that count, and cut; "
        f"the longest, of {captions[longest]}, has {counts[longest]}{remedy}, or shorten {_them(len(cut))}"
    ]


def _them(count: int) -> str:
    return "them" if count > 1 else "it"


def _tagged(captions: Mapping[str, Path]) -> list[str]:
    found = [path for caption, path in captions.items() if has_tags(caption)]
    if not found:
        return []
    return [f"{len(found)} captions have <lora:...>, which is trained as plain text; take it out of that of {found[0]}"]
