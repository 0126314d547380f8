"""The page in the browser, one tab for each row of TABS. `build` makes it, `LAUNCH` goes to its `launch()`."""

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import gradio as gr

from backend import gpus
from backend.serving import Services
from tabs import diff_extract, dylora, generate, merge, resize, svd_merge, theme, train

TITLE = "LoRA Loom"
# Draws a tab within itself, and gives the timer that the tab needs while it is seen.
Draw = Callable[[Services, gr.Blocks, gr.Tab], gr.Timer | None]
TABS: tuple[tuple[str, Draw], ...] = (
    ("Train", train.draw),
    ("DyLoRA Extract", dylora.draw),
    ("Merge", merge.draw),
    ("SVD Merge", svd_merge.draw),
    ("Diff Extract", diff_extract.draw),
    ("Resize", resize.draw),
    ("Generate", generate.draw),
)
LAUNCH: dict[str, Any] = {"theme": theme.THEME, "css": theme.CSS, "js": None, "head": None}


def build(services: Services) -> gr.Blocks:
    """Make the page.

    Args:
        services: the workspace, its jobs and the generate worker.
    """
    timers: dict[str, gr.Timer] = {}
    with gr.Blocks(title=TITLE, fill_width=True, analytics_enabled=False) as page:
        gr.HTML(theme.BRAND, elem_id="brand", padding=False, js_on_load=theme.PRESSED)
        gr.HTML(device_line(gpus.verdict()), elem_id="device", padding=False)
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as tabs:
            for label, draw in TABS:
                name = tab_id(label)
                with gr.Tab(label, id=name, elem_id=f"tab-{name}") as tab:
                    timer = draw(services, page, tab)
                if timer is not None:
                    timer.active = not timers
                    timers[label] = timer
        _rest_unseen(tabs, timers)
        _mark_nothing(page)
    return page


def device_line(found: gpus.Verdict) -> str:
    """What is said of the GPU at the page's top."""
    return f'<span class="{"unused" if found.unused else "used"}">{escape(found.line)}</span>'


def tab_id(label: str) -> str:
    """A tab's name in links and ids: "DyLoRA Extract" gives "dylora-extract"."""
    return label.lower().replace(" ", "-")


def _rest_unseen(tabs: gr.Tabs, timers: Mapping[str, gr.Timer]) -> None:
    """Let only the timer of the tab that is seen tick: every tick is a call to the server."""

    def select(event: gr.SelectData) -> list[Any]:
        return [gr.update(active=label == event.value) for label in timers]

    tabs.select(select, None, list(timers.values()), show_progress="hidden", api_name="seen", api_visibility="private")


def _mark_nothing(page: gr.Blocks) -> None:
    """Have events that show no progress mark no component as pending.

    Gradio otherwise looks for every output that any event has ever had, among all components, before and after each
    event: more than half of what opening the page costs the browser.
    """
    for event in page.fns.values():
        if event.show_progress == "hidden":
            event.show_progress_on = []
