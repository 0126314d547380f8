"""The one reader of what others have written: whatever it is given, a value or one line, and it always ends."""

import json
import os
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend import bounded
from backend.errors import UserError

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert len(bounded.split_lines(str(error.value))) == 1
    return str(error.value)


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1)))
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_at_newlines_alone(end, lines):
    assert bounded.split_lines(end.join(lines)) == lines
    assert bounded.split_lines("".join(line + end for line in lines)) == lines


def test_empty_lines_are_kept():
    ends_of_python_alone = "c\u2028\x85\x0c\x0b\x1cd"
    assert bounded.split_lines(f"a\n\nb\r\r\n{ends_of_python_alone}\n") == ["a", "", "b", "", ends_of_python_alone]
    assert bounded.split_lines("") == []


@given(TEXT)
def test_text_is_read_in_every_encoding_that_says_which_it_is(text):
    text = text.removeprefix("\ufeff")
    for data in (text.encode("utf-8-sig"), text.encode("utf-16"), text.encode("utf-32")):
        assert bounded.decoded(data, "x", "f") == text
    try:
        assert bounded.decoded(text.encode(), "x", "f") == text
    except UserError as error:
        assert "may be in GB18030 as well" in str(error)


@pytest.mark.parametrize("text", ["一只猫", "一只猫, 1girl"])
def test_chinese_that_happens_to_be_utf8_is_not_taken_for_it(text):
    with pytest.raises(UserError, match="GB18030"):
        bounded.decoded(text.encode("gbk"), "a.txt", "caption_extension")


@pytest.mark.parametrize("text", ["café, 20°", "naïve α, 5 µm", "кошка é", "ελληνικά", "שלום", "Ærø – Škoda", "½ ± ²"])
def test_words_of_several_scripts_are_no_chinese(text):
    assert bounded.decoded(text.encode(), "x", "f") == text


def test_utf16_without_a_mark_is_known_by_its_zeros():
    assert bounded.decoded("red cat".encode("utf-16-le"), "x", "f") == "red cat"
    assert bounded.decoded("red cat".encode("utf-16-be"), "x", "f") == "red cat"


@pytest.mark.parametrize(
    ("data", "named"), [("赤い猫".encode("cp932"), "Shift-JIS"), ("café".encode("cp1252"), "cp1252")]
)
def test_an_encoding_that_is_only_likely_is_named_and_not_guessed(data, named):
    with pytest.raises(UserError, match=named) as error:
        bounded.decoded(data, "a.txt", "caption_extension")
    assert "a.txt" in one_line(error)
    assert "UTF-8" in one_line(error)


@given(st.binary())
def test_any_bytes_are_text_or_one_line(data):
    try:
        assert "\0" not in bounded.decoded(data, "x", "f")
    except UserError as error:
        assert len(bounded.split_lines(str(error))) == 1


@given(st.text())
def test_any_text_is_a_value_or_one_line(text):
    for parse in (bounded.parse_json, bounded.parse_toml):
        try:
            parse(text, "x", "f")
        except UserError as error:
            assert str(error).startswith("f: x ")


@given(VALUES)
def test_json_is_read_as_it_is_or_refused(value):
    text = json.dumps(value)
    try:
        found = bounded.parse_json(text, "x", "f")
    except UserError as error:
        assert "surrogate" in str(error) or "64 bits" in str(error)
    else:
        assert repr(found) == repr(json.loads(text))


@pytest.mark.parametrize("depth", [bounded.MAX_DEPTH + 5, 100_000])
def test_nesting_ends(depth):
    keys = ".".join("a" * depth)
    deep = {
        bounded.parse_json: ["[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth],
        bounded.parse_toml: [f"a = {'[' * depth}{']' * depth}", f"{keys} = 1", f"[{keys}]"],
    }
    for parse, texts in deep.items():
        for text in texts:
            with pytest.raises(UserError, match="nested deeper"):
                parse(text, "x", "f")


def test_numbers_that_nothing_can_hold_are_refused():
    assert bounded.parse_json(str(2**64), "x", "f") == 2**64
    for text in ("1" * 30, "-" + "1" * 30, "1" * 100_000):
        for parse, written in ((bounded.parse_json, text), (bounded.parse_toml, f"a = {text}")):
            with pytest.raises(UserError, match="64 bits|digits"):
                parse(written, "x", "f")


def test_half_a_surrogate_pair_is_refused_in_names_and_values():
    for text in ('["\\ud800"]', '{"\\udfff": 1}'):
        with pytest.raises(UserError, match="surrogate"):
            bounded.parse_json(text, "x", "f")


def test_backslashes_in_toml_are_told_with_what_to_write():
    with pytest.raises(UserError, match="single quotes") as error:
        bounded.parse_toml('a = 1\npath = "C:\\Users\\me"\n', "c.toml", "config_file")
    assert "c.toml" in one_line(error)
    with pytest.raises(UserError) as error:
        bounded.parse_toml("a = = 1", "c.toml", "config_file")
    assert "quotes" not in one_line(error)
    assert tomllib.loads("path = 'C:\\Users'") == bounded.parse_toml("path = 'C:\\Users'", "x", "f")


def test_only_regular_files_of_a_size_are_read(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    refused = {pipe: "pipe", "/dev/zero": "device", tmp_path: "folder", tmp_path / "no": "no file", "a\0b": "no name"}
    for path, words in refused.items():
        with pytest.raises(UserError, match=words) as error:
            bounded.read_bytes(path, "dataset_config", "toml")
        assert "\0" not in one_line(error)
    file = tmp_path / "a.toml"
    file.write_bytes(b"a = 1" + b" " * 100)
    with pytest.raises(UserError, match="larger than"):
        bounded.read_toml(file, "dataset_config", limit=50)
    assert bounded.read_toml(file, "dataset_config") == {"a": 1}


def test_a_windows_path_in_json_is_told_as_one():
    with pytest.raises(UserError, match=r"line 2.*write the path with / in place of") as error:
        bounded.parse_json('{\n"output_dir": "C:\\Users\\me"}', "the file", "a.json")
    assert "single quotes" not in one_line(error)


@pytest.mark.parametrize("parse", [bounded.parse_json, bounded.parse_toml])
def test_a_number_of_thousands_of_digits_is_told_in_plain_words(parse):
    text = ('{"a": %s}' if parse is bounded.parse_json else "a = %s") % ("9" * 5000)
    with pytest.raises(UserError, match="larger than 64 bits") as error:
        parse(text, "x", "f")
    assert "sys." not in one_line(error)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("a = 1\nflip_aug = True\n", "lower case"),
        ("a = [1, False]\n", "lower case"),
        ("seed = None\n", "Leave out a key"),
        ("output_dir = \u201c/x\u201d\n", "straight quotation marks"),
    ],
)
def test_usual_slips_in_toml_are_told_with_what_to_write(text, remedy):
    with pytest.raises(UserError, match=rf"is not valid toml: .*\(at line \d.*{remedy}"):
        bounded.parse_toml(text, "x", "f")
