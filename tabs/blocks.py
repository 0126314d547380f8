"""The box "Blocks" of the Train tab: rates and ranks block by block. What it edits is the text of `network_args`."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

from backend.errors import UserError
from backend.tables.blocks import CURVES, PARTS, rising_ranks
from tabs.block_picture import (
    MOST_RANK,
    Choices,
    Picture,
    draw_picture,
    read_picture,
    with_curve,
    with_ranks,
    with_values,
)
from tabs.form import Form
from tabs.text import problem_list, problems_of

ONES = "all 1"
# Every edit sends all that is shown, so that one that follows fast on another does not undo it.
SCRIPT = """
element.addEventListener("change", (event) => {
  const field = event.target;
  if (!field.matches("input[data-block]")) return;
  if (field.value === "" || !field.validity.valid) { field.value = field.getAttribute("value"); return; }
  const shown = { rates: {}, ranks: {} };
  for (const one of element.querySelectorAll("input[data-block]:enabled")) {
    shown[one.dataset.what][one.dataset.block] = Number(one.value);
  }
  trigger("edit", shown);
});
"""


@dataclass(frozen=True)
class BlockBox:
    """The widgets of the box."""

    fold: gr.Accordion
    picture: gr.HTML
    curve: gr.Dropdown
    added: gr.Number
    parts: gr.CheckboxGroup
    set_rates: gr.Button
    even: gr.Button
    rising: gr.Button

    @property
    def buttons(self) -> list[gr.Button]:
        return [self.set_rates, self.even, self.rising]


def draw_block_box() -> BlockBox:
    """Draw the box, folded away; `connect_blocks` makes it live."""
    with gr.Accordion("Blocks", open=False, elem_id="blocks", elem_classes=["advanced"]) as fold:
        gr.HTML(
            '<div class="hint">Learning rate (a factor) and rank of every block of the U-Net. 0 leaves a block out. '
            "It is written to network_args above.</div>",
            padding=False,
        )
        with gr.Row(elem_classes=["options", "narrow"]):
            curve = gr.Dropdown([ONES, *CURVES], value=ONES, label="Rates", elem_id="blocks-curve", min_width=120)
            added = gr.Number(0, label="plus", minimum=0, step=0.1, elem_id="blocks-added", min_width=90)
        parts = gr.CheckboxGroup([*PARTS], value=[*PARTS], show_label=False, container=False, elem_id="blocks-parts")
        with gr.Row():
            set_rates = gr.Button("Set rates", size="sm", min_width=110, elem_id="blocks-rates")
            even = gr.Button("Ranks: all network_dim", size="sm", min_width=150, elem_id="blocks-even")
            rising = gr.Button("Ranks: rising to the middle", size="sm", min_width=150, elem_id="blocks-rising")
        picture = gr.HTML("", js_on_load=SCRIPT, apply_default_css=False, padding=False, elem_id="blocks-picture")
    box = BlockBox(fold, picture, curve, added, parts, set_rates, even, rising)
    for button in box.buttons:
        button.interactive = False
    return box


def connect_blocks(form: Form, box: BlockBox) -> Callable[..., list[Any]]:
    """Let the picture follow the form, and the form the picture.

    Returns:
        What draws the picture, from `inputs_of(form)` to `outputs_of(box)`, for the page to call when it is filled.
    """
    inputs, text = inputs_of(form), form.widgets["network_args"]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def draw(*shown: Any) -> list[Any]:
        try:
            picture = read_picture(_choices(shown))
        except UserError as error:
            return [problem_list(problems_of(error)[:1]), *[gr.update(interactive=False)] * 3]
        ranked = gr.update(interactive=picture.ranked)
        return [draw_picture(picture), gr.update(interactive=True), ranked, ranked]

    def changed(change: Callable[[Picture], str], shown: tuple[Any, ...]) -> Any:
        try:
            return change(read_picture(_choices(shown)))
        except UserError:
            return gr.skip()

    def edit(event: gr.EventData, *shown: Any) -> Any:
        rates = _numbers(event._data.get("rates"), float)
        ranks = _numbers(event._data.get("ranks"), int)
        return changed(lambda picture: with_values(picture, rates, ranks), shown)

    def preset(event: gr.EventData, curve: str, added: float | None, parts: list[str], *shown: Any) -> Any:
        # The target is a session's copy of the button.
        pressed = event.target.elem_id if event.target else ""

        def change(picture: Picture) -> str:
            if pressed == box.set_rates.elem_id:
                return with_curve(picture, "" if curve == ONES else curve, added or 0, parts)
            if pressed == box.rising.elem_id:
                return with_ranks(picture, rising_ranks(picture.blocks, picture.dim))
            return with_ranks(picture, [picture.dim] * picture.blocks.count)

        return changed(change, shown)

    # What arrives while the box is being unfolded may be lost, so it is drawn once more.
    gr.on(
        [box.fold.expand, *(widget.change for widget in inputs)],
        draw,
        inputs,
        outputs_of(box),
        trigger_mode="always_last",
        api_name="blocks_draw",
        **quiet,
    )
    box.picture.edit(edit, inputs, text, trigger_mode="multiple", api_name="blocks_edit", **quiet)
    # One at a time: a second press would start from the text that the first is about to change.
    gr.on(
        [button.click for button in box.buttons],
        preset,
        [box.curve, box.added, box.parts, *inputs],
        text,
        trigger_mode="once",
        api_name="blocks_preset",
        **quiet,
    )
    return draw


def inputs_of(form: Form) -> list[Any]:
    """The widgets that the picture is made from."""
    return [form.widgets[one.name] for one in fields(Choices)]


def outputs_of(box: BlockBox) -> list[Any]:
    """What drawing the picture updates."""
    return [box.picture, *box.buttons]


def _choices(shown: tuple[Any, ...]) -> Choices:
    given = dict(zip((one.name for one in fields(Choices)), shown, strict=True))
    texts = ("network_module", "network_args", "pretrained_model_name_or_path")
    return Choices(**{**given, **{name: str(given[name] or "") for name in texts}})


def _numbers(given: Any, kind: type) -> Mapping[int, Any]:
    """Numbers by block from what a browser sent; what is none is left out."""
    if not isinstance(given, dict):
        return {}
    return {
        int(block): kind(value)
        for block, value in given.items()
        if str(block).isdecimal()
        and isinstance(value, int | float)
        and math.isfinite(value)
        and 0 <= value <= MOST_RANK
    }
