"""Small checkpoints in which every tensor is distinct, so that a swapped name cannot go unnoticed."""

from pathlib import Path

import pytest

from backend.families.base import Checkpoint, Model, write_folder, write_single_file
from backend.families.build import random_model
from tests.families.checkpoints import distinct


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    return distinct()


@pytest.fixture(scope="session")
def single_file(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    write_single_file(checkpoint, path)
    return path


@pytest.fixture(scope="session")
def folder(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folder") / "model"
    write_folder(checkpoint, path)
    return path


@pytest.fixture(scope="session")
def model() -> Model:
    return random_model(seed=3)
