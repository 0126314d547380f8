"""The order of the tests, which of them are for a long run only, and what they inherit from whoever started them."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# By file or folder, what comes first, so that no process is left with the longest at the end; all others follow.
FIRST = ("test_end_to_end.py", "ui", "serving", "train", "tools", "families", "generate", "networks", "demo", "jobs")
LONG = "takes long and is shown in parts by others: ./test.sh --long runs it"
# Signals that shells let their children ignore (SIGINT in the background of a script, SIGHUP under nohup) or block.
INHERITED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGHUP", "SIGQUIT", "SIGTERM") if hasattr(signal, name))
# Tells the processes of pytest-xdist which of these the first one was to ignore.
VARIABLE = "LORALOOM_TESTS_IGNORE"


def pass_on_defaults() -> None:
    """Go on ignoring what this process was started to ignore, but let every process that a test starts be without.

    What is ignored or blocked is inherited; what has a handler is set back in a program that is started.
    """
    told = os.environ.get(VARIABLE)
    if told is None:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ()) if hasattr(signal, "pthread_sigmask") else ()
        ignored = [number for number in INHERITED if signal.getsignal(number) == signal.SIG_IGN or number in blocked]
        os.environ[VARIABLE] = " ".join(str(int(number)) for number in ignored)
    for number in map(int, os.environ[VARIABLE].split()):
        signal.signal(number, lambda *_: None)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INHERITED)


pass_on_defaults()

# A busy machine is no fault of what is tested. `--hypothesis-profile long` tries many more examples.
settings.register_profile("default", deadline=None)
settings.register_profile("long", deadline=None, max_examples=5000)
settings.load_profile("default")


@pytest.fixture
def default_signals() -> Iterator[None]:
    """Signals that a test sends to its own process do there what they do in a program of a terminal."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--long` runs the tests that are marked so."""
    parser.addoption("--long", action="store_true", help="also run the tests that are marked long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort by place; the tests themselves pass in any order."""
    items.sort(key=lambda item: place(item.path))
    for item in items:
        if "long" in item.keywords and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason=LONG))


def place(path: Path) -> int:
    """Where a test file stands in `FIRST`, by its name or its folder's."""
    return next((number for number, name in enumerate(FIRST) if name in (path.name, path.parent.name)), len(FIRST))
