"""`python -m backend <command> [options]`: argv -> config -> the one command it runs.

What a user can mend is one clear line a problem on stderr and exit status 2; an interrupt is 130; anything else is a
line, its traceback and 1.
"""

import contextlib
import errno
import os
import sys
import traceback
from types import TracebackType

from backend import events, gpus, threads
from backend.commands import ALIASES, COMMANDS, find
from backend.config.base import from_argv, values
from backend.config.declare import Command, heading
from backend.errors import ConfigError, UserError, one_line, speak_any_name
from backend.lean import OPTIONAL, loadable, out_of_sight, uncollected
from backend.processes import place
from backend.terminal import say
from backend.workspace import PROJECT

# How libraries that do not raise OSError say that the disk is full.
DISK_FULL = ("No space left on device", "PytorchStreamWriter failed writing")


class Reported:
    """Context in which every exception ends as a readable message; `status` is the exit status afterwards."""

    def __init__(self) -> None:
        self.status = 0

    def __enter__(self) -> "Reported":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if error is None or isinstance(error, SystemExit):
            return False
        own = place()
        if isinstance(error, KeyboardInterrupt):
            if own.rank == 0:
                _say("stopped by an interrupt")
            self.status = 130
            return True
        problems = explain(error)
        self.status = 2 if problems else 1
        if isinstance(error, UserError):
            self.status = error.status
            # What is wrong with the options is wrong in every process that was launched with them.
            if error.told or (isinstance(error, ConfigError) and own.local_rank):
                return True
        if own.rank and problems:
            problems = [(field, f"{message} (process {own.rank} of {own.size})") for field, message in problems]
        for field, message in problems or [("", f"unexpected {type(error).__name__}: {_first_line(error)}")]:
            field, message = one_line(field), one_line(message)
            # The event first: it has a reserve, while the log may lie on the disk that is full.
            events.emit("error", message=message, field=field or None)
            _say(f"{field}: {message}" if field else message)
        if not problems:
            _say("".join(traceback.format_exception(error)).rstrip())
        return True


def explain(error: BaseException) -> list[tuple[str, str]]:
    """The error as pairs (field, message) if it is one that a user can mend, else none."""
    if isinstance(error, ConfigError):
        return error.problems
    if isinstance(error, UserError):
        return [(error.field or "", error.message)]
    text = str(error)
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(words in text for words in DISK_FULL):
        name = getattr(error, "filename", None)
        return [(str(name) if name else "", "the disk is full; free some space or choose another output folder")]
    if isinstance(error, OSError) and error.filename and error.strerror:
        return [(str(error.filename), error.strerror.lower())]
    # torch's classes are known by name, so that nothing has to import torch to ask.
    if any(parent.__name__ == "OutOfMemoryError" for parent in type(error).__mro__):
        remedy = "a smaller batch size or resolution, gradient_checkpointing, cache_latents or mixed_precision"
        return [("", f"the GPU's memory is full; try {remedy}")]
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        return [("", "the machine's memory is full; try a smaller model, batch size or resolution")]
    return []


def overview() -> str:
    """The commands, one a line, for `python -m backend --help`."""
    lines = ["python -m backend COMMAND [options]    COMMAND --help shows its options", ""]
    for name, entry in COMMANDS.items():
        others = [alias for alias, own in ALIASES.items() if own == name]
        also = f" (also {', '.join(others)})" if others else ""
        lines.append(f"  {name:<34}{heading(entry.config_class())}{also}")
    return "\n".join([*lines, ""])


def write_docs() -> None:
    """Write docs/options.md from the declared options."""
    from backend.config.docs import options_markdown  # declares datasets too, which no other command line waits for

    target = PROJECT / "docs" / "options.md"
    target.parent.mkdir(exist_ok=True)
    temporary = target.with_suffix(".tmp")
    temporary.write_text(options_markdown([entry.config_class() for entry in COMMANDS.values()]), encoding="utf-8")
    temporary.replace(target)
    sys.stdout.write(f"{target}\n")


def arrange_threads(config: Command) -> None:
    """Decide how many threads compute, before torch is imported, and tell where they are fewer than processors."""
    line = threads.arrange(config.command, values(config), gpus.likely(), os.environ)
    if line:
        say(line)


def main(argv: list[str], lean: bool = False) -> int:
    """Run one command line and give its exit status.

    Args:
        argv: the words after `python -m backend`.
        lean: this process is the command's alone, so that what it has no use for can be kept out of it.
    """
    speak_any_name()
    with Reported() as reported:
        if not argv or argv[0] in ("-h", "--help", "help"):
            sys.stdout.write(overview())
            return 0 if argv else 2
        if argv[0] == "--write-docs":
            write_docs()
            return 0
        with uncollected() if lean else contextlib.nullcontext():
            entry = find(argv[0])
            config = from_argv(entry.config_class(), argv[1:])
            if lean and not config.starts_processes():
                arrange_threads(config)
            with out_of_sight({*OPTIONAL} - loadable(config.packages()) if lean else ()):
                function = entry.function(config)
        function(config)
    return reported.status


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def _say(message: str) -> None:
    # Where nobody can be told, on a full disk say, the exit status still tells.
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()


def _drain() -> None:
    """Let go of output that cannot be written: Python would try again at its end and change the exit status."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


if __name__ == "__main__":
    status = main(sys.argv[1:], lean=True)
    _drain()
    sys.exit(status)
