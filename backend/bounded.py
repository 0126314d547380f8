"""Reading what somebody else may have written: regular files only, within limits, and every fault as one line.

Text, JSON and toml that come from a user, a ZIP, a job's folder or a model's go through here. Knows no torch.
"""

import errno
import json
import os
import re
import stat
import tomllib
import unicodedata
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from backend.errors import UserError

TEXT_BYTES = 64 * 1024 * 1024
CONFIG_BYTES = 4 * 1024 * 1024
# Deeper than any config or workflow, and far from where Python's own recursion ends.
MAX_DEPTH = 64
# Seeds have 64 bits; nothing that is read here has a larger whole number.
MAX_WHOLE = 2**64

_NEWLINES = re.compile(r"\r\n|\n|\r")
_MARK = b"\xef\xbb\xbf"
_BYTE_ORDERS = (
    # UTF-32's mark in little endian begins with UTF-16's.
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
    (_MARK, "utf-8-sig"),
)
_SAMPLE = 4096
_SURROGATE = re.compile("[\ud800-\udfff]")
_SLIPS = (
    (re.compile(r"[=:\[,]\s*(True|False)\b"), "Write true and false in lower case"),
    (re.compile(r"[=:\[,]\s*(None|null)\b"), "Leave out a key that has no value"),
    (re.compile(r"[=:\[,{]\s*[\u2018-\u201f\u00ab\u00bb\u300c\uff02]"), 'Write straight quotation marks, "..."'),
)
_KEY = r"""(?:[\w-]+|"[^"\n]*"|'[^'\n]*')"""
_DEEP_KEY = re.compile(rf"^[ \t\[{{]*(?:{_KEY}[ \t]*\.[ \t]*){{{MAX_DEPTH}}}", re.MULTILINE)


def split_lines(text: str) -> list[str]:
    """The lines of a text, which end at \\n, \\r\\n or \\r and nowhere else; `str.splitlines` knows eight ends more.

    The end of the last line begins no further one.
    """
    lines = _NEWLINES.split(text)
    return lines if lines[-1] else lines[:-1]


def open_regular(path: str | Path) -> BinaryIO:
    """A regular file, open for reading; a FIFO would wait for its other end, and a device may never end.

    Raises:
        OSError: it is missing, something else or unreadable.
        ValueError: that is no name of a file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, "is no regular file", str(path))


def read_bytes(path: str | Path, field: str | None, kind: str = "text", limit: int = TEXT_BYTES) -> bytes:
    """What stands in a regular file.

    Args:
        path: the file.
        field: the option that names it, for messages; None names the file itself.
        kind: what it ought to be, for messages.
        limit: most bytes that it may have.

    Raises:
        UserError: it is missing, no regular file, unreadable or too large.
    """
    file = Path(path)
    try:
        with open_regular(file) as stream:
            data = stream.read(limit + 1)
    except FileNotFoundError:
        raise UserError(f"there is no file {file}", field) from None
    except ValueError as error:
        raise UserError(f"{str(file)!r} is no name of a file", field) from error
    except OSError as error:
        if error.errno == errno.EINVAL:
            what = "a folder" if file.is_dir() else "a device or a pipe"
            raise UserError(f"{file} is {what}; name a {kind} file", field) from error
        raise UserError(f"{file} cannot be read: {error.strerror or error}", field) from error
    if len(data) > limit:
        raise UserError(f"{file} is larger than {_size(limit)}, so it is no {kind} file", field)
    return data


def decoded(data: bytes, name: str, field: str | None) -> str:
    """Text in UTF-8, or in UTF-16 or UTF-32 where its first bytes say so (or every other one is NUL).

    An encoding that cannot be told for certain is refused rather than guessed: a wrong guess trains nonsense.

    Args:
        data: the bytes of the text.
        name: what it is called in messages.
        field: the option it belongs to.

    Raises:
        UserError: it is no such text; names the encoding that it may be in.
    """
    encoding = next((found for mark, found in _BYTE_ORDERS if data.startswith(mark)), None) or _unmarked(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        where = f"byte {error.start} is none of {encoding.upper().removesuffix('-SIG')}"
        raise UserError(f"{name} is not a text in UTF-8 ({where}{_guess(data)}); save it as UTF-8", field) from error
    if "\0" in text:
        raise UserError(f"{name} is no text: it has NUL characters; save it as UTF-8", field)
    if _may_be_chinese(text, data):
        message = f"{name} may be in GB18030 as well as in UTF-8, where it says {text[:40].strip()!r}"
        raise UserError(f"{message}; save it as UTF-8 with a byte order mark", field)
    return text


def _may_be_chinese(text: str, data: bytes) -> bool:
    """Whether a text in UTF-8 is rather Chinese in its old encoding: a few short ones are both, one of them nonsense.

    As UTF-8 these are letters of two bytes each, of which neighbours belong to different scripts.
    """
    if text.isascii() or data.startswith(_MARK) or max(text) > "\u07ff":
        return False
    scripts = [unicodedata.name(letter, "?").partition(" ")[0] if letter > "\xbf" else "" for letter in text]
    if all(one == other or not one or not other for one, other in pairwise(scripts)):
        return False
    try:
        other = data.decode("gb2312")
    except UnicodeDecodeError:
        return False
    return all("\u4e00" <= letter <= "\u9fff" for letter in other if letter > "\x7f")


def _unmarked(data: bytes) -> str:
    """UTF-16 without a mark, as some editors write it: of plain letters every other byte is NUL."""
    sample = data[:_SAMPLE]
    if len(data) % 2 == 0 and b"\0" in sample:
        even, odd = sample[::2].count(0), sample[1::2].count(0)
        if odd * 4 > len(sample) and not even:
            return "utf-16-le"
        if even * 4 > len(sample) and not odd:
            return "utf-16-be"
    return "utf-8"


def _guess(data: bytes) -> str:
    """Encodings that people's files are in and that these bytes may be in."""
    fit = []
    for encoding, name in (("cp932", "Shift-JIS"), ("gb18030", "GB18030"), ("cp949", "EUC-KR"), ("cp1252", "cp1252")):
        try:
            data.decode(encoding)
        except UnicodeDecodeError:
            continue
        fit.append(name)
    return f"; it may be {', '.join(fit)}" if fit else ""


def read_text(path: str | Path, field: str | None, kind: str = "text", limit: int = TEXT_BYTES) -> str:
    """The text of a regular file; see `read_bytes` and `decoded`."""
    return decoded(read_bytes(path, field, kind, limit), str(path), field)


def parse_json(text: str, name: str, field: str | None) -> Any:
    """The value of a JSON text.

    Args:
        text: the JSON.
        name: what it is called in messages.
        field: the option it belongs to.

    Raises:
        UserError: it is no JSON, too deep, or has a number or a character that nothing can hold.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        raise UserError(f"{name} is nested deeper than {MAX_DEPTH} levels", field) from None
    except ValueError as error:
        raise UserError(f"{name} is not valid JSON: {_fault(error, text)}", field) from error
    return _judged(found, name, field)


def parse_toml(text: str, name: str, field: str | None) -> dict[str, Any]:
    """The tables of a toml text; see `parse_json`. Backslashes, which toml reads as escapes, are told as such."""
    if _DEEP_KEY.search(text):
        raise UserError(f"{name} is nested deeper than {MAX_DEPTH} levels", field)
    try:
        found = tomllib.loads(text)
    except RecursionError:
        raise UserError(f"{name} is nested deeper than {MAX_DEPTH} levels", field) from None
    except ValueError as error:
        raise UserError(f"{name} is not valid toml: {_fault(error, text)}", field) from error
    return _judged(found, name, field)


def read_json(path: str | Path, field: str | None, limit: int = CONFIG_BYTES) -> Any:
    """The value of a JSON file; see `read_text` and `parse_json`."""
    return parse_json(read_text(path, field, "JSON", limit), str(path), field)


def read_toml(path: str | Path, field: str | None, limit: int = CONFIG_BYTES) -> dict[str, Any]:
    """The tables of a toml file; see `read_text` and `parse_toml`."""
    return parse_toml(read_text(path, field, "toml", limit), str(path), field)


def _fault(error: ValueError, text: str) -> str:
    """What is wrong with a text; with what to write instead, where its line has a slip that many make."""
    message = str(error)
    if "int_max_str_digits" in message:
        return "it has a whole number that is larger than 64 bits"
    number = re.search(r"\bline (\d+)", message)
    lines = text.split("\n")
    line = lines[int(number[1]) - 1] if number and int(number[1]) <= len(lines) else ""
    if "\\" in line:
        quotes = "" if isinstance(error, json.JSONDecodeError) else ", or in single quotes, 'C:\\pictures'"
        return f"{message}. In double quotes a backslash begins an escape: write the path with / in place of \\{quotes}"
    return message + next((f". {remedy}" for slip, remedy in _SLIPS if slip.search(line)), "")


def _judged(found: Any, name: str, field: str | None) -> Any:
    """The value itself, gone through level by level rather than by recursion.

    Raises:
        UserError: it is too deep, or has a number or a character that nothing can hold.
    """
    level, depth = [found], 0
    while level:
        if depth > MAX_DEPTH:
            raise UserError(f"{name} is nested deeper than {MAX_DEPTH} levels", field)
        below: list[Any] = []
        for value in level:
            if isinstance(value, Mapping):
                below += value.keys()
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str) and _SURROGATE.search(value):
                raise UserError(f"{name} has half of a surrogate pair, {value[:40]!a}; save it as UTF-8", field)
            elif isinstance(value, int) and abs(value) > MAX_WHOLE:
                raise UserError(f"{name} has a whole number that is larger than 64 bits", field)
        level, depth = below, depth + 1
    return found


def _size(count: int) -> str:
    return f"{count // 2**20} MB" if count >= 2**20 else f"{count // 1024} kB"
