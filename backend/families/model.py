"""The values that families deal in: a checkpoint as tensors, a model as modules, and what a family is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from backend.families.added_tokens import AddedTokens

# Height and width of the original picture, top and left of its crop, height and width in training; in pixels.
Sizes = tuple[int, int, int, int, int, int]


@dataclass(frozen=True)
class Conditioning:
    """What a U-Net is told about its captions.

    Args:
        hidden: [B, T, D], states of the text encoder(s).
        pooled: [B, P], one vector per caption, for the families that use it.
        extra: further inputs by name, each with the batch in front (sizes and crops of SDXL).
    """

    hidden: Tensor
    pooled: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        pooled = None if self.pooled is None else change(self.pooled)
        return type(self)(change(self.hidden), pooled, {name: change(value) for name, value in self.extra.items()})

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """All tensors moved or cast as `Tensor.to` does."""
        return self._map(lambda value: value.to(*args, **kwargs))

    def repeat(self, count: int) -> Self:
        """Each caption `count` times in a row: [B, ...] -> [B * count, ...]."""
        return self._map(lambda value: value.repeat_interleave(count, dim=0))

    def __getitem__(self, index: slice | Tensor) -> Self:
        """The conditioning of some captions of the batch."""
        return self._map(lambda value: value[index])

    @classmethod
    def cat(cls, items: Sequence[Self]) -> Self:
        """Several batches as one; they must have the same parts."""
        first = items[0]
        pooled = None if first.pooled is None else torch.cat([item.pooled for item in items])
        extra = {name: torch.cat([item.extra[name] for item in items]) for name in first.extra}
        return cls(torch.cat([item.hidden for item in items]), pooled, extra)


@dataclass
class Part:
    """One network of a checkpoint: its configuration and its tensors, both in Diffusers' names.

    Text encoders' tensors are named as in CLIP's text transformer, without `text_model.` in front.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]


@dataclass
class Checkpoint:
    """A model as it lies on the disk: parts named as in a Diffusers folder, and the scheduler's configuration.

    Args:
        prediction_stated: the source itself says what the model predicts; else the scheduler's entry is a guess.
        added_tokens: words beyond CLIP's vocabulary, by the name of their tokenizer's folder.
        notes: lines for the user to read, about what is not as the source says.
    """

    family: str
    parts: dict[str, Part]
    scheduler: dict[str, Any]
    source: str
    prediction_stated: bool = True
    added_tokens: dict[str, AddedTokens] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass
class Model:
    """A model as modules, frozen and in evaluation mode when it has been loaded.

    Args:
        scheduler: a Diffusers scheduler configuration, with betas and `prediction_type`.
        source: where it was loaded from, as the user wrote it.
        clip_skip: which layer of the text encoder is read, counted from the last, 1; None is the family's own.
        max_token_length: tokens of a caption that count, 75, 150 or 225.
        weighted_captions: brackets in captions say how much their words count.
        notes: lines for the user to read, about what had to be guessed.
    """

    family: "Family"
    unet: nn.Module
    text_encoders: list[nn.Module]
    tokenizers: list[Any]
    vae: nn.Module
    scheduler: dict[str, Any]
    source: str = ""
    clip_skip: int | None = None
    max_token_length: int = 75
    weighted_captions: bool = False
    notes: tuple[str, ...] = ()

    @property
    def predicts_v(self) -> bool:
        """Whether it predicts v instead of the noise."""
        return self.scheduler.get("prediction_type") == "v_prediction"

    def modules(self) -> list[nn.Module]:
        """All networks: U-Net, VAE, text encoders."""
        return [self.unet, self.vae, *self.text_encoders]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move and cast every network in place; returns the model itself."""
        for module in self.modules():
            module.to(device=device, dtype=dtype)
        return self

    @property
    def device(self) -> torch.device:
        """Where the U-Net's weights are."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the U-Net's weights."""
        return next(self.unet.parameters()).dtype

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent along an edge (8 for Stable Diffusion)."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent (4 for Stable Diffusion)."""
        return self.vae.config.latent_channels

    @property
    def resolution(self) -> int:
        """The edge in pixels that the U-Net was trained for, as far as its configuration tells."""
        return self.unet.config.sample_size * self.vae_scale_factor


@dataclass(frozen=True)
class Family:
    """What sets a family of models apart: names for metadata, and functions that run a model of it.

    Args:
        name: key in the table of families and of LoRA key names.
        title: as shown to people.
        base_model_versions: value of `ss_base_model_version` for epsilon and for v-prediction.
        architectures: value of `modelspec.architecture` of a checkpoint for epsilon and for v-prediction.
        implementation: value of `modelspec.implementation` of a LoRA.
        resolution: usual edge of a picture in pixels.
        parts: the networks by the name of their folder in a Diffusers checkpoint, with the library and class that
            `model_index.json` names: the U-Net, the VAE, then the text encoders in order.
        pipeline: class of the Diffusers pipeline.
        config: () -> the family's own configurations by part, and `scheduler`: what a source leaves unsaid.
        tokenize: (model, captions) -> ids for `encode`, the batch in front: [B, 77 * chunks], and [B, 2, 77 * chunks]
            where there are two text encoders; captions are texts or `Weighted` ones. There is one chunk for each 75
            tokens of the model's `max_token_length`.
        encode: (model, ids) -> Conditioning; differentiable, so that text encoders can be trained.
        with_sizes: (conditioning, sizes) -> Conditioning that also says, for each caption, (height, width) of the
            original picture, (top, left) of its crop and (height, width) that it has now. Families that are not told
            give the conditioning back as it is.
        predict: (model, noisy [B, C, H, W], timesteps [B], conditioning) -> the U-Net's output, shaped like noisy.
        encode_images: (model, pixels [B, 3, H, W] in [-1, 1], generator=None) -> latents, scaled. Without a generator
            the posterior's mode, with one (or one per picture) a sample. Without gradients.
        decode_latents: (model, latents) -> pixels, about [-1, 1], not clamped. Without gradients.
        read_original: (tensors, metadata, source, own_vae=True) -> Checkpoint, from the original single-file layout;
            without `own_vae` its VAE is left out.
        write_original: (checkpoint) -> tensors and metadata of the original single-file layout.
        build: (part name, configuration) -> module; on the meta device when called under it.
        tokenizers: () -> one tokenizer per text encoder.
        clip_skips: the only values of `clip_skip` that can be asked for; empty where all layers can.
    """

    name: str
    title: str
    base_model_versions: tuple[str, str]
    architectures: tuple[str, str]
    implementation: str
    resolution: int
    parts: Mapping[str, tuple[str, str]]
    pipeline: str
    config: Callable[[], dict[str, dict[str, Any]]]
    tokenize: Callable[[Model, Sequence[str]], Tensor]
    encode: Callable[[Model, Tensor], Conditioning]
    with_sizes: Callable[[Conditioning, Sequence[Sizes]], Conditioning]
    predict: Callable[[Model, Tensor, Tensor, Conditioning], Tensor]
    encode_images: Callable[..., Tensor]
    decode_latents: Callable[[Model, Tensor], Tensor]
    read_original: Callable[..., Checkpoint]
    write_original: Callable[[Checkpoint], tuple[dict[str, Tensor], dict[str, str]]]
    build: Callable[[str, Mapping[str, Any]], nn.Module]
    tokenizers: Callable[[], list[Any]]
    clip_skips: tuple[int, ...] = ()

    @property
    def v2(self) -> bool:
        """Value of `ss_v2`: whether it is Stable Diffusion 2."""
        return self.name == "sd2"

    def base_model_version(self, predicts_v: bool) -> str:
        """Value of `ss_base_model_version`."""
        return self.base_model_versions[predicts_v]

    def architecture(self, predicts_v: bool) -> str:
        """Value of `modelspec.architecture` of a checkpoint."""
        return self.architectures[predicts_v]


def tokenizer_names(family: Family) -> list[str]:
    """The names of the tokenizers' folders, in the order of the text encoders."""
    return [name.replace("text_encoder", "tokenizer") for name in family.parts if name.startswith("text_encoder")]
