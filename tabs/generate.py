"""The Generate tab: a prompt, LoRAs with a slider each, and the picture; a released slider draws it again."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from backend.config.base import leaves
from backend.config.generate import GenImg
from backend.errors import UserError
from backend.jobs import Jobs
from backend.serving import Services
from backend.workspace import DEMO_MODEL, PROJECT, Workspace
from tabs import datasets, train
from tabs.drawing import Canvas, run
from tabs.text import empty, moment

LEAVES = leaves(GenImg)
MULTIPLIERS = (-1.0, 2.0, 0.05)
MAX_LORAS = 8
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


def draw(services: Services, page: gr.Blocks, tab: gr.Tab) -> None:
    """Draw the tab, within itself."""
    slots = gr.State([new_row(services, 0)])
    with gr.Row(elem_id="generate-columns"):
        with gr.Column(scale=5, min_width=400):
            model, prompt, negative = _draw_prompt(services)
            generate = gr.Button("Generate", variant="primary", size="lg", elem_id="generate")
            with gr.Accordion("LoRA", open=True, elem_classes=["section"], elem_id="loras"):
                rows = gr.Column()
                add = gr.Button("Add a LoRA", size="sm", elem_id="lora-add")
            settings = _draw_settings(services.workspace, model, prompt, negative)
        with gr.Column(scale=5, min_width=400):
            result = _draw_result()
    with rows:

        @gr.render(inputs=[slots], concurrency_limit=None, show_progress="hidden")
        def draw_slots(current: list[dict[str, Any]]) -> None:
            _draw_slots(services, current, slots, (tab, add, generate, settings, result))

    private: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    page.load(lambda rows: renewed(services, rows), slots, slots, api_name="generate_loras", **private)
    gr.on(
        [page.load, tab.select],
        lambda: gr.update(choices=services.workspace.list_models()),
        None,
        model,
        api_name="generate_models",
        **private,
    )


def lora_choices(jobs: Jobs, workspace: Workspace) -> list[tuple[str, str]]:
    """The LoRA files as (label, path), newest first, named by their file and the run that made them."""
    runs = {job.id: job for job in jobs.list()}
    found = []
    for label, path in workspace.list_loras():
        run = runs.get(Path(path).parent.parent.name)
        found.append((f"{Path(path).stem} · {moment(run.created)}" if run else label, path))
    return found


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


def _draw_settings(workspace: Workspace, model: gr.Dropdown, prompt: gr.Textbox, negative: gr.Textbox) -> Settings:
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
    return Settings(model, prompt, negative, width, height, steps, scale, sampler, seed)


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


def _draw_slots(
    services: Services,
    rows: list[dict[str, Any]],
    slots: gr.State,
    page: tuple[gr.Tab, gr.Button, gr.Button, Settings, Result],
) -> None:
    """Draw a row for each LoRA, and connect everything that needs to know what the rows say.

    A row that is drawn again shows what its state says, so whatever changes the rows writes down what they show first.
    """
    tab, add, generate, settings, result = page
    known = lora_choices(services.jobs, services.workspace)
    if not known:
        gr.HTML(empty("No LoRA yet", "Train one in the Train tab, or put files into the workspace's folder loras."))
    drawn = [(row, *_draw_slot(row, known)) for row in (rows if known else ())]
    files, sliders = [file for _, file, _, _ in drawn], [slider for _, _, slider, _ in drawn]

    def noted(shown: Sequence[Any]) -> list[dict[str, Any]]:
        if not drawn:
            return rows
        pairs = zip(rows, shown[: len(rows)], shown[len(rows) :], strict=True)
        return [{**row, "path": path, "multiplier": multiplier} for row, path, multiplier in pairs]

    def more(*shown: Any) -> Any:
        if len(rows) >= MAX_LORAS:
            gr.Info(f"{MAX_LORAS} LoRAs at most.")
            return gr.skip()
        return [*noted(shown), new_row(services, max((row["id"] for row in rows), default=0) + 1)]

    def less(gone: int, *shown: Any) -> Any:
        return [row for row in noted(shown) if row["id"] != gone]

    def press(canvas: Canvas, *shown: Any) -> Iterator[list[Any]]:
        yield from run(services, canvas, shown, again=False)

    def release(canvas: Canvas, *shown: Any) -> Iterator[list[Any]]:
        yield from run(services, canvas, shown, again=True)

    private: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    said = [*files, *sliders]
    add.click(more, said, slots, api_name="lora_add", **private)
    for row, _, _, remove in drawn:
        remove.click(partial(less, row["id"]), said, slots, api_name=f"lora_remove_{row['id']}", **private)
    tab.select(lambda *shown: renewed(services, noted(shown)), said, slots, api_name="generate_opened", **private)
    inputs = [result.canvas, *settings.inputs, *said]
    common: dict[str, Any] = {
        "show_progress": "hidden",
        "trigger_mode": "always_last",
        "concurrency_id": "generate",
        "concurrency_limit": 1,
    }
    gr.on([generate.click, settings.prompt.submit], press, inputs, result.outputs, api_name="generate", **common)
    if sliders:
        releases = [slider.release for slider in sliders]
        gr.on(releases, release, inputs, result.outputs, api_name="generate_again", **common)


def new_row(services: Services, number: int) -> dict[str, Any]:
    """The state of a new row: the newest LoRA, in full."""
    path = newest(services)
    return {"id": number, "path": path, "chosen": path, "multiplier": 1.0}


def renewed(services: Services, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with what there is now: the only one goes to the newest LoRA, unless somebody has chosen another."""
    known = [path for _, path in services.workspace.list_loras()]
    if len(rows) == 1 and rows[0]["path"] == rows[0]["chosen"] and known[:1] != [rows[0]["path"]]:
        rows = [{**new_row(services, rows[0]["id"]), "multiplier": rows[0]["multiplier"]}]
    # With the choices, so that the rows are drawn again when there are others.
    return [{**row, "known": known} for row in rows]


def _draw_slot(row: dict[str, Any], known: list[tuple[str, str]]) -> tuple[gr.Dropdown, gr.Slider, gr.Button]:
    low, high, step = MULTIPLIERS
    with gr.Row(elem_classes=["lora-row"]):
        file = gr.Dropdown(
            known,
            value=row["path"],
            label="LoRA",
            allow_custom_value=True,
            interactive=True,
            scale=5,
            min_width=180,
            elem_classes=["lora-file"],
        )
        slider = gr.Slider(
            low,
            high,
            row["multiplier"],
            step=step,
            label="Multiplier",
            interactive=True,
            scale=5,
            min_width=200,
            elem_classes=["multiplier"],
        )
        remove = gr.Button("Remove", size="sm", scale=1, min_width=80)
    return file, slider, remove
