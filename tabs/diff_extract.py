"""The Diff Extract tab: what sets a fine-tuned model apart from its original becomes a LoRA."""

from pathlib import Path

import gradio as gr

from backend.config.lora_tools import ExtractLora
from backend.serving import Services
from tabs.picks import Picks
from tabs.tool import Tool, draw_tool

TOOL = Tool(
    config=ExtractLora,
    verb="Extract",
    title="The difference of two models as a LoRA",
    about="Compares a fine-tuned model with the one that it was made from, and keeps the difference as a LoRA, which "
    "is much smaller and works on other models too.",
    idle=("Nothing has been extracted yet", "Choose the original and the tuned model, then press Extract."),
    name_of=lambda values: f"{Path(values['model_tuned']).stem} without {Path(values['model_org']).stem}",
    result="difference",
)


def draw(services: Services, page: gr.Blocks, tab: gr.Tab) -> gr.Timer:
    """Draw the tab, within itself."""
    return draw_tool(services, (page, tab), TOOL, Picks(services, TOOL.prefix))[1]
