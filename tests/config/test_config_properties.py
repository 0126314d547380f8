"""Whatever words, bytes and values people bring: a config, or lines that say what is wrong. Never anything else."""

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.commands import COMMANDS
from backend.config import presets
from backend.config.base import from_argv, read_toml, resolve, to_toml, values
from backend.config.declare import leaves
from backend.config.dialects.foreign import read_foreign
from backend.config.dialects.reading import Imported
from backend.config.reference_options import REFERENCE_OPTIONS
from backend.config.text import read_literal, read_literals
from backend.config.train import TrainNetwork
from backend.errors import ConfigError, UserError

REQUIRED = {"pretrained_model_name_or_path": "m", "dataset_config": "d.toml", "output_dir": "o"}
NAMES = sorted({*leaves(TrainNetwork), *REFERENCE_OPTIONS["train_network"], "config_file", "preset", "no_overwrite"})
WORD = st.one_of(
    st.sampled_from([f"--{name}" for name in NAMES]),
    st.sampled_from(["1", "-1e-3", "true", "none", "a=1", "a=(1", "--", "-h", "--=", "-", "", "/dev/zero", "9" * 5000]),
    st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("-=\0\n\udce9"), max_size=12),
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20))
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
)
# Keys that programs have, with values that they have not.
KEYS = [
    *NAMES,
    *("LoRA_type", "additional_parameters", "lr_warmup", "epoch", "train_mode", "subsets", "general_args"),
    *("network_args", "optimizer_args", "training_method", "model_type", "__version", "optimizer", "unet"),
    *("text_encoder", "concepts", "samples", "resolution", "output_model_destination", "model_train_type"),
    *("config", "datasets", "learning_rate_warmup_steps", "save_every", "save_every_unit", "sample_prompts"),
]
PLAUSIBLE = st.sampled_from(
    ["LORA", "lora", "sd-lora", "STABLE_DIFFUSION_15", "Standard", "EPOCH", 1, 0.5, True, "a=1", "--seed 1", "1x2", [1]]
)
VALUES = ANYTHING | PLAUSIBLE | st.dictionaries(st.sampled_from(["args", "dataset_args", *KEYS]), PLAUSIBLE, max_size=4)
CONFIGS = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), VALUES, max_size=12)


def lines_of(error: UserError) -> list[str]:
    found = str(error).split("\n")
    # One line a problem, which every terminal and page can show.
    assert len(found) == (len(error.problems) if isinstance(error, ConfigError) else 1)
    for line in found:
        line.encode("utf-8")
        assert line.isprintable() or not any(letter in line for letter in "\0\r\t\x1b")
    return found


@settings(deadline=None)
@given(st.lists(WORD, max_size=8))
def test_any_words_are_a_config_or_told(words):
    required = [f"--{name}={value}" for name, value in REQUIRED.items()]
    try:
        config = from_argv(TrainNetwork, [*required, *words])
    except UserError as error:
        lines_of(error)
    except SystemExit as ended:
        assert ended.code == 0 and {"-h", "--help"} & set(words)
    else:
        to_toml(config).encode("utf-8")


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"train_network"}))
@settings(deadline=None)
@given(words=st.lists(st.text(max_size=8) | st.sampled_from(["--overwrite", "--src", "a", "--dim", "4"]), max_size=5))
def test_any_words_to_any_command_are_a_config_or_told(command, words):
    try:
        config = from_argv(COMMANDS[command].config_class(), words)
    except UserError as error:
        lines_of(error)
    except SystemExit as ended:
        assert ended.code == 0
    else:
        to_toml(config).encode("utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("configs") / "c.toml"


@settings(deadline=None)
@given(data=st.binary(max_size=200) | CONFIGS.map(lambda data: json.dumps(data).encode("utf-8", "surrogatepass")))
def test_any_bytes_as_a_config_file_are_a_config_or_told(place, data):
    place.write_bytes(data)
    for read in (
        lambda: from_argv(TrainNetwork, ["--config_file", str(place)]),
        lambda: read_toml(TrainNetwork, place),
        lambda: presets.imported(TrainNetwork, data.decode("utf-8", "replace"), "a.toml"),
    ):
        try:
            read()
        except UserError as error:
            lines_of(error)


def _toml(data: Any) -> str:
    """Values as toml, as far as it can hold them."""
    lines = []
    for key, value in data.items():
        if isinstance(value, str | bool | int):
            lines.append(f"{json.dumps(key)} = {json.dumps(value)}")
        elif isinstance(value, dict):
            inner = [f"{json.dumps(name)} = {json.dumps(item)}" for name, item in value.items()]
            lines.append(f"{json.dumps(key)} = {{{', '.join(inner)}}}")
    return "\n".join(lines)


@settings(deadline=None)
@given(CONFIGS)
def test_any_toml_config_is_resolved_or_told(place, data):
    place.write_text(_toml(data), encoding="utf-8", errors="surrogatepass")
    try:
        config = from_argv(TrainNetwork, [*(f"--{n}={v}" for n, v in REQUIRED.items()), "--config_file", str(place)])
    except UserError as error:
        lines_of(error)
    else:
        written = to_toml(config)
        assert resolve(TrainNetwork, tomllib.loads(written)) == config == resolve(TrainNetwork, values(config))


@settings(deadline=None)
@given(
    st.binary(max_size=300)
    | ANYTHING.map(lambda data: json.dumps(data).encode("utf-8", "surrogatepass"))
    | CONFIGS.map(lambda data: json.dumps(data).encode("utf-8", "surrogatepass"))
    | CONFIGS.map(lambda data: _toml(data).encode("utf-8", "surrogatepass")),
    st.sampled_from(["a.toml", "a.json", "a.yaml", "a"]),
)
def test_any_file_is_imported_or_refused_in_a_line(data, name):
    try:
        found = read_foreign(data, name)
    except UserError as error:
        lines_of(error)
        return
    assert isinstance(found, Imported)
    to_toml(found.values, TrainNetwork).encode("utf-8")
    assert not {"num_machines", "machine_rank", "main_process_ip", "main_process_port"} & set(found.values)
    for note in found.notes:
        note.line().encode("utf-8")


@settings(deadline=None)
@given(st.text(max_size=60) | st.text("()[]{},'\"1ejb*:-+ .Tru", max_size=60))
def test_any_text_is_a_literal_that_toml_can_hold(text):
    found = read_literal(text)
    if found is not None:
        to_toml({"optimizer_args": {"a": found}}, TrainNetwork)


HOSTILE = ["(" * 300, "[" * 100_000, "-" * 100_000 + "1", "9" * 100_000, "{" * 64 + "}" * 64, "1" + "+1j" * 3000]


@pytest.mark.parametrize("text", [*HOSTILE, "b'x'", "...", "1e999", "[None]", "{1, 2}", "-" * 3999 + "1"])
def test_hostile_literals_stay_text(text):
    assert read_literal(text) == text
    assert read_literals({"a": text}) == {"a": text}
