"""Conditioning of a batch's captions, computed once per caption where the text encoder is not trained."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from backend.families.clip_text import encode_texts
from backend.families.model import Conditioning, Model

# Shuffled captions never repeat, so the memory of them has an end: 1024 of SD1's are about 0.1 GB in half precision.
REMEMBERED = 1024
# Captions that are encoded together before training.
BATCH = 8


class CaptionEncoder:
    """Captions to conditioning.

    Args:
        model: whose text encoders are used, as they are at the time.
        trained: gradients may flow into the text encoders, and what they say changes; nothing is remembered.
    """

    def __init__(self, model: Model, trained: bool) -> None:
        self.model = model
        self.trained = trained
        self._known: OrderedDict[str, Conditioning] = OrderedDict()

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """The conditioning of the captions, in their order."""
        if self.trained:
            return self._encode(captions)
        missing = [caption for caption in dict.fromkeys(captions) if caption not in self._known]
        if missing:
            with torch.no_grad():
                encoded = self._encode(missing)
            for index, caption in enumerate(missing):
                self._known[caption] = encoded[index : index + 1]
        found = Conditioning.cat([self._known[caption] for caption in captions])
        for caption in captions:
            self._known.move_to_end(caption)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return found

    def _encode(self, captions: Sequence[str]) -> Conditioning:
        return encode_texts(self.model, list(captions))


class KnownCaptions:
    """Captions to conditioning where all of them were encoded before; needs no text encoder.

    Args:
        known: each caption's conditioning, batch 1, on the CPU.
        device: where it is wanted.
    """

    def __init__(self, known: Mapping[str, Conditioning], device: torch.device) -> None:
        self._known = known
        self._device = device

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """The conditioning of the captions, in their order."""
        return Conditioning.cat([self._known[caption] for caption in captions]).to(self._device)


@torch.no_grad()
def encode_all(
    model: Model,
    captions: Iterable[str],
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> KnownCaptions:
    """Encode every caption once.

    Args:
        model: whose text encoders are used; they are not needed afterwards.
        captions: all that will be asked for; each is encoded once however often it comes.
        device: where their conditioning will be wanted; it is kept on the CPU.
        progress: told (captions done, captions in all).
    """
    texts = list(dict.fromkeys(captions))
    known: dict[str, Conditioning] = {}
    for start in range(0, len(texts), BATCH):
        group = texts[start : start + BATCH]
        encoded = encode_texts(model, group)
        for index, text in enumerate(group):
            # A copy, so that no caption holds the memory of its whole batch.
            known[text] = encoded[index : index + 1].to("cpu", copy=True)
        if progress:
            progress(len(known), len(texts))
    return KnownCaptions(known, device)
