"""The SVD Merge tab: LoRAs of any ranks become one of a chosen rank, or one LoRA becomes smaller."""

import gradio as gr

from backend.config.lora_tools import SvdMergeLora
from backend.serving import Services
from tabs.picks import Picks
from tabs.tool import Tool, draw_tool, names

TOOL = Tool(
    config=SvdMergeLora,
    verb="Merge",
    title="Merge LoRAs to a rank of your choice",
    about="Adds LoRAs of any ranks up and keeps the best that fits into a smaller rank; with one LoRA it makes that "
    "one smaller. Preview shows the error and the size of the file at every rank.",
    idle=("Nothing has been merged yet", "Choose LoRAs and a rank. Preview shows what each rank would cost and keep."),
    name_of=lambda values: names(values["models"]),
    result="merged",
    # Drawn with `models`, in one row each.
    skip=("ratios",),
)


def draw(services: Services, page: gr.Blocks, tab: gr.Tab) -> gr.Timer:
    """Draw the tab, within itself."""
    return draw_tool(services, (page, tab), TOOL, Picks(services, TOOL.prefix))[1]
