"""Tiny drawn pictures, and datasets made of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.config.dataset import DatasetConfig
from backend.data.dataset import TrainingSet


@pytest.fixture
def draw(tmp_path) -> Callable[..., Path]:
    """draw("folder/name.png", (width, height), caption, value): left half of grey `value`, right half white."""

    def draw_one(name: str, size: tuple[int, int] = (64, 64), caption: str | None = None, value: int = 0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((size[1], size[0], 3), 255, np.uint8)
        pixels[:, : size[0] // 2] = value
        Image.fromarray(pixels).save(path)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    return draw_one


@pytest.fixture
def scan(tmp_path, monkeypatch) -> Callable[[str], TrainingSet]:
    """Scan a dataset toml whose image_dir are relative to tmp_path."""
    monkeypatch.chdir(tmp_path)

    def scan_toml(text: str) -> TrainingSet:
        path = tmp_path / "dataset.toml"
        path.write_text(text, encoding="utf-8")
        return TrainingSet.scan(DatasetConfig.load(path))

    return scan_toml
