"""Finding the modules of a model that a network sits on. The names come from tables/names.py, not from libraries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from backend.errors import UserError
from backend.tables.names import (
    TEXT_ENCODERS,
    Target,
    UNetShape,
    further_text_targets,
    further_unet_targets,
    text_encoder_targets,
    unet_targets,
)

TextEncoders = nn.Module | Sequence[nn.Module] | None


@dataclass(frozen=True)
class FoundModule:
    """A module of a model, and what the table says about it.

    Attributes:
        encoder: number of the text encoder that it is part of, from 0; None for the U-Net.
    """

    module: nn.Module
    target: Target
    encoder: int | None = None

    @property
    def in_text_encoder(self) -> bool:
        """Whether it is part of a text encoder and not of the U-Net."""
        return self.encoder is not None


def find_modules(text_encoders: TextEncoders, unet: nn.Module | None) -> dict[str, FoundModule]:
    """Every module that a network can sit on, by its key in a LoRA file and in the order of the files.

    Args:
        text_encoders: CLIP text models of transformers, flat or with `text_model`; one, a list, or None.
        unet: a UNet2DConditionModel of diffusers, or None.

    Raises:
        UserError: the model is of a family that has no table of names.
    """
    encoders = as_list(text_encoders)
    shape = None if unet is None else unet_shape(unet)
    family = _names_of(encoders, shape)
    if len(encoders) > TEXT_ENCODERS[family] or (shape is not None and not shape.xl and len(encoders) > 1):
        raise UserError(f"{len(encoders)} are too many for this U-Net", field="text_encoder")
    found: dict[str, FoundModule] = {}
    for index, encoder in enumerate(encoders):
        root = _text_transformer(encoder)
        targets = text_encoder_targets(family, len(root.get_submodule("encoder.layers")), index)
        found |= _resolve(root, targets, "text_encoder", index)
    if shape is not None:
        found |= _resolve(unwrapped(unet), unet_targets(shape), "unet")
    return found


def find_places(text_encoders: TextEncoders, unet: nn.Module | None) -> dict[str, FoundModule]:
    """Every module that a LoRA file can hold a layer for: those of `find_modules`, and those at the model's ends.

    Args, Raises: as of `find_modules`.
    """
    found = find_modules(text_encoders, unet)
    encoders = as_list(text_encoders)
    shape = None if unet is None else unet_shape(unet)
    for index, encoder in enumerate(encoders):
        targets = further_text_targets(_names_of(encoders, shape), index)
        found |= _resolve(unwrapped(encoder), _present(unwrapped(encoder), targets), "text_encoder", index)
    if shape is not None:
        found |= _resolve(unwrapped(unet), _present(unwrapped(unet), further_unet_targets(shape)), "unet")
    return found


def _names_of(encoders: Sequence[nn.Module], shape: UNetShape | None) -> str:
    """The family whose names a model's modules have; SD1 and SD2 have the same."""
    return "sdxl" if len(encoders) > 1 or (shape is not None and shape.xl) else "sd1"


def _present(root: nn.Module, targets: Sequence[Target]) -> list[Target]:
    """Those of the places that a model has."""
    names = {name for name, _ in root.named_modules()}
    return [target for target in targets if target.path in names]


def shapes_of(found: Mapping[str, FoundModule]) -> dict[str, tuple[int, int]]:
    """Outputs and inputs, times the kernel's size, of the modules' weights."""
    weights = {key: where.module.weight for key, where in found.items()}
    return {key: (weight.shape[0], weight[0].numel()) for key, weight in weights.items()}


def as_list(text_encoders: TextEncoders) -> list[nn.Module]:
    """The text encoders of a model, given as one, several or none."""
    if text_encoders is None:
        return []
    # A ModuleList is both a module and a sequence.
    single = isinstance(text_encoders, nn.Module) and not isinstance(text_encoders, nn.ModuleList)
    return [text_encoders] if single else list(text_encoders)


def unwrapped(module: nn.Module) -> nn.Module:
    """The model inside wrappers for several devices (`.module`) and of `torch.compile` (`._orig_mod`)."""
    for wrapper in ("_orig_mod", "module"):
        inner = getattr(module, wrapper, None)
        if isinstance(inner, nn.Module):
            return unwrapped(inner)
    return module


def unet_shape(unet: nn.Module) -> UNetShape:
    """The shape of a U-Net, from the number of its modules.

    Raises:
        UserError: it is not built like the U-Net of Stable Diffusion.
    """
    unet = unwrapped(unet)
    try:
        # What sets SDXL's apart is that it is told sizes and a pooled caption.
        xl = getattr(unet.config, "addition_embed_type", None) == "text_time"
        blocks = list(unet.down_blocks)
        depths = tuple(_depth(block) for block in blocks)
        layers = [len(block.resnets) for block in blocks]
        middle = _depth(unet.mid_block)
    except AttributeError as error:
        message = f"is not built like the U-Net of Stable Diffusion: {error}"
        raise UserError(message, field="unet") from error
    if len(set(layers)) != 1:
        raise UserError(f"has levels of different lengths {layers}, so it is of an unknown family", field="unet")
    return UNetShape(depths, middle, layers[0], xl)


def _depth(block: nn.Module) -> int:
    """Transformer blocks in each attention of a block; 0 where there is none."""
    attentions = getattr(block, "attentions", None)
    return len(attentions[0].transformer_blocks) if attentions else 0


def _text_transformer(encoder: nn.Module) -> nn.Module:
    """The module that the table's paths start from: transformers 5 has CLIPTextModel flat, others have `text_model`."""
    encoder = unwrapped(encoder)
    root = getattr(encoder, "text_model", encoder)
    if not hasattr(root, "encoder") or not hasattr(root.encoder, "layers"):
        raise UserError(f"{type(encoder).__name__} is not built like CLIP's text model", field="text_encoder")
    return root


def _resolve(
    root: nn.Module, targets: Sequence[Target], field: str, encoder: int | None = None
) -> dict[str, FoundModule]:
    found = {}
    for target in targets:
        try:
            found[target.key] = FoundModule(root.get_submodule(target.path), target, encoder)
        except AttributeError as error:
            if not target.optional:
                raise UserError(f"has no module {target.path}, so it is of an unknown family", field=field) from error
    return found
