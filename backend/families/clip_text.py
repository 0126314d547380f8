"""Captions through CLIP's text encoders: ids in chunks of 75 tokens, states of a chosen layer, chunks joined again."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from backend.families.emphasis import Weighted, emphasise, parse_weights
from backend.families.model import Conditioning, Model
from backend.families.tokenizer import MAX_TOKENS, text_tokens

CHUNK = MAX_TOKENS - 2  # each chunk has a start and an end of its own


def encode_texts(model: Model, texts: Sequence[str]) -> Conditioning:
    """Texts -> what a U-Net is told of them; with `weighted_captions` their brackets are read and obeyed."""
    if not model.weighted_captions:
        return model.family.encode(model, model.family.tokenize(model, texts))
    weighted = [parse_weights(text) for text in texts]
    found = model.family.encode(model, model.family.tokenize(model, weighted))
    weights = token_weights(model.tokenizers[0], weighted, model.max_token_length)
    widths = [encoder.config.hidden_size for encoder in model.text_encoders]
    return replace(found, hidden=emphasise(found.hidden, weights, widths))


def caption_tokens(tokenizer: Any, captions: Sequence[str | Weighted], length: int) -> list[list[int]]:
    """Each caption's tokens without start and end, at most `length`; pieces of different weight are read one by one."""
    if not any(isinstance(caption, Weighted) for caption in captions):
        return text_tokens(tokenizer, list(captions), length)
    return [[token for token, _ in weighed(tokenizer, caption)][:length] for caption in captions]


def token_weights(tokenizer: Any, captions: Sequence[Weighted], length: int) -> Tensor:
    """The weight of every state of `joined`, [B, length + 2]: 1 for start, end and padding."""
    rows = [[weight for _, weight in weighed(tokenizer, caption)][:length] for caption in captions]
    return torch.tensor([[1.0, *row, *[1.0] * (length - len(row) + 1)] for row in rows])


def weighed(tokenizer: Any, caption: Weighted) -> list[tuple[int, float]]:
    """A caption's tokens, each with its weight."""
    return [
        (token, weight)
        for text, weight in caption.pieces
        for token in text_tokens(tokenizer, [text])[0]
    ]


def token_ids(tokenizer: Any, captions: Sequence[str | Weighted], length: int = CHUNK) -> Tensor:
    """Captions -> ids [B, 77 * chunks]: each chunk is start, up to 75 tokens, end, padding.

    Args:
        tokenizer: CLIP's.
        length: tokens that count, 75, 150 or 225; longer captions are cut, and the chunks of shorter ones are empty.
    """
    texts = caption_tokens(tokenizer, captions, length)
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = []
    for tokens in texts:
        row: list[int] = []
        for first in range(0, length, CHUNK):
            chunk = [start, *tokens[first : first + CHUNK], end]
            row += chunk + [pad] * (MAX_TOKENS - len(chunk))
        rows.append(row)
    return torch.tensor(rows)


def in_chunks(ids: Tensor, encoder: nn.Module) -> Tensor:
    """Ids [B, 77 * chunks] -> [B * chunks, 77], where the encoder is."""
    return ids.to(next(encoder.parameters()).device).reshape(-1, MAX_TOKENS)


def joined(states: Tensor, batch: int) -> Tensor:
    """States [B * chunks, 77, D] -> [B, 75 * chunks + 2, D]: the first chunk's start, all contents, the last's end."""
    if len(states) == batch:
        return states
    chunks = states.reshape(batch, -1, *states.shape[1:])
    return torch.cat([chunks[:, 0, :1], chunks[:, :, 1:-1].flatten(1, 2), chunks[:, -1, -1:]], dim=1)


def text_transformer(encoder: nn.Module) -> nn.Module:
    """The encoder without its projection: transformers 5 has CLIPTextModel flat and others with `text_model`."""
    return getattr(encoder, "text_model", encoder)
