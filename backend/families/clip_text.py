"""Captions through CLIP's text encoders: ids in chunks of 75 tokens, states of a chosen layer, chunks joined again."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backend.families.tokenizer import MAX_TOKENS

CHUNK = MAX_TOKENS - 2  # each chunk has a start and an end of its own


def token_ids(tokenizer: Any, captions: Sequence[str], length: int = CHUNK) -> Tensor:
    """Captions -> ids [B, 77 * chunks]: each chunk is start, up to 75 tokens, end, padding.

    Args:
        tokenizer: CLIP's.
        length: tokens that count, 75, 150 or 225; longer captions are cut, and the chunks of shorter ones are empty.
    """
    texts = tokenizer(list(captions), add_special_tokens=False, truncation=True, max_length=length).input_ids
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
