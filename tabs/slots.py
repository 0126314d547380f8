"""Rows that each take a LoRA and a number: how much of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from backend.jobs import Jobs
from backend.workspace import Workspace
from tabs.text import moment

MAX_LORAS = 8
ADD = "Add a LoRA"
# Lowest, highest, step.
MULTIPLIERS = (-1.0, 2.0, 0.05)


@dataclass(frozen=True)
class Slot:
    """The widgets of one LoRA's row."""

    row: gr.Row
    file: gr.Dropdown
    slider: gr.Slider
    remove: gr.Button


def lora_choices(jobs: Jobs, workspace: Workspace) -> list[tuple[str, str]]:
    """The LoRA files as (label, path), newest first, named by their file and the run that made them."""
    runs = {job.id: job for job in jobs.list()}
    found = []
    for label, path in workspace.list_loras():
        run = runs.get(Path(path).parent.parent.name)
        found.append((f"{Path(path).stem} · {moment(run.created)}" if run else label, path))
    return found


def add_button(shown: Sequence[bool]) -> dict[str, Any]:
    """The update of the button that adds a row: once all are to be seen it says that there are no more."""
    full = all(shown)
    return gr.update(value=f"{MAX_LORAS} LoRAs at most" if full else ADD, interactive=not full)


def draw_slot(
    shown: bool,
    path: str | None,
    known: list[tuple[str, str]],
    label: str = "Multiplier",
    span: tuple[float, float, float] = MULTIPLIERS,
) -> Slot:
    """Draw a row.

    Args:
        shown: whether it is to be seen at first.
        path: the file that it has at first.
        known: the files that can be chosen, as (label, path).
        label: of the slider.
        span: the slider's lowest and highest value and its step.
    """
    low, high, step = span
    with gr.Row(elem_classes=["lora-row"], visible=shown) as row:
        file = gr.Dropdown(
            known,
            value=path,
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
            1.0,
            step=step,
            label=label,
            interactive=True,
            scale=5,
            min_width=200,
            elem_classes=["multiplier"],
        )
        remove = gr.Button("Remove", size="sm", scale=1, min_width=80)
    return Slot(row, file, slider, remove)
