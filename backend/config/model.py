"""What can be said of a model beyond which one it is, in whatever command it is used."""

from typing import Annotated

from pydantic import Field

from backend.config.declare import Option, Section

ADVANCED = Option(advanced=True)


class ModelOptions(Section):
    """How a model is read"""

    revision: Annotated[str | None, ADVANCED] = None
    """Branch, tag or commit of a model on the hub."""

    v2: Annotated[bool, ADVANCED] = False
    """The model is Stable Diffusion 2. Every model is recognised without it; one that is not is refused."""

    v_parameterization: Annotated[bool, ADVANCED] = False
    """The model predicts v. Only needed where its files do not say so; those that say otherwise are refused."""

    vae: Annotated[str | None, Option(widget="model", advanced=True)] = Field(None, min_length=1)
    """VAE to use in place of the model's own: a .safetensors, .ckpt or .pt file, a Diffusers folder, or a hub name."""

    clip_skip: Annotated[int | None, ADVANCED] = Field(None, ge=1)
    """Read the text encoder's layer with this number from the end, 1 being the last. With Stable Diffusion 2, 1 is the
    layer it was made with. Stable Diffusion XL always reads the last layer but one: 1 and 2 change nothing, more is
    refused."""

    max_token_length: Annotated[int, ADVANCED] = Field(75, ge=75, le=225, multiple_of=75)
    """Tokens of a caption that count: 75, 150 or 225."""

    no_half_vae: Annotated[bool, ADVANCED] = False
    """Keep the VAE in float32. It always is here, so this changes nothing."""
