"""The box "Files" of the Generate tab: LoRAs, what runs have made and pictures, to be deleted once asked again."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from backend.deleting import LORA, MADE, PICTURE, Item, delete, items
from backend.errors import UserError
from backend.serving import Services
from tabs.downloads import forget_file
from tabs.text import complaint, file_size, moment, notice

# Newest ones; all pictures together have an entry of their own.
SHOWN = 200
ALL_PICTURES = "*pictures"
WORDS = {LORA: "LoRA", MADE: "run", PICTURE: "picture"}
HINT = "LoRAs, what runs have made, and pictures that were drawn. A whole run is deleted in its own tab."
UNCHOSEN = UserError("choose what to delete first", "files")


@dataclass(frozen=True)
class FilesBox:
    """The widgets of the box; `changed` counts what was deleted, for others to look again."""

    fold: gr.Accordion
    choice: gr.Dropdown
    ask: gr.Button
    confirm: gr.Row
    really: gr.Button
    keep: gr.Button
    answer: gr.HTML
    asked: gr.State
    changed: gr.State


def draw_files_box(services: Services, tab: gr.Tab, drawn_with: Callable[[], Collection[str]]) -> FilesBox:
    """Draw the box, folded away, and connect what happens within it.

    Args:
        services: what the tabs work with.
        tab: which it stands in.
        drawn_with: gives the paths that pictures are being drawn with.
    """
    with gr.Accordion("Delete files", open=False, elem_classes=["section"], elem_id="workspace-files") as fold:
        choice = gr.Dropdown(
            choices(services),
            value=[],
            multiselect=True,
            label="What to delete",
            info=HINT,
            elem_id="files-choice",
            elem_classes=["option"],
            interactive=True,
        )
        ask = gr.Button("Delete", size="sm", elem_id="files-delete")
        answer = gr.HTML(elem_id="files-answer", padding=False)
        with gr.Row(visible=False, elem_id="files-confirm") as confirm:
            really = gr.Button("Delete them for good", variant="stop", size="sm", elem_id="files-really")
            keep = gr.Button("Keep them", size="sm", elem_id="files-keep")
    box = FilesBox(fold, choice, ask, confirm, really, keep, answer, gr.State(()), gr.State(0))
    _connect(services, tab, box, drawn_with)
    return box


def choices(services: Services) -> list[tuple[str, str]]:
    """What can be deleted as (label, path), and all pictures as one entry where there are several."""
    found = items(services.workspace)
    titles = {job.id: job.title for job in services.jobs.list()}
    listed = [(_label(item, titles), str(item.path)) for item in found if item.kind != PICTURE]
    pictures = [item for item in found if item.kind == PICTURE]
    if len(pictures) > 1:
        size = file_size(sum(item.size for item in pictures))
        listed.append((f"all {len(pictures)} pictures · {size}", ALL_PICTURES))
    return listed + [(_label(item, titles), str(item.path)) for item in pictures[:SHOWN]]


def _label(item: Item, titles: dict[str, str]) -> str:
    name = f"{item.path.name} of {titles.get(item.job_id, item.job_id)}" if item.kind == MADE else item.name
    return f"{WORDS[item.kind]} · {name} · {file_size(item.size)} · {moment(item.changed)}"


def paths_of(services: Services, chosen: Collection[str]) -> list[Path]:
    """The files that were chosen, each once."""
    paths = [Path(text) for text in chosen if text != ALL_PICTURES]
    if ALL_PICTURES in chosen:
        paths += [item.path for item in items(services.workspace) if item.kind == PICTURE]
    return list(dict.fromkeys(paths))


def _connect(
    services: Services, tab: gr.Tab, box: FilesBox, drawn_with: Callable[[], Collection[str]]
) -> None:
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def ask(chosen: list[str] | None) -> list[Any]:
        paths = paths_of(services, chosen or ())
        if not paths:
            return [complaint(UNCHOSEN), gr.update(visible=False), gr.skip(), ()]
        sizes = {item.path: item.size for item in items(services.workspace)}
        size = file_size(sum(sizes.get(path, 0) for path in paths))
        what = paths[0].name if len(paths) == 1 else f"{len(paths)} files"
        told = notice(f"{', '.join(path.name for path in paths[:8])}{' …' if len(paths) > 8 else ''} · {size}")
        label = f"Delete {what} for good"
        return [told, gr.update(visible=True), gr.update(value=label), tuple(map(str, paths))]

    def really(asked: tuple[str, ...], changed: int) -> list[Any]:
        # What was asked about, whatever has been chosen since.
        try:
            if not asked:
                raise UNCHOSEN
            gone = delete(services.jobs, list(map(Path, asked)), drawn_with())
        except UserError as error:
            return [complaint(error), gr.update(visible=False), (), changed, gr.update(choices=choices(services))]
        for item in gone:
            if item.job_id:
                forget_file(item.job_id, item.path.name)
        said = gone[0].path.name if len(gone) == 1 else f"{len(gone)} files"
        freed = file_size(sum(item.size for item in gone))
        told = notice(f"Deleted {said}, {freed}.")
        return [told, gr.update(visible=False), (), changed + 1, gr.update(choices=choices(services), value=[])]

    gr.on(
        [tab.select, box.fold.expand],
        lambda: gr.update(choices=choices(services)),
        None,
        box.choice,
        api_name="files_listed",
        **quiet,
    )
    # Read as it is: the choices are those of the browser's last look. Only what is still listed is deleted.
    box.ask.click(
        ask,
        box.choice,
        [box.answer, box.confirm, box.really, box.asked],
        preprocess=False,
        api_name="files_ask",
        **quiet,
    )
    box.keep.click(
        lambda: ["", gr.update(visible=False), ()],
        None,
        [box.answer, box.confirm, box.asked],
        api_name="files_keep",
        **quiet,
    )
    box.really.click(
        really,
        [box.asked, box.changed],
        [box.answer, box.confirm, box.asked, box.changed, box.choice],
        api_name="files_delete",
        **quiet,
    )
