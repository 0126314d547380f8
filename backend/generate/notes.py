"""What in prompts does not act as somebody may think: said once for all prompts of a run."""

import re
from collections.abc import Callable, Sequence

from backend.families.model import Model
from backend.families.prompt_text import prompt_length
from backend.generate.prompts import Request

_AND = re.compile(r"\bAND\b")
_EDITING = re.compile(r"(?<!\\)\[[^\[\]]*(?:\|[^\[\]]*|:\s*[\d.]+\s*)\]")
_EMBEDDING = re.compile(r"\bembedding:\S")
_CHOICE = re.compile(r"(?<![{\\]){[^{}]*\|[^{}]*}|__[\w/-]+__")


def prompt_notes(model: Model, requests: Sequence[Request]) -> list[str]:
    """Lines for the user about prompts whose end does not count, and about syntax of other programs in them.

    Args:
        model: its tokenizers count.
        requests: all that will be drawn.
    """
    texts = {text: request.chunks for request in requests for text in (request.prompt, request.negative)}
    notes = []
    lengths = {text: prompt_length(model.tokenizers, text, chunks) for text, chunks in texts.items()}
    cut = [text for text, length in lengths.items() if length.cut]
    if cut:
        longest = max(cut, key=lambda text: lengths[text].tokens)
        length = lengths[longest]
        first = f"{len(cut)} of {len(texts)} prompts are" if len(texts) > 1 else "the prompt is"
        notes.append(
            f"{first} longer than the {length.most} tokens that count, and cut; "
            f"the longest has {length.tokens}: {shown(longest)}"
        )
    notes += _about(texts, _AND.search, "AND is plain text here: parts of a prompt are not drawn apart")
    notes += _about(texts, _CHOICE.search, "wildcards are plain text here: {a|b} and __name__ are not filled in")
    notes += _about(texts, _EDITING.search, "[a:b:0.5] and [a|b] are plain text here: a prompt is one for all steps")
    notes += _about(texts, _EMBEDDING.search, "embedding:name is plain text here: textual inversion is not supported")
    return notes


def _about(texts: Sequence[str], search: Callable[[str], object], message: str) -> list[str]:
    found = [text for text in texts if search(text)]
    return [f"{message} ({shown(found[0])})"] if found else []


def shown(text: str) -> str:
    """The beginning of a text, in quotes, on one line."""
    line = " ".join(text.split())
    return repr(line if len(line) <= 60 else line[:57] + "...")
