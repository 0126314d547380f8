"""CLIP's tokenizer from the bundled merges: no network, no files beside a checkpoint needed."""

from functools import lru_cache
from pathlib import Path

from transformers import CLIPTokenizer

MERGES = Path(__file__).parent / "clip" / "merges.txt"
START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 77


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


def clip_tokenizer(pad_token: str = END) -> CLIPTokenizer:
    """CLIP's tokenizer for 77 tokens.

    Args:
        pad_token: `<|endoftext|>` for SD1 and SDXL's first encoder, `!` for SD2 and SDXL's second.
    """
    return CLIPTokenizer(
        vocab=clip_vocabulary(), merges=list(clip_merges()), pad_token=pad_token, model_max_length=MAX_TOKENS
    )
