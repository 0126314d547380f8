"""Weights and ranks by block, against the reference's tables and by what they must be."""

import json
from pathlib import Path

import pytest

from backend.tables.blocks import CURVES, SD, SDXL, BlockRank, block_ranks, lr_weights, part_weights, read_weights

DATA = Path(__file__).parents[1] / "data" / "keys"


def test_the_weights_of_the_references_sine_are_met() -> None:
    table = json.loads((DATA / "sd15_blocklr_sine.json").read_text())
    args = table["network_args"]
    found = lr_weights(
        SD,
        args["down_lr_weight"],
        args["mid_lr_weight"],
        args["up_lr_weight"],
        float(args["block_lr_zero_threshold"]),
    )
    assert found == pytest.approx(table["block_lr_weight"], abs=1e-6)


def test_counts_of_blocks() -> None:
    assert (SD.count, SDXL.count) == (25, 23)
    assert [SD.part_of(block) for block in (0, 11, 12, 13, 24)] == ["down", "down", "mid", "up", "up"]
    assert [SDXL.part_of(block) for block in (0, 1, 9, 10, 12, 13, 21, 22)] == [
        None, "down", "down", "mid", "mid", "up", "up", None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("sine", (0, 0.5, 0.8660254, 1)),
        ("cosine", (1, 0.8660254, 0.5, 0)),
        ("linear", (0, 1 / 3, 2 / 3, 1)),
        ("Reverse_Linear + .25", (1.25, 2 / 3 + 0.25, 1 / 3 + 0.25, 0.25)),
        ("zeros+2", (2, 2, 2, 2)),
        ("1, ,0.5,3e-1", (1, 0, 0.5, 0.3)),
    ],
)
def test_curves_and_lists(text: str, weights: tuple[float, ...]) -> None:
    sine_of_four = {"sine": (0, 0.5, 0.8660254, 1), "cosine": (1, 0.8660254, 0.5, 0)}
    assert part_weights(text, 4) == pytest.approx(sine_of_four.get(text, weights), abs=1e-6)


def test_a_single_block_has_a_curves_end() -> None:
    assert [part_weights(name, 1) for name in CURVES] == [(1.0,), (0.0,), (1.0,), (0.0,), (0.0,)]


@pytest.mark.parametrize("text", ["sinus", "1,two", "-1", "sine+", "sine+x", "nan", "1;2"])
def test_what_is_no_list_of_weights_says_what_is_expected(text: str) -> None:
    with pytest.raises(ValueError, match="numbers from 0 with commas between them, or one of sine, cosine, linear"):
        read_weights(text)


def test_parts_that_are_not_given_have_one_and_the_threshold_cuts() -> None:
    assert lr_weights(SDXL, None, "0.1,1,0.2", None, 0.1) == (1,) * 10 + (0, 1, 0.2) + (1,) * 10
    assert lr_weights(SD, "zeros", None, None) == (0,) * 12 + (1,) * 13


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("1,2", None, None), "down_lr_weight: has 2 weights, but must have 12"),
        ((None, "1,2,3", None), "mid_lr_weight: has 3 weights, but must have 1"),
        ((None, None, ",".join("1" * 13)), "up_lr_weight: has 13 weights, but must have 12"),
    ],
)
def test_wrong_lengths_are_refused_by_name(texts: tuple[str | None, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lr_weights(SD, *texts)


def test_ranks_of_blocks() -> None:
    everywhere = BlockRank(8, 4.0, 0, 1.0)
    assert block_ranks(SD, everywhere, (None,) * 4) == (everywhere,) * 25
    conv_alone = block_ranks(SD, everywhere, (None, None, range(25), None))
    assert [rank.conv_dim for rank in conv_alone] == list(range(25)) and {rank.dim for rank in conv_alone} == {8}
    alphas_alone = block_ranks(SD, everywhere, (None, [2.0] * 25, None, None))
    assert set(alphas_alone) == {BlockRank(8, 2.0, 0, 1.0)}
    off = block_ranks(SD, BlockRank(8, 4.0, 2, 1.0), (None,) * 4, [0.0, *[1.0] * 24])
    assert (off[0].dim, off[0].conv_dim, off[1].dim, off[1].conv_dim) == (0, 0, 8, 2)
    with pytest.raises(ValueError, match="block_dims: has 3 values, but must have 23, one per block"):
        block_ranks(SDXL, everywhere, ([1, 2, 3], None, None, None))
