"""How a job stands, in words: its line in the list, its state, how far it is and what went wrong."""

from html import escape
from typing import Any

from backend.job import Job
from backend.resuming import NO_STATE, Point
from tabs.text import bar, duration, figures, file_size, moment, speed
from tabs.watch import Watch

MARKS = {"queued": "…", "running": "▶", "finished": "✓", "failed": "✗", "interrupted": "!", "stopped": "■"}
WORDS = {"interrupted": "interrupted", "stopped": "stopped by you"}


def label(job: Job) -> str:
    """A job's line in the list of jobs."""
    begun = f" · from step {job.first_step}" if job.resumes else ""
    return f"{MARKS[job.state]}  {job.title}{begun} · {_state(job)} · {moment(job.created)}"


def status_html(watch: Watch, job: Job, reason: str, outlook: str = "") -> str:
    """How a job stands: its name and state, how far it is, how fast, how long it will take, and what went wrong.

    Args:
        watch: what has been seen of the job.
        job: as it stands.
        reason: why it failed; "" if it did not.
        outlook: whether it can go on; "" where that is no question.
    """
    lines = [
        f'<div class="top"><span class="name">{escape(job.title)}</span>'
        f'<span class="state {job.state}">{escape(_state(job, " …"))}</span></div>'
    ]
    progress, phase = watch.progress, watch.phase
    training = bool(progress) and phase.get("name") in (None, "training", "saving")
    if job.state == "queued":
        lines.append('<div class="hint">Starts when the run before it has ended.</div>')
    elif job.state == "running" and not training:
        # A trainer comes to its samples again and again; a tool goes through its phases one by one.
        phases = [phase] if progress or not watch.phases else list(watch.phases.values())
        lines += [_phase(one, last=one is phases[-1]) for one in phases]
    # One that goes on from another run has come that far before its first step.
    if progress and (training or not job.active or progress.get("resumed")):
        step, total = int(progress.get("step") or 0), int(progress.get("total") or 0)
        lines += [bar(step, total), figures(_figures(watch, job, progress))]
    if not progress and job.started is not None and job.ended is not None:
        lines.append(figures([("took", duration(job.ended - job.started))]))
    lines += [f'<div class="warn">{escape(message)}</div>' for message in watch.warnings]
    if reason:
        lines.append(f'<div class="why" role="alert">{escape(reason)}</div>')
    if outlook:
        lines.append(f'<div class="hint outlook">{escape(outlook)}</div>')
    return f'<div class="status">{"".join(lines)}</div>'


def outlook_text(watch: Watch, job: Job, found: Point | str) -> str:
    """Whether a run that ended early can go on, and where that is done."""
    if isinstance(found, Point):
        return f"Its state after step {found.position.step} is saved: Resume, below the list of runs, goes on from it."
    if found == NO_STATE and watch.losses:
        always = "A run that is stopped always saves its state"
        return f"It saved no state, so it cannot be resumed. {always}; with save_state, one is saved with every file."
    return ""


def _state(job: Job, more: str = "") -> str:
    return f"stopping{more}" if job.stopping else WORDS.get(job.state, job.state)


def _phase(phase: dict[str, Any], last: bool) -> str:
    """A phase's bar and name; one that another has followed is over, whatever it said last."""
    name = escape(str(phase.get("name", "starting")))
    step, total = int(phase.get("step") or 0), int(phase.get("total") or 0)
    if not last:
        return f'<div class="hint">{name}</div>{bar(1, 1)}'
    count = f" {step} of {total}" if total > 1 else ""
    return f'<div class="hint">{name}{count} …</div>{bar(step, total if step else 0)}'


def _memory(told: Any) -> list[tuple[str, str]]:
    """What the run takes of the GPU's memory, or of the machine's where there is none."""
    sizes = {name: float(size) for name, size in told.items()} if isinstance(told, dict) else {}
    if "gpu_peak" in sizes:
        whole = f" of {file_size(sizes['gpu'])}" if "gpu" in sizes else ""
        return [("GPU memory at most", f"{file_size(sizes['gpu_peak'])}{whole}")]
    return [("memory", file_size(sizes["process"]))] if "process" in sizes else []


def _figures(watch: Watch, job: Job, progress: dict[str, Any]) -> list[tuple[str, str]]:
    step, total = int(progress.get("step") or 0), int(progress.get("total") or 0)
    pace = float(progress.get("seconds_per_step") or 0)
    found = [("step", f"{step} / {total}")]
    if progress.get("epochs"):
        found.append(("epoch", f"{progress.get('epoch')} / {progress['epochs']}"))
    if not progress.get("resumed"):
        found.append(("speed", speed(pace)))
    if progress.get("pictures_per_second"):
        found.append(("pictures", f"{float(progress['pictures_per_second']):.3g} / s"))
    if job.state == "running" and not progress.get("resumed"):
        left = progress.get("seconds_left")
        found.append(("time left", duration(float(left) if left is not None else pace * (total - step))))
    elif job.started is not None and job.ended is not None:
        found.append(("took", duration(job.ended - job.started)))
    for name, field in (("loss", "loss"), ("mean of an epoch", "loss_average")):
        if isinstance(progress.get(field), int | float):
            found.append((name, f"{progress[field]:.4f}"))
    if watch.validation:
        found.append(("validation loss", f"{watch.validation[-1][1]:.4f}"))
    rates = progress.get("lr")
    if isinstance(rates, dict):
        distinct = list(dict.fromkeys(f"{rate:.2g}" for rate in rates.values() if isinstance(rate, int | float)))
        found.append(("learning rate", " / ".join(distinct)))
    found += _memory(progress.get("memory"))
    return found
