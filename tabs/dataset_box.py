"""The dataset part of the Train tab: choose one, look at it, mend its captions, or upload pictures for a new one."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from backend.config.base import Leaf
from backend.config.dataset import DATASET_KEYS, SUBSET_KEYS
from backend.config.declare import section_leaves
from backend.config.training.data import Data
from backend.errors import UserError
from backend.picture_folder import names_of
from backend.serving import Services
from backend.workspace import DEMO_DATASET, DEMO_MODEL, PROJECT, Workspace
from tabs import datasets
from tabs.dataset_actions import connect_deletion, draw_deletion, draw_upload
from tabs.form import to_widget
from tabs.text import complaint, empty
from tabs.thumbnails import thumbnail

SHOWN = 240
# Sizes that models are made for: the demo's, and Stable Diffusion 1's.
DEMO_RESOLUTION, RESOLUTION = "64", "512"
# Settings that numbered folders say by their names, each its own.
OF_FOLDERS = ("num_repeats", "class_tokens")
LEAVES: Mapping[str, Leaf] = {**DATASET_KEYS, **SUBSET_KEYS}
FOLDERS: Mapping[str, Leaf] = {name: section_leaves(Data)[name] for name in ("train_data_dir", "reg_data_dir")}


@dataclass(frozen=True)
class DatasetBox:
    """The widgets of the box.

    Attributes:
        choice: path of the chosen dataset's toml.
        folders: `train_data_dir` and `reg_data_dir`, which stand in its place.
        unfolded: the accordion that they are in.
        settings: the dataset's settings, in the order of `datasets.FIELDS`.
        view: what `show` updates.
        picked: file name of the picture whose caption is being edited.
        resolution: of a dataset that an upload makes.
    """

    choice: gr.Dropdown
    folders: dict[str, gr.Textbox]
    unfolded: gr.Accordion
    settings: list[Component]
    view: list[Any]
    picked: gr.State
    editor: gr.Row
    caption: gr.Textbox
    gallery: gr.Gallery
    resolution: gr.Textbox


def draw_dataset_box(services: Services) -> DatasetBox:
    """Draw the box and connect what happens within it."""
    workspace = services.workspace
    known = datasets.choices(workspace)
    with gr.Accordion("Dataset", open=True, elem_classes=["section"], elem_id="section-dataset"):
        choice = gr.Dropdown(
            known,
            value=known[0][1] if known else None,
            label="dataset_config",
            info="What to train on: a dataset of the workspace, or the path of a dataset toml.",
            allow_custom_value=True,
            elem_id="option-dataset_config",
            elem_classes=["option"],
        )
        with (
            gr.Accordion(
                "Or folders named by repeats", open=False, elem_id="dataset-folders", elem_classes=["advanced"]
            ) as unfolded,
            gr.Row(elem_classes=["options"]),
        ):
            folders = {name: _folder(FOLDERS[name]) for name in FOLDERS}
        summary = gr.HTML(elem_id="dataset-summary", padding=False)
        gallery = gr.Gallery(
            show_label=False,
            columns=8,
            height=200,
            object_fit="cover",
            allow_preview=False,
            buttons=[],
            interactive=False,
            visible=False,
            elem_id="dataset-pictures",
        )
        with gr.Row(visible=False, elem_id="caption-editor") as editor:
            caption = gr.Textbox(label="Caption", lines=2, max_lines=4, scale=5, elem_id="caption")
            with gr.Column(scale=1, min_width=150):
                save = gr.Button("Save caption", size="sm", elem_id="caption-save")
                remove = gr.Button("Remove picture", size="sm", elem_id="picture-remove")
        deletion = draw_deletion()
        made: dict[str, Component] = {}
        for switches in (False, True):
            with gr.Row(elem_classes=["options", "narrow"]):
                for name in datasets.FIELDS:
                    if (LEAVES[name].kind == "bool") is switches:
                        made[name] = _setting(LEAVES[name])
        settings = [made[name] for name in datasets.FIELDS]
        picked = gr.State("")
        resolution = gr.Textbox(
            DEMO_RESOLUTION,
            label="resolution",
            info="The model's own: 512 for Stable Diffusion 1, 64 for the demo.",
            render=False,
            elem_id="upload-resolution",
            min_width=140,
        )
        view = [summary, gallery, picked, editor, deletion.ask, deletion.row, *settings]
        box = DatasetBox(choice, folders, unfolded, settings, view, picked, editor, caption, gallery, resolution)
        draw_upload(workspace, box, show)
    _connect(workspace, box, save, remove)
    connect_deletion(services, box, deletion, show)
    return box


def show(workspace: Workspace, path: str | None, folder: str = "", reg_folder: str = "") -> list[Any]:
    """Updates of a box's `view` that show a dataset, or say why there is none to show.

    Args:
        workspace: where the datasets are.
        path: of a dataset toml; without one, the folders count.
        folder: a `train_data_dir`.
        reg_folder: a `reg_data_dir`.
    """
    named = path or folder.strip()
    try:
        in_folders = not path and folder.strip()
        dataset = (
            datasets.open_folders(folder, reg_folder) if in_folders else datasets.open_dataset(workspace, path or "")
        )
    except UserError as error:
        nothing = empty("No pictures chosen", "Choose a dataset above, or upload pictures below.")
        still = [gr.update(interactive=False) for _ in datasets.FIELDS]
        hidden = gr.update(visible=False)
        return [complaint(error) if named else nothing, hidden, "", hidden, hidden, hidden, *still]
    pictures = dataset.pictures()
    shown = _shown(workspace, pictures)
    entries = [(str(small), picture.caption or "no caption") for picture, small in shown]
    words = [dataset.summary(pictures)]
    if len(pictures) > len(entries):
        words.append(f"{len(entries)} are shown")
    if dataset.config.in_folders:
        words.append("resolution and train_batch_size stand below, in Dataset, where it leaves something out")
    else:
        words.append("click a picture to change its caption" if dataset.own else "read-only")
    known = {picture.path for picture, _ in shown}
    broken = [picture.path for picture in pictures[:SHOWN] if picture.path not in known]
    told = [f"{len(broken)} cannot be decoded: {names_of(broken)}"] if broken else []
    several = len(dataset.folders) > 1
    return [
        f'<div class="hint">{escape(" · ".join(words))}</div>{_passed_over([*told, *dataset.passed_over])}',
        gr.update(value=entries, visible=bool(entries), selected_index=None),
        "",
        gr.update(visible=False),
        gr.update(visible=dataset.own),
        gr.update(visible=False),
        *(
            gr.update(
                value=value,
                interactive=dataset.own and not (several and name in OF_FOLDERS),
                visible=not dataset.config.in_folders,
            )
            for name, value in dataset.settings().items()
        ),
    ]


def _passed_over(lines: Sequence[str]) -> str:
    """What a run would leave out, so that nobody has to find it out by its result."""
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class="passed-over" role="note"><ul>{items}</ul></div>'


def read_settings(shown: Sequence[Any]) -> dict[str, Any]:
    """The values of a box's `settings` by name."""
    values = dict(zip(datasets.FIELDS, shown, strict=True))
    return {name: value.strip() if isinstance(value, str) else value for name, value in values.items()}


def _shown(workspace: Workspace, pictures: Sequence[datasets.Picture]) -> list[tuple[datasets.Picture, Path]]:
    """The pictures of the gallery, each with what is shown of it."""
    cache = Path(os.environ.get("GRADIO_TEMP_DIR") or gr.utils.get_upload_folder()) / "thumbnails"
    served = (workspace.datasets, PROJECT / DEMO_DATASET)
    small = ((picture, thumbnail(picture.path, cache, served)) for picture in pictures[:SHOWN])
    return [(picture, path) for picture, path in small if path is not None]


def _setting(leaf: Leaf) -> Component:
    common: dict[str, Any] = {
        "label": leaf.name,
        "info": leaf.help,
        "elem_id": f"dataset-{leaf.name}",
        "elem_classes": ["option"],
        "min_width": 210,
        "interactive": False,  # until `show` brings its value
    }
    if leaf.kind == "bool":
        return gr.Checkbox(to_widget(leaf, leaf.default), **common)
    if leaf.kind == "int":
        return gr.Number(leaf.default, **common)
    return gr.Textbox("", max_lines=1, **common)


def _folder(leaf: Leaf) -> gr.Textbox:
    return gr.Textbox(
        "",
        label=leaf.name,
        info=leaf.help,
        max_lines=1,
        placeholder="none",
        elem_id=f"option-{leaf.name}",
        elem_classes=["option"],
        min_width=210,
    )


def _connect(workspace: Workspace, box: DatasetBox, save: gr.Button, remove: gr.Button) -> None:
    def pick(path: str, event: gr.SelectData) -> list[Any]:
        try:
            dataset = datasets.open_dataset(workspace, path)
            picture, _ = _shown(workspace, dataset.pictures())[event.index]
        except (UserError, IndexError, TypeError):
            return ["", gr.update(visible=False), gr.skip()]
        if not dataset.own:
            return ["", gr.update(visible=False), gr.skip()]
        return [
            datasets.name_in(picture.path),
            gr.update(visible=True),
            gr.update(value=picture.text, label=f"Caption of {datasets.name_in(picture.path)}"),
        ]

    def change(path: str, name: str, text: str | None) -> list[Any]:
        """Write a caption, or with None take the picture away."""
        try:
            dataset = datasets.open_dataset(workspace, path)
            if text is None:
                datasets.remove_picture(dataset, name)
            else:
                datasets.set_caption(dataset, name, text)
        except UserError as error:
            return [complaint(error), *[gr.skip()] * (len(box.view) - 1)]
        return show(workspace, path)

    def edit(path: str, *shown: Any) -> Any:
        try:
            dataset = datasets.open_dataset(workspace, path)
            datasets.change_settings(dataset, read_settings(shown))
            if not dataset.own:
                return gr.skip()
            dataset = datasets.open_dataset(workspace, path)
        except UserError as error:
            return complaint(error)
        summary = dataset.summary(dataset.pictures())
        return f'<div class="hint">{escape(summary)} · saved</div>{_passed_over(dataset.passed_over)}'

    folders = list(box.folders.values())

    def chosen(path: str | None, *given: str) -> list[Any]:
        """A dataset takes the place of folders."""
        emptied = ["" if path and text else gr.skip() for text in given]
        return [*emptied, *show(workspace, path, *given)]

    def named(path: str | None, *given: str) -> list[Any]:
        """And folders that of a dataset."""
        instead = any(text.strip() for text in given)
        return [None if path and instead else gr.skip(), *show(workspace, "" if instead else path, *given)]

    box.choice.change(
        chosen,
        [box.choice, *folders],
        [*folders, *box.view],
        show_progress="hidden",
        api_name="show_dataset",
        api_visibility="private",
    )
    gr.on(
        [folder.change for folder in folders],
        named,
        [box.choice, *folders],
        [box.choice, *box.view],
        show_progress="hidden",
        trigger_mode="always_last",
        api_name="show_folders",
        api_visibility="private",
    )
    box.gallery.select(
        pick,
        box.choice,
        [box.picked, box.editor, box.caption],
        show_progress="hidden",
        api_name="pick_picture",
        api_visibility="private",
    )
    gr.on(
        [save.click, box.caption.submit],
        change,
        [box.choice, box.picked, box.caption],
        box.view,
        api_name="save_caption",
        api_visibility="private",
    )
    remove.click(
        lambda path, name: change(path, name, None),
        [box.choice, box.picked],
        box.view,
        api_name="remove_picture",
        api_visibility="private",
    )
    leaving = [setting.input if isinstance(setting, gr.Checkbox) else setting.blur for setting in box.settings]
    gr.on(
        leaving,
        edit,
        [box.choice, *box.settings],
        box.view[0],
        show_progress="hidden",
        api_name="change_dataset",
        api_visibility="private",
    )


def resolution_for(model: str | None) -> str:
    """The resolution that an upload suggests for a model."""
    return DEMO_RESOLUTION if model == DEMO_MODEL else RESOLUTION
