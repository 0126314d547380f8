"""A command's process holds what its command needs: what libraries would import on the side stays out."""

import gc
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from backend.config.base import resolve
from backend.config.generate import GenImg
from backend.config.train import TrainNetwork
from backend.lean import OPTIONAL, out_of_sight, uncollected

PROJECT = Path(__file__).resolve().parents[1]
# None of these is for a step of training; each takes a tenth of a second or more, and some take seconds.
HEAVY = {*OPTIONAL, "torch._inductor.compile_fx", "torch.utils.tensorboard", "onnx"}
HEAVY |= {"tensorflow", "tensorboard", "jax", "flax", "pandas", "scipy", "sklearn", "matplotlib", "datasets", "numba"}
HEAVY |= {"gradio", "fastapi", "wandb", "triton", "insightface", "onnxruntime", "torchvision", "transformers.pipelines"}
AT_THE_FIRST_STEP = """
import json, sys
import backend.__main__, backend.train.progress as progress

def told(self, done):
    print("loaded:" + json.dumps(sorted(sys.modules)))
    raise SystemExit(0)

progress.Progress.step = told
backend.__main__.main(sys.argv[1:], lean=True)
"""


def test_nothing_heavy_is_loaded_by_the_first_step(tmp_path):
    options = ["--preset", "demo", "--output_dir", str(tmp_path), "--max_train_steps", "1", "--lr_warmup_steps", "0"]
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_FIRST_STEP, "train_network", *options],
        cwd=PROJECT, capture_output=True, text=True,
    )  # fmt: skip
    line = next((line for line in done.stdout.splitlines() if line.startswith("loaded:")), None)
    assert line is not None, done.stderr
    loaded = set(json.loads(line.removeprefix("loaded:")))
    assert {"torch", "diffusers", "transformers"} <= loaded
    heavy = loaded & HEAVY
    if "triton" in heavy:
        # Builds for CUDA bring it, and PyTorch's own torch._dynamo, which its optimizers import, loads it.
        alone = [sys.executable, "-c", "import sys, torch._dynamo; print('triton' in sys.modules)"]
        if subprocess.run(alone, capture_output=True, text=True, check=True).stdout.strip() == "True":
            heavy.remove("triton")
    assert sorted(heavy) == []


def test_a_package_is_out_of_sight_and_back_again(tmp_path, monkeypatch):
    (tmp_path / "loom_stand_in.py").write_text("value = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    with out_of_sight(["loom_stand_in", "json"]):
        assert importlib.util.find_spec("loom_stand_in") is None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("loom_stand_in")
        assert sys.modules["json"] is json  # what is there already stays
    assert importlib.import_module("loom_stand_in").value == 7
    with out_of_sight(["loom_stand_in"]):
        assert importlib.import_module("loom_stand_in").value == 7
    sys.modules.pop("loom_stand_in")


def test_it_comes_back_after_an_error():
    with pytest.raises(KeyError), out_of_sight(["loom_stand_in"]):
        raise KeyError
    assert "loom_stand_in" not in sys.modules


def test_garbage_is_collected_again_afterwards():
    try:
        with pytest.raises(KeyError), uncollected():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() and gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


@pytest.mark.parametrize(("given", "expected"), [({}, ()), ({"xformers": True}, ("xformers",))])
def test_what_the_options_call_for_is_in_sight(given, expected):
    training = {"pretrained_model_name_or_path": "m", "dataset_config": "d.toml", "output_dir": "o"}
    assert resolve(TrainNetwork, training | given).packages() == expected
    assert resolve(GenImg, {"ckpt": "m", "prompt": "x", "outdir": "o"} | given).packages() == expected
    assert {*expected} <= {*OPTIONAL}


def test_a_kernel_that_nothing_here_calls_is_not_complained_of():
    code = """
import logging, backend
logging.basicConfig()
logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
logger.warning("Failed to load CPU gemm_4bit_forward from %s", "a hub")
logger.warning("another thing")
import bitsandbytes
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 0 and "gemm_4bit" not in done.stdout + done.stderr and "another thing" in done.stderr
