"""Prompts through CLIP's text encoders: weights of words, BREAK, and as many chunks of 75 tokens as they need.

Captions of training go through `clip_text`, in a fixed number of chunks; this is for drawing, as the reference's
`gen_img` and sample pictures do it: chunks keep their own start and end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from backend.families.clip_text import CHUNK, weighed
from backend.families.emphasis import Weighted, emphasise, parse_prompt
from backend.families.model import Conditioning, Model

# Chunks of 75 tokens that count: the reference's `max_embeddings_multiples`.
CHUNKS = 3

Chunk = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Length:
    """How long a prompt is.

    Attributes:
        tokens: that it takes; what BREAK fills up counts.
        most: tokens that count.
    """

    tokens: int
    most: int

    @property
    def cut(self) -> bool:
        """Whether its end does not count."""
        return self.tokens > self.most


def prompt_chunks(tokenizer: Any, parts: Sequence[Weighted]) -> list[list[tuple[int, float]]]:
    """A prompt's tokens with their weights in chunks of at most 75; at least one chunk."""
    chunks: list[list[tuple[int, float]]] = []
    for part in parts:
        row = weighed(tokenizer, part)
        chunks += [row[start : start + CHUNK] for start in range(0, len(row), CHUNK)] or [[]]
    return chunks or [[]]


def prompt_length(tokenizers: Sequence[Any], text: str, most: int = CHUNKS) -> Length:
    """How long a prompt is for the encoder that makes most of it.

    Args:
        tokenizers: the model's.
        text: with its weights.
        most: chunks that count.
    """
    parts = parse_prompt(text)
    rows = [prompt_chunks(tokenizer, parts) for tokenizer in tokenizers]
    return Length(max((len(row) - 1) * CHUNK + len(row[-1]) for row in rows), most * CHUNK)


def encode_prompts(model: Model, texts: Sequence[str], most: int = CHUNKS) -> Conditioning:
    """Prompts -> what a U-Net is told of them: [B, 77 * chunks, D], as many chunks for each as the longest needs.

    With a `max_token_length` above 75 it is what training with it tells: at least so many chunks, and of all of them
    one start and one end, [B, 75 * chunks + 2, D].

    Args:
        model: whose text encoders are used, as they are at the time.
        texts: with weights; what is told of several at a time has the same length.
        most: chunks that count; the rest of a longer prompt is cut.
    """
    parts = [parse_prompt(text) for text in texts]
    rows = [[prompt_chunks(tokenizer, each)[:most] for each in parts] for tokenizer in model.tokenizers]
    trained = model.max_token_length // CHUNK
    count = max(trained, *(len(row) for per_encoder in rows for row in per_encoder))
    ids = [
        torch.tensor([[_ids(tokenizer, chunk) for chunk in _filled(row, count)] for row in per_encoder])
        for tokenizer, per_encoder in zip(model.tokenizers, rows, strict=True)
    ]
    joined = trained > 1
    shape = (len(texts), -1) if joined else (len(texts) * count, -1)
    stacked = torch.stack([each.reshape(shape) for each in ids], dim=1)
    found = model.family.encode(model, stacked if len(ids) > 1 else stacked[:, 0])
    hidden, pooled = found.hidden, found.pooled
    if not joined:
        hidden = hidden.reshape(len(texts), -1, hidden.shape[-1])
        pooled = None if pooled is None else pooled.reshape(len(texts), count, -1)[:, 0]
    widths = [encoder.config.hidden_size for encoder in model.text_encoders]
    hidden = torch.cat(
        [
            emphasise(part, _weights(per_encoder, count, joined), [width])
            for part, per_encoder, width in zip(hidden.split(widths, dim=-1), rows, widths, strict=True)
        ],
        dim=-1,
    )
    return replace(found, hidden=hidden, pooled=pooled)


def _filled(row: Sequence[Chunk], count: int) -> list[Chunk]:
    return [chunk for chunk, _ in zip_longest(row, range(count), fillvalue=())]


def _ids(tokenizer: Any, chunk: Chunk) -> list[int]:
    """A chunk's 77 numbers: start, contents, end, padding."""
    filled = [tokenizer.bos_token_id, *(token for token, _ in chunk), tokenizer.eos_token_id]
    return filled + [tokenizer.pad_token_id] * (CHUNK + 2 - len(filled))


def _weights(rows: Sequence[Sequence[Chunk]], count: int, joined: bool) -> Tensor:
    """The weight of every state, [B, T]: 1 for starts, ends and padding."""
    found = []
    for row in rows:
        chunks = [
            [*(weight for _, weight in chunk), *[1.0] * (CHUNK - len(chunk))] for chunk in _filled(row, count)
        ]
        edges = [] if joined else [1.0]
        inner = [weight for chunk in chunks for weight in (*edges, *chunk, *edges)]
        found.append([1.0, *inner, 1.0] if joined else inner)
    return torch.tensor(found)
