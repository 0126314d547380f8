"""Options of train_network: where pictures come from, and what is computed once for all of them."""

from pathlib import Path
from typing import Annotated, Any

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

    cache_latents_to_disk: bool = False
    """As cache_latents, but keep the latents in a hidden folder .lora_loom_cache beside the pictures: memory stays flat
    and the next start encodes only what has changed. Delete that folder whenever you like."""

    cache_text_encoder_outputs_to_disk: Annotated[bool, ADVANCED] = False
    """As cache_text_encoder_outputs, and keep them in the same folder for the next start."""

    skip_cache_check: Annotated[bool, ADVANCED] = False
    """Trust files of the disk cache whose size and time of change are as they were written, without reading them back
    at the start."""

    masked_loss: Annotated[bool, ADVANCED] = False
    """Weigh the loss by the masks in each subset's conditioning_data_dir."""

    @model_validator(mode="before")
    @classmethod
    def _on_disk_is_cached(cls, data: Any) -> Any:
        """`..._to_disk` turns on the cache that it is about."""
        if not isinstance(data, dict):
            return data
        caches = ("cache_latents", "cache_text_encoder_outputs")
        return data | {name: True for name in caches if data.get(f"{name}_to_disk") is True}

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        others = [name for name in ("train_data_dir", "reg_data_dir", "in_json") if getattr(self, name) is not None]
        if self.dataset_config is not None and others:
            reject("dataset_config", f"cannot be set together with {others[0]}; choose one")
        if self.in_json is not None and self.reg_data_dir is not None:
            reject("reg_data_dir", "has no effect with in_json; use a dataset_config for both")
        return self

    @model_validator(mode="after")
    def _a_cache_to_check(self) -> "Data":
        if self.skip_cache_check and not (self.cache_latents_to_disk or self.cache_text_encoder_outputs_to_disk):
            message = "there is no cache on disk to check; set cache_latents_to_disk, or leave skip_cache_check out"
            reject("skip_cache_check", message)
        return self
