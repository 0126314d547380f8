"""Conditioning of a batch's captions, computed once per caption where the text encoder is not trained."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch

from backend.data.store import CacheFolder, identity, key
from backend.families.clip_text import encode_texts
from backend.families.model import Conditioning, Model
from backend.families.tokenizer import added_to

# Shuffled captions never repeat, so the memory of them has an end: 1024 of SD1's are about 0.1 GB in half precision.
REMEMBERED = 1024
# Captions that are encoded together before training.
BATCH = 8
# Entries of a text encoder's configuration that say who wrote it.
WRITTEN_BY = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")


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
            # One by one: what is remembered must not hang on which captions came together, or a run that is resumed,
            # which remembers nothing, would differ in the last digits.
            with torch.no_grad():
                self._known.update({caption: self._encode([caption]) for caption in missing})
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


class StoredCaptions(Mapping[str, Conditioning]):
    """Captions' conditioning on the disk.

    Args:
        folder: where.
        encoder: whose it is; see `encoder_identity`.
        texts: the captions that are there.
    """

    def __init__(self, folder: CacheFolder, encoder: str, texts: Iterable[str] = ()) -> None:
        self._folder = folder
        self._encoder = encoder
        self._texts = dict.fromkeys(texts)

    def name(self, text: str) -> str:
        """The name that a caption's conditioning has in the folder."""
        return key("captions", self._encoder, text)

    def keep(self, text: str, conditioning: Conditioning) -> None:
        """Write a caption's conditioning."""
        pooled = {} if conditioning.pooled is None else {"pooled": conditioning.pooled}
        self._folder.write(self.name(text), {"hidden": conditioning.hidden, **pooled})
        self._texts[text] = None

    def __getitem__(self, text: str) -> Conditioning:
        if text not in self._texts:
            raise KeyError(text)
        tensors = self._folder.read(self.name(text))
        return Conditioning(tensors["hidden"], tensors.get("pooled"))

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)


def encoder_identity(model: Model, device: torch.device) -> str:
    """A hash of all that the conditioning of a caption depends on but the caption: encoders, layer, length, precision.

    Args:
        model: whose text encoders are used.
        device: where they compute; autocast there counts.
    """
    autocast = str(torch.get_autocast_dtype(device.type)) if torch.is_autocast_enabled(device.type) else None
    told = {
        "family": model.family.name,
        "clip_skip": model.clip_skip,
        "max_token_length": model.max_token_length,
        "weighted": model.weighted_captions,
        "autocast": autocast,
        "encoders": [
            {name: value for name, value in encoder.config.to_dict().items() if name not in WRITTEN_BY}
            for encoder in model.text_encoders
        ],
    }
    added = [
        sorted((number, token.content) for number, token in added_to(tokenizer).items())
        for tokenizer in model.tokenizers
    ]
    # Only where there are any, so that what earlier runs have kept stays known.
    return identity(model.text_encoders, told | ({"added tokens": added} if any(added) else {}))


def stored_captions(
    model: Model, captions: Iterable[str], device: torch.device, folder: CacheFolder, trust: bool
) -> StoredCaptions:
    """Those of the captions whose conditioning an earlier run has kept in a folder."""
    encoder = encoder_identity(model, device)
    names = StoredCaptions(folder, encoder)
    return StoredCaptions(folder, encoder, [text for text in captions if folder.has(names.name(text), trust)])


@torch.no_grad()
def encode_all(
    model: Model,
    captions: Iterable[str],
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
    stored: StoredCaptions | None = None,
) -> KnownCaptions:
    """Encode every caption once.

    Args:
        model: whose text encoders are used; they are not needed afterwards.
        captions: all that will be asked for; each is encoded once however often it comes.
        device: where their conditioning will be wanted; it is kept on the CPU.
        progress: told (captions done, captions in all).
        stored: what earlier runs have kept on the disk, where new ones go too; left out, all are kept in memory.
    """
    texts = list(dict.fromkeys(captions))
    known: dict[str, Conditioning] = {}
    missing = [text for text in texts if stored is None or text not in stored]
    if progress:
        progress(len(texts) - len(missing), len(texts))
    for start in range(0, len(missing), BATCH):
        group = missing[start : start + BATCH]
        encoded = encode_texts(model, group)
        for index, text in enumerate(group):
            # A copy, so that no caption holds the memory of its whole batch.
            one = encoded[index : index + 1].to("cpu", copy=True)
            if stored is None:
                known[text] = one
            else:
                stored.keep(text, one)
        if progress:
            progress(len(texts) - len(missing) + start + len(group), len(texts))
    return KnownCaptions(known if stored is None else stored, device)
