"""What every tab that runs a command has: the buttons that start and stop a job, and the view of jobs.

A job never lives in an event: a press writes its folder, and a timer reads what its process has written there, so that
a closed browser loses nothing and an opened one finds the running job again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gradio as gr

from backend import commands
from backend.config import base
from backend.errors import UserError
from backend.job import Job
from backend.resuming import FINISHED, UNENDED, Point, outlook, resume
from backend.serving import Services
from tabs import status as statuses
from tabs import watch as watching
from tabs.downloads import forget, offered
from tabs.questions import Deletion, Doubts, draw_deletion, draw_doubts
from tabs.text import complaint, empty
from tabs.watch import Watch

TICK, IDLE_TICK = 2.0, 5.0
LISTED = 30


class View(Protocol):
    """What one command's panel shows of a job beside what all jobs have."""

    @property
    def outputs(self) -> list[Any]:
        """The widgets that `updates` updates."""

    def updates(self, watch: Watch, job: Job | None) -> list[Any]:
        """What is new since the last look; without a job the widgets are hidden."""

    def files(self, watch: Watch, job: Job) -> list[Path]:
        """What can be downloaded."""


@dataclass(frozen=True)
class Look:
    """How a command's panel looks.

    Attributes:
        verb: label of the button that starts a job.
        idle: title and remedy shown while there is no job.
        view: draws what is special about the command's jobs.
        prefix: what the elements' ids begin with.
        preview: label of a second button, which starts a job that only shows what it would do; "" for none.
        resumes: whether a job that ended early can go on.
        doubt: says, of a config's values, why its job had better not be started; "" where nothing speaks against it.
        despite: label of the button that starts it all the same.
    """

    verb: str
    idle: tuple[str, str]
    view: Callable[[], View]
    prefix: str = ""
    preview: str = ""
    resumes: bool = False
    doubt: Callable[[Mapping[str, Any]], str] = lambda values: ""
    despite: str = ""


@dataclass(frozen=True)
class RunPanel:
    """The widgets of the view of jobs; `outputs` in the order in which `refresh` updates them."""

    command: str
    look: Look
    start: gr.Button
    preview: gr.Button
    stop: gr.Button
    problems: gr.HTML
    doubts: Doubts
    jobs: gr.Radio
    status: gr.HTML
    view: View
    files: gr.File
    log: gr.Textbox
    watch: gr.State
    timer: gr.Timer
    deletion: Deletion
    resume: gr.Button | None

    @property
    def outputs(self) -> list[Any]:
        return [
            self.watch,
            self.stop,
            self.jobs,
            self.status,
            *self.view.outputs,
            self.files,
            self.log,
            self.timer,
            self.deletion.ask,
            *filter(None, [self.resume]),
        ]


def draw_panel(services: Services, tab: gr.Tab, command: str, look: Look) -> RunPanel:
    """Draw the view of a command's jobs and keep it fresh.

    Args:
        services: what the tabs work with.
        tab: which the panel stands in.
        command: whose jobs are shown.
        look: how.
    """
    prefix = look.prefix
    with gr.Row(elem_classes=["run-buttons"]):
        start = gr.Button(look.verb, variant="primary", size="lg", scale=3, elem_id=f"{command}-start", min_width=110)
        preview = gr.Button(
            look.preview, size="lg", scale=2, visible=bool(look.preview), elem_id=f"{command}-preview", min_width=90
        )
        stop = gr.Button(
            "Stop", variant="stop", size="lg", scale=1, interactive=False, elem_id=f"{command}-stop", min_width=70
        )
    problems = gr.HTML(elem_id=f"{command}-problems", padding=False)
    doubts = draw_doubts(command, look.despite)
    status = gr.HTML(empty(*look.idle), elem_id=f"{command}-status", padding=False)
    view = look.view()
    files = gr.File(
        label="Files",
        file_count="multiple",
        interactive=False,
        visible=False,
        elem_id=f"{prefix}files",
        elem_classes=["downloads"],
        type="filepath",
    )
    jobs = gr.Radio([], label="Runs", elem_id=f"{prefix}jobs", elem_classes=["jobs"], visible=False)
    with gr.Row(elem_classes=["run-ends"]):
        resume = None
        if look.resumes:
            resume = gr.Button(
                "Resume", variant="primary", size="sm", visible=False, elem_id=f"{prefix}run-resume", min_width=150
            )
        ask = gr.Button("Delete this run", size="sm", visible=False, elem_id=f"{prefix}run-delete", min_width=110)
    deletion = draw_deletion(prefix, ask)
    with gr.Accordion("Log", open=True, elem_id=f"{prefix}log-box"):
        log = gr.Textbox(
            show_label=False,
            lines=8,
            max_lines=8,
            autoscroll=True,
            elem_id=f"{prefix}log",
            elem_classes=["log"],
            container=False,
        )
    panel = RunPanel(
        command=command,
        look=look,
        start=start,
        preview=preview,
        stop=stop,
        problems=problems,
        doubts=doubts,
        jobs=jobs,
        status=status,
        view=view,
        files=files,
        log=log,
        watch=gr.State(Watch()),
        timer=gr.Timer(TICK),
        deletion=deletion,
        resume=resume,
    )
    _connect(services, tab, panel)
    return panel


def refresh(services: Services, panel: RunPanel, watch: Watch) -> list[Any]:
    """Updates of a panel's `outputs`: what is new since the last look, and nothing else."""
    every = services.jobs.list()
    jobs = [job for job in every if job.command == panel.command][:LISTED]
    known = {job.id: job for job in jobs}
    if watch.job_id not in known:
        running = next((job for job in jobs if job.state == "running"), None)
        newest = running or (jobs[0] if jobs else None)
        watch.look_at(newest.id if newest else "")
    labels = [(statuses.label(job), job.id) for job in jobs]
    listing = gr.skip()
    if watch.changed("jobs", [labels, watch.job_id]):
        listing = gr.update(choices=labels, value=watch.job_id or None, visible=bool(labels))
    job = known.get(watch.job_id)
    busy = any(other.active for other in jobs)
    timer = gr.update(value=TICK if busy else IDLE_TICK) if watch.changed("busy", busy) else gr.skip()
    if job is None:
        nothing = [watch, gr.skip(), listing, *_nothing(panel, watch), timer, _ended(watch, False)]
        return [*nothing, *resume_button(panel, watch, None)]
    watching.follow(services.jobs, watch, job)
    found = outlook(job, every, watch.states) if panel.resume is not None else ""
    parts = [*panel.view.updates(watch, job), _files(panel, watch, job), _log(watch)]
    return [
        watch,
        _stop_button(watch, job),
        listing,
        _status(services, watch, job, _stopping(panel, job) or statuses.outlook_text(watch, job, found)),
        *parts,
        timer,
        _ended(watch, not job.active),
        *resume_button(panel, watch, found),
    ]


def _connect(services: Services, tab: gr.Tab, panel: RunPanel) -> None:
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def tick(watch: Watch) -> list[Any]:
        return refresh(services, panel, watch)

    def look(watch: Watch, job_id: Any) -> list[Any]:
        watch.look_at(str(job_id))
        return [*refresh(services, panel, watch), gr.update(visible=False)]

    def ask(watch: Watch) -> list[Any]:
        watch.seen["asked"] = watch.job_id
        return [watch, gr.update(visible=True)]

    # What they have to say stands below the buttons, where it covers none.
    def delete(watch: Watch) -> list[Any]:
        # The question was about one run: should the view have turned to another, it was not about that one.
        told = ""
        try:
            if watch.seen.get("asked") == watch.job_id:
                services.jobs.delete(watch.job_id)
                forget(watch.job_id)
                watch.look_at("")
        except UserError as error:
            told = complaint(error)
        return [told, *refresh(services, panel, watch), gr.update(visible=False)]

    def stop(watch: Watch) -> list[Any]:
        told = ""
        try:
            services.jobs.stop(watch.job_id)
        except UserError as error:
            told = complaint(error)
        return [told, *refresh(services, panel, watch)]

    def go_on(watch: Watch) -> list[Any]:
        told = ""
        try:
            doubt = panel.look.doubt(_config_of(services, panel, watch.job_id))
            if doubt and watch.seen.get("doubted") != watch.job_id:
                watch.seen["doubted"] = watch.job_id
                raise UserError(f"{doubt} Press Resume again to go on all the same.")
            watch.look_at(resume(services.jobs, watch.job_id).id)
        except UserError as error:
            told = complaint(error)
        return [told, *refresh(services, panel, watch)]

    answered = [panel.problems, *panel.outputs]
    panel.doubts.rather_not.click(
        lambda: ["", gr.update(visible=False)],
        None,
        [panel.problems, panel.doubts.row],
        api_name=f"{panel.command}_rather_not",
        **quiet,
    )
    if panel.resume is not None:
        panel.resume.click(
            go_on, panel.watch, answered, concurrency_limit=1, api_name=f"{panel.command}_resume", **quiet
        )
    gr.on(
        [panel.timer.tick, tab.select],
        tick,
        panel.watch,
        panel.outputs,
        concurrency_limit=8,
        api_name=f"{panel.command}_tick",
        **quiet,
    )
    # Read as it is: the choices are those of the browser's last look, which a restarted server does not know.
    panel.jobs.input(
        look,
        [panel.watch, panel.jobs],
        [*panel.outputs, panel.deletion.confirm],
        preprocess=False,
        api_name=f"{panel.command}_look",
        **quiet,
    )
    panel.stop.click(stop, panel.watch, answered, api_name=f"{panel.command}_stop", **quiet)
    ask_again = panel.deletion.confirm
    panel.deletion.ask.click(
        ask, panel.watch, [panel.watch, ask_again], api_name=f"{panel.command}_delete_ask", **quiet
    )
    panel.deletion.keep.click(
        lambda: gr.update(visible=False), None, ask_again, api_name=f"{panel.command}_delete_keep", **quiet
    )
    panel.deletion.really.click(
        delete, panel.watch, [*answered, ask_again], api_name=f"{panel.command}_delete", **quiet
    )


def _config_of(services: Services, panel: RunPanel, job_id: str) -> dict[str, Any]:
    """The values of a job's config.

    Raises:
        UserError: the job is gone, or its config cannot be read.
    """
    kind = commands.find(panel.command).config_class()
    return base.flatten(kind, base.read_toml(kind, services.jobs.get(job_id).config))


def begin(services: Services, panel: RunPanel, watch: Watch, toml: Callable[[Any], str], title: str) -> Job:
    """Start a job and turn the view to it.

    Raises:
        UserError: what is wrong with the config or the disk.
    """
    job = services.jobs.start(panel.command, toml, title)
    watch.look_at(job.id)
    return job


def _stopping(panel: RunPanel, job: Job) -> str:
    """What is to come of a run that was asked to end; "" for another."""
    if not job.stopping:
        return ""
    saves = " and saves its state, so that it can be resumed" if panel.resume is not None else ""
    return f"The run ends after its present step{saves}. Press Kill to end it at once."


def _stop_button(watch: Watch, job: Job) -> Any:
    shown = ("Kill" if job.stopping else "Stop", job.active)
    return gr.update(value=shown[0], interactive=shown[1]) if watch.changed("stop", shown) else gr.skip()


def resume_button(panel: RunPanel, watch: Watch, found: Point | str | None) -> list[Any]:
    """The update of the button that lets a run go on, where there is one: it says from which step, or why not."""
    if panel.resume is None:
        return []
    shown = found not in (None, UNENDED, FINISHED)
    label = f"Resume from step {found.position.step}" if isinstance(found, Point) else f"Cannot resume: {found}"
    if not watch.changed("resume", (shown, label)):
        return [gr.skip()]
    return [gr.update(visible=shown, value=label, interactive=isinstance(found, Point))]


def _ended(watch: Watch, ended: bool) -> Any:
    """The button that deletes a run is there once the run has ended."""
    return gr.update(visible=ended) if watch.changed("ended", ended) else gr.skip()


def _nothing(panel: RunPanel, watch: Watch) -> list[Any]:
    """Updates of status, view, files and log while there is no job."""
    count = len(panel.view.outputs)
    if not watch.changed("hidden", True):
        return [gr.skip()] * (count + 3)
    return [empty(*panel.look.idle), *panel.view.updates(watch, None), gr.update(visible=False), ""]


def _files(panel: RunPanel, watch: Watch, job: Job) -> Any:
    found = panel.view.files(watch, job)
    if not watch.changed("files", [(str(path), _stamp(path)) for path in found]):
        return gr.skip()
    return gr.update(value=[str(offered(job, path)) for path in found] or None, visible=bool(found))


def _log(watch: Watch) -> Any:
    return watch.log if watch.changed("log", watch.log) else gr.skip()


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _status(services: Services, watch: Watch, job: Job, outlook_text: str) -> Any:
    reason = services.jobs.reason(job.id) if job.state in ("failed", "interrupted") else ""
    html = statuses.status_html(watch, job, reason, outlook_text)
    return html if watch.changed("status", html) else gr.skip()
