"""Configs of other programs: what is read of them, what is written for them, and that nothing is dropped in silence."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from backend import __main__ as program
from backend.config import presets
from backend.config.base import resolve, to_toml, values
from backend.config.dataset import DatasetConfig
from backend.config.declare import leaves
from backend.config.dialects.export import to_scripts
from backend.config.dialects.foreign import KEYS, TEXT_BYTES, read_foreign
from backend.config.dialects.lora_file import split_arguments
from backend.config.dialects.reading import CHANGED, LOST, OPEN, Imported
from backend.config.train import TrainNetwork
from backend.errors import UserError
from backend.header import METADATA_KEY, pack_header
from backend.lora.metadata import TrainingFacts, training_metadata

REQUIRED = {"pretrained_model_name_or_path": "m", "dataset_config": "d", "output_dir": "o"}
# A config as the GUI's LoRA tab saves it: every field of its pages for Stable Diffusion, many at their defaults.
GUI: dict[str, Any] = {
    "LoRA_type": "Kohya LoCon",
    "LyCORIS_preset": "full",
    "adaptive_noise_scale": 0,
    "additional_parameters": '--log_prefix=xl "--training_comment=by hand" --base_weights a.safetensors b.safetensors',
    "async_upload": False,
    "block_alphas": "",
    "block_dims": "",
    "block_lr_zero_threshold": "",
    "bucket_no_upscale": True,
    "bucket_reso_steps": 64.0,
    "cache_latents": True,
    "cache_latents_to_disk": False,
    "caption_dropout_every_n_epochs": 0.0,
    "caption_dropout_rate": 0,
    "caption_extension": ".txt",
    "clip_skip": "2",
    "color_aug": False,
    "conv_alpha": 4,
    "conv_block_alphas": "",
    "conv_block_dims": "",
    "conv_dim": 8,
    "dataset_config": "",
    "debiased_estimation_loss": False,
    "decompose_both": False,
    "dim_from_weights": False,
    "down_lr_weight": "",
    "dynamo_backend": "no",
    "enable_bucket": True,
    "epoch": 10,
    "extra_accelerate_launch_args": "",
    "factor": -1,
    "flip_aug": False,
    "flux1_checkbox": False,
    "fp8_base": False,
    "full_bf16": False,
    "full_fp16": False,
    "gpu_ids": "",
    "gradient_accumulation_steps": 1.0,
    "gradient_checkpointing": True,
    "guidance_scale": 3.5,
    "huber_c": 0.1,
    "huber_schedule": "snr",
    "huggingface_token": "hf_secret",
    "keep_tokens": "0",
    "learning_rate": "0.0001",
    "log_with": "",
    "logging_dir": "",
    "loss_type": "l2",
    "lr_scheduler": "cosine",
    "lr_scheduler_args": "",
    "lr_scheduler_num_cycles": "",
    "lr_scheduler_power": "",
    "lr_warmup": 10,
    "lr_warmup_steps": 0,
    "max_bucket_reso": 2048,
    "max_data_loader_n_workers": "0",
    "max_grad_norm": 1,
    "max_resolution": "512,512",
    "max_timestep": 1000,
    "max_token_length": "75",
    "max_train_epochs": "",
    "max_train_steps": "",
    "mem_eff_attn": True,
    "mid_lr_weight": "0",
    "min_bucket_reso": 256,
    "min_snr_gamma": 0,
    "min_timestep": 0,
    "mixed_precision": "bf16",
    "model_list": "custom",
    "module_dropout": 0,
    "multi_gpu": True,
    "multires_noise_discount": 0.2,
    "multires_noise_iterations": 8,
    "network_alpha": 16,
    "network_dim": 32,
    "network_dropout": 0,
    "noise_offset": 0,
    "noise_offset_type": "Original",
    "num_cpu_threads_per_process": 2,
    "optimizer": "adamw8bit",
    "optimizer_args": '"weight_decay=0.1" "betas=0.9,0.99"',
    "output_dir": "/outputs",
    "output_name": "mine",
    "persistent_data_loader_workers": 1,
    "pretrained_model_name_or_path": "runwayml/stable-diffusion-v1-5",
    "prior_loss_weight": 1.0,
    "random_crop": False,
    "rank_dropout": 0.1,
    "resume": "",
    "sample_every_n_epochs": 2,
    "sample_every_n_steps": 0,
    "sample_prompts": "a red fox --w 512\na blue fox",
    "sample_sampler": "euler_a",
    "save_every_n_epochs": 1,
    "save_model_as": "safetensors",
    "save_precision": "fp16",
    "scale_weight_norms": 0,
    "sdxl": False,
    "sdxl_no_half_vae": True,
    "seed": "",
    "stop_text_encoder_training": 0,
    "text_encoder_lr": 0,
    "token_like_nothing_known": "x",
    "train_norm": False,
    "training_comment": "a comment",
    "unet_lr": 0.0002,
    "unit": 1,
    "up_lr_weight": "",
    "use_tucker": False,
    "v2": False,
    "v_parameterization": False,
    "vae_batch_size": 0,
    "wandb_api_key": "",
    "xformers": "sdpa",
}


def gui(**changes: Any) -> Imported:
    return read_foreign(json.dumps(GUI | changes).encode(), "mine.json")


def toml(text: str) -> Imported:
    return read_foreign(text.encode(), "mine.toml")


def lora(metadata: dict[str, str]) -> Imported:
    return read_foreign(pack_header({METADATA_KEY: metadata}), "mine.safetensors")


def notes(found: Imported, kind: str) -> dict[str, str]:
    return {note.key: note.text for note in found.of(kind)}


def unaccounted(found: Imported, keys: Any) -> set[str]:
    """Keys of a file that are neither taken nor named anywhere."""
    told = {*found.taken, *found.idle, *found.facts, *(note.key for note in found.notes)}
    return {key for key in keys if key not in told and key.removeprefix("ss_") not in told}


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
    assert lost["mem_eff_attn"] == "has no counterpart here; use sdpa or xformers"
    assert lost["multi_gpu"] == "is given to `accelerate launch` and not to the trainer"
    assert "secret" in lost["huggingface_token"] and "hf_secret" not in repr(found)
    assert "is no option of kohya_ss' GUI" in lost["token_like_nothing_known"]
    assert {"epoch", "lr_warmup", "text_encoder_lr", "xformers"} <= set(notes(found, CHANGED))
    assert {"guidance_scale", "multires_noise_iterations", "huber_c", "factor"} <= set(found.idle)


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
        mem_eff_attn = false
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
    assert found.idle == ("mem_eff_attn",)


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


CHANGED_VALUES: dict[str, Any] = {
    **REQUIRED,
    "network_module": "networks.lora",
    "network_args": {"conv_dim": 4, "conv_alpha": 1.0, "block_dims": (2,) * 25, "down_lr_weight": "sine+.5"},
    "network_dim": 12,
    "network_alpha": 0.0,
    "optimizer_args": {"betas": (0.9, 0.95), "weight_decay": 0.1, "amsgrad": True},
    "learning_rate": 2e-6,
    "text_encoder_lr": (1e-4, 5e-5),
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 30.0,
    "base_weights": (Path("a b.safetensors"),),
    "base_weights_multiplier": (0.5,),
    "max_token_length": 150,
    "seed": 7,
    "cache_latents": True,
    "training_comment": 'with "quotes" and = signs',
    "mixed_precision": "bf16",
}


def round_trip(given: dict[str, Any]) -> tuple[Any, Any]:
    config = resolve(TrainNetwork, given)
    text, _ = to_scripts(values(config, changed_only=True))
    assert not any(isinstance(value, dict) for value in tomllib.loads(text).values()), "flat"
    return config, resolve(TrainNetwork, toml(text).values)


@pytest.mark.parametrize("preset", ["demo", ""])
def test_what_is_written_for_sd_scripts_reads_back_equal(preset):
    given = REQUIRED | presets.read(TrainNetwork, preset) if preset else CHANGED_VALUES
    ours, back = (values(each) for each in round_trip(given))
    # sd-scripts has to be told what holds here anyway.
    assert {name: value for name, value in back.items() if name != "caption_extension"} == {
        name: value for name, value in ours.items() if name != "caption_extension"
    }


def test_a_toml_for_sd_scripts_has_its_forms_and_its_defaults():
    text, told = to_scripts({"network_args": {"block_dims": (1, 2)}, "overwrite": True, "lr_warmup_steps": 20.0})
    found = tomllib.loads(text)
    assert found["network_args"] == ["block_dims=1,2"]
    assert found["learning_rate"] == leaves(TrainNetwork)["learning_rate"].default, "theirs is another"
    assert type(found["lr_warmup_steps"]) is int, "a decimal number is a share of all steps there"
    assert "overwrite" not in found and "max_grad_norm" not in found and "max_token_length" not in found
    assert {note.key: note.text for note in told}["overwrite"] == "sd-scripts always replaces existing files"
    text, _ = to_scripts({"lr_warmup_steps": 0.25, "optimizer_args": {"betas": (0.9, 0.99)}})
    assert tomllib.loads(text)["lr_warmup_steps"] == 0.25
    assert tomllib.loads(text)["optimizer_args"] == ["betas=(0.9, 0.99)"]


DATASET = """
[general]
shuffle_caption = true
[[datasets]]
resolution = [512, 640]
batch_size = 3
enable_bucket = true
[[datasets.subsets]]
image_dir = "%s"
num_repeats = 5
flip_aug = true
class_tokens = "a <monster>"
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The fields that our trainer writes for `CHANGED_VALUES`, and the dataset they tell of."""
    from PIL import Image

    from backend.data.dataset import TrainingSet

    folder = tmp_path_factory.mktemp("data") / "pictures"
    folder.mkdir()
    Image.new("RGB", (600, 600)).save(folder / "a.png")
    dataset = DatasetConfig.loads(DATASET % folder)
    config = resolve(TrainNetwork, CHANGED_VALUES | {"network_dropout": 0.25})
    facts = TrainingFacts(
        "sd_v1",
        config.network.network_args,
        session_id=1,
        steps=9,
        optimizer="torch.optim.adamw.AdamW(betas=(0.9, 0.95),weight_decay=0.1,amsgrad=True)",
        sd_model_name="nice.safetensors",
    )
    return config, dataset, training_metadata(values(config), facts) | TrainingSet.scan(dataset).info


def test_the_metadata_of_our_trainer_reads_back_to_the_same_options(written):
    config, _, metadata = written
    found = lora(metadata | {"modelspec.title": "t", "modelspec.author": "me", "sshs_model_hash": "0"})
    ours = values(config)
    told = {key.removeprefix("ss_") for key in metadata} & set(ours) | {"optimizer_type", "optimizer_args"}
    assert {name: found.values.get(name, leaves(TrainNetwork)[name].default) for name in told} == {
        name: ours[name] for name in told
    }
    assert len(set(found.values) & told) > 20
    lost = {note.key for note in found.of(LOST)}
    assert lost <= {"modelspec.author"}
    assert notes(found, OPEN)["sd_model_name"].startswith("only this name is known")
    assert "ss_session_id" in found.facts and unaccounted(found, metadata) == set()


def test_the_dataset_of_a_lora_file_is_told_as_a_toml_to_be_completed(written):
    _, dataset, metadata = written
    text = lora(metadata).dataset
    assert "1 pictures" in text
    (read,) = DatasetConfig.loads(text).datasets
    (given,) = dataset.datasets
    subset = given.subsets[0].model_copy(update={"image_dir": Path("pictures")})
    assert read == given.model_copy(update={"subsets": (subset,)})


def test_metadata_of_sd_scripts_with_folders_in_place_of_a_dataset_toml():
    found = lora(
        {
            "ss_network_module": "networks.lora",
            "ss_network_dim": "Dynamic",
            "ss_optimizer": "torch.optim.sgd.SGD(nesterov=True,momentum=0.9)",
            "ss_text_encoder_lr": "[0.0001, 5e-05]",
            "ss_clip_skip": "None",
            "ss_noise_offset": "None",
            "ss_lowram": "False",
            "ss_sd_model_name": "org/some-model",
            "ss_resolution": "(512, 512)",
            "ss_batch_size_per_device": "2",
            "ss_color_aug": "True",
            "ss_flip_aug": "False",
            "ss_dataset_dirs": '{"10_cat": {"n_repeats": 10, "img_count": 7}, "../../x": {"n_repeats": 1}}',
            "ss_reg_dataset_dirs": '{"1_animal": {"n_repeats": 1, "img_count": 3}}',
            "ss_network_args": "{",
        }
    )
    assert found.values["text_encoder_lr"] == (1e-4, 5e-5)
    assert found.values["pretrained_model_name_or_path"] == "org/some-model"
    lost = notes(found, LOST)
    assert "color_aug" in lost or "color_aug = true" in found.dataset
    assert {"network_args", "network_dim"} <= set(lost) and "ss_network_dim" not in found.taken
    (options,) = DatasetConfig.loads(found.dataset).datasets
    assert (options.resolution, options.batch_size) == ((512, 512), 2)
    assert [(str(s.image_dir), s.num_repeats, s.is_reg) for s in options.subsets] == [
        ("10_cat", 10, False),
        ("x", 1, False),
        ("1_animal", 1, True),
    ]


def test_arguments_of_an_optimizer_are_parted_at_their_commas_only():
    assert split_arguments("a=1,betas=(0.9, b=2),c=[1,2] , d='x'") == ["a=1", "betas=(0.9, b=2)", "c=[1,2]", "d='x'"]
    assert split_arguments("") == []


def test_our_own_config_stays_what_it_is():
    config = resolve(TrainNetwork, CHANGED_VALUES)
    for text in (to_toml(config), json.dumps({"network": {"network_dim": 3}})):
        found = read_foreign(text.encode(), "own.toml")
        assert found.source_kind == "config of our own" and not found.notes
    assert resolve(TrainNetwork, read_foreign(to_toml(config).encode(), "x.toml").values) == config


@pytest.mark.parametrize(
    ("data", "name", "said"),
    [
        (b"\xff\xfe", "a.toml", "is not a text file in UTF-8"),
        (b"a = ", "a.toml", "is not valid toml"),
        (b"{", "a.json", "is not valid JSON"),
        (b'{"a": ' + b"[" * 100_000, "a.json", "is not valid JSON"),
        (b"a = " + b"[" * 100_000, "a.toml", "is not valid toml"),
        (b"[1, 2]", "a.json", "is not valid toml"),
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
        assert caught.value.message == "cannot be read: No such file or directory" and caught.value.field == name


def test_the_command_imports_and_lists_on_stderr(tmp_path, capsys):
    source, target = tmp_path / "mine.json", tmp_path / "out.toml"
    source.write_text(json.dumps(GUI))
    assert program.main(["import_config", str(source), str(target)]) == 0
    said = capsys.readouterr()
    assert said.out == "" and "Not carried over:\n" in said.err and "mem_eff_attn = true: has no" in said.err
    assert (tmp_path / "out_prompts.txt").read_text() == GUI["sample_prompts"] + "\n"
    argv = [f"--config_file={target}", "--dataset_config=d"]
    config = TrainNetwork.model_validate(tomllib.loads(target.read_text()) | {"data": {"dataset_config": "d"}})
    assert config.samples.sample_prompts == tmp_path / "out_prompts.txt"
    assert program.main(["import_config", str(source), str(target)]) == 2, argv
    assert "is there already" in capsys.readouterr().err


def test_the_command_writes_the_dataset_toml_of_a_lora(tmp_path, capsys, written):
    source, dataset = tmp_path / "a.safetensors", tmp_path / "d.toml"
    source.write_bytes(pack_header({METADATA_KEY: written[2]}))
    assert program.main(["import_config", str(source), "--dataset_toml", str(dataset)]) == 0
    assert tomllib.loads(capsys.readouterr().out)["network"]["network_dim"] == 12
    assert DatasetConfig.load(dataset).datasets[0].batch_size == 3


def test_the_command_exports_a_preset_or_a_toml(tmp_path, capsys):
    target, own = tmp_path / "scripts.toml", tmp_path / "own.toml"
    assert program.main(["export_config", "demo", str(target)]) == 0
    assert tomllib.loads(target.read_text())["max_train_steps"] == 700
    own.write_text("[network]\nnetwork_dim = 5\n")
    capsys.readouterr()
    assert program.main(["export_config", str(own)]) == 0
    assert tomllib.loads(capsys.readouterr().out)["network_dim"] == 5
    own.write_text("network_dmi = 5\n")
    assert program.main(["export_config", str(own)]) == 2
    assert "did you mean network_dim?" in capsys.readouterr().err


def test_output_config_writes_the_resolved_config_and_ends(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("backend.commands.Entry.function", lambda entry: pytest.fail("it ran"))
    line = ["train_network", *(f"--{name}={value}" for name, value in REQUIRED.items()), "--network_dim=5"]
    target = tmp_path / "new.toml"
    with pytest.raises(SystemExit) as ended:
        program.main([*line, "--config_file", str(tmp_path / "new"), "--output_config"])
    assert ended.value.code == 0
    assert tomllib.loads(target.read_text())["network"]["network_dim"] == 5
    assert program.main([*line, "--config_file", str(target), "--output_config"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert program.main([*line, "--output_config"]) == 2
    assert "needs config_file" in capsys.readouterr().err
