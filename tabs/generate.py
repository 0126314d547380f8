"""The Generate tab: a prompt, LoRAs with a slider each, and the picture; a released slider draws it again."""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component
from PIL import Image

from backend.config.base import leaves
from backend.config.generate import GenImg
from backend.errors import UserError
from backend.jobs import Jobs
from backend.serving import Services
from backend.workspace import DEMO_MODEL, Workspace
from tabs import train
from tabs.text import bar, complaint, empty, figures, moment

LEAVES = leaves(GenImg)
CRISP = 128
HISTORY = 24
MULTIPLIERS = (-1.0, 2.0, 0.05)
MAX_LORAS = 8
UPDATE_SECONDS = 0.15
IDLE = ("No picture yet", "Press Generate. Then move a LoRA's slider: the same picture is drawn again when you let go.")


@dataclass
class Canvas:
    """What one browser has drawn: the seed of the last picture, and the last pictures with what they were made of."""

    seed: int | None = None
    history: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Settings:
    """The widgets of a request, in the order of `inputs`."""

    model: gr.Dropdown
    prompt: gr.Textbox
    negative: gr.Textbox
    width: gr.Number
    height: gr.Number
    steps: gr.Slider
    scale: gr.Slider
    sampler: gr.Dropdown
    seed: gr.Number

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
    slots = gr.State([{"id": 0, "path": newest(services)}])
    touched = gr.State(False)
    with gr.Row(elem_id="generate-columns"):
        with gr.Column(scale=5, min_width=400):
            model, prompt, negative = _draw_prompt(services)
            generate = gr.Button("Generate", variant="primary", size="lg", elem_id="generate")
            with gr.Accordion("LoRA", open=True, elem_classes=["section"], elem_id="loras"):
                rows = gr.Column()
                add = gr.Button("Add a LoRA", size="sm", elem_id="lora-add")
            settings = _draw_settings(model, prompt, negative)
        with gr.Column(scale=5, min_width=400):
            result = _draw_result()
    with rows:

        @gr.render(inputs=[slots], concurrency_limit=None, show_progress="hidden")
        def draw_slots(current: list[dict[str, Any]]) -> None:
            _draw_slots(services, current, (slots, touched), (generate, settings, result))

    _connect(services, (slots, touched, add), model, [tab.select, page.load])
    # A number that is empty from the start shows as 0, one that is emptied shows its placeholder.
    unset = [settings.width, settings.height, settings.seed]
    page.load(lambda: [None] * len(unset), None, unset, api_name="generate_unset", api_visibility="private")


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


def read_request(services: Services, shown: Sequence[Any], seed: int | None) -> dict[str, Any]:
    """A request for the worker out of the widgets' values: those of `Settings`, then paths, then multipliers.

    Args:
        services: what the tabs work with.
        shown: the values.
        seed: used where the seed's field is empty; None has the worker draw one.

    Raises:
        UserError: naming what is missing or wrong.
    """
    model, prompt, negative, width, height, steps, scale, sampler, wanted = shown[:9]
    rest = shown[9:]
    half = len(rest) // 2
    known = {path for _, path in services.workspace.list_loras()}
    loras = []
    for path, multiplier in zip(rest[:half], rest[half:], strict=True):
        if path and path not in known:
            raise UserError("this LoRA is not there any more; choose another", "LoRA")
        if path:
            loras.append({"path": path, "multiplier": float(multiplier or 0)})
    if not (model or "").strip():
        raise UserError("choose a model", "model")
    if not (prompt or "").strip():
        raise UserError("say what to draw", "prompt")
    request = {
        "op": "generate",
        "model": model.strip(),
        "loras": loras,
        "prompt": prompt.strip(),
        "negative": (negative or "").strip(),
        "width": _whole(width, "width"),
        "height": _whole(height, "height"),
        "steps": _whole(steps, "steps"),
        "scale": float(scale),
        "sampler": sampler,
        "seed": _whole(wanted, "seed"),
        "count": 1,
        "out_dir": str(services.workspace.outputs),
    }
    for name in ("width", "height"):
        if request[name] is not None and (request[name] < 8 or request[name] % 8):
            raise UserError("must be a multiple of 8", name)
    if request["seed"] is None:
        request["seed"] = seed
    return request


def run(services: Services, canvas: Canvas, shown: Sequence[Any], again: bool) -> Iterator[list[Any]]:
    """Draw a picture; yields updates of `Result.outputs` as it goes.

    Args:
        services: what the tabs work with.
        canvas: of this browser.
        shown: values of the widgets, as `read_request` takes them.
        again: whether an unset seed is that of the last picture, else a new one.
    """
    still = [gr.skip()] * 4
    try:
        request = read_request(services, shown, canvas.seed if again else None)
    except UserError as error:
        yield [canvas, complaint(error), *still]
        return
    news: queue.Queue[dict[str, Any] | UserError] = queue.Queue()
    threading.Thread(target=_ask, args=(services, request, news), daemon=True).start()
    begun, said = time.monotonic(), 0.0
    loading = not services.worker.running
    yield [canvas, _waiting(0, 0, "starting the worker, loading the model …" if loading else "drawing …"), *still]
    while True:
        answer = news.get()
        if isinstance(answer, UserError):
            yield [canvas, complaint(answer), *still]
            return
        if answer["event"] == "done":
            break
        if time.monotonic() - said >= UPDATE_SECONDS:
            said = time.monotonic()
            yield [canvas, _waiting(int(answer.get("step") or 0), int(answer.get("total") or 0), "drawing"), *still]
    yield _show(canvas, request, answer, time.monotonic() - begun)


def _ask(services: Services, request: dict[str, Any], news: "queue.Queue[dict[str, Any] | UserError]") -> None:
    try:
        news.put(services.worker.request(request, news.put))
    except UserError as error:
        news.put(error)
    except OSError as error:
        news.put(UserError(f"the generate worker cannot be started: {error.strerror or error}"))


def _show(canvas: Canvas, request: dict[str, Any], answer: dict[str, Any], seconds: float) -> list[Any]:
    path = answer["images"][0]
    canvas.seed = int(answer["seeds"][0])
    with Image.open(path) as image:
        text, size = str(image.info.get("parameters", "")), image.size
    doses = ", ".join(f"{Path(lora['path']).stem} × {lora['multiplier']:g}" for lora in request["loras"])
    canvas.history = [(path, f"{doses or 'no LoRA'} · seed {canvas.seed}"), *canvas.history][:HISTORY]
    done = [("size", f"{size[0]} × {size[1]}"), ("seed", str(canvas.seed)), ("time", f"{seconds:.1f} s")]
    return [
        canvas,
        f'<div class="status">{figures(done)}</div>',
        gr.update(value=path, visible=True, elem_classes=["crisp"] if max(size) <= CRISP else []),
        gr.update(value=text, visible=True),
        gr.update(value=path, visible=True),
        gr.update(value=canvas.history, visible=len(canvas.history) > 1, selected_index=None),
    ]


def _waiting(step: int, total: int, words: str) -> str:
    count = f" {step} of {total}" if total else ""
    return f'<div class="status">{bar(step, total)}<div class="hint">{words}{count}</div></div>'


def _whole(value: Any, name: str) -> int | None:
    if value is None or value == "":
        return None
    if isinstance(value, float) and not value.is_integer() or not isinstance(value, int | float) or value < 0:
        raise UserError(f"must be a whole number, got {value}", name)
    return int(value)


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


def first_prompt(workspace: Workspace) -> str:
    """A prompt to begin with: the first of the demo preset's sample prompts, without its flags."""
    path = train.preset_values(workspace, train.PRESET).get("sample_prompts")
    text = train.read_text(str(path), (train.PROJECT,)) if path else None
    lines = [line for line in (text or "").splitlines() if line.strip() and not line.startswith("#")]
    return lines[0].partition(" --")[0].strip() if lines else ""


def _draw_settings(model: gr.Dropdown, prompt: gr.Textbox, negative: gr.Textbox) -> Settings:
    common: dict[str, Any] = {"min_width": 150, "interactive": True}
    with gr.Accordion("Picture", open=True, elem_classes=["section"]):
        with gr.Row():
            width, height, seed = (
                gr.Number(None, label=label, placeholder=unset, elem_id=f"generate-{label.lower()}", **common)
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
                1, 100, LEAVES["steps"].default, step=1, label="Steps", elem_id="generate-steps", **common
            )
            scale = gr.Slider(
                0, 20, LEAVES["scale"].default, step=0.5, label="Guidance", elem_id="generate-scale", **common
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
        label="Parameters, as they stand in the file", lines=3, max_lines=8, visible=False, buttons=["copy"],
        interactive=False, elem_id="parameters",
    )  # fmt: skip
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
    current: list[dict[str, Any]],
    states: tuple[gr.State, gr.State],
    page: tuple[gr.Button, Settings, Result],
) -> None:
    slots, touched = states
    generate, settings, result = page
    known = lora_choices(services.jobs, services.workspace)
    if not known:
        gr.HTML(empty("No LoRA yet", "Train one in the Train tab, or put files into the workspace's folder loras."))
    files, sliders = [], []
    low, high, step = MULTIPLIERS
    for slot in current if known else ():
        # The name holds the file that was put there: another one makes another widget, the same keeps what was set.
        key = f"{slot['id']}:{slot['path']}"
        with gr.Row(elem_classes=["lora-row"], key=f"row {key}"):
            file = gr.Dropdown(
                known, value=slot["path"], label="LoRA", allow_custom_value=True, scale=5, min_width=180,
                key=f"file {key}", elem_classes=["lora-file"],
            )  # fmt: skip
            slider = gr.Slider(
                low, high, 1.0, step=step, label="Multiplier", scale=5, min_width=200, key=f"slider {key}",
                elem_classes=["multiplier"],
            )  # fmt: skip
            remove = gr.Button("Remove", size="sm", scale=1, min_width=80, key=f"remove {key}")
        remove.click(
            lambda rows, gone=slot["id"]: [row for row in rows if row["id"] != gone],
            slots,
            slots,
            show_progress="hidden",
            api_visibility="private",
            api_name=f"lora_remove_{slot['id']}",
            key=f"removing {key}",
        )
        file.input(
            lambda: True, None, touched, api_visibility="private", api_name=f"lora_touch_{slot['id']}",
            show_progress="hidden", key=f"touching {key}",
        )  # fmt: skip
        files.append(file)
        sliders.append(slider)

    def press(canvas: Canvas, *shown: Any) -> Iterator[list[Any]]:
        yield from run(services, canvas, shown, again=False)

    def release(canvas: Canvas, *shown: Any) -> Iterator[list[Any]]:
        yield from run(services, canvas, shown, again=True)

    inputs = [result.canvas, *settings.inputs, *files, *sliders]
    common: dict[str, Any] = {
        "show_progress": "hidden",
        "trigger_mode": "always_last",
        "concurrency_id": "generate",
        "concurrency_limit": 1,
    }
    gr.on([generate.click, settings.prompt.submit], press, inputs, result.outputs, api_name="generate", **common)
    if sliders:
        gr.on(
            [slider.release for slider in sliders], release, inputs, result.outputs, api_name="generate_again", **common
        )


def _connect(
    services: Services, states: tuple[gr.State, gr.State, gr.Button], model: gr.Dropdown, openings: list[Any]
) -> None:
    slots, touched, add = states
    private: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def more(rows: list[dict[str, Any]]) -> Any:
        if len(rows) >= MAX_LORAS:
            gr.Info(f"{MAX_LORAS} LoRAs at most.")
            return gr.skip()
        return [*rows, {"id": max((row["id"] for row in rows), default=0) + 1, "path": newest(services)}]

    def opened(rows: list[dict[str, Any]], by_user: bool) -> list[Any]:
        """New files appear, and the newest is chosen as long as nobody has chosen."""
        known = [path for _, path in services.workspace.list_loras()]
        path = known[0] if known else None
        if not by_user and len(rows) <= 1 and [row["path"] for row in rows] != [path]:
            rows = [{"id": rows[0]["id"] if rows else 0, "path": path}]
        # With what there is to choose from, so that the rows are drawn again when that changes.
        return [[{**row, "known": known} for row in rows], gr.update(choices=services.workspace.list_models())]

    add.click(more, slots, slots, api_name="lora_add", **private)
    add.click(lambda: True, None, touched, api_name="lora_added", **private)
    gr.on(
        openings,
        opened,
        [slots, touched],
        [slots, model],
        api_name="generate_opened",
        **private,
    )
