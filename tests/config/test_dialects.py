"""Configs of other programs: what is read of them, and that nothing is dropped in silence."""

import json
import random
import tomllib
from pathlib import Path
from typing import Any

import pytest

from backend.config.base import problems, to_toml
from backend.config.declare import leaves
from backend.config.dialects.foreign import KEYS, TEXT_BYTES, read_foreign
from backend.config.dialects.reading import CHANGED, LOST, OPEN
from backend.config.dialects.scripts import DEFAULTS, REASONS
from backend.config.train import TrainNetwork
from backend.errors import UserError
from backend.header import METADATA_KEY, pack_header
from tests.config.foreign_files import GUI, gui, lora, notes, toml, unaccounted


def test_a_gui_config_is_read_by_what_the_gui_makes_of_it():
    found = gui()
    assert len(GUI) > 80
    assert found.source_kind == "config of kohya_ss' GUI"
    expected = {
        "network_module": "networks.lora",
        "network_args": {"conv_dim": 8, "conv_alpha": 4.0, "mid_lr_weight": "0", "rank_dropout": 0.1},
        "network_dim": 32,
        "network_train_unet_only": True,
        "unet_lr": 2e-4,
        "learning_rate": 1e-4,
        "lr_warmup_steps": 0.1,
        "max_train_epochs": 10,
        "optimizer_type": "AdamW8bit",
        "optimizer_args": {"weight_decay": 0.1, "betas": (0.9, 0.99)},
        "sdpa": True,
        "clip_skip": 2,
        "gradient_accumulation_steps": 1,
        "max_data_loader_n_workers": 0,
        "persistent_data_loader_workers": True,
        "base_weights": (Path("a.safetensors"), Path("b.safetensors")),
        "training_comment": "by hand",
        "sample_every_n_epochs": 2,
        "output_dir": Path("/outputs"),
    }
    assert {name: found.values.get(name) for name in expected} == expected
    for name in ("text_encoder_lr", "xformers", "seed", "max_train_steps", "scale_weight_norms", "no_half_vae"):
        assert name not in found.values
    assert found.prompts == "a red fox --w 512\na blue fox"
    lost = notes(found, LOST)
    assert lost["deepspeed"] == "belongs to DeepSpeed, which is not supported"
    assert lost["multi_gpu"] == "is given to `accelerate launch` and not to the trainer"
    assert "secret" in lost["huggingface_token"] and "hf_secret" not in repr(found)
    assert "is no option of kohya_ss' GUI" in lost["token_like_nothing_known"]
    assert {"epoch", "lr_warmup", "text_encoder_lr", "xformers"} <= set(notes(found, CHANGED))
    assert {"guidance_scale", "multires_noise_iterations", "huber_c", "factor"} <= set(found.idle)


def test_several_processes_are_taken_and_where_machines_meet_is_not():
    found = gui(num_processes=2, main_process_port=29600, num_machines=2)
    assert found.values["num_processes"] == 2 and "main_process_port" not in found.values
    assert "where machines meet" in notes(found, LOST)["main_process_port"]
    assert "main_process_ip" in notes(found, LOST)["num_machines"] and "num_machines" not in found.values


def test_folders_of_pictures_are_taken_where_there_is_an_option_for_them():
    found = gui(train_data_dir="/pictures", reg_data_dir="")
    if "train_data_dir" in leaves(TrainNetwork):
        assert found.values["train_data_dir"] == Path("/pictures")
        assert found.values["resolution"] == "512,512" and "caption_extension" in found.values
    else:
        assert {"train_data_dir", "max_resolution"} <= set(notes(found, LOST))
    assert not found.of(OPEN) and found.values["network_args"]["conv_alpha"] == 4.0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"LoRA_type": "LyCORIS/LoHa", "conv_dim": 0, "dora_wd": True},
        {"LoRA_type": "LyCORIS/LoKr", "factor": 6},
        {"LoRA_type": "LyCORIS/DyLoRA", "unit": 4},
        {"LoRA_type": "Flux1", "flux1_checkbox": True, "ae": "ae.sft"},
        {"LoRA_type": ["a", {}], "optimizer": {"a": 1}, "network_dim": [1, 2], "seed": 1e400, "unet_lr": "x"},
        {"additional_parameters": 'lonely "unclosed', "max_train_steps": "many"},
        {"noise_offset_type": "Multires", "lr_warmup_steps": 12, "text_encoder_lr": "1e-5", "xformers": True},
    ],
)
def test_no_key_of_a_gui_config_goes_unsaid(changes):
    assert unaccounted(gui(**changes), GUI | changes) == set()


def test_networks_of_lycoris_that_are_here_by_another_name():
    found = gui(LoRA_type="LyCORIS/LoHa", dora_wd=True, rank_dropout=0)
    assert found.values["network_module"] == "networks.loha"
    assert found.values["network_args"] == {"conv_dim": 8, "conv_alpha": 4.0}
    assert notes(found, LOST)["dora_wd"] == "belongs to LyCORIS and has no counterpart here"
    found = toml('network_module = "lycoris.kohya"\nnetwork_dim = 6\nnetwork_args = ["algo=locon", "preset=attn-mlp"]')
    assert found.values["network_module"] == "networks.lora" and found.values["network_args"]["conv_dim"] == 6
    assert "network_args.preset" in notes(found, LOST)
    found = toml('network_module = "lycoris.kohya"\nnetwork_dim = 100000\nnetwork_args = ["algo=ia3"]')
    assert found.values == {} and {"network_module", "network_dim"} <= set(notes(found, LOST))


def test_a_toml_of_sd_scripts_is_read_leniently():
    found = toml(
        """
        [anything]
        network_module = "networks.dylora"
        network_dim = 8
        network_args = ["unit=4", "con_dim=8"]
        [more]
        learning_rate = "oops"
        lerning_rate = 3e-4
        max_train_steps = -1
        text_encoder_lr = 5e-5
        use_8bit_adam = true
        zero_stage = 2
        deepspeed = true
        wandb_api_key = "secret-key"
        dataset_config = "d.toml"
        train_data_dir = "folder"
        """
    )
    assert found.values == {
        "network_module": "networks.dylora",
        "network_dim": 8,
        "network_args": {"unit": 4},
        "text_encoder_lr": (5e-5,),
        "optimizer_type": "AdamW8bit",
        "dataset_config": Path("d.toml"),
    }
    lost = notes(found, LOST)
    assert "did you mean conv_dim?" in lost["network_args.con_dim"]
    assert lost["learning_rate"] == 'must be a number, got "oops"'
    assert "did you mean learning_rate?" in lost["lerning_rate"]
    assert lost["max_train_steps"] == "must be at least 1, got -1"
    assert "DeepSpeed" in lost["deepspeed"] and "secret-key" not in repr(found)
    assert lost["train_data_dir"] == "has no effect in sd-scripts beside dataset_config"
    assert found.idle == ("zero_stage",)


def test_the_toml_that_the_gui_writes_for_a_run_is_one_of_sd_scripts():
    found = toml(
        'epoch = 10\nnoise_offset_type = "Original"\nmax_train_steps = 50\nlr_scheduler_args = []\nxformers = true'
    )
    assert found.source_kind == "toml of sd-scripts"
    assert found.values == {"max_train_steps": 50, "xformers": True} and set(found.idle) >= {
        "epoch",
        "noise_offset_type",
    }


def test_another_default_of_sd_scripts_is_told():
    (note,) = toml("network_dim = 8").of(OPEN)
    assert (note.key, "2e-06" in note.text, "0.0001" in note.text) == ("learning_rate", True, True)
    assert not toml("learning_rate = 1e-3").of(OPEN)


def test_what_is_missing_beside_the_values_is_asked_for():
    found = toml('sample_every_n_epochs = 2\nlearning_rate = 1.0\nnetwork_args = ["conv_dim=8"]\nseed = -1')
    assert found.values == {"sample_every_n_epochs": 2, "learning_rate": 1.0, "network_args": {"conv_dim": 8}}
    assert notes(found, OPEN) == {
        "sample_prompts": "is required with sample_every_n_epochs: a text file with one prompt a line"
    }
    assert list(notes(found, LOST)) == ["seed"]


def test_what_belongs_to_a_choice_that_is_not_here_goes_with_it():
    found = toml('optimizer_args = ["d0=1e-5"]\noptimizer_type = "NoSuchOptimizerAtAll8"\nlearning_rate = 1.0')
    if leaves(TrainNetwork)["optimizer_type"].kind == "choice":
        assert set(found.values) == {"learning_rate"}
        assert notes(found, LOST)["optimizer_args"] == "belongs to that optimizer_type, which is not taken"


@pytest.mark.parametrize(
    ("data", "name", "said"),
    [
        (b"\xff\xfe\x00", "a.toml", "is not a text in UTF-8"),
        (b"a = \x81", "a.toml", "is not a text in UTF-8"),
        (b"a = ", "a.toml", "is not valid toml"),
        (b"{", "a.json", "is not valid JSON"),
        (b'{"a": ' + b"[" * 100_000, "a.json", "is nested deeper than 64 levels"),
        (b"a = " + b"[" * 100_000, "a.toml", "is nested deeper than 64 levels"),
        (b"[1, 2]", "a.json", "holds no JSON object"),
        (b'{"seed": ' + b"9" * 30 + b"}", "a.json", "has a whole number that is larger than 64 bits"),
        (b'{"seed": "\\ud800"}', "a.json", "has half of a surrogate pair"),
        (b"zzz = 1", "a.toml", "has no option of train_network or sd-scripts"),
        (b"[[datasets]]\n", "a.toml", "describes a dataset"),
        (b"#" * (TEXT_BYTES + 1), "a.toml", "is larger than 1024 kB"),
        ("".join(f"k{i} = 1\n" for i in range(KEYS + 1)).encode(), "a.toml", f"has more than {KEYS} keys"),
        (b"\0" * 20, "a.safetensors", "safetensors"),
        (pack_header({METADATA_KEY: {"format": "pt"}}), "a.safetensors", "holds no metadata of its training"),
    ],
)
def test_what_is_no_config_is_refused_in_a_line(data, name, said):
    with pytest.raises(UserError) as caught:
        read_foreign(data, name)
    assert said in caught.value.message and caught.value.field == name


def test_a_file_that_is_not_there_is_named(tmp_path):
    for name in ("a.toml", "a.safetensors"):
        with pytest.raises(UserError) as caught:
            read_foreign(tmp_path / name, name)
        assert caught.value.field == name
        assert caught.value.message.startswith(("there is no file", "cannot be read"))


STRANGE: tuple[Any, ...] = (
    None,
    "",
    0,
    -5.5,
    True,
    "None",
    "x",
    1e400,
    2**64,
    "9" * 5000,
    ["a=1"],
    [[1]],
    [{}],
    "[1",
    {},
)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_stands_in_a_file_every_key_is_accounted_for_and_every_value_valid(seed):
    draw = random.Random(seed)
    names = draw.sample([*GUI, *DEFAULTS], 80)
    data = {name: GUI[name] if name in GUI and draw.random() < 0.5 else draw.choice(STRANGE) for name in names}
    fields = {f"ss_{name}": str(draw.choice(STRANGE)) for name in names}
    fields |= {"ss_seed": "1", "ss_datasets": json.dumps([{"subsets": [data], "resolution": draw.choice(STRANGE)}])}
    for found, keys in ((read_foreign(json.dumps(data).encode(), "a.json"), data), (lora(fields), fields)):
        assert unaccounted(found, keys) == set()
        # Options that need another are asked for.
        asked = {note.key for note in found.of(OPEN)}
        given = found.values | ({"sample_prompts": "p.txt"} if found.prompts else {})
        assert set(problems(TrainNetwork, given, partial=True)) <= asked
        assert tomllib.loads(to_toml(found.values, TrainNetwork)) is not None


def test_no_option_of_ours_has_a_reason_why_there_is_none():
    assert not set(REASONS) & set(leaves(TrainNetwork))


@pytest.mark.parametrize("given", [{"caption_extention": "caption"}, {"caption_extension": ".caption"}])
def test_both_spellings_of_caption_extension_are_read(given):
    text = "\n".join(f'{key} = "{value}"' for key, value in given.items())
    found = read_foreign(f'network_module = "networks.lora"\n{text}\n'.encode(), "a.toml")
    assert found.values["caption_extension"] == ".caption" and not set(given) - set(found.taken)
