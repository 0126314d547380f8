"""CLIP's tokenizer from the bundled merges: no network, no files beside a checkpoint needed."""

from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import tokenizers
from transformers import CLIPTokenizer

from backend.families.added_tokens import AddedToken, AddedTokens

MERGES = Path(__file__).parent / "clip" / "merges.txt"
START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 77
EOS = 49407


def _byte_symbols() -> list[str]:
    """One printable character per byte, in the order of CLIP's vocabulary: printable bytes first, then the others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(others)]


@lru_cache(maxsize=1)
def clip_merges() -> tuple[tuple[str, str], ...]:
    """The byte-pair merges in order of rank."""
    lines = MERGES.read_text(encoding="utf-8").splitlines()
    pairs = (line.split() for line in lines if not line.startswith("#version"))
    return tuple((first, second) for first, second in pairs)


@lru_cache(maxsize=1)
def _own_vocabulary() -> dict[str, int]:
    return clip_vocabulary()


def is_own(word: str) -> bool:
    """Whether a word is a token of CLIP's own vocabulary."""
    return word in _own_vocabulary()


def clip_vocabulary() -> dict[str, int]:
    """Token -> id, all 49,408: byte symbols, the same ending a word, one token per merge, start and end of text."""
    symbols = _byte_symbols()
    tokens = [
        *symbols,
        *(symbol + "</w>" for symbol in symbols),
        *("".join(pair) for pair in clip_merges()),
        START,
        END,
    ]
    return {token: index for index, token in enumerate(tokens)}


def clip_tokenizer(pad_token: str = END, added: AddedTokens | None = None) -> CLIPTokenizer:
    """CLIP's tokenizer for 77 tokens.

    Args:
        pad_token: `<|endoftext|>` for SD1 and SDXL's first encoder, `!` for SD2 and SDXL's second.
        added: words with numbers of their own.
    """
    own, added = _own_vocabulary(), dict(added or {})
    # Where the vocabulary has a word, it is added under its number; else it would get the next one that is free.
    new = {token.content: number for number, token in added.items() if token.content not in own}
    tokenizer = CLIPTokenizer(
        vocab=own | new, merges=list(clip_merges()), pad_token=pad_token, model_max_length=MAX_TOKENS
    )
    tokenizer.added_words = added
    if added:
        tokenizer.add_tokens([tokenizers.AddedToken(**asdict(token)) for token in added.values()])
    return tokenizer


def added_to(tokenizer: CLIPTokenizer) -> dict[int, AddedToken]:
    """The words that `clip_tokenizer` was given beyond CLIP's own vocabulary."""
    return getattr(tokenizer, "added_words", {})


def _replacements(added: AddedTokens) -> dict[int, list[int]]:
    """What stands for an added word's token: for one of several vectors `<cat>`, also those of `<cat>_1`, `<cat>_2`.

    A word that CLIP's own vocabulary has as well, such as `*`, is found under the number that it has there.
    """
    own, found = _own_vocabulary(), {}
    numbers = {token.content: number for number, token in added.items()}
    for content, number in numbers.items():
        row = [number]
        while (other := numbers.get(f"{content}_{len(row)}")) is not None:
            row.append(other)
        seen = own.get(content, number)
        if row != [seen]:
            found[seen] = row
    return found


def text_tokens(tokenizer: CLIPTokenizer, texts: list[str], most: int | None = None) -> list[list[int]]:
    """Each text's tokens without start and end.

    A word of a textual inversion of several vectors stands for all of them, as in Diffusers' pipelines.

    Args:
        tokenizer: of `clip_tokenizer`.
        texts: plain ones.
        most: those behind so many are left out.
    """
    if not texts:
        return []
    replacements = _replacements(added_to(tokenizer))
    cut = {} if most is None or replacements else {"truncation": True, "max_length": most}
    rows = tokenizer(texts, add_special_tokens=False, verbose=False, **cut).input_ids
    return [_replaced(row, replacements)[:most] for row in rows] if replacements else rows


def _replaced(row: list[int], replacements: dict[int, list[int]]) -> list[int]:
    found: list[int] = []
    for place, token in enumerate(row):
        instead = replacements.get(token, [token])
        spelled_out = len(instead) > 1 and row[place + 1 : place + 2] == instead[1:2]
        found += instead[:1] if spelled_out else instead
    return found
