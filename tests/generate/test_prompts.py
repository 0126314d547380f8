"""Prompts in sd-scripts' syntax: lines, toml, JSON."""

import json
from pathlib import Path

import pytest

from backend.errors import UserError
from backend.generate.prompt_files import read_prompts
from backend.generate.prompts import Request, parse_line

DEFAULTS = Request("", negative="ugly", width=64, height=96, steps=7, scale=3.5, sampler="euler", seed=5, count=2)


def test_a_bare_prompt_takes_the_settings_of_the_run() -> None:
    assert parse_line("  a fox, red--ish  ", DEFAULTS) == Request(
        "a fox, red--ish", "ugly", 64, 96, 7, 3.5, "euler", 5, 2
    )


def test_every_option_is_read() -> None:
    line = "a fox --n blurry, bad --w 512 --h 768 --d 1 --l 7 --s 20 --ss k_euler_a --am 0.8,-0.5"
    expected = Request("a fox", "blurry, bad", 512, 768, 20, 7.0, "euler_a", 1, 2, (0.8, -0.5))
    assert parse_line(line, DEFAULTS) == expected


def test_options_may_be_written_in_capitals() -> None:
    assert parse_line("a --W 512 --D 1", DEFAULTS) == parse_line("a --w 512 --d 1", DEFAULTS)


def test_an_option_may_be_empty_or_come_without_a_prompt() -> None:
    request = parse_line("--n --s 3", DEFAULTS)
    assert (request.prompt, request.negative, request.steps) == ("", "", 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a --cn edges.png", "--cn is a picture for a ControlNet, which is not supported; leave it out"),
        ("a --g 3.5", "--g is the guidance of models such as FLUX; for Stable Diffusion write --l"),
        ("a --fs 3", "--fs is for models that are trained by flow matching"),
        ("a --x 3", "unknown option --x; a prompt line takes --n"),
        ("a --w wide", "'wide' is not a value for --w"),
        ("a --d", "'' is not a value for --d"),
        ("a --am 0.5;1", "'0.5;1' is not a value for --am"),
        ("a --s 0", "steps: 0 is too few"),
        ("a --s 2000", "steps: 2000 is too many: euler takes at most 1000"),
        ("a --s 1000 --ss ddim", "steps: 1000 is too many: ddim takes at most 999"),
        ("a --l nan", "scale: .*finite"),
        ("a --l inf", "scale: .*finite"),
        ("a --am nan", "scale: .*finite"),
        ("a --w 4", "width: 4 is too small"),
        ("a --d -1", "seed: -1 is out of range: .*; leave the seed out for a random one"),
        ("a --ss eular", "sampler: there is no 'eular'; choose one of ddim"),
    ],
)
def test_faulty_options_are_named(line, message) -> None:
    with pytest.raises(UserError, match=message):
        parse_line(line, DEFAULTS)


def test_a_prompts_file_leaves_out_comments_and_empty_lines(tmp_path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff# comment\n\none --d 9\n  # another\nzwei äpfel\n".encode())
    assert [(r.prompt, r.seed) for r in read_prompts(path, DEFAULTS)] == [("one", 9), ("zwei äpfel", 5)]


@pytest.mark.parametrize("content", [None, b"# nothing\n", b"\xff\xfe\x00"])
def test_a_prompts_file_without_prompts_is_named(tmp_path, content) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="prompts.txt(: holds no prompt| is not a text| is no text|$)"):
        read_prompts(path, DEFAULTS)


def test_prompts_in_the_place_of_their_file_are_told(tmp_path) -> None:
    with pytest.raises(UserError, match="^sample_prompts: there is no file a cat --n bad; write the prompts"):
        read_prompts(Path("a cat --n bad"), DEFAULTS, "sample_prompts")
    with pytest.raises(UserError, match="^from_file: .* is a folder"):
        read_prompts(tmp_path, DEFAULTS, "from_file")


FULL = {
    "prompt": "a fox",
    "negative_prompt": "blurry, bad",
    "width": 512,
    "height": 768,
    "sample_steps": 20,
    "scale": 7,
}
FULL |= {"seed": 1, "sample_sampler": "k_euler_a", "multipliers": [0.8, -0.5]}
LINE = "a fox --n blurry, bad --w 512 --h 768 --d 1 --l 7 --s 20 --ss k_euler_a --am 0.8,-0.5"


def written(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_toml_shares_what_its_prompts_do_not_say_themselves(tmp_path) -> None:
    text = """
    [prompt]
    width = 512
    height = 768
    scale = 7
    sample_steps = 20
    negative_prompt = "blurry, bad"
    sampler = "euler_a"
    multipliers = [0.8, -0.5]
    [[prompt.subset]]
    prompt = "a fox"
    seed = 1
    [[prompt.subset]]
    prompt = "a dog --w 9"
    sample_sampler = "heun"
    scale = 1.5
    """
    fox, dog = read_prompts(written(tmp_path, "prompts.toml", text), DEFAULTS)
    assert fox == parse_line(LINE, DEFAULTS) and isinstance(fox.scale, float)
    # An option within the text is no option here.
    assert dog == Request("a dog --w 9", "blurry, bad", 512, 768, 20, 1.5, "heun", 5, 2, (0.8, -0.5))
    (alone,) = read_prompts(written(tmp_path, "one.TOML", '[prompt]\nprompt = "a"\nseed = 3'), DEFAULTS)
    assert (alone.prompt, alone.seed, alone.width) == ("a", 3, 64)


def test_json_has_tables_and_lines(tmp_path) -> None:
    path = written(tmp_path, "prompts.json", json.dumps([FULL, "two --d 9"]))
    assert read_prompts(path, DEFAULTS) == [parse_line(LINE, DEFAULTS), parse_line("two --d 9", DEFAULTS)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.json", "[", r"p\.json is not valid JSON"),
        ("p.json", "{}", r"p\.json: must be a list of prompts"),
        ("p.json", "[]", r"p\.json: holds no prompt"),
        ("p.json", "[1]", r"p\.json: must be a list of prompts"),
        ("p.json", '["a", {"prompt": "b", "widht": 64}]', r"prompt 2 of .*p\.json, line 1: unknown key widht"),
        ("p.json", '[{"prompt": "b", "width": "64"}]', r"prompt 1 of .*: width must be a whole number, got '64'"),
        ("p.json", '[{"prompt": "b", "seed": true}]', "seed must be a whole number, got True"),
        ("p.json", '[{"prompt": "b", "multipliers": 1}]', "multipliers must be a list of numbers, got 1"),
        ("p.json", '[{"width": 64}]', "prompt 1 of .*: has no prompt"),
        ("p.json", '[{"prompt": "b", "controlnet_image": "x"}]', "controlnet_image is a picture for a ControlNet"),
        ("p.json", '[{"prompt": "b", "sampler": "ddim", "sample_sampler": "euler"}]', "says again"),
        ("p.json", '[{"prompt": "b", "sample_sampler": "eular"}]', "sampler: there is no 'eular'"),
        ("p.toml", "prompt = 1", r"p\.toml: must have a table \[prompt\]"),
        ("p.toml", "[prompt]\nsubset = 1", r"p\.toml: subset must be written as tables"),
        ("p.toml", "[[prompt.subset]]\nseed = 1", "prompt 1 of .*: has no prompt"),
        ("p.toml", "[prompt", r"p\.toml is not valid toml"),
    ],
)
def test_faulty_files_are_named(tmp_path, name, text, message) -> None:
    with pytest.raises(UserError, match=message):
        read_prompts(written(tmp_path, name, text), DEFAULTS)
