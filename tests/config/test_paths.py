"""Paths and names as people write them: meant, or refused with what to write; never a folder of an odd name."""

import os
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.commands import COMMANDS
from backend.config.base import from_argv, problems, resolve, resolved_toml, to_toml, values
from backend.config.dataset import DatasetConfig
from backend.config.declare import OF_FILES, leaves
from backend.config.paths import meant_name, meant_path
from backend.config.toml import load
from backend.config.train import TrainNetwork
from backend.errors import ConfigError, UserError

REQUIRED = {"pretrained_model_name_or_path": "m", "dataset_config": "d.toml", "output_dir": "o"}
# What people have around a path, and what it means.
WRITTEN = [
    " {}",
    "{} ",
    "\u00a0{}\u3000",
    "{}\r",
    "{}\r\n",
    "{}\n",
    "\ufeff{}",
    "\u202a{}\u202c",
    '"{}"',
    "'{}'",
    ' "{} " ',
    "\u201c{}\u201d",
    "`{}`",
    "'\"{}\"'",
    "file://{}",
    "file://localhost{}",
    "file:{}",
]
# What is refused, and a word of the reason.
REFUSED = [
    ("a\tb", "a tab"),
    ("D:\tests\new", "a tab"),
    ("\tests", "a tab"),
    ("a\nb", "a line break"),
    ("a\rb", "a carriage return"),
    ("a\0b", "NUL"),
    ("a\x1bb", "escape"),
    ("a\x7fb", "control"),
    ("a\u2028b", "control"),
    ("C:\\Users\\me\\m", "a path of Windows"),
    ("E:/img", "a path of Windows"),
    ("E:", "a path of Windows"),
    ("\\\\server\\share", "a path of Windows"),
    ("models\\sd.ckpt", "a backslash"),
    ("/tmp/my\\ dir", "a backslash"),
    ('"/tmp/x', "quotation mark"),
    ("/tmp/x'", "quotation mark"),
    ('/tmp/"a b"/c', "quotation mark"),
    ("'/tmp/a' '/tmp/b'", "quotation mark"),
    ("$OUT/x", "a variable"),
    ("${OUT}/x", "a variable"),
    ("/data/$HOME/x", "a variable"),
    ("$(pwd)/x", "a variable"),
    ("%USERPROFILE%/x", "a variable"),
    ("$env:HOME/x", "a variable"),
    ("~nobody-of-this-name/x", "no such user"),
    ("https://example.org/m.safetensors", "an address"),
    ("s3://bucket/m", "an address"),
    ("file://server/share/x", "a file on server"),
    ("file:///C:/Users/me", "a path of Windows"),
    ("file:///tmp/a%0Ab", "a line break"),
    ("/tmp/my%20pictures", 'write "/tmp/my pictures"'),
    ("/tmp/%E7%8C%AB", "as in an address"),
    ("x" * 256, "too long"),
    ("x/" * 3000, "too long"),
    ("a\ud800b", "name of a file"),
]


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("written", WRITTEN)
def test_what_is_around_a_path_is_no_part_of_it(written, tmp_path):
    assert meant_path(written.format(f"{tmp_path}/new place/x")) == f"{tmp_path}/new place/x"


@pytest.mark.parametrize("written", ["$HOME/x", "${HOME}/x", "~/x", ' "$HOME/x" '])
def test_the_home_folder_is_known_by_its_names(written, tmp_path):
    assert meant_path(written) == f"{tmp_path}/home/x"
    assert meant_path("$HOME") == f"{tmp_path}/home"


@pytest.mark.parametrize(("written", "reason"), REFUSED)
def test_what_cannot_be_meant_is_refused(written, reason):
    with pytest.raises(ValueError, match=reason if reason != "escape" else "control"):
        meant_path(written)


ORDINARY = [
    *("Bob's", "100% cotton", "50%2B", "a $ b", "r\u00e9sum\u00e9", "\u753b\u50cf", "a-b_c.d (1) [x]", "x=y,z"),
    "org/repo",
]


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_names_stay_what_they_are(name):
    assert meant_path(name) == name


def test_what_is_there_under_an_odd_name_is_reachable(tmp_path):
    for name in ("end ", " begin", '"quoted"', "back\\slash", "$HOME", "C:\\x", "~nobody-of-this-name", "it's'"):
        (tmp_path / name).mkdir()
        assert meant_path(f"./{name}") == f"./{name}"
        assert meant_path(f"{tmp_path}/{name}") == f"{tmp_path}/{name}"


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("my dir", "my\\ dir"),
        ("it's (1) [x] & y", "it\\'s\\ \\(1\\)\\ \\[x\\]\\ \\&\\ y"),
        ("my dir", "my%20dir"),
        ("\u732b", "%E7%8C%AB"),
        ("caf\u00e9", "cafe\u0301"),
        ("cafe\u0301", "caf\u00e9"),
    ],
)
def test_what_is_there_is_found_as_terminals_addresses_and_macs_write_it(name, written, tmp_path):
    (tmp_path / name).mkdir()
    assert meant_path(f"{tmp_path}/{written}") == f"{tmp_path}/{name}"


def test_an_odd_name_in_the_working_directory_is_no_trap(tmp_path):
    (tmp_path / " ").mkdir()
    assert meant_path(f" {tmp_path}/x") == f"{tmp_path}/x"


def test_bytes_that_are_no_utf8_are_read_back_as_they_are_shown(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    assert meant_path("caf\\udce9") == name == meant_path(name)
    config = resolve(TrainNetwork, REQUIRED | {"output_dir": f"{tmp_path}/{name}"})
    text = resolved_toml(config)
    text.encode("utf-8")
    (tmp_path / "c.toml").write_text(text, encoding="utf-8")
    assert resolve(TrainNetwork, load(tmp_path / "c.toml")) == config
    (message,) = problems(TrainNetwork, REQUIRED, {"vae": f"{name}\t{name}"}).values()
    message.encode("utf-8")


def _texts_of(command_class):
    return [leaf for leaf in leaves(command_class).values() if leaf.element.kind in ("path", "str")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_that_names_a_file_has_it(command):
    """By the kind of an option, so that one that is new has it too."""
    command_class = COMMANDS[command].config_class()
    seen = 0
    for leaf in _texts_of(command_class):
        if leaf.element.kind != "path" and leaf.widget not in OF_FILES:
            continue
        seen += 1
        for written, reason in (("a\tb", "a tab"), ("C:\\x.safetensors", "a path of Windows"), ("$X/y", "a variable")):
            given = (written,) if leaf.kind == "list" else written
            assert reason in problems(command_class, {leaf.name: given}, partial=True)[leaf.name]
    assert seen


def test_no_text_takes_nul_or_bytes_that_are_no_utf8():
    for command in COMMANDS.values():
        command_class = command.config_class()
        for leaf in _texts_of(command_class):
            given = ("a\0b",) if leaf.kind == "list" else "a\0b"
            assert "NUL" in problems(command_class, {leaf.name: given}, partial=True)[leaf.name]
    assert "no UTF-8" in problems(TrainNetwork, REQUIRED, {"training_comment": "caf\udce9"})["training_comment"]
    assert "NUL" in problems(TrainNetwork, REQUIRED, {"optimizer_args": {"a": ["x\0"]}})["optimizer_args"]


@pytest.mark.parametrize("name", ["x\r", " x ", '"x"', "\ufeffx"])
def test_a_name_is_taken_without_what_is_around_it(name):
    assert resolve(TrainNetwork, REQUIRED | {"output_name": name}).save.output_name == "x"


@pytest.mark.parametrize("name", ["a\nb", "$HOME", "${X}", "a\0", "caf\udce9", "x" * 191, "a/b", "", " "])
def test_names_that_no_file_should_have_are_refused(name):
    assert list(problems(TrainNetwork, REQUIRED, {"output_name": name})) == ["output_name"]


def test_flags_toml_presets_and_datasets_have_one_reading(tmp_path):
    words = [f"--{name}={value}" for name, value in REQUIRED.items()]
    place = f"{tmp_path}/out"
    (tmp_path / "c.toml").write_text(f"output_dir = ' \"{place}\" '\nbase_weights = ['{place}/a\u00a0', '~/b']\n")
    found = from_argv(TrainNetwork, [*words, "--config_file", f" {tmp_path}/c.toml\r"])
    assert found.network.base_weights == (Path(f"{place}/a"), tmp_path / "home/b")
    assert from_argv(TrainNetwork, ["--config_file", f'"{tmp_path}/c"', *words[:2]]).save.output_dir == Path(place)
    found = from_argv(COMMANDS["merge_lora"].config_class(), ["--models", " a ", "'b'", "--save_to", " x.safetensors "])
    assert [str(path) for path in found.mixture.models] == ["a", "b"] and str(found.result.save_to) == "x.safetensors"
    text = "[[datasets]]\nresolution = 64\n[[datasets.subsets]]\n"
    (dataset,) = DatasetConfig.loads(f"{text}image_dir = ' {tmp_path}'\n").datasets
    assert dataset.subsets[0].image_dir == tmp_path
    (dataset,) = DatasetConfig.loads(f"{text}metadata_file = ' {tmp_path}/m.json '\n").datasets
    assert dataset.subsets[0].image_dir == tmp_path and dataset.subsets[0].metadata_file == tmp_path / "m.json"
    for key in ("metadata_file", "conditioning_data_dir"):
        with pytest.raises(ConfigError, match=f"{key}: has a tab in it"):
            DatasetConfig.loads(f'{text}image_dir = "a"\n{key} = "D:\\train"\n')


def test_a_config_file_that_is_no_file_is_told():
    for path in ("/dev/zero", "/dev/null", "/", "a\0b", "x" * 5000, " "):
        with pytest.raises(UserError, match="config_file: "):
            from_argv(TrainNetwork, ["--config_file", path])


TEXTS = st.text() | st.text(st.sampled_from("ab/.~$ \t\n\r\0\"'\\{}HOME%:C\u201c\u201d\ufeff\udce9\u2028"), max_size=30)


@settings(deadline=None)
@given(TEXTS)
def test_any_text_is_a_path_or_refused_in_a_line(text):
    try:
        path = meant_path(text)
    except ValueError as error:
        assert str(error)
        return
    assert not any(unicodedata.category(letter) == "Cc" or letter in "\u2028\u2029" for letter in path)
    assert meant_path(path) == path
    os.fsencode(path)
    if path and not os.path.lexists(path):
        assert path.strip() == path and "\\" not in path and not path.startswith(("~", '"', "'"))


@settings(deadline=None)
@given(TEXTS)
def test_any_text_is_a_name_or_refused(text):
    try:
        name = meant_name(text)
    except ValueError:
        return
    assert meant_name(name) == name and name.strip() == name
    name.encode("utf-8")


@settings(deadline=None)
@given(st.sampled_from(["output_dir", "vae", "output_name", "training_comment", "optimizer_args"]), TEXTS)
def test_any_text_in_an_option_is_taken_or_told(name, text):
    if problems(TrainNetwork, REQUIRED, {name: text}):
        return
    config = resolve(TrainNetwork, REQUIRED | {name: text})
    written = to_toml(config)
    written.encode("utf-8")
    assert resolve(TrainNetwork, values(config)) == config


@pytest.mark.skipif(sys.platform == "win32", reason="paths of Windows are no surprise there")
def test_a_path_of_windows_is_told_where_one_is_needed():
    (message,) = problems(TrainNetwork, REQUIRED, {"resume": "C:/runs/x-state"}).values()
    assert message.startswith("is a path of Windows") and "on this machine" in message
