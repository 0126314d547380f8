"""The line below the options of several devices: what a shell would start, here and on the other machines."""

from html import escape
from typing import Any

import gradio as gr
from pydantic import ValidationError

from backend.config.training.devices import Devices, launch_lines
from tabs.form import Form, from_widget

NAMES = ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port")
FILE = ["--config_file", "config.toml"]


def draw_launch_line(form: Form) -> None:
    """Draw the line in the section of its options, and let it follow them."""
    box = next(box for box, names, _ in form.groups if NAMES[0] in names)
    widgets = [form.widgets[name] for name in NAMES]
    with box:
        line = gr.HTML("", elem_id="launch-line", padding=False)
    gr.on(
        [widget.change for widget in widgets],
        lambda *shown: launch_html(form, shown),
        widgets,
        line,
        show_progress="hidden",
        api_name="launch_line",
        api_visibility="private",
    )


def launch_html(form: Form, shown: tuple[Any, ...]) -> str:
    """The lines for what the options' widgets show; nothing for one process, or while an option is wrong."""
    try:
        read = {name: from_widget(form.leaves[name], value) for name, value in zip(NAMES, shown, strict=True)}
        devices = Devices(**{name: value for name, value in read.items() if value is not None})
    except (ValidationError, ValueError):
        return ""
    if (devices.num_processes or 1) == 1:
        return ""
    lines = launch_lines(devices, FILE)
    if len(lines) == 1:
        told = "Train starts these processes by itself. In a shell, with the config.toml of the run:"
    else:
        told = "To be started on each machine, with the config.toml of the run; Train does it on this one:"
    listed = "".join(f"<pre><code>{escape(line)}</code></pre>" for line in lines)
    return f'<div class="hint">{told}</div>{listed}'
