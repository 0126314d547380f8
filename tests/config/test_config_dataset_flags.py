"""The dataset as the command line describes it: flags made from the toml's keys, folders, in_json, and their order."""

import json
from pathlib import Path

import pytest

from backend.config.base import leaves, problems, resolve
from backend.config.dataset import DATASET_KEYS, SUBSET_KEYS, DatasetConfig
from backend.config.dataset_folders import dataset_of
from backend.config.train import TrainNetwork
from backend.config.training.dataset import BASIC, FLAGS, TOML_ONLY, VALIDATION
from backend.errors import ConfigError, UserError

REQUIRED = {"pretrained_model_name_or_path": "m", "output_dir": "o"}


def config(**options: object) -> TrainNetwork:
    return resolve(TrainNetwork, REQUIRED, options)


def dataset(**options: object) -> DatasetConfig:
    found = config(**options)
    return dataset_of(found.data, found.dataset_defaults.keys())


def problem(**options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        config(**options)
    return str(caught.value)


@pytest.fixture
def folders(tmp_path) -> Path:
    """train/10_shs dog, train/2_dog_b, train/3, and what is no such folder; reg/1_dog."""
    for name in ("10_shs dog", "2_dog_b", "3", "plain", "0_never", ".hidden"):
        (tmp_path / "train" / name).mkdir(parents=True)
    (tmp_path / "train" / "loose.png").write_bytes(b"")
    (tmp_path / "reg" / "1_dog").mkdir(parents=True)
    return tmp_path


def test_every_key_of_the_toml_has_a_flag_of_the_same_declaration():
    flags, keys = leaves(TrainNetwork), DATASET_KEYS | SUBSET_KEYS
    for name, key in keys.items():
        if name in TOML_ONLY:
            assert name not in flags or name in VALIDATION
            continue
        flag = flags[FLAGS.get(name, name)]
        assert (flag.section, flag.advanced) == ("dataset_defaults", name not in (*BASIC, "resolution"))
        if name != "resolution":
            same = ("kind", "default", "help", "ge", "gt", "le", "multiple_of", "aliases")
            assert [getattr(flag, each) for each in same] == [getattr(key, each) for each in same]


def test_a_source_is_required_and_only_one():
    assert problem() == (
        "dataset_config: is required: the toml file that describes the dataset, or give train_data_dir or in_json"
    )
    for other in ("train_data_dir", "reg_data_dir", "in_json"):
        found = problem(dataset_config="d.toml", **{other: "x"})
        assert found == f"dataset_config: cannot be set together with {other}; choose one"
    assert problem(reg_data_dir="x").startswith("dataset_config: is required")
    assert problem(in_json="x", reg_data_dir="x").startswith("reg_data_dir: has no effect with in_json")
    assert problems(TrainNetwork, REQUIRED, partial=True) == {}
    assert leaves(TrainNetwork)["dataset_config"].required


def test_values_are_those_of_subset_dataset_general_command_line_default(tmp_path):
    path = tmp_path / "d.toml"
    path.write_text(
        "[general]\nkeep_tokens = 2\n[[datasets]]\nresolution = 64\nbatch_size = 3\n[[datasets.subsets]]\n"
        "image_dir = 'a'\nnum_repeats = 4\n[[datasets.subsets]]\nimage_dir = 'b'\nflip_aug = false\n"
        "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'c'\n"
    )
    flags = {"keep_tokens": 9, "dataset_repeats": 5, "train_batch_size": 7, "flip_aug": True, "resolution": "32,48"}
    first, second = dataset(dataset_config=str(path), **flags).datasets
    assert (first.resolution, first.batch_size) == ((64, 64), 3)
    assert (second.resolution, second.batch_size) == ((32, 48), 7)
    assert [(s.keep_tokens, s.num_repeats, s.flip_aug) for s in first.subsets] == [(2, 4, True), (2, 5, False)]
    assert second.subsets[0].caption_separator == ","


def test_folders_are_named_by_repeats_and_class_tokens(folders):
    found = dataset(train_data_dir=str(folders / "train"), reg_data_dir=str(folders / "reg"), resolution=64)
    (options,) = found.datasets
    assert found.in_folders and options.resolution == (64, 64)
    assert [(s.image_dir.name, s.num_repeats, s.class_tokens, s.is_reg) for s in options.subsets] == [
        ("10_shs dog", 10, "shs dog", False),
        ("2_dog_b", 2, "dog_b", False),
        ("3", 3, None, False),
        ("1_dog", 1, "dog", True),
    ]
    assert [warning.split(" is left out")[0] for warning in found.warnings] == [
        str(folders / "train" / "0_never"),
        str(folders / "train" / "plain"),
        "1 file lies beside the numbered folders and",
    ]


def test_flags_reach_the_folders(folders):
    flags = {"shuffle_caption": True, "caption_extention": "tags", "bucket_no_upscale": True, "enable_bucket": True}
    (options,) = dataset(train_data_dir=str(folders / "train"), resolution="512x768", **flags).datasets
    assert (options.resolution, options.enable_bucket, options.bucket_no_upscale) == ((512, 768), True, True)
    assert all(s.shuffle_caption and s.caption_extension == ".tags" for s in options.subsets)


# One value of each kind that is no key's default.
VALUES = {"bool": True, "int": 8, "float": 0.5, "str": ".x", "path": "x", "choice": "nearest", "list": [2.0, 4.0]}


@pytest.mark.parametrize("key", sorted(set(DATASET_KEYS | SUBSET_KEYS) - {*TOML_ONLY, "resolution"}))
def test_every_flag_arrives(folders, key):
    leaf = (DATASET_KEYS | SUBSET_KEYS)[key]
    value = VALUES[leaf.kind]
    (options,) = dataset(train_data_dir=str(folders / "train"), resolution=512, **{FLAGS.get(key, key): value}).datasets
    # Folders say their repeats by their names.
    places = [] if key == "num_repeats" else [options] if key in DATASET_KEYS else options.subsets
    wanted = tuple(value) if isinstance(value, list) else value
    assert value != leaf.default and all(getattr(place, key) == wanted for place in places)


def test_folders_that_cannot_be_used_are_named(folders, tmp_path):
    with pytest.raises(ConfigError, match=r"resolution: is required: .*dataset 1 in train_data_dir"):
        dataset(train_data_dir=str(folders / "train"))
    with pytest.raises(UserError, match=r"train_data_dir: .*gone cannot be read: No such file"):
        dataset(train_data_dir=str(tmp_path / "gone"), resolution=64)
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.png").write_bytes(b"")
    expected = r'flat has no folder named by its repeats .* such as "10_shs dog"\. Its files belong in such a folder'
    with pytest.raises(UserError, match=f"train_data_dir: .*{expected}"):
        dataset(train_data_dir=str(tmp_path / "flat"), resolution=64)
    with pytest.raises(UserError, match=r"reg_data_dir: .*empty has no folder named .*dog\"\.$"):
        (tmp_path / "empty").mkdir()
        dataset(train_data_dir=str(folders / "train"), reg_data_dir=str(tmp_path / "empty"), resolution=64)


def test_in_json_is_one_subset(tmp_path):
    (options,) = dataset(in_json="x/meta.json", train_data_dir="p", resolution=64).datasets
    assert [(str(s.metadata_file), str(s.image_dir)) for s in options.subsets] == [("x/meta.json", "p")]
    (options,) = dataset(in_json="x/meta.json", resolution=64).datasets
    assert str(options.subsets[0].image_dir) == "x"


def test_a_wrong_flag_is_named_as_what_it_is(folders, tmp_path):
    assert problem(in_json="x", resolution="wide") == (
        'resolution: must be a number of pixels or [width, height], got "wide"'
    )
    assert problem(in_json="x", dataset_repeats=-1) == "dataset_repeats: must be from 0 to 10000, got -1"
    path = tmp_path / "d.toml"
    path.write_text("[[datasets]]\nresolution = 512\nenable_bucket = true\n[[datasets.subsets]]\nimage_dir = 'a'\n")
    with pytest.raises(ConfigError, match=r"^min_bucket_reso: must not exceed .* got 1000 \(the command line\)$"):
        dataset(dataset_config=str(path), min_bucket_reso=1000)


def test_json_says_the_same_as_toml(tmp_path):
    tables = {"general": {"flip_aug": True}, "datasets": [{"resolution": 64, "subsets": [{"image_dir": "a"}]}]}
    path = tmp_path / "d.JSON"
    tables["datasets"][0]["subsets"][0]["num_repeats"] = None
    path.write_text(json.dumps(tables))
    text = "[general]\nflip_aug = true\n[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = 'a'\n"
    assert DatasetConfig.load(path) == DatasetConfig.loads(text)
    path.write_text("{")
    with pytest.raises(UserError, match=r"dataset_config: .*d\.JSON is not valid JSON: "):
        DatasetConfig.load(path)
    path.write_text("[]")
    with pytest.raises(UserError, match="must hold a JSON object"):
        DatasetConfig.load(path)
