"""The core of the config: declaration to leaves, merging and validation, toml in and out, problems for the form."""

import subprocess
import sys
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError

from backend.commands import COMMANDS
from backend.config import docs
from backend.config.base import (
    flatten,
    from_argv,
    help_text,
    leaves,
    problems,
    read_toml,
    resolve,
    resolved_toml,
    section_leaves,
    to_toml,
    values,
)
from backend.config.declare import Command, Section
from backend.config.network import NETWORK_ARGS, read_network_args
from backend.config.text import read_pairs, read_section
from backend.config.train import TrainNetwork
from backend.errors import ConfigError, UserError
from backend.workspace import PROJECT

REQUIRED = {"pretrained_model_name_or_path": "m", "dataset_config": "d.toml", "output_dir": "out"}


class ConvArgs(Section):
    """What a network with more arguments will declare."""

    conv_dim: int | None = Field(None, ge=1)
    conv_alpha: float = Field(1.0, ge=0)
    block_dims: tuple[int, ...] = ()


def test_leaves_say_what_a_form_needs():
    known = leaves(TrainNetwork)
    rate = known["learning_rate"]
    assert (rate.kind, rate.gt, rate.default, rate.section, rate.title) == (
        "float",
        0,
        1e-4,
        "optim",
        "Optimizer and schedule",
    )
    assert known["mixed_precision"].choices == ("no", "fp16", "bf16")
    assert (known["dataset_config"].kind, known["dataset_config"].required) == ("path", True)
    assert (known["unet_lr"].optional, known["unet_lr"].default) == (True, None)
    assert known["network_args"].kind == "table"
    assert known["max_data_loader_n_workers"].advanced and not known["seed"].advanced


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_declares_itself_soundly(name):
    command_class = COMMANDS[name].config_class()
    assert command_class.command == name
    for leaf in leaves(command_class).values():
        assert leaf.help.endswith((".", ")")), f"{leaf.name} has no help"
        assert leaf.required or leaf.optional == (leaf.default is None)


def test_a_name_declared_twice_is_a_programming_error():
    class Again(Command):
        first: ConvArgs
        second: ConvArgs

    with pytest.raises(TypeError, match="conv_dim is declared twice"):
        leaves(Again)


def test_an_optional_leaf_with_another_default_is_a_programming_error():
    class Lossy(Section):
        alpha: float | None = 1.0

    with pytest.raises(TypeError, match="toml has no null"):
        section_leaves(Lossy)


def test_a_new_field_is_declared_in_one_place_and_appears_everywhere(tmp_path, monkeypatch):
    source = (PROJECT / "backend/config/training/optim.py").read_text(encoding="utf-8")
    anchor = '    """Learning rate."""\n'
    assert source.count(anchor) == 1
    new_field = '\n    a_new_option: float | None = Field(None, gt=0)\n    """Weight of 100% noise."""\n'
    path = tmp_path / "optim_plus.py"
    path.write_text(source.replace(anchor, anchor + new_field), encoding="utf-8")
    spec = spec_from_file_location("optim_plus", path)
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "optim_plus", module)
    spec.loader.exec_module(module)
    plus = type("Plus", (TrainNetwork,), {"__annotations__": {"optim": module.Optim}, "__module__": "optim_plus"})

    leaf = leaves(plus)["a_new_option"]
    assert (leaf.kind, leaf.gt, leaf.help, leaf.title) == (
        "float",
        0,
        "Weight of 100% noise.",
        "Optimizer and schedule",
    )
    words = [f"--{name}={value}" for name, value in REQUIRED.items()]
    config = from_argv(plus, [*words, "--a-new-option", "5e0"])
    assert config.optim.a_new_option == 5.0
    assert "--a_new_option FLOAT\n      Weight of 100% noise. Greater than 0.\n" in help_text(plus)
    assert tomllib.loads(to_toml(config))["optim"]["a_new_option"] == 5.0
    assert resolve(plus, {**REQUIRED, "optim": {"a_new_option": 5}}) == config
    assert problems(plus, REQUIRED, {"a_new_option": -1}) == {"a_new_option": "must be greater than 0, got -1"}
    assert problems(plus, REQUIRED, {"a_new_opton": 1}) == {
        "a_new_opton": "is not an option of train_network; did you mean a_new_option?"
    }
    assert "`a_new_option` | float, greater than 0 |" in docs.options_markdown([plus])


def test_a_resolved_config_is_frozen():
    config = resolve(TrainNetwork, REQUIRED)
    with pytest.raises(ValidationError):
        config.optim.learning_rate = 1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_train_steps": "8"}, 'must be an integer, got "8"; write it without quotes'),
        ({"max_train_steps": True}, "must be an integer, got true"),
        ({"max_train_steps": 8.0}, "must be an integer, got 8"),
        ({"max_train_steps": None}, "needs a value: an integer"),
        ({"learning_rate": "oops"}, 'must be a number, got "oops"'),
        ({"learning_rate": True}, "must be a number, got true"),
        ({"xformers": 1}, "must be true or false, got 1"),
        ({"xformers": "true"}, 'must be true or false, got "true"; write it without quotes'),
        ({"output_dir": 3}, "must be a path, got 3"),
        ({"output_dir": "a\0b"}, "has NUL in it, 'a\\x00b'; leave it out"),
        ({"output_dir": None}, "is required: folder for the LoRA files and sample pictures"),
        ({"training_comment": 3}, "must be text, got 3"),
        ({"mixed_precision": "fp99"}, 'must be one of no, fp16, bf16, got "fp99"'),
        ({"network_args": 3}, 'must be a table or a list of "key=value"'),
        ({"seed": -1}, "must be from 0 to 9223372036854775807, got -1"),
    ],
)
def test_toml_values_are_taken_strictly(given, message):
    (field,) = given
    assert problems(TrainNetwork, REQUIRED, given) == {field: message}
    with pytest.raises(ConfigError) as caught:
        resolve(TrainNetwork, REQUIRED, given)
    assert str(caught.value) == f"{field}: {message}"


def test_integers_are_numbers():
    assert resolve(TrainNetwork, REQUIRED, {"learning_rate": 1}).optim.learning_rate == 1.0


def test_flat_and_sectioned_values_are_the_same():
    sectioned = {
        "model_arguments": {"pretrained_model_name_or_path": "m"},
        "data": {"dataset_config": "d.toml"},
        "save": {"output_dir": "out"},
    }
    assert flatten(TrainNetwork, sectioned) == REQUIRED
    assert resolve(TrainNetwork, sectioned) == resolve(TrainNetwork, REQUIRED)


def test_unknown_and_doubled_keys_are_named():
    with pytest.raises(ConfigError) as caught:
        flatten(TrainNetwork, {"optimzer": {"lerning_rate": 1}, "seed": 1, "optim": {"seed": 2}}, "run.toml")
    assert str(caught.value).splitlines() == [
        "lerning_rate: is not an option of train_network (in run.toml); did you mean learning_rate?",
        "seed: is given twice in run.toml",
    ]


def test_the_form_gets_problems_by_field_and_a_part_of_a_config_may_be_incomplete():
    assert problems(TrainNetwork, REQUIRED) == {}
    assert set(problems(TrainNetwork, {"seed": -1})) == {*REQUIRED, "seed"}
    assert set(problems(TrainNetwork, {"seed": -1, "output_dir": None}, partial=True)) == {"seed"}
    both = {"network_train_unet_only": True, "network_train_text_encoder_only": True}
    assert set(problems(TrainNetwork, both, partial=True)) == {"network_train_text_encoder_only"}


def test_a_resolved_config_reads_back_equal_from_its_toml(tmp_path):
    config = resolve(
        TrainNetwork,
        REQUIRED,
        {"training_comment": 'quote " and\nline', "optimizer_args": ["betas=0.9,0.99", "weight_decay=1e-2"]},
        {"seed": 2**63 - 1, "learning_rate": 1e-7},
    )
    assert config.optim.optimizer_args == {"betas": (0.9, 0.99), "weight_decay": 0.01}
    path = tmp_path / "resolved.toml"
    path.write_text(resolved_toml(config), encoding="utf-8")
    assert resolve(TrainNetwork, read_toml(TrainNetwork, path)) == config
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    assert list(tables) == [name for name in TrainNetwork.model_fields if name in tables]
    assert {"model", "data", "dataset_defaults", "network", "optim", "noise", "speed", "save", "samples"} <= set(tables)
    assert "unet_lr" not in tables["optim"], "toml has no null"


def test_only_what_was_changed_can_be_written():
    config = resolve(TrainNetwork, REQUIRED, {"seed": 3})
    text = to_toml(values(config, changed_only=True), TrainNetwork)
    assert flatten(TrainNetwork, tomllib.loads(text)) == {**REQUIRED, "seed": 3}


def test_a_file_that_is_not_toml_is_named_with_the_line(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("seed = = 1\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"bad\.toml is not valid toml: .*line 1"):
        read_toml(TrainNetwork, path)
    with pytest.raises(UserError, match="is a folder"):
        read_toml(TrainNetwork, tmp_path)


def test_toml_may_be_left_out_of_the_name_and_a_byte_order_mark_is_no_harm(tmp_path):
    (tmp_path / "run.toml").write_text("\ufeffseed = 4\n", encoding="utf-8")
    assert read_toml(TrainNetwork, tmp_path / "run") == {"seed": 4}


PAIRS = {"conv_dim": 4, "conv_alpha": 1.0, "block_dims": (2, 4, 4)}


@pytest.mark.parametrize(
    "written",
    [
        ["conv_dim=4", "conv_alpha=1", "block_dims=2,4,4"],
        "conv_dim=4 conv_alpha=1 block_dims=2,4,4",
        "conv_dim=4, conv_alpha = 1; block_dims=2, 4, 4",
        {"conv_dim": 4, "conv_alpha": 1, "block_dims": [2, 4, 4]},
        {"conv_dim": 4, "conv_alpha": 1.0, "block_dims": "2,4,4"},
    ],
)
def test_network_arguments_in_every_spelling(written, monkeypatch):
    monkeypatch.setitem(NETWORK_ARGS, "networks.lora", ConvArgs)
    config = resolve(TrainNetwork, REQUIRED, {"network_args": written})
    assert config.network.network_args == PAIRS
    reread: dict[str, Any] = flatten(TrainNetwork, tomllib.loads(to_toml(config)))
    assert resolve(TrainNetwork, reread) == config


def test_network_arguments_on_the_command_line(monkeypatch):
    monkeypatch.setitem(NETWORK_ARGS, "networks.lora", ConvArgs)
    words = [f"--{name}={value}" for name, value in REQUIRED.items()]
    for arguments in (["--network_args", "conv_dim=4", "conv_alpha=1"], ["--network_args=conv_dim=4", "conv_alpha=1"]):
        assert from_argv(TrainNetwork, [*words, *arguments]).network.network_args == {"conv_dim": 4, "conv_alpha": 1.0}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (
            ["con_dim=4"],
            {
                "network_args.con_dim": "is not an option of networks.lora; did you mean conv_dim?"
                "; allowed: conv_dim, conv_alpha, block_dims"
            },
        ),
        (["conv_dim=0"], {"network_args.conv_dim": "must be at least 1, got 0"}),
        (["conv_dim=x"], {"network_args.conv_dim": 'must be an integer, got "x"'}),
        ({"conv_dim": "4"}, {"network_args.conv_dim": 'must be an integer, got "4"; write it without quotes'}),
        (["block_dims=1,x"], {"network_args.block_dims": 'must be an integer, got "x"'}),
        (["conv_dim"], {"network_args": 'must be "key=value", got "conv_dim"'}),
        (["conv_dim=1", "conv_dim=2"], {"network_args": "conv_dim is given twice"}),
    ],
)
def test_wrong_network_arguments_are_named(written, expected, monkeypatch):
    monkeypatch.setitem(NETWORK_ARGS, "networks.lora", ConvArgs)
    assert problems(TrainNetwork, REQUIRED, {"network_args": written}) == expected


def test_plain_lora_says_which_arguments_it_takes():
    allowed = list(section_leaves(NETWORK_ARGS["networks.lora"]))
    _, found = read_network_args("networks.lora", ["con_dim=4"])
    ((field, message),) = found
    assert field == "network_args.con_dim"
    assert message.endswith(f"allowed: {', '.join(allowed)}" if allowed else "networks.lora takes none")


def test_reading_pairs_leaves_the_input_alone():
    table = {"conv_dim": 4}
    pairs = read_pairs(table)
    pairs["x"] = 1
    assert table == {"conv_dim": 4}
    assert read_section(ConvArgs, table, "network_args", "it") == ({"conv_dim": 4}, [])


def test_the_config_core_costs_no_heavy_import():
    heavy = ("torch", "numpy", "diffusers", "transformers", "accelerate", "gradio", "tomlkit", "PIL")
    code = "import sys; from backend.__main__ import main; main(['--help']); main(['train_network', '--x']); "
    code += f"print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_the_page_of_options_is_current():
    page = Path(PROJECT / "docs/options.md").read_text(encoding="utf-8")
    fresh = docs.options_markdown([entry.config_class() for entry in COMMANDS.values()])
    assert page == fresh, "run: python -m backend --write-docs"
