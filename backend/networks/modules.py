"""Finding the modules of a model that a network sits on. The names come from tables/names.py, not from libraries."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from backend.errors import UserError
from backend.tables.names import Target, UNetShape, text_encoder_targets, unet_targets

TextEncoders = nn.Module | Sequence[nn.Module] | None
FAMILY = "sd1"


@dataclass(frozen=True)
class FoundModule:
    """A module of a model, and what the table says about it."""

    module: nn.Module
    target: Target

    @property
    def in_text_encoder(self) -> bool:
        """Whether it is part of a text encoder and not of the U-Net."""
        return self.target.block is None


def find_modules(text_encoders: TextEncoders, unet: nn.Module | None) -> dict[str, FoundModule]:
    """Every module that a network can sit on, by its key in a LoRA file and in the order of the files.

    Args:
        text_encoders: CLIP text models of transformers, flat or with `text_model`; one, a list, or None.
        unet: a UNet2DConditionModel of diffusers, or None.

    Raises:
        UserError: the model is of a family that has no table of names.
    """
    encoders = [text_encoders] if isinstance(text_encoders, nn.Module) else list(text_encoders or ())
    if len(encoders) > 1:
        raise UserError("networks for models with two text encoders (SDXL) are not supported", field="text_encoder")
    found: dict[str, FoundModule] = {}
    for index, encoder in enumerate(encoders):
        root = _text_transformer(encoder)
        targets = text_encoder_targets(FAMILY, len(root.get_submodule("encoder.layers")), index)
        found |= _resolve(root, targets, "text_encoder")
    if unet is not None:
        unet = unwrapped(unet)
        found |= _resolve(unet, unet_targets(unet_shape(unet)), "unet")
    return found


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
        UserError: it is not built like the U-Net of Stable Diffusion 1.
    """
    try:
        if getattr(unet.config, "addition_embed_type", None) is not None:
            raise UserError("networks for SDXL are not supported", field="unet")
        blocks = list(unet.down_blocks)
        depths = tuple(_depth(block) for block in blocks)
        layers = [len(block.resnets) for block in blocks]
        middle = _depth(unet.mid_block)
    except AttributeError as error:
        message = f"is not built like the U-Net of Stable Diffusion: {error}"
        raise UserError(message, field="unet") from error
    if len(set(layers)) != 1:
        raise UserError(f"has levels of different lengths {layers}, so it is of an unknown family", field="unet")
    return UNetShape(depths, middle, layers[0])


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


def _resolve(root: nn.Module, targets: Sequence[Target], field: str) -> dict[str, FoundModule]:
    found = {}
    for target in targets:
        try:
            found[target.key] = FoundModule(root.get_submodule(target.path), target)
        except AttributeError as error:
            if not target.optional:
                raise UserError(f"has no module {target.path}, so it is of an unknown family", field=field) from error
    return found
