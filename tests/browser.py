"""Where Chromium is, for the tests that drive a browser."""

import atexit
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest
from playwright.sync_api import Browser, Playwright, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str | None:
    """The browser's program: what LORALOOM_CHROMIUM says, else the first one that is installed."""
    return os.environ.get("LORALOOM_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium; skips the test where there is none."""
    program = chromium()
    if program is None:
        pytest.skip("no Chromium is installed (./test.sh installs it through apt where it can)")
    # Without its sandbox, which root in a container cannot have.
    options = ["--no-sandbox", "--disable-dev-shm-usage"]
    started = _playwright().chromium.launch(executable_path=program, args=options)
    try:
        yield started
    finally:
        started.close()


@cache
def _playwright() -> Playwright:
    """One for all tests of a process: a second one cannot be started beside it, whichever tests come first."""
    playwright = sync_playwright().start()
    atexit.register(playwright.stop)
    return playwright
