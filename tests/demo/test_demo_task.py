"""The demo model on a shell: it follows prompts and survives other layouts. For its LoRA see ui/test_end_to_end.py."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from backend.demo import evaluate
from backend.families.base import load_model
from backend.generate.pipeline import GenerationModel
from backend.generate.prompts import Request

PROJECT = Path(__file__).resolve().parents[2]


def backend(*arguments: str) -> subprocess.CompletedProcess:
    """`python -m ...` from the project's root, as a user would."""
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False, timeout=1200
    )


def test_base_model_follows_prompts_it_has_never_seen() -> None:
    hot = GenerationModel(load_model(str(PROJECT / evaluate.MODEL)), "cpu", torch.float32)
    rates = evaluate.evaluate_base(hot, Request("", steps=20, scale=7.5, seed=1000), count=32)
    assert rates["background"] >= 0.95
    assert rates["colour"] >= 0.90
    assert rates["shape"] >= 0.85
    assert rates["eyes"] >= 0.80
    assert rates["affected"] <= 0.05
    assert rates["vae_psnr"] >= 28


def test_demo_model_survives_the_single_file_layout(tmp_path: Path) -> None:
    """Converted to a checkpoint and loaded back, it draws the same picture."""
    single = tmp_path / "demo.safetensors"
    done = backend("backend", "convert_diffusers20_original_sd", evaluate.MODEL, str(single))
    assert done.returncode == 0, done.stderr
    request = Request("", steps=10, scale=4.0, seed=3)
    drawn = []
    for source in (evaluate.MODEL, str(single)):
        hot = GenerationModel(load_model(source), "cpu", torch.float32)
        hot_request = evaluate.resolve(request, hot.model)
        latents = evaluate.denoise(hot.model, hot_request, [3], prompts=["a round red monster"])
        drawn.append(evaluate.decode(hot.model, latents))
    assert (drawn[0] - drawn[1]).abs().max() <= 1e-4
    assert drawn[0].std() > 0.1


def test_evaluation_refuses_a_missing_file_in_one_line(tmp_path: Path) -> None:
    done = backend("backend.demo.evaluate", "--lora", str(tmp_path / "none.safetensors"))
    assert done.returncode == 2
    assert "none.safetensors" in done.stderr
    assert "Traceback" not in done.stderr


def test_rates_count_what_was_asked_for() -> None:
    monsters = evaluate.held_out_monsters(8, "test")
    drawn = [np.asarray(evaluate.draw(monster)) for monster in monsters]
    readings = [evaluate.read(picture) for picture in drawn]
    assert evaluate.followed(readings, monsters) == {"background": 1, "colour": 1, "shape": 1, "eyes": 1}
    shifted = monsters[1:] + monsters[:1]
    assert min(evaluate.followed(readings, shifted).values()) < 1
