"""The DyLoRA Extract tab: one trained DyLoRA becomes a LoRA of every rank that it holds."""

from pathlib import Path

import gradio as gr

from backend.config.lora_tools import ExtractDyLora
from backend.serving import Services
from tabs.picks import Picks
from tabs.tool import Tool, draw_tool

TOOL = Tool(
    config=ExtractDyLora,
    verb="Extract",
    title="One LoRA for every rank of a DyLoRA",
    about="A DyLoRA is trained at all its ranks at once; this cuts it into a file for each, so that you can try them "
    "and keep the smallest that is good enough.",
    idle=(
        "Nothing has been extracted yet",
        "Choose a DyLoRA and press Extract, or Preview to see the files first. To train one, set network_module to "
        "networks.dylora in the Train tab.",
    ),
    name_of=lambda values: Path(str(values["model"])).stem,
    result="rank",
)


def draw(services: Services, page: gr.Blocks, tab: gr.Tab) -> gr.Timer:
    """Draw the tab, within itself."""
    return draw_tool(services, (page, tab), TOOL, Picks(services, TOOL.prefix))[1]
