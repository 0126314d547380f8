"""Prompts through the text encoders: as many chunks as they need, weights and BREAK, against their definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.families.build import random_model
from backend.families.clip_text import CHUNK, encode_texts
from backend.families.emphasis import parse_prompt, parse_weights
from backend.families.model import Model
from backend.families.prompt_text import encode_prompts, prompt_chunks, prompt_length
from backend.families.tokenizer import clip_tokenizer, text_tokens
from backend.generate.notes import prompt_notes
from backend.generate.prompts import Request

LONG = "red sky, " * 40  # 3 tokens each


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def model(request) -> Model:
    return random_model(1, family=request.param)


def pieces(text: str) -> list[str]:
    return ["".join(piece for piece, _ in part.pieces) for part in parse_prompt(text)]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a BREAK b", ["a", "b"]),
        ("a, BREAK, b", ["a,", ", b"]),
        ("BREAK b", ["", "b"]),
        ("a BREAK", ["a"]),
        ("a BREAK BREAK b", ["a", "", "b"]),
        ("BREAKFAST break aBREAK", ["BREAKFAST break aBREAK"]),
        ("", [""]),
    ],
)
def test_break_divides_a_prompt(text, parts) -> None:
    assert pieces(text) == parts


def test_weights_reach_over_a_break() -> None:
    first, second = parse_prompt("x (a BREAK b:1.5)")
    assert first.pieces == (("x ", 1.0), ("a", 1.5)) and second.pieces == (("b", 1.5),)


WORDS = st.sampled_from(["(", ")", "[", "]", ":1.3)", ":", "\\", "BREAK", " ", "a", "1.5"]) | st.text(max_size=3)


@settings(deadline=None)
@given(st.lists(WORDS, max_size=14).map("".join))
def test_any_text_has_weights_and_keeps_its_words(text) -> None:
    found = parse_weights(text)
    said = "".join(piece for piece, _ in found.pieces)
    rest = iter(text)
    assert all(letter in rest for letter in said)  # in order, nothing added
    plain = set("()[]:\\.+-") | set("0123456789") | set(" \t\n\r\x0b\x0c")
    left = [letter for letter in text if letter not in plain and not letter.isspace() and not letter.isdigit()]
    assert [letter for letter in said if letter in left] == left
    assert all(one[1] != two[1] for one, two in zip(found.pieces, found.pieces[1:], strict=False))
    assert pieces(text.replace("BREAK", "x")) == [said.replace("BREAK", "x")] or "BREAK" in said


@settings(deadline=None)
@given(st.integers(0, 6), st.sampled_from(["(a", "[a", "(a)", "[a]", "b"]))
def test_brackets_within_brackets_multiply(depth, inner) -> None:
    (piece, weight), *_ = parse_weights("(" * depth + inner + ")" * depth).pieces
    factor = {"(": 1.1, "[": 1 / 1.1, "b": 1.0}[inner[0]]
    assert weight == pytest.approx(1.1**depth * factor) and piece in ("a", "b")


def test_short_prompts_are_encoded_as_captions_are_bit_for_bit(model) -> None:
    texts = ["a red sky", ""]
    ours, theirs = encode_prompts(model, texts), encode_texts(model, texts)
    assert torch.equal(ours.hidden, theirs.hidden)
    assert ours.pooled is None or torch.equal(ours.pooled, theirs.pooled)


def test_a_long_prompt_takes_chunks_with_their_own_start_and_end(model) -> None:
    tokens = text_tokens(model.tokenizers[0], [LONG])[0]
    assert len(tokens) == 120
    found = encode_prompts(model, [LONG, "cat"])
    assert found.hidden.shape[:2] == (2, 154)
    ids = torch.tensor([[49406, *tokens[:75], 49407], [49406, *tokens[75:], *[49407] * 31]])
    rows = [ids]
    if len(model.tokenizers) > 1 or model.family.name == "sd2":
        other = ids.clone()
        other[1, 47:] = 0  # the second one pads with `!` behind the end
        rows = [ids, other] if len(model.tokenizers) > 1 else [other]
    by_hand = model.family.encode(model, torch.stack(rows, 1) if len(rows) > 1 else rows[0])
    torch.testing.assert_close(found.hidden[0], by_hand.hidden.flatten(0, 1))
    if found.pooled is not None:
        torch.testing.assert_close(found.pooled[0], by_hand.pooled[0])
    alone = encode_prompts(model, ["cat"])
    torch.testing.assert_close(found.hidden[1, :77], alone.hidden[0])


def test_break_begins_a_chunk(model) -> None:
    found, parts = encode_prompts(model, ["red BREAK sky"]), encode_prompts(model, ["red", "sky"])
    torch.testing.assert_close(found.hidden[0], parts.hidden.flatten(0, 1))


def test_weights_scale_states_and_keep_each_encoders_mean(model) -> None:
    plain, found = encode_prompts(model, ["a red sky"]), encode_prompts(model, ["a (red:1.5) sky"])
    weights = torch.ones(1, 77, 1)
    weights[0, 2] = 1.5
    widths = [encoder.config.hidden_size for encoder in model.text_encoders]
    for one, two in zip(plain.hidden.split(widths, -1), found.hidden.split(widths, -1), strict=True):
        scaled = one * weights
        ratio = (two / scaled).flatten()
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-3, atol=1e-4)


def test_what_is_longer_is_cut_and_told_once(model) -> None:
    text = "cat " * 300
    assert torch.equal(encode_prompts(model, [text]).hidden, encode_prompts(model, ["cat " * 225]).hidden)
    assert encode_prompts(model, [text], 5).hidden.shape[1] == 77 * 4
    assert prompt_length(model.tokenizers, text).tokens == 300
    assert prompt_length(model.tokenizers, "a BREAK b").tokens == 76
    (note,) = prompt_notes(model, [Request(text), Request("short"), Request("dog " * 260)])
    assert note.startswith("2 of 4 prompts are longer than the 225 tokens that count, and cut; ")
    assert "the longest has 300: 'cat" in note
    assert prompt_notes(model, [Request("cat " * 225, negative="a BREAK b")]) == []
    (note,) = prompt_notes(model, [Request("a AND b"), Request("c AND d")])
    assert "AND is plain text" in note


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("a [cat:dog:0.5]", "[a:b:0.5] and [a|b] are plain text"),
        ("a [cat|dog]", "[a:b:0.5] and [a|b] are plain text"),
        ("embedding:bad_hands", "embedding:name is plain text"),
        ("a {cat|dog}", "wildcards are plain text"),
        ("[dull], (red:1.2), [a (b:0.5)], \\[a|b\\], x: 1", ""),
    ],
)
def test_syntax_of_other_programs_is_told(model, prompt, told) -> None:
    notes = prompt_notes(model, [Request(prompt)])
    assert len(notes) == bool(told) and all(told in note for note in notes)


def test_a_model_that_was_trained_with_more_tokens_is_told_them_in_that_form(model) -> None:
    model.max_token_length = 150
    try:
        ours, theirs = encode_prompts(model, ["a red sky", LONG]), encode_texts(model, ["a red sky", LONG])
        assert torch.equal(ours.hidden, theirs.hidden)
        assert encode_prompts(model, ["cat " * 225]).hidden.shape[1] == 227
    finally:
        model.max_token_length = 75


def test_chunks_hold_75_tokens() -> None:
    (row,) = [prompt_chunks(clip_tokenizer(), parse_prompt("cat " * 75))]
    assert len(row) == 1 and len(row[0]) == CHUNK
    assert [len(chunk) for chunk in prompt_chunks(clip_tokenizer(), parse_prompt("cat " * 75 + "BREAK dog"))] == [75, 1]
