"""The Generate tab: a prompt, LoRAs with a slider each, and the picture; a released slider draws it again."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gradio as gr
from gradio.components import Component

from backend.config.base import leaves
from backend.config.generate import GenImg
from backend.errors import UserError
from backend.serving import Services
from backend.workspace import DEMO_MODEL, PROJECT, Workspace
from tabs import datasets, train
from tabs.drawing import Canvas, run
from tabs.slots import MAX_LORAS, Slot, draw_slot, lora_choices
from tabs.text import empty

LEAVES = leaves(GenImg)
NO_LORA = ("No LoRA yet", "Train one in the Train tab, or put files into the workspace's folder loras.")
IDLE = ("No picture yet", "Press Generate. Then move a LoRA's slider: the same picture is drawn again when you let go.")


@dataclass(frozen=True)
class Settings:
    """The widgets of a request, in the order of `inputs`."""

    model: gr.Dropdown
    prompt: gr.Textbox
    negative: gr.Textbox
    width: gr.Textbox
    height: gr.Textbox
    steps: gr.Slider
    scale: gr.Slider
    sampler: gr.Dropdown
    seed: gr.Textbox
    allow_unmatched: gr.Checkbox

    @property
    def inputs(self) -> list[Component]:
        return [getattr(self, name) for name in self.__dataclass_fields__]


@dataclass(frozen=True)
class Result:
    """The widgets of an answer, in the order of `outputs`."""

    canvas: gr.State
    status: gr.HTML
    picture: gr.Image
    parameters: gr.Textbox
    download: gr.DownloadButton
    history: gr.Gallery

    @property
    def outputs(self) -> list[Any]:
        return [getattr(self, name) for name in self.__dataclass_fields__]


@dataclass(frozen=True)
class Rows:
    """Which rows a browser shows.

    Attributes:
        shown: for each slot.
        own: the file that the page has chosen by itself; a row that still has it may be given a newer one.
    """

    shown: tuple[bool, ...] = (True,) + (False,) * (MAX_LORAS - 1)
    own: str | None = None


def draw(services: Services, page: gr.Blocks, tab: gr.Tab) -> None:
    """Draw the tab, within itself.

    All rows are there from the start and most are hidden: rows that came and went would take the page's events with
    them, and with these what somebody presses meanwhile.
    """
    with gr.Row(elem_id="generate-columns"):
        with gr.Column(scale=5, min_width=400):
            model, prompt, negative = _draw_prompt(services)
            generate = gr.Button("Generate", variant="primary", size="lg", elem_id="generate")
            with gr.Accordion("LoRA", open=True, elem_classes=["section"], elem_id="loras"):
                path, known = newest(services), lora_choices(services.jobs, services.workspace)
                nothing = gr.HTML(empty(*NO_LORA), visible=not known)
                slots = [draw_slot(bool(known), path, known)]
                slots += [draw_slot(False, None, known) for _ in range(MAX_LORAS - 1)]
                add = gr.Button("Add a LoRA", size="sm", elem_id="lora-add")
                unmatched = gr.Checkbox(
                    False, label="Leave out layers that match nothing", elem_id="lora-unmatched", interactive=True
                )
            settings = _draw_settings(services.workspace, (model, prompt, negative, unmatched))
        with gr.Column(scale=5, min_width=400):
            result = _draw_result()
    rows = gr.State(Rows(own=path))
    _connect_rows(services, (page, tab), rows, (nothing, slots, add))
    _connect_pictures(services, generate, settings, (slots, result))
    gr.on(
        [page.load, tab.select],
        lambda: gr.update(choices=services.workspace.list_models()),
        None,
        model,
        api_name="generate_models",
        show_progress="hidden",
        api_visibility="private",
    )


def newest(services: Services) -> str | None:
    """The newest LoRA that a run has written, else the first of the workspace, else None."""
    known = services.workspace.list_loras()
    return known[0][1] if known else None


def _draw_prompt(services: Services) -> tuple[gr.Dropdown, gr.Textbox, gr.Textbox]:
    known = services.workspace.list_models()
    with gr.Group():
        model = gr.Dropdown(
            known,
            value=DEMO_MODEL,
            label="Model",
            info="A model of the workspace, a path, or a hub name (org/repo, or org/repo/file.safetensors).",
            allow_custom_value=True,
            elem_id="generate-model",
            interactive=True,
        )
        prompt = gr.Textbox(
            first_prompt(services.workspace),
            label="Prompt",
            placeholder="What to draw",
            lines=2,
            max_lines=6,
            elem_id="prompt",
            interactive=True,
        )
        negative = gr.Textbox(
            label="Negative prompt",
            placeholder="What to steer away from",
            max_lines=4,
            elem_id="negative",
            interactive=True,
        )
    return model, prompt, negative


def first_sample(workspace: Workspace) -> str:
    """The first sample prompt of the demo preset, with its options; "" if it has none."""
    preset = train.preset_values(workspace, train.PRESET)
    text = train.read_text(str(preset.get("sample_prompts", "")), (PROJECT,)) or ""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return lines[0].strip() if lines else ""


def first_prompt(workspace: Workspace) -> str:
    """A prompt to begin with: the first of the demo preset's samples, else its dataset's first caption."""
    sample = first_sample(workspace)
    if sample:
        return sample.partition(" --")[0].strip()
    preset = train.preset_values(workspace, train.PRESET)
    try:
        pictures = datasets.open_dataset(workspace, str(preset.get("dataset_config", ""))).pictures()
    except UserError:
        return ""
    return next((picture.caption for picture in pictures), "")


def first_number(workspace: Workspace, flag: str, otherwise: float) -> float:
    """What the demo's first sample gives for `flag`, as the model to begin with is the demo's."""
    found = re.search(rf"\s--{flag} ([\d.]+)", first_sample(workspace))
    return float(found[1]) if found else otherwise


def _draw_settings(
    workspace: Workspace, drawn: tuple[gr.Dropdown, gr.Textbox, gr.Textbox, gr.Checkbox]
) -> Settings:
    model, prompt, negative, unmatched = drawn
    common: dict[str, Any] = {"min_width": 150, "interactive": True}
    with gr.Accordion("Picture", open=True, elem_classes=["section"]):
        with gr.Row():
            # Text, because a number that is empty from the start shows as 0.
            width, height, seed = (
                gr.Textbox(label=label, placeholder=unset, elem_id=f"generate-{label.lower()}", max_lines=1, **common)
                for label, unset in (("Width", "the model's"), ("Height", "the model's"), ("Seed", "a new one"))
            )
            sampler = gr.Dropdown(
                list(LEAVES["sampler"].choices),
                value=LEAVES["sampler"].default,
                label="Sampler",
                elem_id="generate-sampler",
                **common,
            )
        with gr.Row():
            steps = gr.Slider(
                1,
                100,
                int(first_number(workspace, "s", LEAVES["steps"].default)),
                step=1,
                label="Steps",
                elem_id="generate-steps",
                **common,
            )
            scale = gr.Slider(
                0,
                20,
                first_number(workspace, "l", LEAVES["scale"].default),
                step=0.5,
                label="Guidance",
                elem_id="generate-scale",
                **common,
            )
    return Settings(model, prompt, negative, width, height, steps, scale, sampler, seed, unmatched)


def _draw_result() -> Result:
    status = gr.HTML(empty(*IDLE), elem_id="generate-status", padding=False)
    picture = gr.Image(
        show_label=False,
        type="filepath",
        format="png",
        interactive=False,
        height=560,
        buttons=["fullscreen"],
        visible=False,
        elem_id="picture",
        alt_text="The generated picture",
    )
    download = gr.DownloadButton("Download the picture", size="sm", visible=False, elem_id="picture-download")
    parameters = gr.Textbox(
        label="Parameters, as they stand in the file",
        lines=3,
        max_lines=8,
        visible=False,
        buttons=["copy"],
        interactive=False,
        elem_id="parameters",
    )
    history = gr.Gallery(
        label="Before",
        columns=6,
        height=200,
        object_fit="contain",
        buttons=["fullscreen"],
        interactive=False,
        visible=False,
        elem_id="history",
    )
    return Result(gr.State(Canvas()), status, picture, parameters, download, history)


def _connect_rows(
    services: Services,
    opened_by: tuple[gr.Blocks, gr.Tab],
    rows: gr.State,
    widgets: tuple[gr.HTML, list[Slot], gr.Button],
) -> None:
    """Rows come with Add, go with Remove, and know the files that there are whenever the tab is opened."""
    nothing, slots, add = widgets
    files = [slot.file for slot in slots]
    private: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def opened(now: Rows, *paths: str | None) -> list[Any]:
        known = lora_choices(services.jobs, services.workspace)
        now, first = renewed(now, paths, newest(services))
        # Without any, rows are hidden and hold nothing, also where the browser has missed that once before.
        chosen = [gr.update(choices=known) if known else gr.update(choices=known, value=None) for _ in slots]
        if first is not None:
            chosen[first] = gr.update(choices=known, value=now.own)
        seen = [gr.update(visible=bool(known) and shown) for shown in now.shown]
        return [now, gr.update(visible=not known), *seen, *chosen]

    def more(now: Rows) -> list[Any]:
        if all(now.shown):
            gr.Info(f"{MAX_LORAS} LoRAs at most.")
            return [gr.skip()] * (1 + 3 * len(slots))
        place = now.shown.index(False)
        now = replace(now, shown=tuple(shown or number == place for number, shown in enumerate(now.shown)))
        known = lora_choices(services.jobs, services.workspace)
        updates = [[gr.skip()] * len(slots) for _ in range(3)]
        fresh = (gr.update(visible=bool(known)), gr.update(choices=known, value=newest(services)), gr.update(value=1.0))
        for column, update in zip(updates, fresh, strict=True):
            column[place] = update
        return [now, *updates[0], *updates[1], *updates[2]]

    def less(place: int, now: Rows) -> list[Any]:
        now = replace(now, shown=tuple(shown and number != place for number, shown in enumerate(now.shown)))
        return [now, gr.update(visible=False), gr.update(value=None)]

    outlines, sliders = [slot.row for slot in slots], [slot.slider for slot in slots]
    page, tab = opened_by
    gr.on(
        [page.load, tab.select],
        opened,
        [rows, *files],
        [rows, nothing, *outlines, *files],
        # Else a tab that is chosen while the page is still being filled would not be looked at.
        trigger_mode="always_last",
        api_name="generate_opened",
        **private,
    )
    add.click(more, rows, [rows, *outlines, *files, *sliders], api_name="lora_add", **private)
    for number, slot in enumerate(slots):
        outputs = [rows, slot.row, slot.file]
        slot.remove.click(partial(less, number), rows, outputs, api_name=f"lora_remove_{number}", **private)


def _connect_pictures(
    services: Services, generate: gr.Button, settings: Settings, rest: tuple[list[Slot], Result]
) -> None:
    """Generate draws a picture, a released slider draws it again. A row that is not shown has no file."""
    slots, result = rest

    def press(canvas: Canvas, *shown: Any) -> Iterator[list[Any]]:
        yield from run(services, canvas, shown, again=False)

    def release(canvas: Canvas, *shown: Any) -> Iterator[list[Any]]:
        yield from run(services, canvas, shown, again=True)

    said = [*(slot.file for slot in slots), *(slot.slider for slot in slots)]
    inputs = [result.canvas, *settings.inputs, *said]
    common: dict[str, Any] = {
        "show_progress": "hidden",
        "trigger_mode": "always_last",
        "concurrency_id": "generate",
        "concurrency_limit": 1,
    }
    gr.on([generate.click, settings.prompt.submit], press, inputs, result.outputs, api_name="generate", **common)
    releases = [slot.slider.release for slot in slots]
    gr.on(releases, release, inputs, result.outputs, api_name="generate_again", **common)


def renewed(rows: Rows, paths: Sequence[str | None], newest_path: str | None) -> tuple[Rows, int | None]:
    """The rows with what there is now: the only one goes to the newest LoRA, unless somebody has chosen another.

    Args:
        rows: what is shown.
        paths: of every slot.
        newest_path: None if there is no LoRA.

    Returns:
        The rows, and the slot whose file becomes `rows.own`, None where none changes or no slot can have a file.
    """
    if newest_path is None:
        return replace(rows, own=None), None
    places = [place for place, shown in enumerate(rows.shown) if shown]
    if len(places) == 1 and paths[places[0]] in (rows.own, None) and newest_path != rows.own:
        return replace(rows, own=newest_path), places[0]
    return rows, None
