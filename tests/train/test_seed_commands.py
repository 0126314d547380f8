"""The documents' command lines of `train_network`, as they are written: what each trains is read from its file."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tomlkit

from backend.__main__ import main
from backend.lora.file import LoraFile, read_lora
from backend.lora.layer import LoraLayer
from backend.lora.places import block_of
from backend.train import loop

ROOT = Path(__file__).parents[2]
DOCUMENTED = (
    "--save_model_as=safetensors --prior_loss_weight=1.0 --max_train_steps={steps} --learning_rate=1e-4 "
    '--optimizer_type="AdamW8bit" --xformers --mixed_precision="fp16" --cache_latents --gradient_checkpointing '
    "--save_every_n_epochs=1 --network_module=networks.lora"
)
DIMS = "2,4,4,4,8,8,8,8,12,12,12,12,16,12,12,12,12,8,8,8,8,4,4,4,2"
CONV = "2,2,2,2,4,4,4,4,6,6,6,6,8,6,6,6,6,4,4,4,4,2,2,2,2"
DOWN = "0.5,0.5,0.5,0.5,1.0,1.0,1.0,1.0,1.5,1.5,1.5,1.5"
UP = "1.5,1.5,1.5,1.5,1.0,1.0,1.0,1.0,0.5,0.5,0.5,0.5"


@pytest.fixture
def words(model_folder, dataset, tmp_path) -> Callable[[str, int], list[str]]:
    """words(line, steps): the documents' first command line, with a further line at its end, as words of a shell."""

    def make(further: str = "", steps: int = 1) -> list[str]:
        places = f"--pretrained_model_name_or_path={model_folder} --dataset_config={dataset(2, batch_size=1)} "
        places += f"--output_dir={tmp_path / 'out'} --output_name=last "
        return shlex.split(places + DOCUMENTED.format(steps=steps) + " " + further)

    return make


@pytest.fixture
def trained(words, tmp_path) -> Callable[[str], LoraFile]:
    """trained(line): the file that a run of the command line leaves."""

    def make(further: str) -> LoraFile:
        assert main(["train_network", *words(further)]) == 0
        return read_lora(tmp_path / "out" / "last.safetensors")

    return make


def is_conv(layer: LoraLayer) -> bool:
    return layer.down.dim() == 4 and layer.down.shape[-1] == 3


def ranks(file: LoraFile, conv: bool) -> set[tuple[int, float]]:
    """Ranks and alphas of the 3x3 convolutions, or of all other modules."""
    return {(layer.rank, layer.alpha) for layer in file.layers.values() if is_conv(layer) is conv}


def test_the_first_line_runs_through_accelerate_as_it_stands(words, tmp_path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_cpu_threads_per_process", "1"]
    line = [*launch, "-m", "backend", "train_network", *words(steps=3)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "mixed_precision fp16 needs a GPU" in said and "xformers needs an NVIDIA GPU" in said
    names = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert names == ["last-000001.safetensors", "last.safetensors"]
    file = read_lora(tmp_path / "out" / "last.safetensors")
    assert ranks(file, conv=False) == {(4, 1.0)} and ranks(file, conv=True) == set()
    assert file.metadata["ss_network_module"] == "networks.lora" and file.metadata["ss_steps"] == "3"
    assert "AdamW8bit" in file.metadata["ss_optimizer"]


KINDS = {
    "C3Lier": ('--network_args "conv_dim=4" "conv_alpha=1"', (4, 1.0), (4, 1.0)),
    "C3Lier, alpha left out": ('--network_args "conv_dim=4"', (4, 1.0), (4, 1.0)),
    "DyLoRA": ('--network_module=networks.dylora --network_dim=16 --network_args "unit=4"', (16, 1.0), None),
    "DyLoRA, alpha": (
        '--network_module=networks.dylora --network_dim=32 --network_alpha=16 --network_args "unit=4"',
        (32, 16.0),
        None,
    ),
    "DyLoRA-C3Lier": (
        '--network_module=networks.dylora --network_dim=16 --network_args "conv_dim=16" "unit=4"',
        (16, 1.0),
        (16, 1.0),
    ),
    "DyLoRA-C3Lier, alphas": (
        "--network_module=networks.dylora --network_dim=32 --network_alpha=16 "
        '--network_args "conv_dim=32" "conv_alpha=16" "unit=8"',
        (32, 16.0),
        (32, 16.0),
    ),
}


@pytest.mark.parametrize(("further", "plain", "conv"), KINDS.values(), ids=KINDS)
def test_networks_have_the_ranks_that_the_line_says(trained, further, plain, conv) -> None:
    file = trained(further)
    assert ranks(file, conv=False) == {plain} and ranks(file, conv=True) == ({conv} if conv else set())
    assert file.metadata["ss_network_module"] == ("networks.dylora" if "dylora" in further else "networks.lora")


def rates(monkeypatch, run: Callable[[], object]) -> dict[str, float]:
    """The rates of the groups at the last step of a run."""
    seen = {}
    original = loop.current_rates
    monkeypatch.setattr(loop, "current_rates", lambda run: seen.update(original(run)) or original(run))
    run()
    return seen


def test_rates_by_block_are_those_of_the_line(trained, monkeypatch) -> None:
    line = f'--network_args "down_lr_weight={DOWN}" "mid_lr_weight=2.0" "up_lr_weight={UP}"'
    found = rates(monkeypatch, lambda: trained(line))
    wanted = [*map(float, DOWN.split(",")), 2.0, *map(float, UP.split(","))]
    blocks = {int(name.removeprefix("unet_block")): rate for name, rate in found.items() if "block" in name}
    assert sorted(blocks) == [1, 2, 4, 5, 7, 8, 12, *range(16, 25)]
    assert blocks == pytest.approx({block: 1e-4 * wanted[block] for block in blocks})
    assert found["text_encoder"] == pytest.approx(1e-4)


PRESETS = ["block_lr_zero_threshold=0.1", "down_lr_weight=sine+.5", "mid_lr_weight=1.5", "up_lr_weight=cosine+.5"]


def test_a_toml_says_the_same_as_the_flags(trained, monkeypatch, tmp_path) -> None:
    flags = rates(monkeypatch, lambda: trained("--network_args " + " ".join(f'"{item}"' for item in PRESETS)))
    file = tmp_path / "config.toml"
    file.write_text(tomlkit.dumps({"network_args": PRESETS}), encoding="utf-8")
    by_toml = rates(monkeypatch, lambda: trained(f"--config_file={file} --overwrite"))
    assert by_toml == flags and flags["unet_block12"] == pytest.approx(1.5e-4)


def block_ranks(file: LoraFile, conv: bool) -> dict[int, set[tuple[int, float]]]:
    found: dict[int, set[tuple[int, float]]] = {}
    for key, layer in file.layers.items():
        if key.startswith("lora_unet") and is_conv(layer) is conv:
            found.setdefault(int(block_of(key, "sd1").split()[-1]), set()).add((layer.rank, layer.alpha))
    return found


@pytest.mark.parametrize("form", ["flags", "toml"])
def test_ranks_by_block_are_those_of_the_line(trained, tmp_path, form) -> None:
    items = [f"block_dims={DIMS}", f"conv_block_dims={CONV}", f"block_alphas={DIMS}", f"conv_block_alphas={CONV}"]
    if form == "flags":
        file = trained("--network_args " + " ".join(f'"{item}"' for item in items))
    else:
        config = tmp_path / "config.toml"
        lists = {name: [int(n) for n in text.split(",")] for name, text in (item.split("=") for item in items)}
        config.write_text(tomlkit.dumps({"network": {"network_args": lists}}), encoding="utf-8")
        file = trained(f"--config_file={config}")
    plain, conv = ([int(number) for number in text.split(",")] for text in (DIMS, CONV))
    for found, wanted in ((block_ranks(file, conv=False), plain), (block_ranks(file, conv=True), conv)):
        assert found == {block: {(wanted[block], wanted[block])} for block in found}
    assert sorted(block_ranks(file, conv=False) | block_ranks(file, conv=True)) == list(range(1, 25))


def test_block_dims_alone_leave_convolutions_out(trained) -> None:
    file = trained(f'--network_args "block_dims={DIMS}"')
    assert ranks(file, conv=True) == set()
    assert {rank for rank, _ in ranks(file, conv=False)} == {4, 8, 12, 16, 2}
    assert {alpha for _, alpha in ranks(file, conv=False)} == {1.0}
