"""Text and HTML of the tabs. Whatever comes from a user, a file or a log is escaped here and nowhere else."""

import time
from collections.abc import Iterable
from html import escape

from backend.errors import ConfigError, UserError


def problem_list(problems: Iterable[tuple[str, str]]) -> str:
    """Lines that each name a field and what is wrong with it; empty without problems."""
    lines = [
        f"<li>{f'<code>{escape(field)}</code> ' if field else ''}{escape(message)}</li>" for field, message in problems
    ]
    return f'<div class="problems" role="alert"><ul>{"".join(lines)}</ul></div>' if lines else ""


def problems_of(error: UserError) -> list[tuple[str, str]]:
    """An error as pairs of field and message."""
    return error.problems if isinstance(error, ConfigError) else [(error.field or "", error.message)]


def complaint(error: UserError) -> str:
    """An error as the lines to be shown."""
    return problem_list(problems_of(error))


def notice(message: str) -> str:
    """A line that says how something went; several are parted by line breaks."""
    return f'<div class="notice" role="status">{escape(message)}</div>'.replace("\n", "<br>")


def empty(title: str, remedy: str) -> str:
    """What stands where there is nothing yet: what is missing and what to do."""
    return f'<div class="empty"><b>{escape(title)}</b><br>{escape(remedy)}</div>'


def bar(step: int, total: int) -> str:
    """A progress bar; one that only moves while nobody knows how far it is."""
    if total <= 0:
        return '<div class="bar idle"><i></i></div>'
    percent = min(100.0, 100.0 * step / total)
    return f'<div class="bar"><i style="width:{percent:.1f}%"></i></div>'


def figures(pairs: Iterable[tuple[str, str]]) -> str:
    """Small labelled numbers in a row."""
    return f"""<div class="figures">{
        "".join(f"<div><span>{escape(name)}</span><b>{escape(value)}</b></div>" for name, value in pairs)
    }</div>"""


def duration(seconds: float) -> str:
    """Seconds as 0:42, 12:05 or 1:02:03."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def speed(seconds_per_step: float) -> str:
    """How fast it goes, in the unit that gives a number above one."""
    if seconds_per_step <= 0:
        return "–"
    return f"{1 / seconds_per_step:.1f} steps/s" if seconds_per_step < 1 else f"{seconds_per_step:.1f} s/step"


def moment(unix: float) -> str:
    """A time of day of this machine with its day: 22 Nov 18:39."""
    return time.strftime("%d %b %H:%M", time.localtime(unix)).lstrip("0")
