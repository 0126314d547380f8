"""Prompt lines in sd-scripts' syntax."""

import pytest

from backend.errors import UserError
from backend.generate.prompts import Request, parse_line, read_prompts

DEFAULTS = Request("", negative="ugly", width=64, height=96, steps=7, scale=3.5, sampler="euler", seed=5, count=2)


def test_a_bare_prompt_takes_the_settings_of_the_run() -> None:
    assert parse_line("  a fox, red--ish  ", DEFAULTS) == Request(
        "a fox, red--ish", "ugly", 64, 96, 7, 3.5, "euler", 5, 2
    )


def test_every_option_is_read() -> None:
    line = "a fox --n blurry, bad --w 512 --h 768 --d 1 --l 7 --s 20 --ss k_euler_a --am 0.8,-0.5"
    expected = Request("a fox", "blurry, bad", 512, 768, 20, 7.0, "euler_a", 1, 2, (0.8, -0.5))
    assert parse_line(line, DEFAULTS) == expected


def test_an_option_may_be_empty_or_come_without_a_prompt() -> None:
    request = parse_line("--n --s 3", DEFAULTS)
    assert (request.prompt, request.negative, request.steps) == ("", "", 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
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
        ("a --d -1", "seed: -1 is out of range"),
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
    with pytest.raises(UserError, match="prompts.txt: (holds no prompt|cannot be read)"):
        read_prompts(path, DEFAULTS)
