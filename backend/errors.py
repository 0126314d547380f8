"""The errors that a user is meant to read: one line each, naming the field and the remedy."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

# What would begin a new line, move the cursor or end a text, and what no UTF-8 can say.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def one_line(text: str) -> str:
    """A text on one line that every terminal and page can show: other characters as Python writes them, `\\n` say."""
    return _UNSEEN.sub(lambda match: ascii(match[0])[1:-1], text)


class UserError(Exception):
    """Bad input or a bad situation that the user can mend.

    Args:
        message: one line that says what is wrong and what to do about it.
        field: the option, key or file the message is about, if it is about one.
        told: another process of the run tells it.
        status: exit status of the command.
    """

    def __init__(self, message: str, field: str | None = None, told: bool = False, status: int = 2) -> None:
        message = one_line(message)
        super().__init__(message)
        self.message = message
        self.field = field if field is None else one_line(field)
        self.told = told
        self.status = status

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class ConfigError(UserError):
    """One or more options are wrong.

    Args:
        problems: pairs of field name and message, in the order in which they were found.
    """

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        if not problems:
            raise ValueError("a ConfigError needs at least one problem")
        self.problems = [(one_line(field), one_line(message)) for field, message in problems]
        field, message = self.problems[0]
        super().__init__(message, field or None)

    def __str__(self) -> str:
        return "\n".join(f"{field}: {message}" if field else message for field, message in self.problems)


@contextmanager
def workspace_errors(field: str) -> Iterator[None]:
    """Turns what the disk refuses within it into a UserError about `field`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError("the workspace's disk is full; delete old jobs or files", field) from error
        name = f"{error.filename}: " if error.filename else ""
        raise UserError(f"cannot write to the workspace: {name}{error.strerror or error}", field) from error
