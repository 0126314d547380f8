"""Both sides of benchmarks/train.py do the same work: equal losses from equal inputs. And the scripts run."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from backend.families.build import model_configs
from backend.train import setup
from backend.workspace import PROJECT
from benchmarks.pairs import models
from benchmarks.pairs.ours import Ours
from benchmarks.pairs.pictures import draw_pictures
from benchmarks.pairs.settings import Settings
from benchmarks.pairs.stock import Stock
from benchmarks.pairs.turns import take_turn


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Settings:
    """Tiny models, made in memory as on a GPU."""
    monkeypatch.setattr(models, "model_configs", lambda family, small: model_configs(family, True))
    monkeypatch.setattr(setup, "load_model", setup.load_model)  # Ours puts another there
    draw_pictures(tmp_path / "pictures", 4, 64)
    return Settings("sd15", 64, 2, 4, "no", False, "given", "cpu", 1, None, tmp_path, 3)


def built(kind: type, settings: Settings) -> Ours | Stock:
    AcceleratorState._reset_state(True)
    return kind(settings)


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_given_the_same_the_sides_have_the_same_losses(settings: Settings, model: str) -> None:
    settings = replace(settings, model=model, checkpointing=model == "sdxl")
    ours, stock = built(Ours, settings), built(Stock, settings)
    assert ours.size == stock.size
    ours.hand_over(settings.folder / "given.pt")
    stock.take_over(settings.folder / "given.pt")
    own, other = take_turn(ours, 3).numbers, take_turn(stock, 3).numbers
    assert own == pytest.approx(other, rel=1e-5)
    assert len(set(own)) == 3


def test_the_documented_example_encodes_pictures_and_captions_in_each_step(settings: Settings, monkeypatch) -> None:
    stock = built(Stock, replace(settings, inputs="documented"))
    seen = []
    for name in ("vae", "text_encoder"):
        module = stock._frozen[name]
        forward = module.encode if name == "vae" else module.forward
        key = "encode" if name == "vae" else "forward"

        def counted(*given: object, name: str = name, forward=forward, **more: object) -> object:
            seen.append(name)
            return forward(*given, **more)

        monkeypatch.setattr(module, key, counted)
    assert len(take_turn(stock, 2).numbers) == 2
    assert seen == ["vae", "text_encoder"] * 2


@pytest.mark.long
@pytest.mark.parametrize("script", ["train", "generate"])
def test_a_script_runs_end_to_end_and_writes_its_section(script: str, tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    words = ["--model", "demo", "--device", "cpu", "--threads", "1", "--pairs", "1", "--steps", "1"]
    words += ["--inputs", "given"] if script == "train" else ["--against", "fused"]
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{script}", *words, "--write", str(page)],
        cwd=PROJECT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not measured here: anything on a GPU" in done.stdout and "pair 1" in done.stdout
    text = page.read_text(encoding="utf-8")
    assert f"<!-- begin: {script} cpu demo -->" in text and "failed" not in text
