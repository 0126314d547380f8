"""Text and HTML of the tabs. Whatever comes from a user, a file or a log is escaped here and nowhere else."""

import time
from collections.abc import Iterable, Sequence
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


def warning(message: str) -> str:
    """A line that somebody should read before going on."""
    return f'<div class="warning" role="alert">{escape(message)}</div>'


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


def file_size(size: float) -> str:
    """A number of bytes as 512 B, 9.4 kB or 2.1 GB."""
    units = ("B", "kB", "MB", "GB")
    power = 0
    while size >= 1000 and power < len(units) - 1:
        size, power = size / 1000, power + 1
    return f"{size:.1f} {units[power]}" if power else f"{size:.0f} B"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts that scrolls within itself; empty without rows."""
    lines = ["".join(f"<td>{escape(text)}</td>" for text in row) for row in rows]
    if not lines:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    # Reached by the keyboard too, as it scrolls.
    return f'<div class="table" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def moment(unix: float) -> str:
    """A time of day of this machine with its day: 22 Nov 18:39."""
    return time.strftime("%d %b %H:%M", time.localtime(unix)).lstrip("0")
