"""Weights of words in captions: how they are read, and what they do to the states: the WebUI's rule."""

import pytest
import torch

from backend.families.build import random_model
from backend.families.clip_text import encode_texts, token_ids, token_weights
from backend.families.emphasis import emphasise, parse_weights
from backend.families.model import Model
from backend.families.tokenizer import clip_tokenizer


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("normal text: a", [("normal text: a", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(a:1.5)[b]", [("a", 1.5), ("b", 1 / 1.1)]),
        ("((a)b:0.5)", [("a", 0.55), ("b", 0.5)]),
        ("(a: -.5 )", [("a", -0.5)]),
        ("(unbalanced [x", [("unbalanced ", 1.1), ("x", 1.0)]),
        (r"\(literal\] \\", [("(literal] \\", 1.0)]),
        ("a) b] c:2)", [("a) b] c:2)", 1.0)]),
        (r"a\b", [("ab", 1.0)]),
        ("(x)(y)", [("xy", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        ),
        ("", []),
    ],
)
def test_weights_are_read(text, pieces) -> None:
    found = parse_weights(text).pieces
    assert [piece for piece, _ in found] == [piece for piece, _ in pieces]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in pieces])


def test_every_token_has_its_weight_and_the_others_one() -> None:
    tokenizer = clip_tokenizer()
    captions = [parse_weights("a (red sky:1.3), sun"), parse_weights("(x:2)")]
    weights = token_weights(tokenizer, captions, 75)
    assert weights.shape == (2, 77)
    assert weights[0, :7].tolist() == pytest.approx([1, 1, 1.3, 1.3, 1, 1, 1])
    assert (weights[0, 6:] == 1).all() and (weights[1, 2:] == 1).all() and weights[1, 1] == 2
    assert torch.equal(token_ids(tokenizer, captions), token_ids(tokenizer, ["a red sky, sun", "x"]))


def test_weights_go_on_through_all_chunks_and_end_with_the_last() -> None:
    caption = parse_weights("red " * 80 + "(sky " * 1 + "sky " * 200)
    for length in (75, 150, 225):
        (row,) = token_weights(clip_tokenizer(), [caption], length)
        assert row.tolist() == pytest.approx([1.0] * min(81, length + 1) + [1.1] * max(0, length - 80) + [1.0])


def test_states_are_scaled_and_their_mean_brought_back() -> None:
    states = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)) + 1.0
    weights = torch.tensor([[1, 2, 0.5, 1, 1], [1, 1, 1, 1, 1], [1, 1.5, 1, 1, 1]])
    found = emphasise(states, weights, [4])
    scaled = states * weights[..., None]
    for row in range(3):
        torch.testing.assert_close(found[row], scaled[row] * states[row].mean() / scaled[row].mean())
        torch.testing.assert_close(found[row].mean(), states[row].mean())
    assert torch.equal(found[1], states[1])


def test_each_encoder_keeps_its_own_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(1, 5, width, generator=generator) + shift for width, shift in ((4, 1.0), (6, -2.0)))
    weights = torch.tensor([[1, 2, 0.5, 1, 1]])
    found = emphasise(torch.cat([first, second], -1), weights, [4, 6])
    apart = torch.cat([emphasise(first, weights, [4]), emphasise(second, weights, [6])], -1)
    assert torch.equal(found, apart)


def test_a_mean_of_nothing_but_chance_scales_nothing() -> None:
    states = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    states -= states.mean(dim=-1, keepdim=True)  # as a final norm without bias leaves them
    weights = torch.tensor([[1, 2, 0.5, 1, 1]])
    assert torch.equal(emphasise(states, weights, [8]), states * weights[..., None])
    # Here the weight turns the sign of the mean.
    states = torch.tensor([[[1.0], [-0.8]]])
    assert torch.equal(emphasise(states, torch.tensor([[1.0, 2.0]]), [1]), torch.tensor([[[1.0], [-1.6]]]))


@pytest.fixture(params=["sd1", "sd2", "sdxl"])
def model(request) -> Model:
    return random_model(1, family=request.param)


def test_plain_captions_stay_bit_for_bit(model) -> None:
    texts = ["a red sky, sun", ""]
    expected = model.family.encode(model, model.family.tokenize(model, texts))
    model.weighted_captions = True
    found = encode_texts(model, texts)
    assert torch.equal(found.hidden, expected.hidden)
    beside = encode_texts(model, [*texts, "a (red:2) sky"])
    torch.testing.assert_close(beside.hidden[:2], expected.hidden)


def test_brackets_are_weights_only_where_they_are_asked_for(model) -> None:
    model.max_token_length = 150
    plain = encode_texts(model, ["a red sky"])
    bracketed = encode_texts(model, ["a (red:2) sky"])
    assert not torch.allclose(bracketed.hidden, plain.hidden)
    model.weighted_captions = True
    found = encode_texts(model, ["a (red:2) sky"])
    widths = [encoder.config.hidden_size for encoder in model.text_encoders]
    weights = torch.ones(1, 152)
    weights[0, 2] = 2
    assert torch.equal(found.hidden, emphasise(plain.hidden, weights, widths))
    assert not torch.equal(found.hidden, plain.hidden)
    if plain.pooled is not None:
        assert torch.equal(found.pooled, plain.pooled)
    escaped = encode_texts(model, [r"a \(red:2\) sky"])
    assert torch.equal(escaped.hidden, bracketed.hidden)
