"""The Generate tab in a browser, over a worker that draws one colour from the seed and the multipliers."""

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from tabs.generate import Rows, renewed

pytestmark = pytest.mark.browser
PARAMETERS = "#parameters textarea"


@pytest.fixture(autouse=True)
def loras(workspace: Path) -> Path:
    """Two LoRAs of the workspace, as the first test finds them."""
    folder = workspace / "loras"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("horns", "stripes"):
        (folder / f"{name}.safetensors").write_bytes(b"weights")
    return folder


def open_tab(page: Page) -> None:
    page.get_by_role("tab", name="Generate").click()
    page.wait_for_selector(".multiplier")


def drag(page: Page, slider: Locator, fraction: float) -> None:
    """Move a slider's knob with the mouse, as a hand does."""
    bounds = slider.locator("input[type=range]").bounding_box()
    assert bounds is not None
    middle = bounds["y"] + bounds["height"] / 2
    page.mouse.move(bounds["x"] + bounds["width"] * 2 / 3, middle)
    page.mouse.down()
    page.mouse.move(bounds["x"] + bounds["width"] * fraction, middle, steps=4)
    page.mouse.up()


def request_count(page: Page) -> int:
    return int(page.locator(PARAMETERS).input_value().rpartition("Request: ")[2] or 0)


def test_a_released_slider_draws_again_with_the_same_seed_in_the_same_process(
    open_page: Callable[..., Page], workspace: Path
) -> None:
    page = open_page()
    open_tab(page)
    page.fill("#prompt textarea", "a zorgon")
    page.click("#generate")
    expect(page.locator(PARAMETERS)).to_have_value(re.compile(r"a zorgon\nSeed: 77, Dose: 1, Request: \d+"))
    count = request_count(page)
    before = page.locator("#picture img").get_attribute("src")
    drag(page, page.locator(".multiplier").first, 1.0)
    expect(page.locator(PARAMETERS)).to_have_value(re.compile(f"Seed: 77, Dose: 2, Request: {count + 1}$"))
    assert page.locator("#picture img").get_attribute("src") != before
    expect(page.locator("#history img")).to_have_count(2)
    with page.expect_download() as download:
        page.locator("#picture-download").click()
    with Image.open(download.value.path()) as image:
        assert image.format == "PNG"
        assert "Dose: 2" in image.info["parameters"]
        assert image.getpixel((0, 0)) == (77, 247, 90)


def test_rows_are_added_and_removed_and_keep_what_was_set(open_page: Callable[..., Page]) -> None:
    page = open_page()
    open_tab(page)
    page.fill("#prompt textarea", "two")
    drag(page, page.locator(".multiplier").first, 0.5)
    expect(page.locator(PARAMETERS)).to_have_value(re.compile("Dose: 0.5"))
    page.click("#lora-add")
    expect(page.locator(".multiplier")).to_have_count(2)
    page.click("#generate")
    expect(page.locator(PARAMETERS)).to_have_value(re.compile("Dose: 1.5"))
    page.get_by_role("button", name="Remove", exact=True).first.click()
    expect(page.locator(".multiplier")).to_have_count(1)
    page.click("#generate")
    expect(page.locator(PARAMETERS)).to_have_value(re.compile("Dose: 1,"))


def test_the_newest_lora_is_chosen_and_one_that_comes_later_too(
    open_page: Callable[..., Page], workspace: Path
) -> None:
    page = open_page()
    open_tab(page)
    expect(page.locator(".lora-file input")).to_have_value("loras/horns.safetensors")
    output = workspace / "jobs" / "20260101-000000-00000000" / "output"
    output.mkdir(parents=True)
    (output / "fresh.safetensors").write_bytes(b"weights")
    page.get_by_role("tab", name="Train").click()
    page.get_by_role("tab", name="Generate").click()
    expect(page.locator(".lora-file input")).to_have_value(re.compile("^fresh"))
    shutil.rmtree(output.parent)


def test_a_press_right_after_the_tab_was_opened_is_not_lost(open_page: Callable[..., Page], workspace: Path) -> None:
    page = open_page()
    open_tab(page)
    page.fill("#prompt textarea", "quick")
    for number in range(4):
        page.get_by_role("tab", name="Train").click()
        # Another file, so that the rows change when the tab is opened.
        (workspace / "loras" / f"a{number}.safetensors").write_bytes(b"weights")
        page.get_by_role("tab", name="Generate").click()
        page.click("#generate")
        expect(page.locator("#history img")).to_have_count(0 if number == 0 else number + 1)
        expect(page.locator(PARAMETERS)).to_have_value(re.compile("quick\nSeed: 77, Dose: 1"))


def test_a_choice_is_not_taken_back(open_page: Callable[..., Page], workspace: Path) -> None:
    page = open_page()
    open_tab(page)
    page.locator(".lora-file input").click()
    page.get_by_role("option", name="loras/stripes.safetensors").click()
    (workspace / "loras" / "apples.safetensors").write_bytes(b"weights")
    page.get_by_role("tab", name="Train").click()
    page.get_by_role("tab", name="Generate").click()
    time.sleep(1.5)
    expect(page.locator(".lora-file input")).to_have_value("loras/stripes.safetensors")
    page.locator(".lora-file input").click()
    expect(page.get_by_role("option", name="loras/apples.safetensors")).to_be_visible()


def test_without_a_lora_the_page_says_what_to_do_and_still_draws(open_page: Callable[..., Page], loras: Path) -> None:
    shutil.rmtree(loras)
    page = open_page()
    page.get_by_role("tab", name="Generate").click()
    expect(page.locator("#loras")).to_contain_text("Train one in the Train tab")
    page.fill("#prompt textarea", "plain")
    page.click("#generate")
    expect(page.locator(PARAMETERS)).to_have_value(re.compile("plain\nSeed: 77, Dose: 0"))


def test_a_row_that_lost_its_lora_gets_the_next_one() -> None:
    page_chose_a, somebody_chose_b = Rows(own="a"), ["b", *[None] * 7]
    rows, changed = renewed(page_chose_a, somebody_chose_b, None)
    assert changed is None
    assert renewed(rows, [None] * 8, "a") == (Rows(own="a"), 0)
    assert renewed(page_chose_a, somebody_chose_b, "c") == (page_chose_a, None)
    assert renewed(page_chose_a, ["a", *[None] * 7], "c") == (Rows(own="c"), 0)


def test_complaints_are_lines_that_name_the_field(open_page: Callable[..., Page]) -> None:
    page = open_page()
    open_tab(page)
    page.fill("#prompt textarea", "")
    page.click("#generate")
    expect(page.locator("#generate-status .problems")).to_have_text("prompt say what to draw")
    page.fill("#prompt textarea", "fail")
    page.click("#generate")
    expect(page.locator("#generate-status .problems")).to_have_text("prompt no <b>luck</b>")
    page.fill("#prompt textarea", "fine")
    page.fill("#generate-width input", "65")
    page.click("#generate")
    expect(page.locator("#generate-status .problems")).to_have_text("width must be a multiple of 8")


def test_what_is_changed_by_hand_draws_again(open_page: Callable[..., Page]) -> None:
    page = open_page()
    open_tab(page)
    shown = page.locator(PARAMETERS)
    # Before there is a picture, steps can be set without drawing one.
    page.locator("#generate-steps input[type=number]").fill("9")
    page.fill("#prompt textarea", "by hand")
    page.press("#prompt textarea", "Control+Enter")
    expect(shown).to_have_value(re.compile("by hand\nSeed: 77, Dose: 1, "))
    count = request_count(page)
    number = page.locator(".multiplier input[type=number]").first
    number.press_sequentially("x")
    number.fill("0.55")
    expect(shown).to_have_value(re.compile(f"Seed: 77, Dose: 0.55, Request: {count + 1}$"))
    # A number that the slider cannot have waits until Enter brings it back.
    number.fill("9")
    page.wait_for_timeout(600)
    assert request_count(page) == count + 1
    number.press("Enter")
    expect(shown).to_have_value(re.compile(f"Dose: 2, Request: {count + 2}$"))
    slider = page.locator(".multiplier input[type=range]").first
    slider.press("ArrowLeft")
    expect(shown).to_have_value(re.compile(f"Dose: 1.95, Request: {count + 3}$"))
    slider.press("Enter")
    expect(shown).to_have_value(re.compile(f"Dose: 1.95, Request: {count + 4}$"))
    page.locator("#generate-steps input[type=number]").fill("11")
    expect(shown).to_have_value(re.compile(f"Dose: 1.95, Request: {count + 5}$"))
    # To be in a field and to leave it changes nothing.
    number.click()
    page.locator("#generate-seed input").click()
    page.wait_for_timeout(600)
    assert request_count(page) == count + 5
    page.keyboard.press("Control+Enter")
    expect(shown).to_have_value(re.compile(f"Request: {count + 6}$"))


def test_a_drawing_is_cancelled_by_its_own_browser_alone(open_page: Callable[..., Page]) -> None:
    page, other = open_page(), open_page()
    for each in (page, other):
        open_tab(each)
        expect(each.locator("#cancel")).to_be_disabled()
    page.fill("#prompt textarea", "quick")
    page.click("#generate")
    expect(page.locator(PARAMETERS)).to_have_value(re.compile("quick"))
    count = request_count(page)
    page.fill("#prompt textarea", "slow")
    page.click("#generate")
    expect(page.locator("#cancel")).to_be_enabled()
    other.locator("#cancel").evaluate("button => { button.disabled = false; button.click(); }")
    other.wait_for_timeout(1000)
    expect(page.locator("#cancel")).to_be_enabled()
    page.click("#cancel")
    expect(page.locator("#generate-status")).to_contain_text("Cancelled")
    expect(page.locator("#cancel")).to_be_disabled()
    # The last picture stays, and so does the worker.
    assert request_count(page) == count
    page.fill("#prompt textarea", "next")
    page.click("#generate")
    expect(page.locator(PARAMETERS)).to_have_value(re.compile(f"next.*Request: {count + 2}$", re.DOTALL))


def test_what_cannot_be_drawn_is_red_at_its_field(open_page: Callable[..., Page]) -> None:
    page = open_page()
    open_tab(page)
    page.fill("#prompt textarea", "wrong")
    page.fill("#generate-model input", "/no/such/model")
    page.fill("#generate-width input", "100000")
    page.fill("#generate-height input", "68")
    page.fill("#generate-seed input", "x")
    page.keyboard.press("Control+Enter")
    for field, words in (
        ("model", "there is no file or folder /no/such/model"),
        ("width", "must be at most 8192"),
        ("height", "must be a multiple of 8"),
        ("seed", "must be a whole number"),
    ):
        expect(page.locator(f"#generate-{field}.invalid")).to_contain_text(words)
        expect(page.locator("#generate-status .problems")).to_contain_text(words)
    page.fill("#generate-model input", "backend/demo/model")
    page.fill("#generate-width input", "8192")
    page.fill("#generate-height input", "8192")
    page.fill("#generate-seed input", "")
    page.press("#generate-seed input", "Control+Enter")
    expect(page.locator("#generate-width.invalid")).to_contain_text("is the most that fits")
    page.fill("#generate-width input", "")
    page.fill("#generate-height input", "")
    page.click("#generate")
    expect(page.locator(PARAMETERS)).to_have_value(re.compile("wrong"))
    expect(page.locator(".invalid")).to_have_count(0)


def test_a_lora_is_deleted_once_it_is_asked_for_twice(open_page: Callable[..., Page], loras: Path) -> None:
    page = open_page()
    open_tab(page)
    page.click("#workspace-files > button")
    page.click("#files-delete")
    expect(page.locator("#files-answer")).to_contain_text("choose what to delete first")
    page.click("#files-choice input")
    page.get_by_role("option", name="horns.safetensors").first.click()
    page.keyboard.press("Escape")
    page.click("#files-delete")
    expect(page.locator("#files-really")).to_have_text("Delete horns.safetensors for good")
    page.click("#files-keep")
    expect(page.locator("#files-really")).not_to_be_visible()
    assert (loras / "horns.safetensors").exists()
    page.click("#files-delete")
    page.click("#files-really")
    expect(page.locator("#files-answer")).to_contain_text("Deleted horns.safetensors")
    assert [path.name for path in loras.iterdir()] == ["stripes.safetensors"]
    # The row that had it goes to what there is.
    expect(page.locator(".lora-file input").first).to_have_value("loras/stripes.safetensors")


def test_a_seed_of_ones_own_is_used(open_page: Callable[..., Page]) -> None:
    page = open_page()
    open_tab(page)
    page.fill("#prompt textarea", "seeded")
    page.fill("#generate-seed input", "5")
    page.click("#generate")
    expect(page.locator(PARAMETERS)).to_have_value(re.compile("seeded\nSeed: 5,"))


def test_a_phone_can_reach_everything(open_page: Callable[..., Page]) -> None:
    page = open_page(width=390, height=844)
    open_tab(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.click("#generate")
    expect(page.locator("#picture img")).to_be_visible()
    for part in ("#prompt", "#generate", ".multiplier", "#picture img"):
        bounds = page.locator(part).first.bounding_box()
        assert bounds is not None and bounds["width"] > 250, f"{part} is squeezed"
    picture, slider = (page.locator(part).first.bounding_box() for part in ("#picture", ".multiplier"))
    assert picture is not None and slider is not None
    assert picture["height"] < 480 and picture["y"] < slider["y"], "the picture stands above what changes it"
