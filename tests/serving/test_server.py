"""webui.py as a process: routes, files, signals, and the page in Chromium under the content policy."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import gradio as gr
import httpx
import pytest
from gradio.routes import App

from tests.browser import browser

PROJECT = Path(__file__).resolve().parents[2]
PASSWORD = "correct horse"
JOB = "jobs/20260101-000000-00000000/output"


class Server:
    """A started webui.py with the stand-in tabs."""

    def __init__(self, workspace, *flags, **environment):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.workspace = workspace
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = workspace.parent / f"{workspace.name}.log"
        command = [
            sys.executable,
            "-m",
            "tests.serving.stand_in",
            "--workspace",
            workspace,
            "--server_port",
            self.port,
            *flags,
        ]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("LORALOOM_")}
        self.process = subprocess.Popen(
            list(map(str, command)),
            cwd=PROJECT,
            env=clean | environment,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 180
        while "LoRA Loom runs on" not in self.log.read_text():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(20)


@pytest.fixture(scope="module")
def open_server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("open") / "w")
    yield server
    assert server.stop(signal.SIGINT) == 0


@pytest.fixture(scope="module")
def locked_server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("locked") / "w", "--listen", LORALOOM_PASSWORD=PASSWORD)
    yield server
    assert server.stop(signal.SIGTERM) == 0


def test_below_a_proxys_path_no_file_is_run(tmp_path):
    server = Server(tmp_path / "w", "--root_path", "/loom", LORALOOM_PASSWORD=PASSWORD)
    try:
        with httpx.Client(base_url=server.url, headers={"accept": "text/html"}) as client:
            assert client.post("/login", data={"username": "loom", "password": PASSWORD}).status_code == 303
            for prefix in ("", "/loom", "/loom/loom"):
                answer = client.get(f"{prefix}/gradio_api/file={server.workspace / JOB / 'evil.html'}")
                assert answer.status_code in (200, 404)
                if answer.status_code == 200:
                    assert answer.headers["content-disposition"].startswith("attachment")
                    assert "sandbox" in answer.headers["content-security-policy"]
            page = client.get("/loom/")
            assert page.status_code == 200 and "sha256-" in page.headers["content-security-policy"]
    finally:
        assert server.stop() == 0


def gradio_routes():
    """Every path that Gradio answers, with something in place of its parameters."""
    with gr.Blocks() as blocks:
        gr.Textbox()
    found = set()

    def walk(routes):
        for route in routes:
            inner = getattr(route, "original_router", None) or getattr(route, "router", None)
            if inner is not None:
                walk(inner.routes)
            elif getattr(route, "path", None):
                path = re.sub(r"\{[^}]*\}", "x", route.path)
                found.update((method, path) for method in getattr(route, "methods", None) or {"GET"})

    walk(App.create_app(blocks).routes)
    return sorted(found)


def test_with_a_password_no_route_answers_without_it(locked_server):
    routes = gradio_routes()
    assert {("GET", "/gradio_api/startup-events"), ("GET", "/theme.css"), ("POST", "/gradio_api/upload"),
            ("GET", "/config")} <= set(routes)  # fmt: skip
    assert len(routes) > 60
    with httpx.Client(base_url=locked_server.url) as client:
        answers = {(method, path): client.request(method, path).status_code for method, path in routes}
    answered = {route for route, status in answers.items() if status != 401}
    # The page leads to the login; the login and logout are the guard's own.
    assert answered == {("GET", "/"), ("HEAD", "/"), ("POST", "/login"), ("POST", "/login/"), ("GET", "/logout")}
    assert answers["GET", "/"] == 303 and answers["POST", "/login"] == 400


def test_after_logging_in_everything_answers(locked_server):
    with httpx.Client(base_url=locked_server.url) as client:
        assert client.post("/login", data={"username": "loom", "password": "wrong one"}).status_code == 400
        assert client.get("/config").status_code == 401
        assert client.post("/login", data={"username": "loom", "password": PASSWORD}).status_code == 200
        assert client.get("/config").status_code == 200
        assert client.get(f"/gradio_api/file={locked_server.workspace}/{JOB}/picture.png").status_code == 200
        assert client.get("/", headers={"host": "abc-7860.proxy.example"}).status_code == 200
        assert client.get("/", headers={"origin": "https://evil.example"}).status_code == 403
    assert PASSWORD not in locked_server.log.read_text()


def test_foreign_pages_and_names_are_refused_by_the_running_server(open_server):
    evil = {"origin": "https://evil.example"}
    with httpx.Client(base_url=open_server.url) as client:
        assert client.get("/").status_code == 200
        preflight = client.options("/gradio_api/upload", headers=evil | {"access-control-request-method": "POST"})
        assert preflight.status_code == 403 and "access-control-allow-origin" not in preflight.headers
        upload = client.post("/gradio_api/upload", headers=evil, files={"files": b"x"})
        assert upload.status_code == 403
        assert client.get("/", headers={"host": "evil.example"}).status_code == 400
        assert (
            client.post("/gradio_api/upload", headers={"origin": open_server.url}, files={"files": b"x"}).status_code
            == 200
        )


def test_only_the_folders_of_results_are_served(open_server):
    outside = open_server.workspace / "worker.log"
    outside.write_text("secret")
    (open_server.workspace / "jobs" / "link").symlink_to("/etc/passwd")
    with httpx.Client(base_url=open_server.url) as client:
        beside = [open_server.workspace / "jobs/../worker.log", open_server.workspace / "jobs/link"]
        for path in (outside, *beside, "/etc/passwd", PROJECT / "webui.py"):
            assert client.get(f"/gradio_api/file={path}").status_code == 403, path
        for name, kind in (("evil.html", "text/html"), ("evil.svg", "image/svg+xml")):
            answer = client.get(f"/gradio_api/file={open_server.workspace}/{JOB}/{name}")
            assert (
                answer.headers["content-type"].startswith(kind)
                or answer.headers["content-type"] == "application/octet-stream"
            )
            assert answer.headers["content-disposition"].startswith("attachment")
            assert (
                answer.headers["x-content-type-options"] == "nosniff"
                and "sandbox" in answer.headers["content-security-policy"]
            )
        assert (
            client.get(f"/gradio_api/file={open_server.workspace}/{JOB}/lora.safetensors").content == b"weights" * 1000
        )


def test_gradio_keeps_nothing_and_calls_nobody(open_server):
    with httpx.Client(base_url=open_server.url) as client:
        config = client.get("/config").json()
        assert client.get("/gradio_api/runs").status_code == 404
        assert client.get("/monitoring/summary").status_code in (403, 404)
    assert config["analytics_enabled"] is False
    assert (open_server.workspace / ".gradio").is_dir()


def test_a_port_in_use_is_one_clear_line(open_server, tmp_path):
    command = [sys.executable, "webui.py", "--server_port", str(open_server.port), "--workspace", str(tmp_path / "w")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("server_port: cannot serve on 127.0.0.1 port")


def uploads_of(server) -> set[str]:
    """What lies where uploads are written to, but for the page's own files and the lock."""
    return {path.name for path in (server.workspace / ".gradio").iterdir() if path.name.startswith("tmp")}


def test_an_upload_that_breaks_off_leaves_nothing(open_server):
    begin = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.zip"\r\n\r\n'
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1:{open_server.port}\r\n"
    head += "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 52428800\r\n\r\n"
    with socket.create_connection(("127.0.0.1", open_server.port)) as line:
        line.sendall(head.encode() + begin + b"x" * 25_000_000)
        wait_until(lambda: uploads_of(open_server))
    wait_until(lambda: not uploads_of(open_server))
    assert "Traceback" not in open_server.log.read_text()


def test_an_upload_that_is_too_large_is_refused_before_it_comes(open_server):
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1:{open_server.port}\r\n"
    head += "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 99999999999\r\n\r\n"
    with socket.create_connection(("127.0.0.1", open_server.port), timeout=20) as line:
        line.sendall(head.encode())
        assert line.recv(4096).startswith(b"HTTP/1.1 413 ")
        while line.recv(4096):
            pass
    assert uploads_of(open_server) == set()


def test_a_login_outlives_a_restart(tmp_path):
    password = {"LORALOOM_PASSWORD": PASSWORD}
    with httpx.Client() as client:
        for number in range(2):
            server = Server(tmp_path / "w", **password)
            client.base_url = server.url
            if number == 0:
                client.post("/login", data={"username": "loom", "password": PASSWORD})
                cookies = {cookie.name.replace(str(server.port), "PORT"): cookie.value for cookie in client.cookies.jar}
                (tmp_path / "w" / ".gradio" / "tmpabcdefgh").write_bytes(b"left behind")
            else:
                own = {name.replace("PORT", str(server.port)): value for name, value in cookies.items()}
                client.cookies.clear()
                assert client.get("/config").status_code == 401
                assert client.get("/config", cookies=own).status_code == 200
                assert uploads_of(server) == set()
            assert server.stop() == 0


def wait_until(condition) -> None:
    """Wait until something is so."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.browser
@pytest.mark.parametrize("locked", [False, True], ids=["open", "locked"])
def test_the_page_works_in_chromium_under_the_content_policy(open_server, locked_server, locked, tmp_path):
    server = locked_server if locked else open_server
    with browser() as chromium:
        page = chromium.new_page()
        violations = []
        page.on(
            "console", lambda message: violations.append(message.text) if "Content Security" in message.text else None
        )
        page.goto(server.url)
        if locked:
            page.get_by_label("Username").fill("loom")
            page.get_by_label("Password").fill(PASSWORD)
            page.get_by_role("button", name="Log in").click()
        page.get_by_label("Name").fill("x")
        page.get_by_role("button", name="Greet").click()
        page.wait_for_function("document.querySelector('[data-testid=textbox][disabled]')?.value === 'hello x!'")
        page.get_by_text("script ran").wait_for()
        page.locator("svg.marks, canvas.marks").first.wait_for()
        assert page.evaluate("window.pageScriptRan")
        upload = tmp_path / "b.txt"
        upload.write_text("b")
        page.locator("input[type=file]").last.set_input_files(upload)
        page.wait_for_function("[...document.querySelectorAll('[data-testid=textbox]')].some(box => box.value === '1')")
        with page.expect_download() as download:
            page.get_by_role("button", name="Download", exact=True).click()
        assert download.value.path().read_bytes() == b"weights" * 1000
        # The hostile handler in the page's own HTML, and nothing else, was kept from running.
        assert page.title() == "stand-in"
        assert len(violations) == 1 and "inline event handler" in violations[0]
