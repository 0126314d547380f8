"""A tool's tab: the form of its options, two buttons, and the view of its runs with what they report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from backend import preflight
from backend.config import base
from backend.config.base import Command, leaves
from backend.errors import ConfigError, UserError
from backend.serving import Services
from backend.workspace import Workspace
from tabs.form import Form, Maker, draw_form
from tabs.panel import Look, RunPanel, begin, draw_panel, refresh
from tabs.picks import Picks
from tabs.preset_row import choices, connect_presets, draw_preset_row
from tabs.report import ReportView, draw_report
from tabs.text import problem_list, problems_of
from tabs.train import preset_values
from tabs.watch import Watch

PREVIEW = "Preview"
# What a panel's buttons and the field for the result's name stand for.
HIDDEN = ("overwrite", "dry_run")

Values = Mapping[str, Any]


def beside_the_run(values: Values, output: Path) -> dict[str, Any]:
    """The option `save_to` of a tool that writes one file, or several of one name: a run keeps its results itself."""
    return {"save_to": str(output / Path(str(values["save_to"])).name)}


def no_problems(workspace: Workspace, values: Values) -> dict[str, str]:
    """Nothing beyond what every tool is asked."""
    return {}


def nothing_to_do(workspace: Workspace, values: Values) -> None:
    """Nothing is needed before a run."""


@dataclass(frozen=True)
class Tool:
    """What sets a tool's tab apart.

    Attributes:
        config: the command's options.
        verb: label of the button that starts it.
        title, about: what it is, and what it does in one sentence.
        idle: title and remedy shown while there is no run.
        name_of: a run's name from its values.
        result: the name that the file to be written has at first.
        skip: options that are not shown, beside those that no tool shows.
        special: options, by name or widget hint, that the tab draws in a way of its own.
        preset: what the form shows at first.
        place: the options that depend on the run's output folder.
        check: what is wrong beyond the config itself, by field.
        prepare: what is done before a run that writes.
    """

    config: type[Command]
    verb: str
    title: str
    about: str
    idle: tuple[str, str]
    name_of: Callable[[Values], str]
    result: str = "result"
    skip: tuple[str, ...] = ()
    special: Mapping[str, Maker] = field(default_factory=dict)
    preset: str = ""
    place: Callable[[Values, Path], dict[str, Any]] = beside_the_run
    check: Callable[[Workspace, Values], dict[str, str]] = no_problems
    prepare: Callable[[Workspace, Values], None] = nothing_to_do

    @property
    def prefix(self) -> str:
        """What the ids of the tab's elements begin with."""
        return f"{self.config.command}-"


def draw_tool(
    services: Services,
    place: tuple[gr.Blocks, gr.Tab],
    tool: Tool,
    picks: Picks,
    below: Mapping[str, Callable[[], None]] | None = None,
) -> tuple[Form, gr.Timer]:
    """Draw a tool's tab, within itself.

    Args:
        services: what the tabs work with.
        place: the page, and the tab itself.
        tool: what sets it apart.
        picks: its pickers.
        below: draw what the tab has below an option, as `draw_form` takes it.

    Returns:
        The form, and the timer that the tab needs while it is seen.
    """
    page, tab = place
    own: dict[str, Maker] = {
        "lora": picks.dylora,
        "checkpoint": picks.checkpoint,
        "loras": picks.mixture,
        "result": partial(picks.result, name=tool.result),
    }
    first = preset_values(services.workspace, tool.preset, tool.config)
    with gr.Row(elem_classes=["columns"], elem_id=f"{tool.prefix}columns"):
        with gr.Column(scale=6, min_width=480):
            gr.HTML(f'<div class="about"><h2>{escape(tool.title)}</h2><p>{escape(tool.about)}</p></div>', padding=False)
            form = draw_form(
                tool.config,
                skip=(*HIDDEN, *tool.skip),
                special={**own, **tool.special},
                below=below,
                first=first,
                prefix=tool.prefix,
            )
            with gr.Accordion("Presets", open=False, elem_classes=["section"]):
                row = draw_preset_row(services, tool.config, tool.preset, tool.prefix)
        with gr.Column(scale=5, min_width=400):
            look = Look(
                tool.verb,
                tool.idle,
                partial(draw_report, services.workspace.root, tool.prefix),
                prefix=tool.prefix,
                preview=PREVIEW,
            )
            panel = draw_panel(services, tab, tool.config.command, look)
    form.open_numbers(page)
    _lead_to_generate(tab, panel)
    connect_presets(services, row, form)
    picks.connect(tab)
    tab.select(
        lambda: gr.update(choices=choices(services, tool.config)),
        None,
        row.choice,
        show_progress="hidden",
        api_name=f"{tool.prefix}presets",
        api_visibility="private",
    )
    _connect(services, tool, form, panel)
    return form, panel.timer


def make_config(tool: Tool, values: Values, dry_run: bool) -> Callable[[Path], str]:
    """A run's toml, made when its output folder is known; only what differs from the defaults."""

    def text(output: Path) -> str:
        placed = {**tool.place(values, output), "dry_run": dry_run}
        return base.to_toml(base.values(base.resolve(tool.config, values, placed), changed_only=True), tool.config)

    return text


def problems(tool: Tool, workspace: Workspace, values: Values) -> dict[str, str]:
    """Everything that can be seen to be wrong with a form before a run, by field."""
    missing = {name for name, leaf in leaves(tool.config).items() if leaf.required and values.get(name) is None}
    # A place that depends on what is missing is not asked for.
    placed = {} if missing else tool.place(values, workspace.jobs)
    wrong = base.problems(tool.config, values, placed)
    wrong |= {name: text for name, text in preflight.problems(tool.config, values).items() if name not in wrong}
    return wrong | {name: text for name, text in tool.check(workspace, values).items() if name not in wrong}


def names(paths: Any) -> str:
    """The names of several files, for a run's title."""
    return " + ".join(Path(str(path)).stem for path in paths or ())


def _lead_to_generate(tab: gr.Tab, panel: RunPanel) -> None:
    """The button below a result opens the tab in which it can be tried; that looks for what is new by itself."""
    assert isinstance(panel.view, ReportView) and isinstance(tab.parent, gr.Tabs)
    panel.view.use.click(
        lambda: gr.Tabs(selected="generate"),
        None,
        tab.parent,
        show_progress="hidden",
        api_name=f"{panel.command}_use",
        api_visibility="private",
    )


def _connect(services: Services, tool: Tool, form: Form, panel: RunPanel) -> None:
    workspace = services.workspace

    def run(dry_run: bool, watch: Watch, *shown: Any) -> list[Any]:
        values, wrong = form.read(shown)
        wrong = {**problems(tool, workspace, values), **wrong}
        try:
            if wrong:
                raise ConfigError(list(wrong.items()))
            if not dry_run:
                tool.prepare(workspace, values)
            title = f"{PREVIEW} · {tool.name_of(values)}" if dry_run else tool.name_of(values)
            begin(services, panel, watch, make_config(tool, values, dry_run), title)
        except UserError as error:
            found = dict(problems_of(error))
            return [problem_list(found.items()), *form.mark(found), *[gr.skip()] * len(panel.outputs)]
        return ["", *form.mark({}), *refresh(services, panel, watch)]

    for button, dry_run in ((panel.start, False), (panel.preview, True)):
        button.click(
            partial(run, dry_run),
            [panel.watch, *form.inputs],
            [panel.problems, *form.markable, *panel.outputs],
            show_progress="hidden",
            concurrency_limit=1,
            api_name=f"{panel.command}_{'preview' if dry_run else 'start'}",
            api_visibility="private",
        )
