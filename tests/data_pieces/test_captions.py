"""Captions: where they are found, and what each option does to them."""

import random
import unicodedata
from collections import Counter
from dataclasses import dataclass, replace
from itertools import combinations

import pytest

from backend.data.captions import (
    CHANGING,
    Caption,
    Moment,
    build_caption,
    caption_extensions,
    fill_wildcards,
    find_caption,
    tag_frequency,
    warmed_up,
)
from backend.errors import UserError


@dataclass(frozen=True)
class Options:
    shuffle_caption: bool = False
    keep_tokens: int = 0
    caption_separator: str = ","
    caption_prefix: str | None = None
    caption_suffix: str | None = None
    caption_dropout_rate: float = 0.0
    keep_tokens_separator: str | None = None
    secondary_separator: str | None = None
    enable_wildcard: bool = False
    caption_dropout_every_n_epochs: int = 0
    caption_tag_dropout_rate: float = 0.0
    token_warmup_min: int = 1
    token_warmup_step: float = 0.0


def build(text: str, seed: int = 0, moment: Moment = Moment(), **options) -> str:  # noqa: B008
    return build_caption(text, replace(Options(), **options), random.Random(seed), moment)


def outcomes(text: str, count: int = 300, **options) -> set[str]:
    return {build(text, seed, **options) for seed in range(count)}


@pytest.mark.parametrize("extension", [".txt", ".caption"])
def test_both_extensions_are_found(tmp_path, extension):
    file = tmp_path / f"a.b{extension}"
    file.write_text("red monster\nsecond line")
    assert find_caption(tmp_path / "a.b.png", caption_extensions(None), "class") == Caption("red monster", file)


def test_an_explicit_extension_comes_first_but_not_alone(tmp_path):
    (tmp_path / "a.txt").write_text("from txt")
    assert find_caption(tmp_path / "a.png", caption_extensions(".tags"), None).text == "from txt"
    (tmp_path / "a.tags").write_text("from tags")
    assert find_caption(tmp_path / "a.png", caption_extensions(".tags"), None).text == "from tags"
    assert find_caption(tmp_path / "a.png", caption_extensions("tags"), None).text == "from tags"
    assert find_caption(tmp_path / "a.png", caption_extensions(None), None).text == "from txt"
    (tmp_path / "a.caption").write_text("from caption")
    assert find_caption(tmp_path / "a.png", caption_extensions(".caption"), None).text == "from caption"


def test_a_missing_caption_is_the_class_tokens_an_empty_one_is_empty(tmp_path):
    assert find_caption(tmp_path / "a.png", (".txt",), " monster ") == Caption("monster", None)
    assert find_caption(tmp_path / "a.png", (".txt",), None) == Caption("", None)
    (tmp_path / "a.txt").write_text("")
    assert find_caption(tmp_path / "a.png", (".txt",), "monster") == Caption("", tmp_path / "a.txt")


def test_utf8_with_byte_order_mark_and_windows_line_ends(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + "grünes Monster\r\nzwei".encode())
    assert find_caption(tmp_path / "a.png", (".txt",), None).text == "grünes Monster"


@pytest.mark.parametrize(("encoding", "text"), [("latin-1", "grün"), ("cp932", "赤い猫")])
def test_another_encoding_is_an_error_that_names_the_file(tmp_path, encoding, text):
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match=r"a\.txt is not a text in UTF-8"):
        find_caption(tmp_path / "a.png", (".txt",), None)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_encodings_that_can_be_told_are_read(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("green, a cat\r\nmore".encode(encoding))
    assert find_caption(tmp_path / "a.png", (".txt",), None).text == "green, a cat"


@pytest.mark.parametrize("mark", "\u2028\u2029\x85\x0c\x0b\x1c\x1d\x1e")
def test_a_line_ends_where_a_line_ends_and_nowhere_else(tmp_path, mark):
    (tmp_path / "a.txt").write_bytes(f"red,{mark}cat\rsecond\r\nthird\n".encode())
    assert find_caption(tmp_path / "a.png", (".txt",), None).text == f"red,{mark}cat"
    assert find_caption(tmp_path / "a.png", (".txt",), None, True).text == f"red,{mark}cat\nsecond\nthird"
    assert tag_frequency([f"red{mark}cat"]) == {f"red{mark}cat": 1}


@pytest.mark.parametrize(
    ("picture", "caption"),
    [
        ("anna_60_60_40_40.png", "anna.txt"),
        ("a_b_1_2_3_4.png", "a_b.txt"),
        ("a.PNG", "a.TXT"),
        (unicodedata.normalize("NFC", "é.png"), unicodedata.normalize("NFD", "é.txt")),
        (unicodedata.normalize("NFD", "é.png"), unicodedata.normalize("NFC", "é.txt")),
    ],
)
def test_captions_of_names_that_people_take_for_equal_are_found(tmp_path, picture, caption):
    (tmp_path / caption).write_text("found")
    assert find_caption(tmp_path / picture, (".txt",), None).text == "found"


@pytest.mark.parametrize(
    ("picture", "caption"), [("a_b_c_d_e.png", "a.txt"), ("a.png", "A.txt"), ("_1_2_3_4.png", ".txt")]
)
def test_captions_of_other_names_are_not(tmp_path, picture, caption):
    (tmp_path / caption).write_text("found")
    assert find_caption(tmp_path / picture, (".txt",), None).source is None


def test_the_pictures_own_caption_comes_before_that_of_its_face(tmp_path):
    (tmp_path / "anna.txt").write_text("every anna")
    (tmp_path / "anna_1_2_3_4.caption").write_text("this anna")
    assert find_caption(tmp_path / "anna_1_2_3_4.png", (".txt", ".caption"), None).text == "this anna"


def test_without_options_the_caption_is_untouched():
    assert build("b ,a,  c,") == "b ,a,  c,"


def test_prefix_and_suffix_are_joined_by_a_space():
    assert build("a, b", caption_prefix="zqx,", caption_suffix="style") == "zqx, a, b style"
    assert build("", caption_prefix="zqx") == "zqx"


def test_shuffle_gives_every_order_equally_often_and_keeps_the_first_tags():
    tags = Counter(build("k1, k2, a, b, c", seed, shuffle_caption=True, keep_tokens=2) for seed in range(600))
    assert len(tags) == 6
    assert all(tag.startswith("k1, k2, ") for tag in tags)
    assert all(60 < count < 140 for count in tags.values())


def test_shuffle_splits_at_the_separator_and_drops_empty_tags():
    assert sorted(build("a, b; c;; ", shuffle_caption=True, caption_separator=";").split(", ")) == ["a", "b", "c"]
    assert set(build("a b, c", 1, shuffle_caption=True).split(", ")) == {"a b", "c"}


def test_the_prefix_counts_as_part_of_the_first_kept_tag():
    captions = {build("a, b, c", s, shuffle_caption=True, keep_tokens=1, caption_prefix="zqx") for s in range(40)}
    assert captions == {"zqx a, b, c", "zqx a, c, b"}


def test_dropout_empties_the_whole_caption_at_its_rate():
    dropped = sum(build("a", seed, caption_dropout_rate=0.3, caption_prefix="zqx") == "" for seed in range(2000))
    assert 520 < dropped < 680
    assert build("a", caption_dropout_rate=1.0) == ""
    assert all(build("a", seed) == "a" for seed in range(200))


def test_the_dropout_rate_does_not_change_how_kept_captions_are_shuffled():
    for seed in range(50):
        kept = build("a, b, c, d", seed, shuffle_caption=True, caption_dropout_rate=0.5)
        assert kept in ("", build("a, b, c, d", seed, shuffle_caption=True))


def test_all_lines_are_read_where_one_is_chosen_later(tmp_path):
    (tmp_path / "a.txt").write_text(" red, horns\r\n\n  blue \n")
    assert find_caption(tmp_path / "a.png", (".txt",), None).text == "red, horns"
    assert find_caption(tmp_path / "a.png", (".txt",), None, all_lines=True).text == "red, horns\nblue"


def test_a_line_is_chosen_and_prefix_and_suffix_belong_to_whichever():
    options = {"enable_wildcard": True, "caption_prefix": "zqx,", "caption_suffix": "style"}
    assert outcomes("one\ntwo\nthree", **options) == {f"zqx, {line} style" for line in ("one", "two", "three")}
    assert outcomes("one\ntwo", enable_wildcard=True) == {"one", "two"}
    assert build("", enable_wildcard=True) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a {b|c} d", {"a b d", "a c d"}),
        ("{a|b}{c|d}", {"ac", "ad", "bc", "bd"}),
        ("{a|{b|c}} d", {"a d", "b d", "c d"}),
        ("{ {a|b} x|c}", {" a x", " b x", "c"}),
        ("{{a|b}} {c|d}", {"{a|b} c", "{a|b} d"}),
        ("{a{{1|b}}2}", {"a{1", "b}2"}),
        ("{one}", {"one"}),
        ("{|a}b", {"b", "ab"}),
        ("{} {a|b", {"{} {a|b"}),
        ("a} | b", {"a} | b"}),
        ("{a|b}}", {"{a|b}"}),
    ],
)
def test_wildcards(text, expected):
    assert {fill_wildcards(text, random.Random(seed)) for seed in range(200)} == expected
    assert build(text) == text


def test_choices_of_a_wildcard_are_equally_likely_whatever_is_in_them():
    found = Counter(fill_wildcards("{a|{b|c} }", random.Random(seed)).strip() for seed in range(2000))
    assert 900 < found["a"] < 1100 and 430 < found["b"] < 570


def test_the_keep_separator_parts_what_is_kept_from_what_is_shuffled():
    options = {"keep_tokens_separator": "|||", "shuffle_caption": True, "keep_tokens": 3}
    assert outcomes("k1, k2 ||| a, b", **options) == {"k1, k2, a, b", "k1, k2, b, a"}
    assert outcomes("k1 ||| a, b ||| z1, z2", **options) == {"k1, a, b, z1, z2", "k1, b, a, z1, z2"}
    # Without one in the caption, keep_tokens counts.
    assert outcomes("a, b, c, d, e", **options) == {"a, b, c, d, e", "a, b, c, e, d"}


def test_the_keep_separator_never_stays_in_the_caption():
    assert build("k1 ||| a, b", keep_tokens_separator="|||") == "k1, a, b"
    assert build("k1 ||| a, b") == "k1 ||| a, b"


def test_parts_with_the_secondary_separator_stay_together():
    options = {"secondary_separator": ";;;", "shuffle_caption": True}
    assert outcomes("a;;;b, c", **options) == {"a,b, c", "c, a,b"}
    assert build("a;;;b c", secondary_separator=";;;", caption_separator=" ") == "a b c"


def test_tag_dropout_leaves_out_each_tag_at_its_rate_but_no_kept_one():
    found = [build("k, a, b, c", seed, keep_tokens=1, caption_tag_dropout_rate=0.25) for seed in range(2000)]
    assert set(found) == {", ".join(["k", *rest]) for n in range(4) for rest in combinations("abc", n)}
    for tag in "abc":
        assert 1420 < sum(tag in caption.split(", ") for caption in found) < 1580
    parted = {"keep_tokens_separator": "|||", "caption_tag_dropout_rate": 1.0}
    assert build("k ||| a, b ||| z", **parted) == "k, z"


def test_tag_dropout_does_not_change_the_order_of_what_stays():
    for seed in range(50):
        whole = build("a, b, c, d", seed, shuffle_caption=True).split(", ")
        some = build("a, b, c, d", seed, shuffle_caption=True, caption_tag_dropout_rate=0.5)
        assert [tag for tag in whole if tag in some] == (some.split(", ") if some else [])


def test_every_nth_epoch_counted_from_one_has_no_captions():
    options = {"caption_dropout_every_n_epochs": 3, "caption_prefix": "zqx"}
    captions = [build("a", moment=Moment(epoch), **options) for epoch in range(7)]
    assert captions == ["zqx a", "zqx a", "", "zqx a", "zqx a", "", "zqx a"]


@pytest.mark.parametrize(
    ("least", "over", "expected"),
    [
        (1, 4, [1, 1, 2, 3, 4, 4]),  # 1 + floor(step * 3 / 4)
        (2, 10, [2, 2, 2, 2, 2, 3]),
        (0, 2, [0, 2, 4, 4, 4, 4]),
        (9, 4, [4, 4, 4, 4, 4, 4]),
        (1, 0.1, [1, 2, 4, 4, 4, 4]),  # of 20 steps
        (1, 0.01, [4, 4, 4, 4, 4, 4]),  # no whole step of them
    ],
)
def test_captions_grow_evenly_over_the_warmup(least, over, expected):
    assert [warmed_up(4, least, over, Moment(0, step, 20)) for step in range(6)] == expected


def test_the_warmup_takes_the_first_tags_and_counts_kept_ones_apart():
    options = {"token_warmup_step": 3.0, "keep_tokens": 1}
    captions = [build("k, a, b, c, d", moment=Moment(0, step, 9), **options) for step in range(4)]
    assert captions == ["k, a", "k, a, b", "k, a, b, c", "k, a, b, c, d"]
    cut = outcomes("k, a, b, c, d", moment=Moment(0, 1, 9), shuffle_caption=True, **options)
    assert cut == {"k, a, b", "k, b, a"}


def test_what_is_said_to_change_captions_does_and_nothing_else_does():
    values = {"keep_tokens": 1, "caption_separator": ";", "caption_prefix": "p", "caption_suffix": "s"}
    values |= {"keep_tokens_separator": "|||", "secondary_separator": ";;;", "token_warmup_min": 0}
    changing = {"shuffle_caption": True, "enable_wildcard": True, "caption_dropout_rate": 0.5}
    changing |= {"caption_dropout_every_n_epochs": 2, "caption_tag_dropout_rate": 0.5, "token_warmup_step": 5.0}
    assert set(changing) == set(CHANGING) and set(values) | set(changing) == set(vars(Options()))
    moments = [Moment(epoch, step, 9) for epoch in range(2) for step in range(4)]

    def found(**options: object) -> set[str]:
        return {build("{a|b}, c, d, e", seed, moment, **options) for seed in range(9) for moment in moments}

    assert all(len(found(**{name: value})) == 1 for name, value in values.items())
    assert all(len(found(**{name: value})) > 1 for name, value in changing.items())


def test_tags_are_counted_in_lower_case():
    assert tag_frequency(["red, a\nred"]) == {"red": 2, "a": 1}
    assert tag_frequency(["Red, horns", "red,,stripes ", ""]) == {"red": 2, "horns": 1, "stripes": 1}
