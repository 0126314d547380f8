"""Rows of a panel that ask again before something is done that is not easily undone."""

from dataclasses import dataclass

import gradio as gr


@dataclass(frozen=True)
class Doubts:
    """The row that asks whether a job is to be started all the same."""

    row: gr.Row
    really: gr.Button
    rather_not: gr.Button


@dataclass(frozen=True)
class Deletion:
    """The widgets that delete the run that is looked at, once they have asked again."""

    ask: gr.Button
    confirm: gr.Row
    really: gr.Button
    keep: gr.Button


def draw_doubts(command: str, despite: str) -> Doubts:
    """Draw the row, not to be seen; `despite` is the label of the button that starts the job."""
    with gr.Row(visible=False, elem_id=f"{command}-doubts") as row:
        really = gr.Button(despite, variant="stop", size="sm", elem_id=f"{command}-despite", min_width=150)
        rather_not = gr.Button("Not now", size="sm", elem_id=f"{command}-rather-not", min_width=100)
    return Doubts(row, really, rather_not)


def draw_deletion(prefix: str, ask: gr.Button) -> Deletion:
    """Draw the row, not to be seen, for the button that asks for it."""
    with gr.Row(visible=False, elem_id=f"{prefix}run-confirm") as confirm:
        really = gr.Button("Delete it and its files for good", variant="stop", size="sm", elem_id=f"{prefix}run-really")
        keep = gr.Button("Keep it", size="sm", elem_id=f"{prefix}run-keep")
    return Deletion(ask, confirm, really, keep)
