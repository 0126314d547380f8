"""What every tab that runs a command has: presets, the button that starts a job, and the view of jobs.

A job never lives in an event: a press writes its folder, and a timer reads what its process has written there, so that
a closed browser loses nothing and an opened one finds the running job again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
import pandas

from backend.errors import UserError
from backend.job import Job
from backend.serving import Services
from tabs import watch as watching
from tabs.text import bar, duration, empty, figures, moment, speed
from tabs.theme import ACCENT, SOFT_ACCENT
from tabs.watch import Watch

TICK, IDLE_TICK = 2.0, 5.0
LISTED = 30
MARKS = {"queued": "…", "running": "▶", "finished": "✓", "failed": "✗", "interrupted": "!", "stopped": "■"}
WORDS = {"interrupted": "interrupted", "stopped": "stopped by you"}


@dataclass(frozen=True)
class RunPanel:
    """The widgets of the view of jobs; `outputs` in the order in which `refresh` updates them."""

    command: str
    start: gr.Button
    stop: gr.Button
    problems: gr.HTML
    jobs: gr.Radio
    status: gr.HTML
    plot: gr.LinePlot
    samples: gr.Gallery
    files: gr.File
    log: gr.Textbox
    watch: gr.State
    timer: gr.Timer
    deletion: "Deletion"

    @property
    def outputs(self) -> list[Any]:
        return [
            self.watch,
            self.stop,
            self.jobs,
            self.status,
            self.plot,
            self.samples,
            self.files,
            self.log,
            self.timer,
            self.deletion.ask,
        ]


@dataclass(frozen=True)
class Deletion:
    """The widgets that delete the run that is looked at, once they have asked again."""

    ask: gr.Button
    confirm: gr.Row
    really: gr.Button
    keep: gr.Button


def draw_panel(services: Services, command: str, verb: str, idle: tuple[str, str]) -> RunPanel:
    """Draw the view of a command's jobs and keep it fresh.

    Args:
        services: what the tabs work with.
        command: whose jobs are shown.
        verb: label of the button that starts one.
        idle: title and remedy shown while there is no job.
    """
    with gr.Row():
        start = gr.Button(verb, variant="primary", size="lg", scale=3, elem_id=f"{command}-start")
        stop = gr.Button("Stop", variant="stop", size="lg", scale=1, interactive=False, elem_id=f"{command}-stop")
    problems = gr.HTML(elem_id=f"{command}-problems", padding=False)
    status = gr.HTML(empty(*idle), elem_id=f"{command}-status", padding=False)
    plot = gr.LinePlot(
        x="step",
        y="loss",
        color="series",
        color_map={"loss": SOFT_ACCENT, "average": ACCENT},
        colors_in_legend=["average", "loss"],
        x_title="step",
        y_title="loss",
        color_title=" ",
        height=220,
        show_label=False,
        buttons=["fullscreen"],
        visible=False,
        elem_id="loss",
    )
    samples = gr.Gallery(
        label="Sample pictures",
        columns=4,
        height=200,
        object_fit="contain",
        buttons=["download", "fullscreen"],
        interactive=False,
        visible=False,
        elem_id="samples",
    )
    files = gr.File(
        label="Files", file_count="multiple", interactive=False, visible=False, elem_id="files", type="filepath"
    )
    jobs = gr.Radio([], label="Runs", elem_id="jobs", visible=False)
    deletion = _draw_deletion()
    with gr.Accordion("Log", open=True, elem_id="log-box"):
        log = gr.Textbox(show_label=False, lines=8, max_lines=8, autoscroll=True, elem_id="log", container=False)
    panel = RunPanel(
        command=command,
        start=start,
        stop=stop,
        problems=problems,
        jobs=jobs,
        status=status,
        plot=plot,
        samples=samples,
        files=files,
        log=log,
        watch=gr.State(Watch()),
        timer=gr.Timer(TICK),
        deletion=deletion,
    )
    _connect(services, panel, idle)
    return panel


def _draw_deletion() -> Deletion:
    ask = gr.Button("Delete this run", size="sm", visible=False, elem_id="run-delete")
    with gr.Row(visible=False, elem_id="run-confirm") as confirm:
        really = gr.Button("Delete it and its files for good", variant="stop", size="sm", elem_id="run-really")
        keep = gr.Button("Keep it", size="sm", elem_id="run-keep")
    return Deletion(ask, confirm, really, keep)


def refresh(services: Services, panel: RunPanel, watch: Watch, idle: tuple[str, str]) -> list[Any]:
    """Updates of a panel's `outputs`: what is new since the last look, and nothing else."""
    jobs = [job for job in services.jobs.list() if job.command == panel.command][:LISTED]
    known = {job.id: job for job in jobs}
    if watch.job_id not in known:
        running = next((job for job in jobs if job.state == "running"), None)
        newest = running or (jobs[0] if jobs else None)
        watch.look_at(newest.id if newest else "")
    labels = [(_label(job), job.id) for job in jobs]
    listing = gr.skip()
    if watch.changed("jobs", [labels, watch.job_id]):
        listing = gr.update(choices=labels, value=watch.job_id or None, visible=bool(labels))
    job = known.get(watch.job_id)
    busy = any(other.active for other in jobs)
    timer = gr.update(value=TICK if busy else IDLE_TICK) if watch.changed("busy", busy) else gr.skip()
    if job is None:
        return [watch, gr.skip(), listing, _nothing(watch, idle), *_hide_all(watch), timer, _ended(watch, False)]
    watching.follow(services.jobs, watch, job)
    parts = [_status(services, watch, job), *_parts(watch, job), timer, _ended(watch, not job.active)]
    return [watch, _stop_button(watch, job), listing, *parts]


def _connect(services: Services, panel: RunPanel, idle: tuple[str, str]) -> None:
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def tick(watch: Watch) -> list[Any]:
        return refresh(services, panel, watch, idle)

    def look(watch: Watch, job_id: Any) -> list[Any]:
        watch.look_at(str(job_id))
        return [*refresh(services, panel, watch, idle), gr.update(visible=False)]

    def ask(watch: Watch) -> list[Any]:
        watch.seen["asked"] = watch.job_id
        return [watch, gr.update(visible=True)]

    def delete(watch: Watch) -> list[Any]:
        # The question was about one run: should the view have turned to another, it was not about that one.
        try:
            if watch.seen.get("asked") == watch.job_id:
                services.jobs.delete(watch.job_id)
                watch.look_at("")
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return [*refresh(services, panel, watch, idle), gr.update(visible=False)]

    def stop(watch: Watch) -> list[Any]:
        try:
            job = services.jobs.stop(watch.job_id)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        if job.stopping and not watch.seen.get("told"):
            gr.Info("The run ends after its present step. Press again to kill it at once.")
            watch.seen["told"] = True
        return refresh(services, panel, watch, idle)

    panel.timer.tick(tick, panel.watch, panel.outputs, concurrency_limit=8, api_name=f"{panel.command}_tick", **quiet)
    # Read as it is: the choices are those of the browser's last look, which a restarted server does not know.
    panel.jobs.input(
        look,
        [panel.watch, panel.jobs],
        [*panel.outputs, panel.deletion.confirm],
        preprocess=False,
        api_name=f"{panel.command}_look",
        **quiet,
    )
    panel.stop.click(stop, panel.watch, panel.outputs, api_name=f"{panel.command}_stop", **quiet)
    ask_again = panel.deletion.confirm
    panel.deletion.ask.click(
        ask, panel.watch, [panel.watch, ask_again], api_name=f"{panel.command}_delete_ask", **quiet
    )
    panel.deletion.keep.click(
        lambda: gr.update(visible=False), None, ask_again, api_name=f"{panel.command}_delete_keep", **quiet
    )
    panel.deletion.really.click(
        delete, panel.watch, [*panel.outputs, ask_again], api_name=f"{panel.command}_delete", **quiet
    )


def begin(services: Services, panel: RunPanel, watch: Watch, toml: Callable[[Any], str], title: str) -> Job:
    """Start a job and turn the view to it.

    Raises:
        UserError: what is wrong with the config or the disk.
    """
    job = services.jobs.start(panel.command, toml, title)
    watch.look_at(job.id)
    return job


def _label(job: Job) -> str:
    state = "stopping" if job.stopping else WORDS.get(job.state, job.state)
    return f"{MARKS[job.state]}  {job.title} · {state} · {moment(job.created)}"


def _stop_button(watch: Watch, job: Job) -> Any:
    shown = ("Kill" if job.stopping else "Stop", job.active)
    return gr.update(value=shown[0], interactive=shown[1]) if watch.changed("stop", shown) else gr.skip()


def _ended(watch: Watch, ended: bool) -> Any:
    """The button that deletes a run is there once the run has ended."""
    return gr.update(visible=ended) if watch.changed("ended", ended) else gr.skip()


def _nothing(watch: Watch, idle: tuple[str, str]) -> Any:
    return empty(*idle) if watch.changed("status", idle) else gr.skip()


def _hide_all(watch: Watch) -> list[Any]:
    if not watch.changed("hidden", True):
        return [gr.skip()] * 4
    return [gr.update(visible=False), gr.update(visible=False), gr.update(visible=False), ""]


def _parts(watch: Watch, job: Job) -> list[Any]:
    """Updates of plot, samples, files and log."""
    plot = samples = files = log = gr.skip()
    if watch.changed("plot", len(watch.losses) and watch.losses[-1]):
        frame = pandas.DataFrame(watching.curves(watch)) if watch.losses else None
        plot = gr.update(value=frame, visible=len(watch.losses) > 1)
    if watch.changed("samples", watch.samples):
        samples = gr.update(value=watch.samples, visible=bool(watch.samples), selected_index=None)
    found = watching.outputs(job)
    if watch.changed("files", [(str(path), _stamp(path)) for path in found]):
        files = gr.update(value=[str(path) for path in found] or None, visible=bool(found))
    if watch.changed("log", watch.log):
        log = watch.log
    return [plot, samples, files, log]


def _stamp(path: Any) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _status(services: Services, watch: Watch, job: Job) -> Any:
    reason = services.jobs.reason(job.id) if job.state in ("failed", "interrupted") else ""
    html = status_html(watch, job, reason)
    return html if watch.changed("status", html) else gr.skip()


def status_html(watch: Watch, job: Job, reason: str) -> str:
    """How a job stands: its name and state, how far it is, how fast, how long it will take, and what went wrong."""
    from html import escape

    state = "stopping …" if job.stopping else WORDS.get(job.state, job.state)
    lines = [
        f'<div class="top"><span class="name">{escape(job.title)}</span>'
        f'<span class="state {job.state}">{escape(state)}</span></div>'
    ]
    progress, phase = watch.progress, watch.phase
    training = bool(progress) and phase.get("name") in (None, "training", "saving")
    if job.state == "queued":
        lines.append('<div class="hint">Starts when the run before it has ended.</div>')
    elif job.state == "running" and not training:
        name = str(phase.get("name", "starting"))
        step, total = int(phase.get("step") or 0), int(phase.get("total") or 0)
        lines += [bar(step, total if step else 0), f'<div class="hint">{escape(name)} …</div>']
    if progress and (training or not job.active):
        step, total = int(progress.get("step") or 0), int(progress.get("total") or 0)
        lines += [bar(step, total), figures(_figures(job, progress))]
    lines += [f'<div class="warn">{escape(message)}</div>' for message in watch.warnings]
    if reason:
        lines.append(f'<div class="why" role="alert">{escape(reason)}</div>')
    return f'<div class="status">{"".join(lines)}</div>'


def _figures(job: Job, progress: dict[str, Any]) -> list[tuple[str, str]]:
    step, total = int(progress.get("step") or 0), int(progress.get("total") or 0)
    pace = float(progress.get("seconds_per_step") or 0)
    found = [("step", f"{step} / {total}")]
    if progress.get("epochs"):
        found.append(("epoch", f"{progress.get('epoch')} / {progress['epochs']}"))
    found.append(("speed", speed(pace)))
    if job.state == "running":
        left = progress.get("seconds_left")
        found.append(("time left", duration(float(left) if left is not None else pace * (total - step))))
    elif job.started is not None and job.ended is not None:
        found.append(("took", duration(job.ended - job.started)))
    if isinstance(progress.get("loss"), int | float):
        found.append(("loss", f"{progress['loss']:.4f}"))
    rates = progress.get("lr")
    if isinstance(rates, dict):
        distinct = list(dict.fromkeys(f"{rate:.2g}" for rate in rates.values() if isinstance(rate, int | float)))
        found.append(("learning rate", " / ".join(distinct)))
    return found
