"""Where Chromium is, for the tests that drive a browser."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

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
    with sync_playwright() as playwright:
        # Without its sandbox, which root in a container cannot have.
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield started
        finally:
            started.close()
