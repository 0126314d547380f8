"""The page in the browser, one tab for each row of TABS. `build` makes it, `LAUNCH` goes to its `launch()`."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from backend.serving import Services
from tabs import generate, theme, train

TITLE = "LoRA Loom"
TABS: tuple[tuple[str, Callable[[Services, gr.Blocks, gr.Tab], None]], ...] = (
    ("Train", train.draw),
    ("Generate", generate.draw),
)
LAUNCH: dict[str, Any] = {"theme": theme.THEME, "css": theme.CSS, "js": None, "head": None}


def build(services: Services) -> gr.Blocks:
    """Make the page.

    Args:
        services: the workspace, its jobs and the generate worker.
    """
    with gr.Blocks(title=TITLE, fill_width=True, analytics_enabled=False) as page:
        gr.HTML(theme.BRAND, elem_id="brand", padding=False)
        with gr.Tabs():
            for label, draw in TABS:
                with gr.Tab(label, elem_id=f"tab-{label.lower()}") as tab:
                    draw(services, page, tab)
    return page
