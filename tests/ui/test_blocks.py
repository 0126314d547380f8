"""The box "Blocks" of the Train tab in a browser."""

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from backend.tables.sizes import FULL_SIZE
from tests.tables.test_widths import shapes_of, write_file
from tests.ui.test_train_tab import START, STATUS, jobs_of, set_option

pytestmark = pytest.mark.browser
TEXT = "#option-network_args textarea"
RISING = [str(rank) for rank in (*range(4, 16), *range(16, 3, -1))]


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    return unfolded(open_page())


def unfolded(page: Page) -> Page:
    page.click("#blocks > button")
    expect(page.locator("#blocks-picture .cell")).to_have_count(25)
    expect(page.locator("#blocks-rates")).to_be_enabled()
    return page


def number(page: Page, what: str, block: int) -> Locator:
    return page.locator(f'#blocks-picture input[data-what={what}][data-block="{block}"]')


def size(page: Page) -> Locator:
    return page.locator("#blocks-picture .figures")


def choose_curve(page: Page, curve: str, added: str = "0") -> None:
    page.click("#blocks-curve input")
    page.get_by_role("option", name=curve, exact=True).click()
    page.fill("#blocks-added input", added)
    page.click("#blocks-rates")


def test_presets_and_edits_are_written_and_trained_with(page: Page, workspace: Path) -> None:
    assert page.input_value(TEXT) == ""
    expect(size(page)).to_contain_text("204")
    choose_curve(page, "sine", "0.25")
    curves = "".join(f"{part}_lr_weight=sine+0.25\n" for part in ("down", "mid", "up")).strip()
    expect(page.locator(TEXT)).to_have_value(curves)
    expect(number(page, "rates", 24)).to_have_value("1.25")
    page.click("#blocks-rising")
    expect(page.locator(TEXT)).to_have_value(f"{curves}\nblock_dims={','.join(RISING)}")
    expect(number(page, "ranks", 12)).to_have_value("16")
    before = size(page).inner_text()

    # The Tab key goes on to the next number, and stays there when the answer comes.
    number(page, "ranks", 12).fill("20")
    number(page, "ranks", 12).press("Tab")
    ranks = [*RISING[:12], "20", *RISING[13:]]
    expect(page.locator(TEXT)).to_have_value(f"{curves}\nblock_dims={','.join(ranks)}")
    expect(size(page)).not_to_have_text(before)
    number(page, "ranks", 5).fill("0")
    number(page, "ranks", 5).press("Tab")
    ranks[5] = "0"
    expect(page.locator(TEXT)).to_have_value(f"{curves}\nblock_dims={','.join(ranks)}")
    expect(number(page, "rates", 7)).to_be_focused()
    expect(size(page)).to_contain_text("192")

    set_option(page, "max_train_steps", "3")
    page.click(START)
    expect(page.locator(f"{STATUS} .state")).to_be_visible()
    config = tomllib.loads((jobs_of(workspace)[-1] / "config.toml").read_text())
    given = config["network"]["network_args"]
    assert given["block_dims"] == [int(rank) for rank in ranks]
    assert [given[f"{part}_lr_weight"] for part in ("down", "mid", "up")] == ["sine+0.25"] * 3


def test_edits_that_follow_fast_are_all_kept(page: Page) -> None:
    for block, rate in ((1, "0.5"), (2, "0.25"), (24, "0"), (12, "2")):
        number(page, "rates", block).fill(rate)
        number(page, "rates", block).press("Enter")
    down, up = ",".join(["1", "0.5", "0.25", *"1" * 9]), ",".join([*"1" * 11, "0"])
    expect(page.locator(TEXT)).to_have_value(f"down_lr_weight={down}\nmid_lr_weight=2\nup_lr_weight={up}")
    expect(page.locator("#blocks-picture .cell.off")).to_have_count(1)


def test_the_text_changes_the_picture_and_what_is_wrong_in_it_is_said(page: Page) -> None:
    set_option(page, "network_args", "mid_lr_weight=0.125\nconv_dim=4")
    expect(number(page, "rates", 12)).to_have_value("0.125")
    expect(page.locator("#blocks-picture .cell.none")).to_have_count(1)
    set_option(page, "network_args", "down_lr_weight=<img/src=x>")
    expect(page.locator("#blocks-picture .problems")).to_contain_text('got "<img/src=x>"')
    expect(page.locator("#blocks-picture li")).to_have_count(1)
    expect(page.locator("#blocks-picture .cell")).to_have_count(0)
    expect(page.locator("#blocks-rates")).to_be_disabled()
    set_option(page, "network_args", "")
    expect(number(page, "rates", 12)).to_have_value("1")
    # What is no rate is not taken.
    number(page, "rates", 12).fill("-1")
    number(page, "rates", 12).press("Enter")
    expect(number(page, "rates", 12)).to_have_value("1")


def test_the_picture_is_the_chosen_models_and_kinds(page: Page, workspace: Path) -> None:
    (workspace / "models").mkdir(parents=True, exist_ok=True)
    file = write_file(workspace / "models" / "xl.safetensors", shapes_of(FULL_SIZE["sdxl"]))
    set_option(page, "network_dim", "4")
    model = page.locator("#option-pretrained_model_name_or_path input")
    model.fill(str(file))
    model.press("Enter")
    expect(page.locator("#blocks-picture .cell")).to_have_count(23)
    expect(size(page)).to_contain_text("14,252,032")
    set_option(page, "network_args", "conv_dim=4")
    expect(size(page)).to_contain_text("15,909,632")
    page.click("#option-network_module input")
    page.get_by_role("option", name="networks.dylora", exact=True).click()
    expect(number(page, "ranks", 8)).to_be_disabled()
    expect(number(page, "rates", 8)).to_be_enabled()
    expect(page.locator("#blocks-rising")).to_be_disabled()


def test_a_phone_can_edit_blocks(open_page: Callable[..., Page]) -> None:
    page = unfolded(open_page(width=390, height=844))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for block in (8, 16):
        box = number(page, "rates", block).bounding_box()
        assert box is not None and box["width"] >= 40 and box["x"] + box["width"] < 390
