"""The metadata of LoRA files as configs: our trainer's, and the reference's."""

import tomllib
from pathlib import Path

import pytest

from backend import __main__ as program
from backend.config.base import resolve, values
from backend.config.dataset import DatasetConfig
from backend.config.declare import leaves
from backend.config.dialects.lora_file import split_arguments
from backend.config.dialects.reading import LOST, OPEN
from backend.config.train import TrainNetwork
from backend.header import METADATA_KEY, pack_header
from backend.lora.metadata import TrainingFacts, training_metadata
from tests.config.foreign_files import CHANGED_VALUES, lora, notes, unaccounted

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


def test_the_command_writes_the_dataset_toml_of_a_lora(tmp_path, capsys, written):
    source, dataset = tmp_path / "a.safetensors", tmp_path / "d.toml"
    source.write_bytes(pack_header({METADATA_KEY: written[2]}))
    assert program.main(["import_config", str(source), "--dataset_toml", str(dataset)]) == 0
    assert tomllib.loads(capsys.readouterr().out)["network"]["network_dim"] == 12
    assert DatasetConfig.load(dataset).datasets[0].batch_size == 3
