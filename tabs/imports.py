"""What became of an imported config, in words: nothing that could not be carried over goes unsaid."""

from collections.abc import Iterable
from html import escape

from backend.config.dialects.reading import CHANGED, LOST, OPEN, Imported, Note
from tabs.text import notice

TITLES = {LOST: "Not carried over", OPEN: "To be completed", CHANGED: "Carried over in another form"}
NOT_SHOWN = "is not in this form: the page sets it itself, or it is for the command line"
# A config has a few hundred keys at most; a hostile file may have more than a page can show.
MOST = 400


def told(found: Imported, name: str, by_page: Iterable[str] = (), kept: Iterable[str] = ()) -> str:
    """The report of an import.

    Args:
        found: what was read.
        name: of the file.
        by_page: options among the values that the form does not show.
        kept: options that the file does not have and the form keeps as they are.
    """
    by_page = list(by_page)
    count = len(found.values) - len(by_page)
    parts = [notice(f"{count} options taken from {name}: {found.source_kind}.")]
    notes = [*found.notes, *(Note(option, "", NOT_SHOWN) for option in by_page)]
    open_already = {note.key for note in notes}
    text = "is not in the file, so the form keeps what it has"
    notes += [Note(option, "", text, OPEN) for option in kept if option not in open_already]
    parts += [notes_list(title, [note for note in notes if note.kind == kind]) for kind, title in TITLES.items()]
    parts += [_folded(f"{what}: {len(keys)}", _names(keys)) for what, keys in _silent(found) if keys]
    if found.dataset:
        parts.append(_folded("The dataset toml, to be completed", f"<pre>{escape(found.dataset)}</pre>"))
    return f'<div class="told">{"".join(parts)}</div>'


def notes_list(title: str, notes: list[Note]) -> str:
    """Notes under a heading that counts them; empty without any."""
    if not notes:
        return ""
    lines = [f"<li>{_line(note)}</li>" for note in notes[:MOST]]
    lines += [f"<li>and {len(notes) - MOST} more</li>"] if len(notes) > MOST else []
    return f"<h4>{escape(title)}: {len(notes)}</h4><ul>{''.join(lines)}</ul>"


def _line(note: Note) -> str:
    value = f" = <code>{escape(note.value)}</code>" if note.value else ""
    return f"<b>{escape(note.key)}</b>{value}: {escape(note.text)}"


def _silent(found: Imported) -> list[tuple[str, tuple[str, ...]]]:
    return [
        ("Unset, at their default, or without effect where they come from", found.idle),
        ("About the finished run, and no options", found.facts),
    ]


def _names(keys: tuple[str, ...]) -> str:
    more = f" and {len(keys) - MOST} more" if len(keys) > MOST else ""
    return f"<p>{escape(', '.join(keys[:MOST]))}{more}</p>"


def _folded(title: str, inner: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{inner}</details>"
