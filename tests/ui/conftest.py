"""A server with stand-ins for the slow parts, and pages of one browser, for the tests of the tabs."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from backend.jobs import Jobs
from backend.workspace import PROJECT, Workspace
from tests.browser import browser

START_SECONDS = 300
# Shared machines are slow at times.
expect.set_options(timeout=60_000)


@contextmanager
def serving(module: str, workspace: Path, port: int | None = None) -> Iterator[str]:
    """A web server of its own process; gives its address."""
    if port is None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    log = workspace.parent / f"server-{port}.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LORALOOM_")}
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", module, "--server_port", str(port), "--workspace", str(workspace)],
            cwd=PROJECT,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        began = log.stat().st_size
        deadline = time.monotonic() + START_SECONDS
        while b"runs on" not in log.read_bytes()[max(0, began - 200) :]:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def end_jobs(root: Path) -> None:
    """Kill what runs or waits in a workspace."""
    jobs = Jobs(Workspace(root))
    for job in jobs.list():
        for _ in range(2):
            jobs.stop(job.id)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser for all; skips where there is none."""
    with browser() as started:
        yield started


@pytest.fixture(scope="session")
def window(chromium: Browser) -> Iterator[BrowserContext]:
    """One window for all pages, which so load the page's files once, and stand still as for who asks for that."""
    context = chromium.new_context(accept_downloads=True, reduced_motion="reduce")
    yield context
    context.close()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty workspace for the tests of one file; what still runs in it afterwards is killed."""
    root = tmp_path_factory.mktemp("ui") / "workspace"
    yield root
    end_jobs(root)


@pytest.fixture(scope="module")
def address(workspace: Path, chromium: Browser) -> Iterator[str]:
    """A server with stand-ins, for the tests of one file."""
    with serving("tests.ui.fake_server", workspace) as url:
        yield url


@pytest.fixture
def open_page(window: BrowserContext, request: pytest.FixtureRequest) -> Iterator[Callable[..., Page]]:
    """Opens pages; fails the test when one of them met an error of its script or asked another host for something."""
    faults = []

    def open_one(url: str = "", width: int = 1400, height: int = 1000) -> Page:
        page = window.new_page()
        page.set_viewport_size({"width": width, "height": height})
        page.set_default_timeout(90_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: (faults.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: _foreign(request.url, faults))
        page.goto(url or request.getfixturevalue("address"))
        page.wait_for_selector("#train_network-start")
        # The page is filled by its load event.
        page.wait_for_function("document.querySelector('#dataset-summary')?.innerText.trim().length > 0")
        return page

    yield open_one
    for page in window.pages:  # also those that a test has opened itself
        page.close()
    window.clear_cookies()
    assert not faults


def _foreign(url: str, faults: list[str]) -> None:
    if not url.startswith(("http://127.0.0.1:", "data:", "blob:")):
        faults.append(f"asked for {url}")
