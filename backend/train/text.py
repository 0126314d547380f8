"""Conditioning of a batch's captions, computed once per caption where the text encoder is not trained."""

from collections import OrderedDict
from collections.abc import Sequence

import torch

from backend.families.model import Conditioning, Model

# Shuffled captions never repeat, so the memory of them has an end: 1024 of SD1's are about 0.1 GB in half precision.
REMEMBERED = 1024


class CaptionEncoder:
    """Captions to conditioning.

    Args:
        model: whose text encoders are used, as they are at the time.
        trained: gradients flow into the text encoders; nothing is remembered.
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
        ids = self.model.family.tokenize(self.model, list(captions))
        return self.model.family.encode(self.model, ids)
