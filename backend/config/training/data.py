"""Options of train_network: where pictures come from, and what is computed once for all of them."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from backend.config.declare import Option, Section

ADVANCED = Option(advanced=True)


class Data(Section):
    """Data."""

    dataset_config: Annotated[Path, Option(widget="dataset")]
    """The toml file that describes the dataset: folders of pictures, resolution, batch size, repeats, captions."""

    cache_latents: bool = False
    """Encode every picture once before training and keep the latents in memory: faster, and the VAE leaves the GPU."""

    vae_batch_size: Annotated[int, ADVANCED] = Field(1, ge=1)
    """How many pictures the VAE encodes at a time when latents are cached."""

    cache_text_encoder_outputs: bool = False
    """Encode every caption once before training and drop the text encoders from memory. Needs network_train_unet_only,
    and captions that are not shuffled or dropped."""

    prior_loss_weight: float = Field(1.0, ge=0)
    """Weight of the loss of regularisation pictures."""

    max_data_loader_n_workers: Annotated[int | None, ADVANCED] = Field(None, ge=0)
    """Processes that load pictures; left out, the smaller of 8 and the number of CPU threads less one."""

    persistent_data_loader_workers: Annotated[bool, ADVANCED] = False
    """Keep the loading processes from epoch to epoch instead of starting them again."""
