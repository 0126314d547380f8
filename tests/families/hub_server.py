"""A hub on this machine that speaks as much of the real one's protocol as a download needs, and can lose the link."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "a" * 40


class HubServer(ThreadingHTTPServer):
    """Serves a folder as the model `org/repo`.

    Attributes:
        asked: (method, file or path, Range header) of each request.
        faults: for a file, what happens to its next downloads: "drop" half-way, or a status code.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.asked: list[tuple[str, str, str | None]] = []
        self.faults: dict[str, list[str | int]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self) -> dict[str, bytes]:
        found = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in found}


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        file = re.fullmatch(r"/org/repo/resolve/[^/]+/(.+)", path)
        self.server.asked.append((self.command, file[1] if file else path, self.headers.get("Range")))
        if file:
            self.send_file(file[1], body)
        elif path.startswith("/api/models/org/repo/tree/"):
            files = self.server.files().items()
            self.send_json([{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files])
        elif path.startswith("/api/models/org/repo"):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in self.server.files().items()]
            self.send_json({"id": "org/repo", "modelId": "org/repo", "sha": COMMIT, "siblings": siblings})
        else:
            self.send_status(404)

    def send_status(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_json(self, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def send_file(self, name: str, body: bool) -> None:
        data = self.server.files()[name]
        faults = self.server.faults.get(name, [])
        fault = faults.pop(0) if body and faults else None
        if isinstance(fault, int):
            self.send_status(fault)
            return
        first = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        self.send_response(206 if first else 200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if body:
            self.wfile.write(data[first : len(data) // 2] if fault == "drop" else data[first:])
        if fault == "drop":
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[HubServer]:
    """The server while the block runs."""
    server = HubServer(folder)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
