"""Configs of other trainers: taken over as far as is safe, or refused with the program's name."""

import json
import tomllib

import pytest

from backend.__main__ import main
from backend.config import presets
from backend.config.base import from_argv, to_toml
from backend.config.dataset import DatasetConfig
from backend.config.dialects.foreign import read_foreign
from backend.config.dialects.programs import program_of
from backend.config.dialects.reading import CHANGED, LOST, OPEN
from backend.config.train import TrainNetwork
from backend.errors import ConfigError, UserError

EASY = """
[[subsets]]
caption_extension = ".txt"
image_dir = "/img/10_shs"
keep_tokens = 1
name = "10_shs"
num_repeats = 10
shuffle_captions = true
random_scale = 3
[train_mode]
train_mode = "lora"
[general_args.args]
pretrained_model_name_or_path = "/m.safetensors"
mixed_precision = "bf16"
sdxl = true
lowram = true
max_token_length = 225
xformers = true
[general_args.dataset_args]
resolution = [ 768, 768,]
batch_size = 4
[network_args.args]
network_dim = 32
network_alpha = 16.0
[network_args.args.network_args]
conv_dim = 8
down_lr_weight = [1,1,1,1,1,1,1,1,1,1,1,0.5]
[optimizer_args.args]
optimizer_type = "AdamW8bit"
lr_scheduler = "cosine"
learning_rate = 0.0005
warmup_ratio = 0.05
[optimizer_args.args.optimizer_args]
weight_decay = "0.1"
betas = "0.9,0.99"
[saving_args.args]
output_dir = "/out"
output_name = "x"
save_toml = true
[bucket_args.dataset_args]
enable_bucket = true
[logging_args.args]
wandb_api_key = "hush"
"""
ONE_TRAINER = {
    "__version": 10,
    "training_method": "LORA",
    "model_type": "STABLE_DIFFUSION_XL_10_BASE",
    "base_model_name": "org/base",
    "workspace_dir": "/somewhere",
    "output_model_destination": "models/mine.safetensors",
    "output_dtype": "BFLOAT_16",
    "train_dtype": "BFLOAT_16",
    "learning_rate": 0.0003,
    "learning_rate_scheduler": "COSINE",
    "learning_rate_warmup_steps": 100.0,
    "gradient_accumulation_steps": 2,
    "epochs": 8,
    "batch_size": 4,
    "resolution": "1024x768",
    "lora_rank": 32,
    "lora_alpha": 8.0,
    "dropout_probability": 0.1,
    "clip_grad_norm": None,
    "loss_weight_fn": "MIN_SNR_GAMMA",
    "loss_weight_strength": 5.0,
    "offset_noise_weight": 0.05,
    "min_noising_strength": 0.1,
    "max_noising_strength": 1.0,
    "ema": "GPU",
    "save_every": 2,
    "save_every_unit": "EPOCH",
    "sample_after": 1,
    "sample_after_unit": "EPOCH",
    "samples": [{"prompt": "a cat", "width": 64, "height": 64, "seed": 7, "negative_prompt": "dog"}],
    "unet": {"train": True, "learning_rate": 0.0002},
    "text_encoder": {"train": True, "learning_rate": 0.00005},
    "text_encoder_2": {"train": False},
    "vae": {"model_name": "org/vae"},
    "optimizer": {
        "optimizer": "PRODIGY",
        "weight_decay": 0.01,
        "beta1": 0.9,
        "beta2": 0.99,
        "d_coef": 2.0,
        "foreach": False,
        "use_bias_correction": True,
        "stochastic_rounding": True,
        "slice_p": 11,
    },
    "concepts": [
        {
            "name": "cats",
            "path": "/pictures/cats",
            "balancing": 3.0,
            "image": {"enable_random_flip": True},
            "text": {"enable_tag_shuffling": True, "keep_tags_count": 2},
        },
        {"path": "/off", "enabled": False},
    ],
    "cloud": {"host": "1.2.3.4", "user": "me"},
    "secrets": {"huggingface_token": "hush"},
    "multi_gpu": True,
    "an_unknown_key": 5,
}


def easy(text=EASY):
    return read_foreign(text.encode(), "easy.toml")


def one_trainer(**changes):
    return read_foreign(json.dumps(ONE_TRAINER | changes).encode(), "ot.json")


def notes(found, kind):
    return {note.key: note.line() for note in found.of(kind)}


def test_a_config_of_easy_training_scripts_is_taken_over():
    found = easy()
    values = found.values
    assert found.source_kind == "config of LoRA_Easy_Training_Scripts"
    assert (values["network_dim"], values["network_alpha"], values["max_token_length"]) == (32, 16.0, 225)
    assert values["network_module"] == "networks.lora" and values["network_args"]["conv_dim"] == 8
    assert values["network_args"]["down_lr_weight"].endswith("0.5")
    assert (values["optimizer_type"], values["lr_scheduler"]) == ("AdamW8bit", "cosine")
    assert values["optimizer_args"] == {"weight_decay": 0.1, "betas": (0.9, 0.99)}
    assert values["lr_warmup_steps"] == 0.05 and "warmup_ratio" in notes(found, CHANGED)
    assert str(values["output_dir"]) == "/out" and values["output_name"] == "x"
    assert {"sdxl", "save_toml"} <= set(found.idle)
    lost = notes(found, LOST)
    assert "lowram" in lost and "hush" not in str(found)
    assert "wandb_api_key" in lost and "subsets random_scale" in lost
    (dataset,) = DatasetConfig.loads(found.dataset).datasets
    assert (dataset.resolution, dataset.batch_size, dataset.enable_bucket) == ((768, 768), 4, True)
    (subset,) = dataset.subsets
    assert (str(subset.image_dir), subset.num_repeats, subset.keep_tokens) == ("/img/10_shs", 10, 1)
    assert subset.shuffle_caption


@pytest.mark.parametrize(
    ("old", "new", "module"),
    [
        ("conv_dim = 8", "conv_dim = 32\nunit = 4", "networks.dylora"),
        ("conv_dim = 8", 'algo = "loha"\nconv_dim = 8', "networks.loha"),
        ("conv_dim = 8", 'algo = "lokr"\nconv_dim = 8', None),
    ],
)
def test_the_network_of_easy_training_scripts_follows_from_its_arguments(old, new, module):
    text = EASY.replace(old, new).replace("down_lr_weight = [1,1,1,1,1,1,1,1,1,1,1,0.5]\n", "")
    assert easy(text).values.get("network_module") == module


def test_code_of_easy_training_scripts_is_not_named():
    text = EASY.replace('"AdamW8bit"', '"LoraEasyCustomOptimizer.came.CAME"')
    text = text.replace('lr_scheduler = "cosine"', 'lr_scheduler_type = "LoraEasyCustomOptimizer.Rex.Rex"')
    found = easy(text)
    assert not {"optimizer_type", "optimizer_args", "lr_scheduler_type"} & set(found.values)
    assert {"optimizer_type", "optimizer_args", "lr_scheduler_type"} <= set(notes(found, LOST))


def test_paths_of_windows_are_to_be_completed():
    found = easy(EASY.replace('"/m.safetensors"', '"E:/m.safetensors"'))
    assert "pretrained_model_name_or_path" not in found.values
    assert "is a path of Windows" in notes(found, OPEN)["pretrained_model_name_or_path"]


def test_another_training_of_easy_training_scripts_is_refused():
    with pytest.raises(UserError, match="LoRA_Easy_Training_Scripts for .*textual_inversion.*; only LoRAs"):
        easy(EASY.replace('train_mode = "lora"', 'train_mode = "textual_inversion"'))


def test_a_config_of_one_trainer_is_taken_over():
    found = one_trainer()
    values = found.values
    assert found.source_kind == "config of OneTrainer"
    expected = {
        "pretrained_model_name_or_path": "org/base",
        "vae": "org/vae",
        "output_name": "mine",
        "save_precision": "bf16",
        "mixed_precision": "bf16",
        "learning_rate": 0.0003,
        "unet_lr": 0.0002,
        "text_encoder_lr": (0.00005, 0.0),
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 50.0,
        "gradient_accumulation_steps": 2,
        "max_train_epochs": 8,
        "train_batch_size": 4,
        "resolution": "1024,768",
        "network_module": "networks.lora",
        "network_dim": 32,
        "network_alpha": 8.0,
        "network_dropout": 0.1,
        "max_grad_norm": 0.0,
        "min_snr_gamma": 5.0,
        "noise_offset": 0.05,
        "min_timestep": 100,
        "save_every_n_epochs": 2,
        "sample_every_n_epochs": 1,
        "optimizer_type": "Prodigy",
    }
    # Prodigy has one rate for all, so those of the parts do not go with it.
    rates = {"unet_lr", "text_encoder_lr"}
    assert {name: values.get(name) for name in expected if name not in rates} == {
        name: value for name, value in expected.items() if name not in rates
    }
    assert values["optimizer_args"] == {
        "weight_decay": 0.01,
        "d_coef": 2.0,
        "use_bias_correction": True,
        "betas": (0.9, 0.99),
    }
    assert found.prompts == "a cat --w 64 --h 64 --d 7 --n dog"
    lost = notes(found, LOST)
    assert {"ema", "an_unknown_key", "optimizer"} <= set(lost) and "slice_p" in lost["optimizer"]
    (subset,) = DatasetConfig.loads(f"[general]\nresolution = 64\n{found.dataset}").datasets[0].subsets
    assert (str(subset.image_dir), subset.num_repeats, subset.keep_tokens) == ("/pictures/cats", 3, 2)
    assert subset.flip_aug and subset.shuffle_caption
    assert "hush" not in str(found) and "1.2.3.4" not in str(found)
    assert {"cloud", "secrets", "multi_gpu"} <= set(found.idle)


def test_rates_of_one_trainer_are_kept_for_each_part():
    found = one_trainer(optimizer={"optimizer": "ADAMW", "weight_decay": 0.01})
    assert found.values["unet_lr"] == 0.0002 and found.values["text_encoder_lr"] == (0.00005, 0.0)
    found = one_trainer(optimizer={"optimizer": "ADAMW"}, text_encoder={"train": False})
    assert found.values["network_train_unet_only"] and "text_encoder_lr" not in found.values
    found = one_trainer(optimizer={"optimizer": "ADAFACTOR"})
    assert found.values["optimizer_args"] == {"relative_step": False, "scale_parameter": False}


def test_what_one_trainer_does_by_itself_is_taken_and_told():
    found = read_foreign(json.dumps({"__version": 1, "training_method": "LORA"}).encode(), "ot.json")
    assert (found.values["network_dim"], found.values["learning_rate"]) == (16, 3e-6)
    assert found.values["lr_scheduler"] == "constant_with_warmup" and found.values["lr_warmup_steps"] == 200.0
    assert "is what OneTrainer does by itself" in notes(found, CHANGED)["learning_rate"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training_method": "FINE_TUNE"}, "OneTrainer for .*FINE_TUNE.*; only LoRAs"),
        ({"model_type": "FLUX_DEV_1"}, "OneTrainer for .*FLUX_DEV_1"),
        ({"model_type": ["x"]}, "cannot be trained here"),
    ],
)
def test_other_trainings_of_one_trainer_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        one_trainer(**changes)


@pytest.mark.parametrize("kind", ["LOKR", "OFT_2"])
def test_other_networks_of_one_trainer_are_lost_by_name(kind):
    found = one_trainer(peft_type=kind)
    assert "network_module" not in found.values and kind in notes(found, LOST)["peft_type"]


def test_a_config_of_lora_scripts_is_taken_over():
    text = 'model_train_type = "sd-lora"\nnetwork_dim = 32\noptimizer_type = "AdamW8bit"\nsample_every_n_epochs = 2\n'
    found = read_foreign((text + 'sample_prompts = "masterpiece --n low --w 512"\n').encode(), "ake.toml")
    assert found.source_kind == "config of lora-scripts" and found.prompts == "masterpiece --n low --w 512"
    assert found.values["network_dim"] == 32 and "optimizer_args" not in found.values
    with pytest.raises(UserError, match="lora-scripts for .*flux-lora"):
        read_foreign(text.replace("sd-lora", "flux-lora").encode(), "ake.toml")


FOREIGN = {
    "ai.yaml": ("job: extension\nconfig:\n  name: x\n  process:\n    - type: sd_trainer\n", "ai-toolkit"),
    "ai.json": (json.dumps({"job": "extension", "config": {"process": []}}), "ai-toolkit"),
    "st.json": (json.dumps({"--model_type": "lora", "--model_family": "sdxl"}), "SimpleTuner"),
    "st2.json": (json.dumps({"model_type": "lora", "data_backend_config": "x.json"}), "SimpleTuner"),
    "pipe.toml": ("pipeline_stages = 1\n[model]\ntype = 'sdxl'\n[adapter]\ntype = 'lora'\n", "diffusion-pipe"),
    "musubi.toml": ("[[datasets]]\nimage_directory = '/x'\ncache_directory = '/y'\n", "musubi-tuner"),
    "musubi2.toml": ("dit = 'x.safetensors'\nnetwork_module = 'networks.lora_wan'\n", "musubi-tuner"),
    "invoke.yaml": ("type: SDXL_LORA\nseed: 1\n", "invoke-training"),
    "accelerate.yaml": ("compute_environment: LOCAL_MACHINE\n", "Accelerate"),
    "other.yaml": ("learning_rate: 1e-4\n", "a YAML file"),
    "train.sh": ("#!/bin/bash\naccelerate launch train_network.py --seed 1\n", "a script for the shell"),
    "line.txt": ("accelerate launch train_network.py --seed 1\n", "a script for the shell"),
    "comfy.json": (json.dumps({"last_node_id": 3, "nodes": []}), "ComfyUI"),
    "api.json": (json.dumps({"3": {"class_type": "KSampler", "inputs": {}}}), "ComfyUI"),
    "adapter_config.json": (json.dumps({"peft_type": "LORA", "r": 4}), "PEFT adapter"),
    "model_index.json": (json.dumps({"_class_name": "StableDiffusionPipeline"}), "Diffusers model"),
    "old.json": (json.dumps({"base_model": "x", "img_folder": "y", "output_folder": "z"}), "LoRA_Easy"),
    "a.ipynb": (json.dumps({"cells": [], "nbformat": 4}), "Jupyter"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_programs_are_refused_by_name_on_the_shell_and_the_page(name, tmp_path, capsys):
    text, said = FOREIGN[name]
    with pytest.raises(UserError) as caught:
        read_foreign(text.encode(), name)
    assert said in caught.value.message and "cannot be taken over" in caught.value.message
    (tmp_path / name).write_text(text)
    for words in (["import_config", str(tmp_path / name)], ["train_network", "--config_file", str(tmp_path / name)]):
        assert main(words) == 2
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1 and said in told[0]


@pytest.mark.parametrize("name", ["easy.toml", "ot.json"])
def test_a_config_file_of_a_program_that_is_taken_over_says_how(name, tmp_path, capsys):
    (tmp_path / name).write_text(EASY if name == "easy.toml" else json.dumps(ONE_TRAINER))
    assert main(["train_network", "--config_file", str(tmp_path / name)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"import_config {tmp_path / name} NEW.toml" in line
    target = tmp_path / "new.toml"
    assert main(["import_config", str(tmp_path / name), str(target)]) == 0
    assert tomllib.loads(target.read_text())


@pytest.mark.parametrize("name", ["easy.toml", "musubi.toml"])
def test_another_programs_config_is_no_dataset(name, tmp_path):
    (tmp_path / name).write_text(EASY if name == "easy.toml" else FOREIGN[name][0])
    with pytest.raises(UserError, match="dataset_config: is a config of (LoRA_Easy|musubi)"):
        DatasetConfig.load(tmp_path / name)


def test_our_own_configs_are_nobody_elses():
    values = {"output_dir": "o", "optimizer_type": "AdamW", "network_dim": 4, "resolution": "512"}
    assert program_of(tomllib.loads(to_toml(values, TrainNetwork))) is None
    for path in (presets.SHIPPED).rglob("*.toml"):
        assert program_of(tomllib.loads(path.read_text(encoding="utf-8"))) is None


MEETING = {"num_machines": 2, "machine_rank": 1, "main_process_ip": "203.0.113.5", "main_process_port": 29500}
MEETING_TOML = to_toml({**MEETING, "num_processes": 2, "network_dim": 8}, TrainNetwork)


@pytest.mark.parametrize("text", [MEETING_TOML, MEETING_TOML.replace("[network]", "").replace("[devices]", "")])
def test_no_import_says_where_machines_meet(text):
    found = read_foreign(text.encode(), "a.toml")
    assert not set(MEETING) & set(found.values) and found.values["network_dim"] == 8
    assert set(MEETING) <= set(notes(found, LOST)) and found.values["num_processes"] == 2


def test_no_preset_says_where_machines_meet(tmp_path, monkeypatch, capsys):
    told: list[str] = []
    assert presets.imported(TrainNetwork, MEETING_TOML, "a.toml", told) == {"num_processes": 2, "network_dim": 8}
    assert len(told) == len(MEETING) and all("set it by hand" in line for line in told)
    saved = presets.save(TrainNetwork, "mine", tomllib.loads(MEETING_TOML), tmp_path)
    assert not any(name in saved.path.read_text() for name in MEETING)
    # One that somebody has put there by another way.
    saved.path.write_text(MEETING_TOML)
    assert presets.read(TrainNetwork, "mine", tmp_path) == {"num_processes": 2, "network_dim": 8}
    monkeypatch.setenv("LORALOOM_WORKSPACE", str(tmp_path))
    words = ["--preset", "mine", "--pretrained_model_name_or_path=m", "--dataset_config=d", "--output_dir=o"]
    config = from_argv(TrainNetwork, words)
    assert config.devices.num_machines == 1 and config.devices.main_process_ip is None
    assert "main_process_ip is passed over" in capsys.readouterr().out


def test_a_preset_of_another_program_is_told():
    with pytest.raises(UserError, match="diffusion-pipe"):
        presets.imported(TrainNetwork, FOREIGN["pipe.toml"][0], "pipe.toml")
    with pytest.raises(ConfigError):
        presets.imported(TrainNetwork, "deepspeed = true", "a.toml")


def test_options_of_other_families_are_told_as_theirs():
    text = 'output_dir = "/x"\nt5xxl = "t5"\nguidance_scale = 3.5\nae = ""\nnetwork_module = "networks.lora"\n'
    lost = {note.key: note.text for note in read_foreign(text.encode(), "flux.toml").of(LOST)}
    assert lost == dict.fromkeys(["t5xxl", "guidance_scale"], "is for model families that cannot be trained here")
