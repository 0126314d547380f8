"""The picture of the blocks: what it reads from `network_args` and what it writes there."""

from typing import Any

import pytest

from backend.errors import UserError
from backend.tables.blocks import SD, SDXL, rising_ranks
from tabs.block_picture import (
    Choices,
    Picture,
    draw_picture,
    read_picture,
    with_curve,
    with_ranks,
    with_values,
)

SD1, XL = "someone/stable-diffusion-v1-5", "someone/sdxl"


def picture(text: str = "", module: str = "networks.lora", dim: Any = 4, model: str = SD1, **more: bool) -> Picture:
    return read_picture(Choices(module, dim, text, model, **more))


def reads_back(text: str, **more: Any) -> dict[str, str]:
    return picture(text, **more).pairs


@pytest.mark.parametrize(
    ("text", "model", "empty"),
    [
        ("", SD1, {0, 3, 6, 9, 10, 11, 13, 14, 15}),
        ("conv_dim=4", SD1, {0}),
        ("", XL, {0, 1, 2, 3, 4, 7, 10, 12, 19, 20, 21, 22}),
        ("conv_dim=4", XL, {0, 1, 22}),
    ],
)
def test_blocks_without_a_module_take_no_numbers(text: str, model: str, empty: set[int]) -> None:
    shown = picture(text, model=model)
    html = draw_picture(shown)
    without = {block for block in range(shown.blocks.count) if f'data-block="{block}"' not in html}
    assert without == empty
    assert html.count('class="cell none"') == len(empty)
    assert html.count('class="cell') == shown.blocks.count == (23 if model == XL else 25)


def test_what_is_shown_changes_nothing() -> None:
    text = "down_lr_weight=sine+0.3333\nblock_dims=" + ",".join("8" * 25) + "\nrank_dropout=.1"
    shown = picture(text)
    rates = {block: float(f"{rate:.3g}") for block, rate in enumerate(shown.rates)}
    assert with_values(shown, rates, dict.fromkeys(range(25), 8)) == text


def test_an_edited_rate_is_written_and_leaves_other_parts_and_keys_alone() -> None:
    shown = picture("conv_dim=4; down_lr_weight=sine\nup_lr_weight=cosine")
    assert with_values(shown, {24: 0.5}, {}).splitlines()[:2] == ["conv_dim=4", "down_lr_weight=sine"]
    written = reads_back(with_values(shown, {24: 0.5}, {}))["up_lr_weight"].split(",")
    assert len(written) == 12 and written[-1] == "0.5" and float(written[0]) == 1
    assert float(written[5]) == picture("up_lr_weight=cosine").rates[18], "what is not edited keeps its digits"
    assert reads_back(with_values(picture(), {12: 0}, {})) == {"mid_lr_weight": "0"}
    assert reads_back(with_values(picture(model=XL), {11: 2}, {}), model=XL) == {"mid_lr_weight": "1,2,1"}


def test_what_is_the_default_is_not_written() -> None:
    assert with_values(picture("mid_lr_weight=0.5"), {12: 1}, {}) == ""
    ranks = picture("block_dims=" + ",".join(["4"] * 24 + ["8"]))
    assert with_values(ranks, {}, {24: 4}) == ""
    assert with_ranks(picture("block_dims=" + ",".join("9" * 25)), [4] * 25) == ""
    assert with_curve(picture("up_lr_weight=zeros\nconv_dim=2"), "", 0, ["up", "mid"]) == "conv_dim=2"


def test_a_threshold_of_the_users_own_stays_and_stays_valid() -> None:
    text = with_values(picture("mid_lr_weight=0.5\nblock_lr_zero_threshold=0.1"), {12: 1}, {})
    assert reads_back(text) == {"block_lr_zero_threshold": "0.1", "mid_lr_weight": "1"}


def test_curves_are_written_as_curves() -> None:
    assert with_curve(picture(), "sine", 0.25, ["down", "up"]) == "down_lr_weight=sine+0.25\nup_lr_weight=sine+0.25"
    assert with_curve(picture("up_lr_weight=sine"), "linear", 0, ["up"]) == "up_lr_weight=linear"
    assert with_curve(picture(), "", 0, ["mid"]) == ""


def test_ranks_rise_to_the_middle() -> None:
    ranks = rising_ranks(SD, 16)
    assert len(ranks) == 25 and max(ranks) == ranks[12] == 16 and ranks[0] == ranks[-1] == 4
    assert list(ranks[:13]) == sorted(ranks[:13]) and ranks == ranks[::-1]
    assert rising_ranks(SDXL, 1) == (1,) * 23
    assert reads_back(with_ranks(picture(dim=16), ranks), dim=16) == {"block_dims": ",".join(map(str, ranks))}


def test_the_size_is_shown() -> None:
    html = draw_picture(picture())
    assert "2,359,296" in html and ">264<" in html and "the model is not on this machine" in html
    assert "4,718,592" in draw_picture(picture(module="networks.loha"))
    assert ">192<" in draw_picture(picture(network_train_unet_only=True))
    off = "\n".join(f"{part}_lr_weight=zeros" for part in ("down", "mid", "up"))
    assert "Nothing is left to be trained." in draw_picture(picture(off, network_train_unet_only=True))
    assert ">72<" in draw_picture(picture(off))
    assert ">192<" not in draw_picture(picture(dim_from_weights=True, network_train_unet_only=True))


def test_dylora_has_rates_alone() -> None:
    shown = picture(module="networks.dylora")
    html = draw_picture(shown)
    assert html.count(" disabled") == html.count('data-what="ranks"') == 16
    assert with_values(shown, {12: 0.5}, {12: 9}) == "mid_lr_weight=0.5"
    assert " disabled" not in draw_picture(picture(module="networks.loha"))
    with pytest.raises(UserError, match=r"block_dims.*has no meaning for networks\.dylora"):
        picture("block_dims=" + ",".join("4" * 25), module="networks.dylora")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("down_lr_weight=1,2", r"network_args\.down_lr_weight.*has 2 weights, but must have 12"),
        ("block_dims=4", r"network_args\.block_dims.*has 1 values, but must have 25"),
        ("<b>", r"must be .key=value."),
        ("conv_dmi=1", r"conv_dim"),
    ],
)
def test_what_is_wrong_is_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        picture(text)
    for dim in (0, None, 2.5, float("inf"), float("nan")):
        with pytest.raises(UserError, match="network_dim"):
            picture(dim=dim)
