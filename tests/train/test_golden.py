"""The demo preset's first losses on the demo model, as they were when the model was made.

A change that is not meant to change results leaves these numbers alone. A new demo model, dataset or preset brings new
ones: take them from the failure's message.
"""

from pathlib import Path

import pytest

from backend.config.base import read_toml, resolve
from backend.config.train import TrainNetwork
from backend.train.loop import train
from backend.train.setup import prepare

ROOT = Path(__file__).parents[2]
LOSSES = [0.27174, 0.16729, 0.043554]


def test_the_demo_preset_starts_with_the_losses_written_here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    preset = read_toml(TrainNetwork, "presets/train_network/demo.toml")
    config = resolve(TrainNetwork, preset, {"output_dir": str(tmp_path), "max_train_steps": 60, "seed": 1})
    prepared = prepare(config)
    prepared.total_steps, prepared.epochs = len(LOSSES), 1
    assert train(prepared).losses == pytest.approx(LOSSES, rel=1e-3)
