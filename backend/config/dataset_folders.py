"""The dataset of a training run: a dataset toml, or what the command line says in its place."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backend.config.dataset import DatasetConfig
from backend.config.training.data import Data
from backend.errors import UserError
from backend.picture_folder import beside_folders, readable, told

FOLDER = re.compile(r"(\d+)(?:_(.*))?")  # "10_shs dog": repeats and class tokens
NAMING = 'named by its repeats and class tokens, such as "10_shs dog"'


def dataset_of(data: Data, flags: Mapping[str, Any]) -> DatasetConfig:
    """The dataset that a run is to be trained on.

    Args:
        data: names its source: `dataset_config`, `in_json` or `train_data_dir`.
        flags: values for keys that the source leaves out, by the dataset toml's keys.

    Raises:
        UserError: a file or folder is missing, or holds nothing that can be used.
        ConfigError: with every wrong key and value, and the table it stands in.
    """
    if data.dataset_config is not None:
        return DatasetConfig.load(data.dataset_config, flags)
    warnings: list[str] = []
    if data.in_json is not None:
        subset = {"metadata_file": str(data.in_json)}
        if data.train_data_dir is not None:
            subset["image_dir"] = str(data.train_data_dir)
        subsets, source = [subset], "in_json"
    else:
        source = "train_data_dir"
        subsets = numbered_folders(data.train_data_dir, source, False, warnings)
        if data.reg_data_dir is not None:
            subsets += numbered_folders(data.reg_data_dir, "reg_data_dir", True, warnings)
    found = DatasetConfig.from_tables({"datasets": [{"subsets": subsets}]}, source, flags)
    return DatasetConfig(found.datasets, in_folders=True, warnings=tuple(warnings))


def numbered_folders(folder: Path, option: str, is_reg: bool, warnings: list[str]) -> list[dict[str, Any]]:
    """The subsets that the folders within a folder make, in order of their names.

    Args:
        folder: whose folders are read; hidden ones are not.
        option: that names it, for messages.
        is_reg: whether they hold regularisation pictures.
        warnings: takes one line for every folder that is left out.

    Raises:
        UserError: there is no such folder, or no folder in it with such a name.
    """
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}", option) from error
    except ValueError as error:
        raise UserError(f"{str(folder)!r} is no name of a folder", option) from error
    subsets: list[dict[str, Any]] = []
    for path in (entry for entry in entries if entry.is_dir()):
        named = FOLDER.fullmatch(path.name)
        if named is None or not int(named[1]):
            reason = "its name does not begin with the number of repeats, as in 10_shs dog"
            if named is not None:
                reason = "its name says 0 repeats"
            warnings.append(f"{readable(path)} is left out: {reason}")
            continue
        subset = {"image_dir": str(path), "num_repeats": int(named[1]), "is_reg": is_reg}
        tokens = named[2] or ""
        if tokens.encode("utf-8", "replace").decode("utf-8") != tokens:
            warnings.append(f"{path} has no class tokens: its name is no UTF-8; rename the folder if they are needed")
            tokens = ""
        subsets.append(subset | ({"class_tokens": tokens} if tokens else {}))
    if not subsets:
        files = " Its files belong in such a folder." if any(entry.is_file() for entry in entries) else ""
        raise UserError(f"{readable(folder)} has no folder {NAMING}.{files}", option)
    warnings += told(beside_folders(folder))
    return subsets
