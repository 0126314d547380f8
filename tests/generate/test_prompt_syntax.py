"""Prompts as people write them: slips are named with file and line, LoRAs are read out of the text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.errors import UserError
from backend.generate.lora_tags import Dose, Tag, find_loras, take_tags
from backend.generate.prompt_files import read_prompts
from backend.generate.prompts import Request, check_size, parse_line

DEFAULTS = Request("", seed=5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a cat –n bad", "–n is no option; write --n"),
        ("a cat —w 64", "—w is no option; write --w"),
        ("a cat −−steps 20", "−−steps is no option; write --s"),
        ("a cat-–w 64", "a cat"),
        ("a cat －－w 64", "－－w is no option; write --w"),
        ("a cat －n bad", "－n is no option; write --n"),
        ("Negative prompt: ugly, bad", "Negative prompt: is how the WebUI writes it; write one line"),
        ("Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512", "Steps: 20, is how the WebUI writes it"),
        ("a cat --w=64", "--w=64: write --w 64, with a space"),
        ("a cat --steps=20", "--steps=20: write --s 20, with a space"),
        ("a cat--w 64", "--w is no option; write a space in front, and --w"),
        ("a cat --n bad -- w 64", "-- w is no option; write --w without a space in it"),
        ("a cat --steps 20", "unknown option --steps; write --s"),
        ("a cat --seed 20", "unknown option --seed; write --d"),
        ("a cat --l 7.5,", "'7.5,' is not a value for --l; write a number such as 7.5"),
        ("a cat --w 6_4", "'6_4' is not a value for --w; write a whole number such as 20"),
        ("a cat --w ６４", "'６４' is not a value for --w"),
        ("a cat --w " + "9" * 5000, r"9\.\.\.' is not a value for --w"),
        ("a cat --d -1", "seed: -1 is out of range: .*; leave the seed out for a random one"),
        ("a cat --w 500", "width: 500 is not a multiple of 8; take 496"),
        ("a cat --h 56", "height: 56 is too small: a picture needs at least 64"),
        ("a cat --h 8200", "height: 8200 is too large: a picture has at most 8192"),
        ("a cat --w 8192 --h 8192", "width: 8192x8192 is too large"),
        ("a cat --n <lora:x:1>", "negative prompt: a LoRA in a negative prompt is not applied"),
        ("a cat <lora:x:much>", "<lora:x:much> has 'much' for a multiplier"),
        ("a cat <lora:x:nan>", "<lora:x:nan> has 'nan' for a multiplier"),
        ("a cat <lora:>", "<lora:> is no LoRA of a prompt; write <lora:name:0.8>"),
        ("a cat <lora:x:1:1:1>", "is no LoRA of a prompt"),
        ("a cat <hypernet:x:1>", "<hypernet:x:1>: hypernetworks are not supported"),
    ],
)
def test_slips_are_named_with_file_and_line(tmp_path, line, message) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(f"# note\r\n\r\na dog\r{line}\nlast", encoding="utf-8")
    if message == "a cat":  # a hyphen and a dash within a word are text
        assert read_prompts(path, DEFAULTS)[1].prompt.startswith("a cat")
        return
    with pytest.raises(UserError, match=message) as caught:
        read_prompts(path, DEFAULTS)
    assert str(caught.value).startswith(f"{path}, line 4: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *("a 5 -- 3 cat", "red – white", "a – n cat", "well-known", "pre--war", "x --n a–b", "a－b"),
        *("steps: 3 of them", "a negative prompt: none", "Steps: 20"),
    ],
)
def test_dashes_of_a_text_stay(text) -> None:
    request = parse_line(text, DEFAULTS)
    assert text in (request.prompt, f"{request.prompt} --n {request.negative}")


@pytest.mark.parametrize("letter", "\u2028\u2029\x85\x0b\x0c\x1c")
def test_a_line_ends_at_ends_of_lines_alone(tmp_path, letter) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(f"a red cat,{letter}sitting --n bad\rb\r\nc\n".encode("utf-16"))
    assert [request.prompt for request in read_prompts(path, DEFAULTS)] == [f"a red cat,{letter}sitting", "b", "c"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.toml", '[prompt]\nseed = 1\n[[prompt.subset]]\nprompt = "a"\n[[prompt.subset]]\nprompt = "b"\nw = 1', 5),
        ("p.json", '[\n "a",\n {"prompt": "b"},\n\n "c --w 7"]', 5),
        ("p.json", '[{"prompt": "b",\n"width": 7}]', 1),
    ],
)
def test_tables_are_named_with_their_line(tmp_path, name, text, message) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=rf"prompt \d of .*{name}, line {message}: "):
        read_prompts(tmp_path / name, DEFAULTS)


def test_backslashes_in_toml_are_told(tmp_path) -> None:
    (tmp_path / "p.toml").write_text('[prompt]\nprompt = "a \\(cat\\)"\n', encoding="utf-8")
    with pytest.raises(UserError, match="in single quotes"):
        read_prompts(tmp_path / "p.toml", DEFAULTS)


MARKS = st.sampled_from(["--w 64", "--n", "--d ", "–w", "--", " ", "\n", "\r", "\u2028", "<lora:a:1>", "(a:", "#", "7"])
TEXTS = st.lists(MARKS | st.text(max_size=6), max_size=8).map("".join)


@settings(deadline=None)
@given(TEXTS)
def test_any_text_is_prompts_or_one_line_with_file_and_line(tmp_path_factory, text) -> None:
    path = tmp_path_factory.mktemp("p") / "p.txt"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        prompts = read_prompts(path, DEFAULTS)
    except UserError as error:
        assert str(path) in str(error) and str(error).count("\n") == 0
    else:
        assert prompts and all(request.source.startswith(f"{path}, line ") for request in prompts)


@pytest.mark.parametrize(
    ("text", "plain", "tags"),
    [
        ("a cat <lora:my cat:0.8>", "a cat", [("my cat", 0.8, 0.8)]),
        ("<lora:a>, a cat", "a cat", [("a", 1.0, 1.0)]),
        ("a, <lora:a:.5>, <lyco:b:-1>, b", "a, b", [("a", 0.5, 0.5), ("b", -1.0, -1.0)]),
        ("a <LORA:sub/x.safetensors:1e-1> b", "a b", [("sub/x.safetensors", 0.1, 0.1)]),
        ("a <lora:a:0.5:0.8>", "a", [("a", 0.8, 0.5)]),
        ("a <lora:a:te=0.5:unet=0.8>", "a", [("a", 0.8, 0.5)]),
        ("a <lora:a:0.5:unet=0>", "a", [("a", 0.0, 0.5)]),
        ("a <b> <lorax:c:1> < lora > b", "a <b> <lorax:c:1> < lora > b", []),
    ],
)
def test_tags_are_read_out_of_the_text(text, plain, tags) -> None:
    found, read = take_tags(text)
    assert found == plain and [(tag.name, tag.unet, tag.text) for tag in read] == tags


@settings(deadline=None)
@given(st.lists(st.sampled_from(["<lora:", ":", ">", "<", "0.5", "te=", ",", " "]) | st.text(max_size=4)).map("".join))
def test_any_text_has_its_tags_taken_or_one_of_them_named(text) -> None:
    try:
        plain, tags = take_tags(text)
    except UserError as error:
        assert "<" in str(error)
    else:
        assert all(tag.written in text and tag.name for tag in tags)
        assert plain == text if not tags else take_tags(plain) == (plain, ())
        left = plain
        for letter in left:
            assert letter in text


def test_names_are_found_beside_the_given_files_and_in_the_workspace(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LORALOOM_WORKSPACE", str(tmp_path / "w"))
    places = ("given/one.safetensors", "given/Two.safetensors", "w/loras/two.pt", "w/loras/sub/three.v1.safetensors")
    for place in places:
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    given_file = tmp_path / "given" / "one.safetensors"

    def found(name: str) -> str:
        (dose,) = find_loras([Tag(name, 0.5, 0.25, f"<lora:{name}>")], [given_file])
        assert (dose.unet, dose.text) == (0.5, 0.25)
        return str(dose.path.relative_to(tmp_path))

    assert found("one") == found("one.safetensors") == found("ONE") == "given/one.safetensors"
    assert found("two") == "w/loras/two.pt" and found("Two") == "given/Two.safetensors"
    assert found("three.v1") == found("sub\\three.v1") == "w/loras/sub/three.v1.safetensors"
    with pytest.raises(UserError, match=rf"<lora:four>: there is no LoRA of this name in {tmp_path}/given or the work"):
        found("four")
    assert find_loras([]) == []


def test_a_dose_is_told_with_both_multipliers(tmp_path) -> None:
    assert str(Dose(tmp_path / "a.safetensors", 0.8)) == str(Dose(tmp_path / "a.pt", 0.8, 0.8)) == "a x 0.8"
    assert str(Dose(tmp_path / "a.safetensors", 0.8, 0.0)) == "a x 0.8 (text encoders 0)"


def test_sizes_that_fit_and_those_that_do_not() -> None:
    for size in ((None, None), (64, 8192), (4096, 4096)):
        check_size(*size)
    for size in ((63, 64), (64, 65), (8200, 64), (10**5000, 64), (8192, 4096)):
        with pytest.raises(UserError):
            check_size(*size)
