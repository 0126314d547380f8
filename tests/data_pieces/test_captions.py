"""Captions: where they are found, and what each option does to them."""

import random
from collections import Counter
from dataclasses import dataclass, replace

import pytest

from backend.data.captions import Caption, build_caption, caption_extensions, find_caption, tag_frequency
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


def build(text: str, seed: int = 0, **options) -> str:
    return build_caption(text, replace(Options(), **options), random.Random(seed))


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


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding_is_an_error_that_names_the_file(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("grün".encode(encoding))
    with pytest.raises(UserError, match=r"a\.txt is not UTF-8"):
        find_caption(tmp_path / "a.png", (".txt",), None)


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


def test_tags_are_counted_in_lower_case():
    assert tag_frequency(["Red, horns", "red,,stripes ", ""]) == {"red": 2, "horns": 1, "stripes": 1}
