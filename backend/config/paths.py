"""Paths and names as people write them: with blanks and quotes around them, `$HOME`, `~`, from another system.

What is meant is taken; what can only be guessed at is refused with what to write. So nobody gets a folder that is
called ` /data` or `"C:\\pictures"`. What is really there under an odd name stays within reach: a path that begins with
/ or ./ and names something that exists is taken as it stands.
"""

import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

# What comes along at the ends when a path is copied: blanks, marks of byte order and of the direction of writing.
_FRONT = re.compile(r"\A(?:[^\S\t\r\n\v\f\x1c-\x1f]|[\ufeff\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069])+")
_BACK = re.compile(r"(?:[^\S\t\v\f\x1c-\x1f]|[\ufeff\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069])+\Z")
_PAIRS = {'"': '"', "'": "'", "`": "`", "“": "”", "„": "“", "‘": "’", "«": "»", "»": "«"}
_LONE = tuple("\"'`“”„‘«»")
_DOUBLE = re.compile(r"""["“”„«»]|['`]\s+['`]""")
_LINE_ENDS = ("\u2028", "\u2029")
_NAMES = {"\0": "NUL", "\t": "a tab", "\n": "a line break", "\r": "a carriage return", "\b": "a backspace"}
_ESCAPES = tuple("\b\t\n\f\r\x1b")
# How a byte that is no UTF-8 is shown, and written in a config (Python's own words for it, PEP 383).
_BYTE = re.compile(r"\\udc([89a-f][0-9a-f])")
_DRIVE = re.compile(r"[A-Za-z]:(?:[\\/]|\Z)|\\\\[^\\]")
_HOME = re.compile(r"\A\$(?:HOME\b|\{HOME\})(?=/|\Z)")
_VARIABLE = re.compile(r"\$(?:\w+|\{[^}]*\}|\()|%\w+%")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# A blank or a letter beyond ASCII, as addresses write it.
_ENCODED = re.compile(r"%20|%[C-F][0-9A-F]%[89AB][0-9A-F]", re.IGNORECASE)
# The longest name and path that Linux takes, in bytes.
_NAME_BYTES, _PATH_BYTES = 255, 4095
_WINDOWS = os.name == "nt"


def meant_path(text: str) -> str:
    """The path that a text means; "" for blanks.

    Blanks and pairs of quotes around it go, `~`, `$HOME` and `${HOME}` in front become the home folder, a `file:`
    address its path. What is there once backslashes before blanks, `%20` or Unicode's normal form are undone is that. A
    path that begins with /, ./, ../ or ~ and is there as it stands is left alone.

    Raises:
        ValueError: it cannot be told what is meant, or no file can be called so; says what to write.
    """
    stripped = _stripped(text)
    _refuse_controls(stripped)
    if stripped != text and _is_rooted(text) and not _control_in(text) and os.path.lexists(os.path.expanduser(text)):
        return os.path.expanduser(text)
    plain = _unquoted(stripped)
    if plain.startswith(("file:/", "file:\\")):
        plain = _of_address(plain)
    elif _ADDRESS.match(plain):
        raise ValueError(f"is an address, {plain}; download the file and write its path")
    plain = os.path.expanduser(_HOME.sub("~", plain))
    if not plain or os.path.lexists(plain):
        return _writable(plain)
    for other in _spellings(plain):
        if os.path.lexists(other):
            return _writable(other)
    told = _bytes_of(plain)
    if told != plain:
        _refuse_controls(told)
    if not os.path.lexists(told) and not _WINDOWS:
        _refuse_guesses(told)
    return _writable(told)


def likely_path(text: str) -> Path:
    """What a text means as a path, for a look at what is there; one that is refused elsewhere is taken as it is."""
    try:
        return Path(meant_path(text))
    except ValueError:
        return Path(text)


def meant_name(text: str) -> str:
    """The name of a file that a text means: without blanks and pairs of quotes around it.

    Raises:
        ValueError: it has a character that names of files made here must not have.
    """
    name = _unquoted(_stripped(text))
    _refuse_controls(name)
    if _VARIABLE.search(name):
        raise ValueError(f'is a name in which variables are not read, got "{name}"; write it out')
    return checked_text(name)


def checked_text(text: str) -> str:
    """A text as it is.

    Raises:
        ValueError: it has NUL, or bytes that are no UTF-8, which no toml and no LoRA file can hold.
    """
    if "\0" in text:
        raise ValueError("has a NUL character; leave it out")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f'has bytes that are no UTF-8, got "{text}"; write it in UTF-8') from None
    return text


def _stripped(text: str) -> str:
    return _BACK.sub("", _FRONT.sub("", text))


def _unquoted(text: str) -> str:
    while len(text) > 1 and _PAIRS.get(text[0]) == text[-1]:
        text = _stripped(text[1:-1])
    return text


def _is_rooted(text: str) -> bool:
    return text.startswith(("/", "./", "../", "~"))


def _control_in(text: str) -> str:
    return next((letter for letter in text if unicodedata.category(letter) == "Cc" or letter in _LINE_ENDS), "")


def _refuse_controls(text: str) -> None:
    letter = _control_in(text)
    if not letter:
        return
    name = _NAMES.get(letter, f"the control character {ascii(letter)[1:-1]}")
    hint = "; in double quotes of toml and JSON a backslash begins an escape: write / in place of \\, or single quotes"
    raise ValueError(f"has {name} in it, {ascii(text[:200])}{hint if letter in _ESCAPES else '; leave it out'}")


def _of_address(address: str) -> str:
    """The path of a `file:` address, as browsers and file managers write it.

    Raises:
        ValueError: it is on another machine.
    """
    rest = address.removeprefix("file:").replace("\\", "/")
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host not in ("", "localhost"):
            raise ValueError(f"is the address of a file on {host}, {address}; write its path on this machine")
        rest = slash + path
    path = _stripped(unquote(rest, errors="surrogateescape"))
    _refuse_controls(path)
    return path[1:] if _DRIVE.match(path[1:]) else path


def _spellings(path: str) -> Iterator[str]:
    """What else a path that is not there may mean: as a terminal writes it, as an address does, or as a Mac does."""
    if not _WINDOWS and "\\" in path:
        yield re.sub(r"\\(.)", r"\1", path)
    if "%" in path:
        yield unquote(path, errors="surrogateescape")
    for form in ("NFC", "NFD"):
        yield unicodedata.normalize(form, path)


def _bytes_of(text: str) -> str:
    r"""A path in which bytes that are no UTF-8 are written as `\udce9`, as it is called by the system."""
    found = _BYTE.sub(lambda match: chr(0xDC00 + int(match[1], 16)), text)
    try:
        return found if found == text else os.fsdecode(os.fsencode(found))
    except UnicodeEncodeError:
        return text


def _refuse_guesses(path: str) -> None:
    """Refuse a path that is not there and looks as if something else was meant."""
    if _DRIVE.match(path):
        raise ValueError(f'is a path of Windows, got "{path}"; name the file or folder as it is called on this machine')
    if "\\" in path:
        raise ValueError(f'has a backslash, got "{path}"; write / between folders, and blanks without a backslash')
    if _DOUBLE.search(path) or path.startswith(_LONE) or path.endswith(_LONE):
        raise ValueError(f"has a quotation mark without its pair, got {path}; leave the quotation marks out")
    if path.startswith("~"):
        user = path.partition("/")[0]
        raise ValueError(f'begins with {user}, and there is no such user, got "{path}"; write ./{user} for that name')
    if _ENCODED.search(path):
        raise ValueError(f'is written as in an address, got "{path}"; write "{unquote(path)}" if that is meant')
    if _VARIABLE.search(path):
        raise ValueError(f'has a variable, of which only $HOME in front is read, got "{path}"; write the path out')


def _writable(path: str) -> str:
    """The path itself, if the system can have a file of this name."""
    if control := _control_in(path):
        raise ValueError(f"has the control character {ascii(control)[1:-1]}, {ascii(path[:80])}; leave it out")
    try:
        size = len(os.fsencode(path))
        longest = max(len(os.fsencode(name)) for name in path.split("/"))
    except UnicodeEncodeError:
        raise ValueError(f"cannot be the name of a file on this system, got {ascii(path[:80])}; use UTF-8") from None
    if size > _PATH_BYTES or longest > _NAME_BYTES:
        limit = f"{_NAME_BYTES} bytes in a name and {_PATH_BYTES} in all"
        raise ValueError(f'is too long for a path, which has at most {limit}, got "{path[:40]}..."')
    return path
