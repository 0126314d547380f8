"""Our configs as toml files of sd-scripts and back, and the commands that import and export."""

import json
import tomllib
from typing import Any

import pytest

from backend import __main__ as program
from backend.config import presets
from backend.config.base import resolve, to_toml, values
from backend.config.declare import leaves
from backend.config.dialects.export import to_scripts
from backend.config.dialects.foreign import read_foreign
from backend.config.train import TrainNetwork
from tests.config.foreign_files import CHANGED_VALUES, GUI, REQUIRED, toml


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


def test_our_own_config_stays_what_it_is():
    config = resolve(TrainNetwork, CHANGED_VALUES)
    for text in (to_toml(config), json.dumps({"network": {"network_dim": 3}})):
        found = read_foreign(text.encode(), "own.toml")
        assert found.source_kind == "config of our own" and not found.notes
    assert resolve(TrainNetwork, read_foreign(to_toml(config).encode(), "x.toml").values) == config


def test_the_command_imports_and_lists_on_stderr(tmp_path, capsys):
    source, target = tmp_path / "mine.json", tmp_path / "out.toml"
    source.write_text(json.dumps(GUI))
    assert program.main(["import_config", str(source), str(target)]) == 0
    said = capsys.readouterr()
    assert said.out == "" and "Not carried over:\n" in said.err and "deepspeed = true: belongs to" in said.err
    assert (tmp_path / "out_prompts.txt").read_text() == GUI["sample_prompts"] + "\n"
    config = resolve(TrainNetwork, tomllib.loads(target.read_text()), {"dataset_config": "d"})
    assert config.samples.sample_prompts == tmp_path / "out_prompts.txt"
    assert program.main(["import_config", str(source), str(target)]) == 2
    assert "is there already" in capsys.readouterr().err


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
    for odd in ("~nobody-of-this-name/x.toml", "x" * 5000):
        assert program.main(["export_config", odd]) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_output_config_writes_the_resolved_config_and_ends(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("backend.commands.Entry.function", lambda *_: pytest.fail("it ran"))
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
