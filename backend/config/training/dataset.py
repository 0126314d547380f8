"""Options of train_network: the dataset toml's keys as flags, for keys that it leaves out or with no toml at all.

They are made from the declarations in backend/config/dataset.py, under the names that sd-scripts gives its flags.
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from typing import Any

from pydantic import create_model, field_validator
from pydantic.fields import FieldInfo

from backend.config.dataset import SUBSET_ONLY, DatasetOptions, SubsetOptions, read_resolution
from backend.config.declare import Option, Section, section_leaves

# Keys whose flag has another name.
FLAGS: Mapping[str, str] = {"batch_size": "train_batch_size", "num_repeats": "dataset_repeats"}
# Keys whose flags stand in the run's section of validation.
VALIDATION = ("validation_split", "validation_seed")
# Keys that say something of one dataset or folder, so that there is no flag of them.
TOML_ONLY = (*SUBSET_ONLY, "class_tokens", "custom_attributes", "network_multiplier", *VALIDATION)


# Keys without which there is hardly a dataset.
BASIC = ("batch_size", "enable_bucket")


class _Flags(Section):
    """Dataset, where it leaves something out."""

    resolution: str | None = None
    """Size to train at in pixels: 512, or "width,height"; required with train_data_dir."""

    @field_validator("resolution", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return None if value is None else ",".join(str(side) for side in read_resolution(value))

    @field_validator("caption_extension", check_fields=False)
    @classmethod
    def _with_dot(cls, value: str | None) -> str | None:
        return SubsetOptions.with_dot(value)

    def keys(self) -> dict[str, Any]:
        """What differs from the defaults, by the dataset toml's keys."""
        keys = {flag: key for key, flag in FLAGS.items()}
        values = {name: (getattr(self, name), leaf.default) for name, leaf in section_leaves(type(self)).items()}
        return {keys.get(name, name): value for name, (value, default) in values.items() if value != default}


def _advanced(info: FieldInfo) -> FieldInfo:
    """The declaration of a field, as an advanced option."""
    found = copy(info)
    options = [mark for mark in info.metadata if isinstance(mark, Option)] or [Option()]
    others = [mark for mark in info.metadata if not isinstance(mark, Option)]
    found.metadata = [*others, replace(options[0], advanced=True)]
    return found


def _fields() -> dict[str, Any]:
    declared = {
        name: section.model_fields[name]
        for section in (DatasetOptions, SubsetOptions)
        for name in section_leaves(section)
    }
    left_out = (*TOML_ONLY, "resolution", "subsets")
    return {
        FLAGS.get(name, name): (info.annotation, info if name in BASIC else _advanced(info))
        for name, info in declared.items()
        if name not in left_out
    }


DatasetFlags: type[_Flags] = create_model("DatasetFlags", __base__=_Flags, __doc__=_Flags.__doc__, **_fields())
