"""The Resize tab: smaller copies of pictures, as a dataset that can be trained on at several resolutions."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from backend.config import base
from backend.config.base import Leaf
from backend.config.paths import likely_path
from backend.config.tools import ResizeImages
from backend.errors import UserError
from backend.serving import Services
from backend.tables.buckets import Size
from backend.workspace import DATASET_FILE, PROJECT, Workspace, slug
from tabs import datasets
from tabs.form import Composite, marked
from tabs.picks import QUIET, Choices, Picks
from tabs.resize_preview import bucket_step, pictures_in, preview_html
from tabs.tool import Tool, Values, draw_tool

PRESET = "for-training"
PREFIX = f"{ResizeImages.command}-"
SOURCE_HELP = "Pictures of a dataset, or the path of a folder."
TARGET_HELP = (
    "Name of a new dataset, which can be chosen in the Train tab at once; or the path of a folder anywhere else."
)
REPLACE_HELP = "Pictures of the same name in it are made anew."


def draw(services: Services, page: gr.Blocks, tab: gr.Tab) -> gr.Timer:
    """Draw the tab, within itself."""
    workspace = services.workspace
    picks = Picks(services, PREFIX)
    previews: list[gr.HTML] = []
    tool = Tool(
        config=ResizeImages,
        verb="Resize",
        title="Smaller copies of pictures",
        about="Makes copies of every picture at smaller sizes, in its own shape, so that a LoRA learns large and small "
        "versions of its subject. The originals stay as they are.",
        idle=("Nothing has been resized yet", "Choose pictures, give the new dataset a name and press Resize."),
        name_of=lambda values: f"{_source_name(workspace, values['src'])} to {Path(str(values['dst'])).name}",
        special={"src": partial(_draw_source, workspace, picks), "dst": _draw_target},
        preset=PRESET,
        place=lambda values, output: {"dst": str(target_folder(workspace, str(values["dst"])))},
        check=check,
        prepare=prepare,
    )
    below = {"max_resolution": lambda: previews.append(_draw_outcome())}
    form, timer = draw_tool(services, (page, tab), tool, picks, below)
    shown = [form.widgets[name] for name in ("src", "max_resolution", "divisible_by")]
    gr.on(
        [tab.select, *(widget.change for widget in shown)],
        outcome,
        shown,
        previews[0],
        trigger_mode="always_last",
        api_name=f"{PREFIX}outcome",
        **QUIET,
    )
    return timer


def sources(workspace: Workspace) -> Choices:
    """The folders of the workspace's datasets as (label, path)."""
    found = []
    for label, path in datasets.choices(workspace):
        try:
            config = datasets.open_dataset(workspace, path).config
        except UserError:
            continue
        subsets = [subset for options in config.datasets for subset in options.subsets]
        folders = list(dict.fromkeys(str(subset.image_dir) for subset in subsets if not subset.is_reg))
        found += [(label if len(folders) == 1 else f"{label}: {Path(folder).name}", folder) for folder in folders]
    return found


def outcome(source: str | None, sizes: str, divisible_by: float | None) -> str:
    """What resizing would give, before anything is run; mistakes are left to the buttons."""
    try:
        wanted = _sizes({"max_resolution": sizes.split(), "divisible_by": int(divisible_by or 1)})
    except UserError:
        return '<div class="hint">Give sizes such as 512x512 to see what they make of the pictures.</div>'
    folder = str(PROJECT / likely_path(source)) if source and source.strip() else ""
    return preview_html(folder, wanted, int(divisible_by or 1))


def target_folder(workspace: Workspace, text: str) -> Path:
    """Where the pictures go: into a dataset of this name, or to the folder if it is a path."""
    return likely_path(text) if is_path(text) else workspace.datasets / text / datasets.FOLDER


def is_path(text: str) -> bool:
    """Whether a destination is a folder anywhere, rather than the name of a dataset."""
    return "/" in text or "\\" in text or text.startswith("~")


def check(workspace: Workspace, values: Values) -> dict[str, str]:
    """What is wrong with source and destination."""
    found = {}
    source = PROJECT / likely_path(str(values.get("src") or ""))
    if values.get("src") and not pictures_in(source):
        found["src"] = "there are no pictures in this folder; choose another"
    name = str(values.get("dst") or "")
    if not name:
        return found
    try:
        if not is_path(name):
            slug(name, "dst")
            toml = workspace.datasets / name / DATASET_FILE
            if toml.exists() and not datasets.open_dataset(workspace, str(toml)).own:
                raise UserError("is a dataset that was not made here; choose another name", "dst")
        folder = PROJECT / target_folder(workspace, name)
        if values.get("src") and folder.resolve() == source.resolve():
            raise UserError("is where the pictures come from; choose another place", "dst")
        if pictures_in(folder) and not values.get("overwrite"):
            raise UserError("has pictures already; choose another name, or have them replaced", "dst")
    except UserError as error:
        found["dst"] = error.message
    except (OSError, ValueError):
        found["dst"] = "is not a path"
    return found


def prepare(workspace: Workspace, values: Values) -> None:
    """Make the dataset that the pictures come into."""
    name = str(values["dst"])
    if not is_path(name):
        sizes = _sizes(values)
        datasets.make_resized(workspace, name, sizes, bucket_step(sizes))


def _sizes(values: Values) -> tuple[Size, ...]:
    """The sizes of a form.

    Raises:
        ConfigError: they are none.
    """
    given = {name: values[name] for name in ("max_resolution", "divisible_by") if values.get(name)}
    config = base.resolve(ResizeImages, given, {"src": ".", "dst": "."})
    assert isinstance(config, ResizeImages)
    return config.pictures.sizes


def _source_name(workspace: Workspace, source: Any) -> str:
    return next((label for label, path in sources(workspace) if path == source), Path(str(source)).name)


def _draw_outcome() -> gr.HTML:
    return gr.HTML(preview_html("", (), 1), elem_id=f"{PREFIX}outcome", padding=False)


def _draw_source(workspace: Workspace, picks: Picks, leaf: Leaf) -> Component:
    return picks.dropdown(leaf, partial(sources, workspace), info=SOURCE_HELP)


def _draw_target(leaf: Leaf) -> Composite:
    """A name or a path, and whether what is there is replaced."""
    name = gr.Textbox(
        label=leaf.name,
        info=TARGET_HELP,
        placeholder="my-pictures-small",
        max_lines=1,
        interactive=True,
        elem_id=f"{PREFIX}option-{leaf.name}",
        elem_classes=["option"],
    )
    replace = gr.Checkbox(
        label="Replace what is there",
        info=REPLACE_HELP,
        interactive=True,
        elem_id=f"{PREFIX}replace",
        elem_classes=["option"],
    )

    def read(shown: Sequence[Any]) -> dict[str, Any]:
        text = str(shown[0] or "").strip()
        return {"overwrite": bool(shown[1]), **({"dst": text} if text else {})}

    def fill(values: Mapping[str, Any]) -> list[Any]:
        text = gr.update(value=str(values["dst"])) if "dst" in values else gr.skip()
        return [text, gr.update(value=bool(values.get("overwrite")))]

    def mark(problems: Mapping[str, str]) -> list[Any]:
        return [marked(problems.get(leaf.name), TARGET_HELP), gr.skip()]

    return Composite((leaf.name, "overwrite"), [name, replace], read, fill, mark)
