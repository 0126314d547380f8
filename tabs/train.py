"""The Train tab: preset, dataset, options; Train and Stop; the run to look at."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from backend import bounded, gpus, preflight
from backend.bounded import split_lines
from backend.config import base, presets
from backend.config.base import Command, Leaf
from backend.config.paths import likely_path
from backend.config.train import TrainNetwork
from backend.errors import ConfigError, UserError
from backend.fitting import is_full_size
from backend.serving import Services
from backend.states import check_state
from backend.workspace import DEMO_DATASET, PROJECT, Workspace
from tabs import datasets
from tabs.blocks import BlockBox, connect_blocks, draw_block_box, inputs_of, outputs_of
from tabs.dataset_box import DatasetBox, draw_dataset_box, read_settings, resolution_for, show
from tabs.form import Form, draw_form, draw_search, plain
from tabs.launch_line import draw_launch_line
from tabs.panel import Look, RunPanel, begin, draw_panel, refresh
from tabs.preset_row import choices, connect_presets, draw_preset_row
from tabs.text import problem_list, problems_of, warning
from tabs.training_view import draw_training_view
from tabs.watch import Watch

PRESET = "demo"
IDLE = (
    "Nothing has been trained yet",
    "Press Train: the demo model and its dataset are ready, and take a few minutes on any machine. "
    "Or upload pictures of your own first.",
)
SHIPPED_PROMPTS = (f"{DEMO_DATASET}/prompts.txt",)
TEXT_BYTES = 64 * 1024
# Files of prompts that are not one prompt a line; shown by their names.
TABLES = (".toml", ".json")


def draw(services: Services, page: gr.Blocks, tab: gr.Tab) -> gr.Timer:
    """Draw the tab, within itself; gives the timer that it needs while it is seen."""
    workspace = services.workspace
    keep = _codec(workspace)
    blocks: list[BlockBox] = []
    view = partial(draw_training_view, (workspace.jobs,))
    with gr.Row(elem_id="train-columns"):
        with gr.Column(scale=6, min_width=480):
            row = draw_preset_row(services, TrainNetwork, PRESET, foreign=True)
            box = draw_dataset_box(services)
            search = gr.Column(elem_id="search")
            form = draw_form(
                TrainNetwork,
                skip=("dataset_config", "train_data_dir", "reg_data_dir", "in_json", "output_dir"),
                special={"model": _model_widget(workspace), "sample_prompts": _prompts_widget},
                opened=("model", "network", "optim", "samples"),
                below={"network_args": lambda: blocks.append(draw_block_box())},
            )
            form.adopt("dataset_config", box.choice)
            for name, folder in box.folders.items():
                form.adopt(name, folder)
            form.groups.append((box.unfolded, tuple(box.folders), False))
            with search:
                draw_search(form)
        with gr.Column(scale=5, min_width=400, elem_id="run-column"):
            look = Look("Train", IDLE, view, resumes=True, doubt=doubt, despite="Train on the CPU all the same")
            panel = draw_panel(services, tab, TrainNetwork.command, look)
    draw_launch_line(form)
    form.codecs["sample_prompts"] = keep
    form.lock()
    panel.start.interactive = False
    connect_presets(services, row, form)
    _connect(services, form, box, panel)
    draw_blocks = connect_blocks(form, blocks[0])
    listed = {
        "pretrained_model_name_or_path": workspace.list_models,
        "dataset_config": partial(datasets.choices, workspace),
    }

    def opened(preset: str | None, dataset: str | None) -> list[Any]:
        """What a fresh page shows: the chosen preset, and choices as they are now."""
        filled = form.unlocked(preset_values(workspace, preset))
        position = list(form.widgets).index
        for name, known in listed.items():
            update = filled[position(name)]
            filled[position(name)] = gr.update(**{**plain(update), "choices": known()})
        path = plain(filled[position("dataset_config")]).get("value", dataset)
        start = gr.update(interactive=True)
        return [gr.update(choices=choices(services, TrainNetwork)), start, *filled, *show(workspace, path)]

    page.load(
        opened,
        [row.choice, box.choice],
        [row.choice, panel.start, *form.inputs, *box.view],
        show_progress="hidden",
        api_name="train_opened",
        api_visibility="private",
    ).then(
        draw_blocks,
        inputs_of(form),
        outputs_of(blocks[0]),
        show_progress="hidden",
        api_name="blocks_opened",
        api_visibility="private",
    )
    # What other tabs have made meanwhile.
    tab.select(
        lambda: [gr.update(choices=known()) for known in listed.values()],
        None,
        [form.widgets[name] for name in listed],
        show_progress="hidden",
        api_name="train_selected",
        api_visibility="private",
    )
    return panel.timer


def make_config(values: Mapping[str, Any]) -> Callable[[Path], str]:
    """A job's toml, made when its output folder is known; only what differs from the defaults."""

    def text(output: Path) -> str:
        config = base.resolve(TrainNetwork, values, {"output_dir": str(output)})
        return base.to_toml(base.values(config, changed_only=True), TrainNetwork)

    return text


def check(workspace: Workspace, values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, str]:
    """Everything that is wrong with a form and its dataset, by field; the dataset's settings are written on the way."""
    own = {"output_dir": str(workspace.jobs)}
    problems = base.problems(TrainNetwork, values, own)
    seen = preflight.problems(TrainNetwork, values)
    problems |= {name: text for name, text in seen.items() if name not in problems}
    if values.get("resume") and "resume" not in problems:
        try:
            check_state(likely_path(str(values["resume"])))
        except UserError as error:
            problems |= dict(problems_of(error))
    if problems.keys() & {"dataset_config", "train_data_dir", "reg_data_dir"}:
        return problems
    # What a dataset leaves out may stand in the form; where that is wrong, a size that is missing is not said again.
    rest = datasets.SIZE if problems else base.resolve(TrainNetwork, values, own).dataset_defaults.keys()
    try:
        problems |= _check_dataset(workspace, values, settings, rest)
    except UserError as error:
        problems |= dict(problems_of(error))
    return problems


def doubt(values: Mapping[str, Any]) -> str:
    """Why a run had better not be started: a full-size model would be trained on the CPU of a machine with a GPU."""
    found = gpus.verdict()
    if not found.unused or not is_full_size(str(values.get("pretrained_model_name_or_path") or "")):
        return ""
    return f"{found.line}. On the CPU a model of this size takes hours where a GPU takes minutes."


def _check_dataset(
    workspace: Workspace, values: Mapping[str, Any], settings: Mapping[str, Any], flags: Mapping[str, Any]
) -> dict[str, str]:
    if values.get("train_data_dir"):
        name = "train_data_dir"
        dataset = datasets.open_folders(str(values[name]), str(values.get("reg_data_dir") or ""), flags)
    else:
        name = "dataset_config"
        dataset = datasets.open_dataset(workspace, str(values.get(name) or ""), flags)
        datasets.change_settings(dataset, settings)
    if dataset.described or any(not picture.is_reg for picture in dataset.pictures()):
        return {}
    return {name: "the dataset has no pictures; upload some"}


def _connect(services: Services, form: Form, box: DatasetBox, panel: RunPanel) -> None:
    workspace = services.workspace
    count = len(form.widgets)

    def train(confirmed: bool, watch: Watch, *shown: Any) -> list[Any]:
        values, problems = form.read(shown[:count])
        problems |= check(workspace, values, read_settings(shown[count:]))
        unasked = gr.update(visible=False)
        try:
            if problems:
                raise ConfigError(list(problems.items()))
            text = "" if confirmed else doubt(values)
            if text:
                waiting = [warning(text), gr.update(visible=True)]
                return [*waiting, *form.mark({}), *[gr.skip()] * len(panel.outputs)]
            begin(services, panel, watch, make_config(values), _title(workspace, values))
        except UserError as error:
            found = dict(problems_of(error))
            return [problem_list(found.items()), unasked, *form.mark(found), *[gr.skip()] * len(panel.outputs)]
        return ["", unasked, *form.mark({}), *refresh(services, panel, watch)]

    # Who calls these without the page confirms by the name that is called.
    for button, confirmed, name in ((panel.start, False, "train"), (panel.doubts.really, True, "train_on_cpu")):
        button.click(
            partial(train, confirmed),
            [panel.watch, *form.inputs, *box.settings],
            [panel.problems, panel.doubts.row, *form.markable, *panel.outputs],
            show_progress="hidden",
            concurrency_limit=1,
            api_name=name,
            api_visibility="private",
        )
    model = form.widgets["pretrained_model_name_or_path"]
    model.change(
        resolution_for,
        model,
        box.resolution,
        show_progress="hidden",
        api_name="upload_resolution",
        api_visibility="private",
    )


def _title(workspace: Workspace, values: Mapping[str, Any]) -> str:
    labels = {path: label for label, path in datasets.choices(workspace)}
    path = str(values.get("dataset_config") or values["train_data_dir"])
    return f"{values['output_name']} · {labels.get(path, Path(path).stem)}"


def preset_values(workspace: Workspace, name: str | None, kind: type[Command] = TrainNetwork) -> dict[str, Any]:
    """The values of a preset; none if it is not there or not valid."""
    try:
        return presets.read(kind, name, workspace.root) if name else {}
    except UserError:
        return {}


def _model_widget(workspace: Workspace) -> Callable[[Leaf], Component]:
    def make(leaf: Leaf) -> Component:
        known = workspace.list_models()
        return gr.Dropdown(
            known,
            value=known[0][1],
            label=leaf.name,
            info=leaf.help,
            allow_custom_value=True,
            elem_id=f"option-{leaf.name}",
            elem_classes=["option"],
        )

    return make


def _prompts_widget(leaf: Leaf) -> Component:
    return gr.Textbox(
        "",
        label=leaf.name,
        info="Prompts, one a line, or the path of a .txt, .toml or .json file with them. Each may end in --w --h "
        "--s (steps) --l (guidance) --d (seed) --ss (sampler) --n (negative).",
        placeholder="none",
        lines=2,
        max_lines=8,
        elem_id=f"option-{leaf.name}",
        elem_classes=["option"],
    )


def _codec(workspace: Workspace) -> tuple[Callable[[Any], str], Callable[[Any], str | None]]:
    """How prompts are shown, as the text of their file, and kept, as a file of the workspace named by its contents."""
    folder = workspace.root / "prompts"
    roots = (workspace.root, PROJECT)

    def shown(path: Any) -> str:
        if path and Path(str(path)).suffix.lower() in TABLES:
            return str(path)
        text = read_text(str(path), roots) if path else ""
        return str(path) if text is None else text.strip()

    def kept(text: Any) -> str | None:
        lines = prompt_lines(text)
        if not lines:
            return None
        if len(lines) == 1 and lines[0].lower().endswith((".txt", *TABLES)):
            return lines[0]
        for shipped in SHIPPED_PROMPTS:
            # Named as it is shipped, so that a preset with it holds everywhere.
            if prompt_lines(read_text(str(PROJECT / shipped), roots)) == lines:
                return shipped
        data = ("\n".join(lines) + "\n").encode()
        path = folder / f"{hashlib.sha256(data).hexdigest()[:16]}.txt"
        if not path.exists():
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            try:
                folder.mkdir(exist_ok=True)
                temporary.write_bytes(data)
                os.replace(temporary, path)
            except OSError as error:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise ValueError(f"cannot be kept: {error.strerror}; free some space") from error
        return str(path)

    return shown, kept


def prompt_lines(text: Any) -> list[str]:
    """The lines of a text that hold something."""
    return [line.strip() for line in split_lines(str(text or "")) if line.strip()]


def read_text(path: str, roots: Collection[Path]) -> str | None:
    """The text of a file that lies in one of the folders; None if it does not, is no text or too long."""
    try:
        file = Path(path).expanduser().resolve()
        if not any(file.is_relative_to(root) for root in roots):
            return None
        return bounded.read_text(file, None, limit=TEXT_BYTES)
    except (OSError, RuntimeError, ValueError, UserError):
        return None
