"""Options of train_network: where pictures come from, and what is computed once for all of them."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from backend.config.declare import Option, Section, reject

ADVANCED = Option(advanced=True)


class Data(Section):
    """Data."""

    dataset_config: Annotated[Path | None, Option(widget="dataset", alternatives=("train_data_dir", "in_json"))] = None
    """The toml file that describes the dataset: folders of pictures, resolution, batch size, repeats, captions."""

    train_data_dir: Annotated[Path | None, Option(widget="folder", advanced=True)] = None
    """Folder with folders of pictures, each named by its repeats and class tokens, such as "10_shs dog"; or with
    in_json, the folder where the paths in that file begin."""

    reg_data_dir: Annotated[Path | None, Option(widget="folder", advanced=True)] = None
    """Folder with folders of regularisation pictures, named as those of train_data_dir."""

    in_json: Annotated[Path | None, Option(widget="file", advanced=True)] = None
    """JSON file that names the pictures and their captions: path -> {"caption", "tags"}."""

    debug_dataset: Annotated[bool, ADVANCED] = False
    """Only list what would be trained, picture by picture with bucket and caption: one epoch, or max_train_epochs.
    Nothing is loaded or written."""

    weighted_captions: Annotated[bool, ADVANCED] = False
    """Read weights in captions and sample prompts: (word) and (word:1.3) count more, [word] less; brackets that are
    meant are written \\( \\) \\[ \\]."""

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

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        others = [name for name in ("train_data_dir", "reg_data_dir", "in_json") if getattr(self, name) is not None]
        if self.dataset_config is not None and others:
            reject("dataset_config", f"cannot be set together with {others[0]}; choose one")
        if self.in_json is not None and self.reg_data_dir is not None:
            reject("reg_data_dir", "has no effect with in_json; use a dataset_config for both")
        return self
