"""Files that are not there are named before a job is queued, in the page and by the launcher."""

from pathlib import Path

import pytest

from backend.config.lora_tools import ExtractLora, MergeLora
from backend.config.train import TrainNetwork
from backend.errors import ConfigError
from backend.jobs import Jobs
from backend.preflight import checkpoint_problem, is_hub_name, lora_problem, model_problem, problems
from backend.workspace import CHECKPOINT_PREFIX, DEMO_DATASET, DEMO_MODEL, Workspace
from tests.ui.fake_tool import weights


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A LoRA, a checkpoint, an adapter's folder and folders that hold nothing."""
    (tmp_path / "lora.safetensors").write_bytes(weights("lora_unet_a.alpha"))
    (tmp_path / "model.safetensors").write_bytes(weights(f"{CHECKPOINT_PREFIX}a"))
    (tmp_path / "notes.txt").write_text("a fox")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_a_model_is_a_file_a_folder_or_a_name_on_the_hub(files: Path) -> None:
    good = [DEMO_MODEL, f"{files}/model.safetensors", "org/repo", "org/repo/sub/model.safetensors"]
    # As people write it.
    good += [f' "{files}/model.safetensors"\r', f"file://{files}/model.safetensors", " org/repo"]
    assert not any(map(model_problem, good))
    for bad, words in (
        ("/no/such/model.safetensors", "there is no file or folder /no/such/model.safetensors"),
        ("model.safetensors", "there is no"),
        ("backend/demo/modle", "there is no"),
        ("nosuch", "there is no"),
        (f"{files}/empty", "is no Diffusers folder"),
        (f"{files}/notes.txt", "is none of .safetensors"),
        (f"{files}/lora.safetensors", "is a LoRA, not a model"),
        ("a\0b", "cannot be read as a path"),
        ("x" * 5000, "cannot be read as a path"),
    ):
        assert words in model_problem(bad), bad
    # Tools take what is on this machine.
    assert "there is no" in checkpoint_problem("org/repo") and not checkpoint_problem(DEMO_MODEL)


def test_a_misspelt_path_is_no_name_on_the_hub() -> None:
    assert is_hub_name("org/repo") and not is_hub_name("backend/repo") and not is_hub_name("../repo")


def test_a_lora_is_a_file_or_an_adapter_s_folder(files: Path) -> None:
    assert not lora_problem(f"{files}/lora.safetensors") and not lora_problem(f"{files}/adapter")
    assert "without adapter_config.json" in lora_problem(f"{files}/empty")
    assert "is none of" in lora_problem(f"{files}/notes.txt")
    assert "there is no file" in lora_problem(f"{files}/gone.safetensors")


def test_every_option_that_names_a_file_is_judged(files: Path) -> None:
    values = {
        "pretrained_model_name_or_path": "/gone",
        "vae": "/gone.pt",
        "network_weights": f"{files}/gone.safetensors",
        "base_weights": [f"{files}/lora.safetensors", "/gone.safetensors"],
        "sample_prompts": f"{files}/gone.txt",
        "metadata_thumbnail": "/gone.png",
        "output_dir": "/gone",
    }
    assert problems(TrainNetwork, values).keys() == values.keys() - {"output_dir"}
    assert problems(MergeLora, {"models": ["/gone.pt"], "sd_model": "/gone", "save_to": "/gone.pt"}).keys() == {
        "models",
        "sd_model",
    }
    assert problems(ExtractLora, {"model_org": "/gone", "model_tuned": DEMO_MODEL}).keys() == {"model_org"}


def test_the_launcher_asks_again(tmp_path: Path, files: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    (files / "prompts.txt").write_text("a fox --w 708 --h 512")
    good = (
        f'pretrained_model_name_or_path = "{DEMO_MODEL}"\ndataset_config = "{DEMO_DATASET}/dataset.toml"\n'
        f'output_dir = "{files}/out"\noutput_name = "a"\nmax_train_steps = 1\n'
    )
    jobs = Jobs(workspace)
    for more, field in (
        ('vae = "/gone.safetensors"\n', "vae"),
        (f'sample_prompts = "{files}/prompts.txt"\nsample_at_first = true\n', "sample_prompts"),
    ):
        with pytest.raises(ConfigError) as caught:
            jobs.start("train_network", good + more)
        assert caught.value.field == field
    assert not jobs.list() and not list(workspace.jobs.iterdir())
    assert jobs.start("train_network", good).state == "queued"
