"""The Merge tab: several LoRAs become one, or go into a checkpoint for good."""

from pathlib import Path
from typing import Any

import gradio as gr

from backend.config.lora_tools import MergeLora
from backend.serving import Services
from tabs.picks import Picks
from tabs.tool import Tool, Values, draw_tool, names


def _name(values: Values) -> str:
    model: Any = values.get("sd_model")
    return names(values["models"]) + (f" into {Path(str(model)).name}" if model else "")


TOOL = Tool(
    config=MergeLora,
    verb="Merge",
    title="Merge LoRAs",
    about="Adds LoRAs up, each as strongly as you like, into one LoRA that does what all of them do together, or into "
    "a checkpoint that needs no LoRA any more.",
    idle=("Nothing has been merged yet", "Choose LoRAs and how much of each, then press Merge."),
    name_of=_name,
    result="merged",
    # Drawn with `models`, in one row each.
    skip=("ratios",),
)


def draw(services: Services, page: gr.Blocks, tab: gr.Tab) -> gr.Timer:
    """Draw the tab, within itself."""
    return draw_tool(services, (page, tab), TOOL, Picks(services, TOOL.prefix))[1]
