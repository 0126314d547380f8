"""What changes a whole dataset from the page: an upload that makes it or adds to it, and its deletion."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from backend.bounded import CONFIG_BYTES, read_text
from backend.errors import UserError
from backend.serving import Services
from backend.workspace import Workspace, make_slug
from tabs import datasets
from tabs.archives import name_of
from tabs.text import complaint, notice

if TYPE_CHECKING:
    from tabs.dataset_box import DatasetBox

# Gives the updates of a box's `view` for a dataset's path.
Show = Callable[[Workspace, str], list[Any]]


class Upload(str):
    """The path of an uploaded file, and the name that it had where it came from, which gradio changes."""

    orig_name = ""


@dataclass(frozen=True)
class Deletion:
    """The widgets that delete a dataset, once they have asked again."""

    ask: gr.Button
    row: gr.Row
    question: gr.HTML
    really: gr.Button
    keep: gr.Button


def draw_deletion() -> Deletion:
    """Draw them; they are seen where there is a dataset that may be deleted."""
    ask = gr.Button("Delete this dataset", size="sm", visible=False, elem_id="dataset-delete", min_width=150)
    with gr.Row(visible=False, elem_id="dataset-delete-ask") as row:
        question = gr.HTML(padding=False)
        really = gr.Button("Delete it and its pictures for good", variant="stop", size="sm", elem_id="dataset-really")
        keep = gr.Button("Keep it", size="sm", elem_id="dataset-keep")
    return Deletion(ask, row, question, really, keep)


def connect_deletion(services: Services, box: "DatasetBox", deletion: Deletion, show: Show) -> None:
    """Bring them to life."""
    workspace = services.workspace

    def ask(path: str | None) -> list[Any]:
        try:
            dataset = datasets.open_dataset(workspace, path or "")
        except UserError as error:
            return [complaint(error), gr.update(visible=False)]
        count = len(dataset.pictures())
        name = dataset.path.parent.name
        return [notice(f"Delete {name} with its {count} picture{'s' * (count != 1)}?"), gr.update(visible=True)]

    def delete(path: str | None) -> list[Any]:
        try:
            dataset = datasets.open_dataset(workspace, path or "")
            for job in services.jobs.list():
                if job.active and _names(job.config, dataset.path):
                    raise UserError(f"run {job.id} is using it or waits to; stop that one first", "dataset_config")
            datasets.delete_dataset(workspace, dataset)
        except UserError as error:
            return [gr.skip(), complaint(error), *[gr.skip()] * (len(box.view) - 1)]
        known = datasets.choices(workspace)
        chosen = known[0][1] if known else None
        return [gr.update(choices=known, value=chosen), *show(workspace, chosen or "")]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    deletion.ask.click(
        ask, box.choice, [deletion.question, deletion.row], api_name="delete_dataset_ask", **quiet
    )
    deletion.keep.click(
        lambda: gr.update(visible=False), None, deletion.row, api_name="delete_dataset_keep", **quiet
    )
    deletion.really.click(delete, box.choice, [box.choice, *box.view], api_name="delete_dataset", **quiet)


def _names(config: Path, toml: Path) -> bool:
    """Whether a run's config names a dataset."""
    try:
        return str(toml) in read_text(config, None, "toml", CONFIG_BYTES)
    except UserError:
        return False


def with_names(component: gr.File) -> gr.File:
    """Make a File component give each path as an `Upload`, which knows the file's own name.

    On the component itself, since a class derived from one of gradio's writes files beside the source.
    """
    plain = component.preprocess

    def preprocess(payload: Any) -> list[Upload] | None:
        paths = plain(payload)
        if paths is None:
            return None
        sent = getattr(payload, "root", None) or [payload]
        uploads = []
        for path, file in zip(paths, sent, strict=True):
            upload = Upload(path)
            upload.orig_name = getattr(file, "orig_name", None) or ""
            uploads.append(upload)
        return uploads

    component.preprocess = preprocess
    return component


def draw_upload(workspace: Workspace, box: "DatasetBox", show: Show) -> None:
    """Draw where pictures are sent, and connect it."""
    with gr.Accordion("Upload pictures", open=not datasets.choices(workspace), elem_id="upload"):
        with gr.Row():
            files = with_names(
                gr.File(
                    label="Pictures, captions (.txt, named like their picture), or a ZIP of them",
                    file_count="multiple",
                    height=150,
                    scale=3,
                    elem_id="upload-files",
                )
            )
            with gr.Column(scale=2, min_width=220):
                name = gr.Textbox(
                    label="Dataset name", placeholder="my-pictures", max_lines=1, elem_id="upload-name", min_width=140
                )
                box.resolution.render()
                add = gr.Button("Add to the workspace", variant="primary", size="md", elem_id="upload-add")
        answer = gr.HTML(elem_id="upload-answer", padding=False)

    def suggest(paths: list[Upload] | None, given: str) -> Any:
        if given.strip() or not paths:
            return gr.skip()
        archives = [path for path in paths if path.lower().endswith(".zip")]
        return make_slug(Path(name_of(archives[0])).stem, "my-pictures") if archives else "my-pictures"

    def take(paths: list[Upload] | None, given: str, size: str) -> list[Any]:
        unchanged = [gr.skip()] * (2 + len(box.view))
        if not paths:
            return [complaint(UserError("choose files first", "upload")), *unchanged]
        try:
            toml, report = datasets.add_pictures(workspace, given, paths, {"resolution": size})
        except UserError as error:
            # The files stay where they are, so that another name or resolution can be tried at once.
            return [complaint(error), *unchanged]
        for path in paths:
            Path(path).unlink(missing_ok=True)
        chosen = gr.update(choices=datasets.choices(workspace), value=str(toml))
        return [notice(report.text()), None, chosen, *show(workspace, str(toml))]

    files.upload(suggest, [files, name], name, api_name="upload_name", api_visibility="private")
    add.click(
        take,
        [files, name, box.resolution],
        [answer, files, box.choice, *box.view],
        api_name="add_pictures",
        api_description="Put uploaded pictures and captions into a dataset of the workspace.",
    )


