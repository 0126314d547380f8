"""The dataset toml: look-up through its levels, strictness, messages that name the table."""

from pathlib import Path

import pytest

from backend.config.dataset import DatasetConfig
from backend.errors import ConfigError, UserError

WHOLE = """
[general]
enable_bucket = true
num_repeats = 3
caption_extension = "txt"
batch_size = 5

[[datasets]]
resolution = 512
batch_size = 2
shuffle_caption = true

[[datasets.subsets]]
image_dir = "a"
class_tokens = "sks cat"

[[datasets.subsets]]
image_dir = "b"
is_reg = true
num_repeats = 7
shuffle_caption = false

[[datasets]]
resolution = [768, 512]
max_bucket_reso = 2048
num_repeats = 4

[[datasets.subsets]]
image_dir = "a"
"""


def lines(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        DatasetConfig.loads(text, "d.toml")
    return str(caught.value).splitlines()


@pytest.mark.parametrize("place", ["[general]", "[[datasets]]"])
def test_a_key_of_the_reference_without_effect_is_passed_over_with_a_line(place):
    told = DatasetConfig.loads(WHOLE.replace(place, f"{place}\ncache_info = true", 1)).warnings
    assert told == (
        "cache_info has no effect here: pictures are measured at every start, so that nothing is out of date",
    )
    assert not DatasetConfig.loads(WHOLE.replace(place, f"{place}\ncache_info = false", 1)).warnings


def test_values_are_looked_up_in_subset_then_dataset_then_general_then_default():
    first, second = DatasetConfig.loads(WHOLE).datasets
    assert (first.resolution, first.batch_size, first.enable_bucket, first.max_bucket_reso) == (
        (512, 512),
        2,
        True,
        1024,
    )
    assert (second.resolution, second.batch_size, second.max_bucket_reso) == ((768, 512), 5, 2048)
    cats, regular = first.subsets
    assert (cats.image_dir, cats.num_repeats, cats.shuffle_caption) == (Path("a"), 3, True)
    assert (cats.class_tokens, cats.caption_extension, cats.is_reg) == ("sks cat", ".txt", False)
    assert (regular.num_repeats, regular.shuffle_caption, regular.is_reg) == (7, False, True)
    assert (second.subsets[0].num_repeats, second.subsets[0].shuffle_caption) == (4, False)


def test_it_reads_back_equal_from_its_own_toml(tmp_path):
    config = DatasetConfig.loads(WHOLE)
    path = tmp_path / "dataset.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert DatasetConfig.load(path) == config


def test_hostile_text_survives_writing():
    text = '[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = "x"\nclass_tokens = \'a"\\n]]\'\n'
    config = DatasetConfig.loads(text)
    assert config.datasets[0].subsets[0].class_tokens == 'a"\\n]]'
    assert DatasetConfig.loads(config.to_toml()) == config


@pytest.mark.parametrize(
    ("written", "size"),
    [("64", (64, 64)), ("[64, 96]", (64, 96)), ('"64"', (64, 64)), ('"64,96"', (64, 96)), ('"64x96"', (64, 96))],
)
def test_spellings_of_the_resolution(written, size):
    text = f'[[datasets]]\nresolution = {written}\n[[datasets.subsets]]\nimage_dir = "x"\n'
    assert DatasetConfig.loads(text).datasets[0].resolution == size


@pytest.mark.parametrize(
    ("dataset", "subset", "expected"),
    [
        ("resolution = true", "", "resolution: must be a number of pixels or [width, height], got true"),
        ("resolution = [1, 2, 3]", "", "resolution: must be a number of pixels or [width, height], got [1, 2, 3]"),
        ("resolution = 60", "", "resolution: must be a multiple of 8 in both directions, got 60x60"),
        ("resolution = 0", "", "resolution: must be at least 8 pixels, got 0x0"),
        ("", "", "resolution: is required: size to train at in pixels"),
        ("resolution = 64\nbatchsize = 2", "", "batchsize: is not a key of this table; did you mean batch_size?"),
        (
            "resolution = 64\nis_reg = true",
            "",
            "is_reg: is not a key of this table; it belongs in [[datasets.subsets]]",
        ),
        ("resolution = 64\nbatch_size = 0", "", "batch_size: must be at least 1, got 0"),
        ("resolution = 64\nenable_bucket = true", "", "min_bucket_reso: must not exceed the shorter side"),
        (
            "resolution = 2048\nenable_bucket = true",
            "",
            "max_bucket_reso: must not be below the longer side of the resolution, which is 2048x2048; got 1024",
        ),
        (
            "resolution = 512\nenable_bucket = true\nmin_bucket_reso = 512\nmax_bucket_reso = 256",
            "",
            "min_bucket_reso: is greater than max_bucket_reso (256)",
        ),
        ("resolution = 512\nbucket_reso_steps = 20", "", "bucket_reso_steps: must be at least 8 and a multiple of 8"),
        (
            "resolution = 64",
            "num_repeats = -1",
            "num_repeats: must be from 0 to 10000, got -1 (subset 1 of dataset 1 in d.toml)",
        ),
        ("resolution = 64", "caption_dropout_rate = 1.5", "caption_dropout_rate: must be from 0 to 1, got 1.5"),
        ("resolution = 64", 'flip_aug = "yes"', 'flip_aug: must be true or false, got "yes"'),
        ("resolution = 64", "resolution = 64", "resolution: is not a key of this table; it belongs in [[datasets]]"),
        ("resolution = 64\nnetwork_multiplier = 0.0", "", "network_multiplier: must not be 0: nothing is learnt"),
        ("resolution = 64", "caption_tag_dropout_rate = 2", "caption_tag_dropout_rate: must be from 0 to 1, got 2"),
        (
            "resolution = 64",
            "token_warmup_step = 2.5",
            "token_warmup_step: must be a whole number of steps or a fraction",
        ),
        ("resolution = 64", "caption_extension = 'a'\ncaption_extention = 'b'", "caption_extension: is given twice"),
        ("resolution = 64", "keep_tokens_separator = ''", "keep_tokens_separator: must not be empty"),
        (
            "resolution = 64",
            "custom_attributes = {diff_output_preservation = true}",
            "custom_attributes: has diff_output_preservation, which there is not; use regularisation",
        ),
        (
            "resolution = 64",
            "metadata_file = 'm.json'\nclass_tokens = 'dog'",
            "class_tokens: has no meaning with metadata_file; leave one out (subset 1 of dataset 1",
        ),
        (
            "resolution = 64",
            "[[datasets.subsets]]\nmetadata_file = 'm.json'",
            "metadata_file: stands in some subsets and not in others; give these a [[datasets]] of their own",
        ),
        ("resolution = 64", "keep_token = 1", "keep_token: is not a key of this table; did you mean keep_tokens?"),
    ],
)
def test_a_wrong_key_or_value_is_one_line_that_names_it(dataset, subset, expected):
    (line,) = lines(f'[[datasets]]\n{dataset}\n[[datasets.subsets]]\nimage_dir = "x"\n{subset}\n')
    assert line.startswith(expected)
    assert "d.toml)" in line


def test_buckets_without_upscaling_take_any_resolution():
    text = "[[datasets]]\nresolution = 60\nenable_bucket = true\nbucket_no_upscale = true\n"
    config = DatasetConfig.loads(f'{text}[[datasets.subsets]]\nimage_dir = "x"\n')
    assert config.datasets[0].resolution == (60, 60)


def test_a_wrong_value_of_general_is_reported_once_and_as_that():
    text = WHOLE.replace("enable_bucket = true\n", "enable_bucket = true\nflip_aug = 3\nimage_dir = 'x'\n")
    assert lines(text) == [
        "image_dir: is not a key of this table; it belongs in [[datasets.subsets]] ([general] in d.toml)",
        "flip_aug: must be true or false, got 3 ([general] in d.toml)",
    ]


def test_all_problems_come_at_once():
    text = "[[datasets]]\nresolution = 60\n[[datasets.subsets]]\nimagedir = 'x'\n[extra]\n"
    assert [line.split(":")[0] for line in lines(text)] == ["extra", "imagedir", "image_dir", "resolution"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["datasets: must be given as one or more tables [[datasets]] (d.toml)"]),
        ("[datasets]\nresolution = 64", ["datasets: must be given as one or more tables [[datasets]] (d.toml)"]),
        (
            "[[datasets]]\nresolution = 64",
            ["subsets: must be given as one or more tables [[datasets.subsets]] (dataset 1 in d.toml)"],
        ),
    ],
)
def test_missing_tables_are_named(text, expected):
    assert lines(text) == expected


def test_missing_file_and_broken_toml_are_named(tmp_path):
    with pytest.raises(UserError, match="dataset_config: there is no file .*none.toml"):
        DatasetConfig.load(tmp_path / "none.toml")
    with pytest.raises(UserError, match="dataset_config: d.toml is not valid toml"):
        DatasetConfig.loads("[[datasets]", "d.toml")


@pytest.mark.parametrize("extension", ["/x", "a/../b", "\\\\x", "\\u0000"])
def test_a_caption_extension_is_no_path(extension):
    text = f'[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = "a"\ncaption_extension = "{extension}"\n'
    (line,) = lines(text)
    wrong = "has a NUL character" if extension == "\\u0000" else "must be the end of a file name such as .txt, got "
    assert line.startswith(f"caption_extension: {wrong}")


def test_repeats_are_bounded():
    text = "[[datasets]]\nresolution = 64\nnum_repeats = 1000000000000\n[[datasets.subsets]]\nimage_dir = 'a'\n"
    (line,) = lines(text)
    assert line.startswith("num_repeats: ") and "10000" in line


def test_all_caption_keys_of_sd_scripts_are_read():
    written = {
        "keep_tokens_separator": "|||",
        "secondary_separator": ";;;",
        "enable_wildcard": True,
        "caption_dropout_every_n_epochs": 2,
        "caption_tag_dropout_rate": 0.1,
        "token_warmup_min": 2,
        "token_warmup_step": 0.25,
        "custom_attributes": {"artist": "me", "size": 3},
    }
    tables = {"general": written, "datasets": [{"resolution": 64, "subsets": [{"image_dir": "a"}]}]}
    found = DatasetConfig.from_tables(tables, "d.toml")
    (subset,) = found.datasets[0].subsets
    assert {name: getattr(subset, name) for name in written} == written
    assert DatasetConfig.loads(found.to_toml()) == found
    lists = {"general": {"caption_extention": ".tags", "token_warmup_step": 5}, "datasets": tables["datasets"]}
    (subset,) = DatasetConfig.from_tables(lists, "d.toml").datasets[0].subsets
    assert (subset.caption_extension, subset.token_warmup_step) == (".tags", 5.0)


def test_a_home_that_is_nobodys_is_refused_by_name():
    text = "[[datasets]]\nresolution = 64\n[[datasets.subsets]]\n"
    for key in ("image_dir", "metadata_file"):
        with pytest.raises(UserError, match=f"{key}: begins with ~nobody-of-this-name, and there is no such user"):
            DatasetConfig.loads(f'{text}{key} = "~nobody-of-this-name/pictures"')
    with pytest.raises(UserError, match="nobody-of-this-name"):
        DatasetConfig.load("~nobody-of-this-name/dataset.toml")
