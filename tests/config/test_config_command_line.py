"""Command lines as configs: flags, their spellings and types, toml and presets below them, what is said when wrong."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.config.base import from_argv, help_text, leaves, values
from backend.config.declare import Command, Section
from backend.config.generate import GenImg
from backend.config.tools import ConvertModel
from backend.config.train import TrainNetwork
from backend.errors import ConfigError

REQUIRED = ["--pretrained_model_name_or_path=m.ckpt", "--dataset_config=d.toml", "--output_dir=out"]


class Numbers(Section):
    """Numbers."""

    ratios: tuple[float, ...] = ()
    """Some numbers."""

    offset: float = 0.0
    """Any number; 100% of it."""


class Merge(Command):
    """Merge."""

    command = "merge"

    numbers: Numbers


def train(*words: str) -> TrainNetwork:
    return from_argv(TrainNetwork, [*REQUIRED, *words])


def wrong(*words: str, command: type[Command] = TrainNetwork) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        from_argv(command, list(words) if command is not TrainNetwork else [*REQUIRED, *words])
    return str(caught.value).splitlines()


def test_the_documented_training_line():
    config = train(
        *("--output_name=thing", "--save_model_as=safetensors", "--prior_loss_weight=1.0", "--max_train_steps=400"),
        *("--learning_rate=1e-4", "--optimizer_type=AdamW8bit", "--xformers", "--mixed_precision=fp16"),
        *("--cache_latents", "--gradient_checkpointing", "--save_every_n_epochs=1", "--network_module=networks.lora"),
    )
    assert config.model.pretrained_model_name_or_path == "m.ckpt"
    assert config.data.dataset_config == Path("d.toml")
    assert config.save.output_dir == Path("out")
    assert (config.save.output_name, config.save.save_every_n_epochs) == ("thing", 1)
    assert (config.optim.max_train_steps, config.optim.learning_rate) == (400, 1e-4)
    assert config.optim.optimizer_type == "AdamW8bit"
    assert config.speed.xformers and config.speed.gradient_checkpointing and config.data.cache_latents
    assert config.speed.mixed_precision == "fp16"
    assert (config.network.network_dim, config.network.network_alpha) == (4, 1.0)


def test_hyphens_and_separate_values_are_the_same_flags():
    assert train("--max-train-steps", "7", "--cache-latents", "--no-xformers") == train(
        "--max_train_steps=7", "--cache_latents"
    )


def test_the_last_of_several_values_wins_and_a_bool_can_be_taken_back():
    config = train("--seed=1", "--seed", "2", "--xformers", "--no_xformers", "--cache_latents=true", "--sdpa=off")
    assert (config.optim.seed, config.speed.xformers, config.data.cache_latents, config.speed.sdpa) == (
        2,
        False,
        True,
        False,
    )


def test_choices_match_in_any_case_and_in_the_documents_spellings():
    config = train("--optimizer_type=adamw8BIT", "--network_module", "lora", "--mixed_precision=BF16")
    assert config.optim.optimizer_type == "AdamW8bit"
    assert config.network.network_module == "networks.lora"
    assert config.speed.mixed_precision == "bf16"
    assert train("--network_module=network.lora").network.network_module == "networks.lora"


def test_network_alpha_none_is_zero():
    assert train("--network_alpha", "none").network.network_alpha == 0


def test_none_is_the_value_of_an_option_that_may_be_left_out_and_of_no_other():
    assert train("--seed=1", "--seed=None").optim.seed is None
    assert wrong("--network_dim=none") == ['network_dim: must be an integer, got "none"']
    assert train("--training_comment=none").save.training_comment == "none"


def test_a_list_flag_given_again_goes_on_with_the_list():
    assert from_argv(Merge, ["--ratios", "1", "2", "--offset=1", "--ratios=3"]).numbers.ratios == (1, 2, 3)
    assert train("--optimizer_args", "eps=1", "--optimizer_args=weight_decay=0").optim.optimizer_args == {
        "eps": 1,
        "weight_decay": 0,
    }


def test_negative_numbers_with_exponents_are_values():
    numbers = from_argv(Merge, ["--ratios", "1", "-1e-3", "-.5", "--offset", "-2E+1"]).numbers
    assert numbers.ratios == (1.0, -1e-3, -0.5)
    assert numbers.offset == -20.0


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5), st.floats(-1e300, 1e300))
def test_every_finite_number_survives_the_command_line(ratios, offset):
    words = ["--ratios", *map(repr, ratios), "--offset", repr(offset)]
    numbers = from_argv(Merge, words).numbers
    assert (numbers.ratios, numbers.offset) == (tuple(ratios), offset)


def test_generation_line_takes_lists_and_gives_each_file_its_multiplier():
    line = "--ckpt m --outdir o --W 512 --H 768 --scale 7 --sampler k_euler_a --network_module networks.lora"
    words = [*line.split(), "--prompt", "a cat --n dog", "--network_weights", "a.safetensors", "b", "c"]
    config = from_argv(GenImg, [*words, "--network_mul", "0.8", "-0.5"])
    assert config.prompting.prompt == "a cat --n dog"
    assert (config.image.W, config.image.H, config.image.sampler) == (512, 768, "euler_a")
    assert config.network.loras() == ((Path("a.safetensors"), 0.8), (Path("b"), -0.5), (Path("c"), -0.5))
    assert from_argv(GenImg, words).network.loras()[2] == (Path("c"), 1.0)


def test_aliases_fill_the_same_option():
    config = from_argv(GenImg, ["--pretrained_model_name_or_path", "m", "--outdir", "o", "--prompt", "p"])
    assert config.model.ckpt == "m"


def test_positional_values():
    config = from_argv(ConvertModel, ["a.ckpt", "--overwrite", "folder"])
    assert (config.convert.src, config.convert.dst, config.convert.overwrite) == (Path("a.ckpt"), Path("folder"), True)
    assert wrong("a", "b", "c", command=ConvertModel)[0].startswith("c: is a value without an option")
    assert wrong("a", command=ConvertModel)[0].startswith("dst: is required")


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("--learning_rate=-1", "learning_rate: must be greater than 0, got -1"),
        ("--learning_rate=nan", "learning_rate: must be a finite number, got nan"),
        ("--learning_rate=fast", 'learning_rate: must be a number, got "fast"'),
        ("--max_train_steps=1e3", 'max_train_steps: must be an integer, got "1e3"'),
        ("--max_train_steps=0", "max_train_steps: must be at least 1, got 0"),
        ("--xformers=perhaps", 'xformers: must be true or false, got "perhaps"'),
        ("--mixed_precision=bf61", 'mixed_precision: must be one of no, fp16, bf16, got "bf61"; did you mean bf16?'),
        ("--lerning_rate=3", "--lerning_rate: is not an option; did you mean --learning_rate?"),
        ("--seed", "seed: needs a value: an integer"),
        ("-x", "-x: is not an option"),
        ("--output_name=a/b", 'output_name: must be a plain file name without a folder, got "a/b"'),
        ("--pretrained_model_name_or_path=", "pretrained_model_name_or_path: must not be empty"),
        ("--optimizer_args=decay", 'optimizer_args: must be "key=value", got "decay"'),
    ],
)
def test_a_wrong_word_is_one_line_that_names_the_option_and_what_is_expected(word, line):
    assert wrong(word) == [line]


def test_a_value_that_looks_like_a_flag_says_how_to_write_it():
    (line,) = wrong("--training_comment", "--xformers")
    assert line == 'training_comment: needs a value: text (write --training_comment="--xformers" if that is meant)'
    assert train("--training_comment=--xformers").save.training_comment == "--xformers"


def test_all_problems_come_at_once_one_line_each():
    with pytest.raises(ConfigError) as caught:
        from_argv(TrainNetwork, ["--max_train_steps=x", "--xformer", "--network_dim=0"])
    assert [field for field, _ in caught.value.problems] == [
        "max_train_steps",
        "--xformer",
        "pretrained_model_name_or_path",
        "dataset_config",
        "network_dim",
        "output_dir",
    ]
    assert len(str(caught.value).splitlines()) == 6


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--network_train_unet_only", "--network_train_text_encoder_only"], "network_train_text_encoder_only"),
        (["--lr_warmup_steps=10"], "lr_warmup_steps"),
        (["--lr_scheduler=cosine", "--lr_warmup_steps=10.5"], "lr_warmup_steps"),
        (["--sample_every_n_steps=10"], "sample_prompts"),
        (["--sample_prompts=p.txt"], "sample_prompts"),
    ],
)
def test_options_that_contradict_each_other_name_one(words, field):
    (line,) = wrong(*words)
    assert line.startswith(f"{field}: ")


def test_warm_up_is_steps_or_a_fraction():
    assert train("--lr_scheduler=cosine", "--lr_warmup_steps=10").optim.lr_warmup_steps == 10
    assert train("--lr_scheduler=constant_with_warmup", "--lr_warmup_steps=0.1").optim.lr_warmup_steps == 0.1


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ([], "prompt"),
        (["--prompt=p", "--from_file=f"], "from_file"),
        (["--prompt=p", "--fp16", "--bf16"], "bf16"),
        (["--prompt=p", "--W=60"], "W"),
        (["--prompt=p", "--network_mul=1"], "network_mul"),
    ],
)
def test_generation_options_that_contradict_each_other_name_one(words, field):
    (line,) = wrong("--ckpt=m", "--outdir=o", *words, command=GenImg)
    assert line.startswith(f"{field}: ")


def test_flags_win_over_toml_and_later_toml_over_earlier(tmp_path):
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text('seed = 1\nmax_train_steps = 11\nnetwork_dim = 16\n[save]\noutput_name = "x"\n', encoding="utf-8")
    second.write_text("[optim]\nmax_train_steps = 22\nseed = 2\n", encoding="utf-8")
    config = train("--seed", "3", f"--config_file={first}", "--config_file", str(second))
    assert (config.optim.seed, config.optim.max_train_steps) == (3, 22)
    assert (config.network.network_dim, config.save.output_name) == (16, "x")


def test_a_missing_config_file_is_the_only_complaint(tmp_path):
    with pytest.raises(ConfigError) as caught:
        from_argv(TrainNetwork, ["--config_file", str(tmp_path / "none.toml")])
    assert str(caught.value) == f"config_file: there is no file {tmp_path / 'none.toml'}"


def test_unknown_key_of_a_file_names_the_file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("lerning_rate = 3\n", encoding="utf-8")
    (line,) = wrong("--config_file", str(path))
    assert line == "lerning_rate: is not an option of train_network (in run.toml); did you mean learning_rate?"


@pytest.mark.parametrize("command", [TrainNetwork, GenImg, ConvertModel, Merge])
def test_help_shows_every_option_with_its_text(command, capsys):
    with pytest.raises(SystemExit) as caught:
        from_argv(command, ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    for leaf in leaves(command).values():
        assert leaf.help, f"{leaf.name} has no help"
        assert " ".join(leaf.help.split()) in shown
        assert (leaf.name.upper() if leaf.positional else leaf.name) in shown
    assert " ".join(help_text(command).split()) == shown


def test_values_that_differ_from_the_defaults():
    config = train("--seed=5")
    assert values(config, changed_only=True) == {
        "pretrained_model_name_or_path": "m.ckpt",
        "dataset_config": Path("d.toml"),
        "seed": 5,
        "output_dir": Path("out"),
    }
    assert set(values(config)) == set(leaves(TrainNetwork))
