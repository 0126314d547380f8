"""Somebody who asks the guard, without a server: what he sends, and what he is answered."""

import asyncio
import types
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlencode

from backend.guard import Guard


def run(task: Coroutine[Any, Any, Any]) -> None:
    """Run to the end in a thread of its own: Playwright's loop may be running in this one, if its tests came first."""
    with ThreadPoolExecutor(1) as threads:
        threads.submit(asyncio.run, task).result()


class Inner:
    """Answers 200 to everything and remembers what it was asked."""

    def __init__(self):
        self.calls = []
        self.kind = b"application/json"
        self.body = b"{}"
        self.extra = []

    async def __call__(self, scope, receive, send):
        self.calls.append(scope["path"])
        self.asked = dict(scope["headers"])
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            return
        headers = [(b"content-type", self.kind), (b"content-length", b"%d" % len(self.body)), *self.extra]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        half = len(self.body) // 2
        await send({"type": "http.response.body", "body": self.body[:half], "more_body": True})
        await send({"type": "http.response.body", "body": self.body[half:]})


class Answer:
    def __init__(self, messages):
        self.messages = messages
        self.status = messages[0].get("status")
        self.headers = {}
        for name, value in messages[0].get("headers", []):
            self.headers.setdefault(name.decode(), value.decode())
        self.body = b"".join(message.get("body", b"") for message in messages[1:])

        self.all_cookies = [
            value.decode() for name, value in messages[0].get("headers", []) if name == b"set-cookie"
        ]

    @property
    def cookie(self):
        return self.headers["set-cookie"].partition(";")[0]


class Client:
    def __init__(self, **options):
        self.inner = Inner()
        self.guard = Guard(**options)
        self.guard.starting = False
        app = types.SimpleNamespace(middleware_stack=self.inner)
        run(self.guard.install(app).__aenter__())
        self.app = app.middleware_stack

    def ask(
        self, path="/", method="GET", host="localhost:7860", body=b"", kind="http", client="1.2.3.4", root="", **headers
    ):
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        if host is not None:
            raw.append((b"host", host.encode()))
        scope = {"type": kind, "path": path, "method": method, "headers": raw, "client": (client, 1), "scheme": "http"}
        scope["root_path"] = root
        sent = []

        async def receive():
            return {"type": "http.request" if kind == "http" else "websocket.connect", "body": body}

        async def send(message):
            sent.append(message)

        run(self.app(scope, receive, send))
        return Answer(sent)

    def log_in(self, username="loom", password="correct horse", **headers):
        form = urlencode({"username": username, "password": password}).encode()
        return self.ask("/login", "POST", body=form, **headers)
