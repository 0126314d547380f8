"""The door of the web server: which Host is served, which Origin may call, who is logged in, what a browser may run.

An ASGI wrapper around the whole of Gradio's app, because Gradio itself checks no Host, accepts any Origin when it is
not on localhost, answers several routes without a login and serves files with whatever type they have.
"""

import base64
import gzip
import hashlib
import hmac
import json
import re
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from html import escape
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

FAILURES, ALL_FAILURES = 8, 40  # wrong passwords in a minute, of one caller and of all together
FAILURE_SECONDS = 60.0
SESSION_SECONDS = 30 * 24 * 3600
SHARE_ASSETS = "https://gradio.s3-us-west-2.amazonaws.com"
PAGE = "/"
START_UP = "/gradio_api/startup-events"
# Wherever they stand in a path: no prefix makes a file anything else.
FILES = ("/gradio_api/file=", "/gradio_api/file/", "/gradio_api/stream/")
# Shown by a browser as what they are; everything else is only ever saved.
INLINE = re.compile(r"(image/(png|jpeg|webp|gif|avif|bmp)|audio/|video/|text/plain|application/json)")
FILE_POLICY = "default-src 'none'; sandbox; frame-ancestors 'self'"

_SCRIPT = re.compile(rb"<script(?P<attributes>[^>]*)>(?P<text>.*?)</script>", re.DOTALL | re.IGNORECASE)
_FORM_BYTES = 8192
_PORTS = {"http": ":80", "https": ":443"}
_HTML = [("content-type", "text/html; charset=utf-8")]
_JSON = [("content-type", "application/json")]


@dataclass(frozen=True)
class Account:
    """The one user of a server that asks for a password."""

    username: str
    password: str = field(repr=False)

    def matches(self, username: str, password: str) -> bool:
        """Compare in a time that does not depend on where the texts differ."""
        right = [
            hmac.compare_digest(hashlib.sha256(given.encode()).digest(), hashlib.sha256(known.encode()).digest())
            for given, known in ((username, self.username), (password, self.password))
        ]
        return all(right)


def is_loopback(host: str) -> bool:
    """Whether a name or address (brackets allowed, no port) means this machine."""
    host = host.strip("[]").lower()
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def host_name(authority: str) -> str:
    """The name in a Host header or the like: `a.b:7860` gives `a.b`, `[::1]:80` gives `[::1]`; in lower case."""
    authority = authority.strip().lower()
    return authority.partition("]")[0] + "]" if authority.startswith("[") else authority.partition(":")[0]


def route_path(scope: Scope) -> str:
    """The path that a request means: without the path below which a proxy serves us, however often it stands there.

    The application strips it too before it looks for a route, so deciding on the path as it came would decide on
    another one than is answered.
    """
    path: str = scope["path"]
    root = str(scope.get("root_path") or "").rstrip("/")
    while root and path.startswith(f"{root}/"):
        path = path.removeprefix(root)
    return path


class Guard:
    """Wraps an ASGI app, once `install` has been called with it.

    Args:
        account: who may come in; None leaves the login out, and then only loopback and listed hosts are served.
        hosts: names served beside loopback's, and whose pages may call; `*` matches any characters. With an account
            and no names any Host is served.
        port: names the cookie, since browsers keep cookies by host and not by port.
        share: whether the page comes with the share link's assets.
    """

    def __init__(
        self,
        account: Account | None = None,
        hosts: tuple[str, ...] = (),
        port: int = 7860,
        share: bool = False,
    ) -> None:
        self.app: App | None = None
        self.starting = True
        self._account = account
        self._hosts = tuple(host.lower() for host in hosts)
        self._cookie = f"loraloom_{port}"
        self._share = share
        self._sessions: dict[str, float] = {}
        self._failures: dict[str, deque[float]] = {}

    @asynccontextmanager
    async def install(self, app: Any) -> AsyncIterator[None]:
        """A lifespan for a Starlette app: from start-up on, every request comes through the guard first.

        Middleware that is handed to Gradio ends up inside its own, which answers preflight requests before anyone else.
        """
        self.app = app.middleware_stack
        app.middleware_stack = self
        yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path = route_path(scope)
        refusal = self._refuse_host(headers) or self._refuse_origin(headers)
        if refusal is None and self._account is not None:
            if scope["type"] == "http" and path.rstrip("/") in ("/login", "/logout"):
                await self._log_in_or_out({**scope, "path": path}, headers, receive, send)
                return
            # Gradio asks itself this while it starts, and has no password; nobody else is answered then.
            own_call = self.starting and path == START_UP
            if not own_call and not self._logged_in(headers):
                refusal = (401, "Log in first.")
        if refusal is None:
            await self._pass_on(scope, headers, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        elif refusal[0] == 401 and path == PAGE and scope["method"] in ("GET", "HEAD"):
            # Relative, so that it holds behind a proxy that serves us below a path.
            await self._answer(send, 303, "", [("location", "login")])
        else:
            await self._answer(send, refusal[0], json.dumps({"detail": refusal[1]}), _JSON)

    # Who may call

    def _listed(self, host: str) -> bool:
        return any(fnmatchcase(host, pattern) for pattern in self._hosts)

    def _refuse_host(self, headers: dict[str, str]) -> tuple[int, str] | None:
        host = host_name(headers.get("host", ""))
        if not host:
            return 400, "The request names no Host."
        if is_loopback(host) or self._listed(host) or (self._account is not None and not self._hosts):
            return None
        return 400, f"Host {host} is not served. Start with --allowed_hosts {host} to serve it, with a password."

    def _refuse_origin(self, headers: dict[str, str]) -> tuple[int, str] | None:
        origin = headers.get("origin")
        if origin is None:
            return None
        scheme, _, authority = origin.lower().partition("://")
        if scheme in _PORTS:
            own = headers["host"].strip().lower().removesuffix(_PORTS[scheme])
            if authority.removesuffix(_PORTS[scheme]) == own or self._listed(host_name(authority)):
                return None
        return 403, "This page may not call LoRA Loom. Start with --allowed_hosts and its name if it should."

    # Login

    def _token(self, headers: dict[str, str]) -> str:
        for part in headers.get("cookie", "").split(";"):
            name, _, value = part.strip().partition("=")
            if name == self._cookie:
                return value
        return ""

    def _logged_in(self, headers: dict[str, str]) -> bool:
        return self._sessions.get(self._token(headers), 0.0) > time.time()

    async def _log_in_or_out(self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send) -> None:
        home = [("location", "./")]
        if scope["path"].startswith("/logout"):
            self._sessions.pop(self._token(headers), None)
            await self._answer(send, 303, "", [("location", "login"), self._set_cookie(scope, headers, "", 0)])
        elif scope["method"] == "POST":
            await self._log_in(scope, headers, receive, send)
        elif scope["method"] not in ("GET", "HEAD"):
            await self._answer(send, 405, "", [("allow", "GET, POST")])
        elif self._logged_in(headers):
            await self._answer(send, 303, "", home)
        else:
            await self._answer(send, 200, _login_page(""), _HTML)

    async def _log_in(self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send) -> None:
        page = "text/html" in headers.get("accept", "")
        caller = (scope.get("client") or ("",))[0]
        form = parse_qs((await _read_body(receive)).decode("utf-8", "replace"), keep_blank_values=True)
        username, password = form.get("username", [""])[0].strip(), form.get("password", [""])[0]
        assert self._account is not None
        if self._throttled(caller):
            status, text = 429, "Too many wrong passwords. Wait a minute."
        elif self._account.matches(username, password):
            token = secrets.token_urlsafe(32)
            now = time.time()
            self._sessions = {known: end for known, end in self._sessions.items() if end > now}
            self._sessions[token] = now + SESSION_SECONDS
            cookie = self._set_cookie(scope, headers, token, SESSION_SECONDS)
            if page:
                await self._answer(send, 303, "", [("location", "./"), cookie])
            else:
                await self._answer(send, 200, '{"success":true}', [*_JSON, cookie])
            return
        else:
            self._failures.setdefault(caller, deque(maxlen=FAILURES)).append(time.monotonic())
            status, text = 400, "Wrong name or password."
        if page:
            await self._answer(send, status, _login_page(text), _HTML)
        else:
            await self._answer(send, status, json.dumps({"detail": text}), _JSON)

    def _throttled(self, caller: str) -> bool:
        start = time.monotonic() - FAILURE_SECONDS
        self._failures = {name: times for name, times in self._failures.items() if times[-1] > start}
        recent = {name: sum(moment > start for moment in times) for name, times in self._failures.items()}
        # A caller's address means little: behind a proxy all have one, and one with many addresses could go on forever.
        return recent.get(caller, 0) >= FAILURES or sum(recent.values()) >= ALL_FAILURES

    def _set_cookie(self, scope: Scope, headers: dict[str, str], token: str, seconds: int) -> tuple[str, str]:
        encrypted = "https" in (scope.get("scheme"), headers.get("x-forwarded-proto", "").split(",")[0].strip())
        secure = "; Secure" if encrypted else ""
        return "set-cookie", f"{self._cookie}={token}; Max-Age={seconds}; Path=/; HttpOnly; SameSite=Lax{secure}"

    # Answers

    async def _answer(self, send: Send, status: int, text: str, headers: list[tuple[str, str]]) -> None:
        body = text.encode()
        fixed = [("content-length", str(len(body))), ("cache-control", "no-store"), *self._safety(self._policy(()))]
        raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in [*headers, *fixed]]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body})

    def _policy(self, hashes: tuple[str, ...]) -> str:
        """The content policy of a page whose inline scripts have these hashes.

        Gradio evaluates the `js=` of events and Vega its expressions, hence 'unsafe-eval'. Inline scripts and handlers
        that somebody smuggled in through a name or a caption do not run, and nothing can be sent to another host.
        """
        assets = f" {SHARE_ASSETS}" if self._share else ""
        scripts = " ".join(f"'sha256-{digest}'" for digest in hashes)
        return "; ".join(
            (
                f"default-src 'self'{assets}",
                f"script-src 'self' 'unsafe-eval' {scripts}{assets}".rstrip(),
                f"style-src 'self' 'unsafe-inline'{assets}",
                f"img-src 'self' data: blob:{assets}",
                f"font-src 'self' data:{assets}",
                "media-src 'self' data: blob:",
                f"connect-src 'self' data: blob:{assets}",
                "worker-src 'self' blob:",
                "object-src 'none'",
                "base-uri 'self'",
                "form-action 'self'",
                "frame-ancestors 'self'",
            )
        )

    def _safety(self, policy: str) -> list[tuple[str, str]]:
        return [
            ("content-security-policy", policy),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
        ]

    async def _pass_on(self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send) -> None:
        assert self.app is not None
        if scope["type"] == "websocket":
            await self.app(scope, receive, send)
            return
        path = route_path(scope)
        is_file = any(part in path for part in FILES)
        # Of the page alone are the inline scripts ours; no other answer, however it is reached, has its own let run.
        page = path == PAGE and "text/html" in headers.get("accept", "")
        if page:
            # A page is read here, so it must not arrive compressed.
            scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != b"accept-encoding"]}
        held: list[Message] = []

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                kind = _header(message, b"content-type")
                if page and kind.startswith("text/html"):
                    held.append(message)
                    return
                added = self._safety(FILE_POLICY if is_file else self._policy(()))
                if is_file and not INLINE.match(kind):
                    named = _header(message, b"content-disposition").partition(";")[2]
                    added.append(("content-disposition", f"attachment;{named}" if named else "attachment"))
                message = _with_headers(message, added)
            elif held and message["type"] == "http.response.body":
                held.append(message)
                if not message.get("more_body"):
                    await self._send_page(held, "gzip" in headers.get("accept-encoding", ""), send)
                return
            await send(message)

        await self.app(scope, receive, send_on)

    async def _send_page(self, held: list[Message], compress: bool, send: Send) -> None:
        start = held[0]
        body = b"".join(part.get("body", b"") for part in held[1:])
        added = self._safety(self._policy(_script_hashes(body)))
        if compress:
            body = gzip.compress(body, 6, mtime=0)
            added += [("content-encoding", "gzip"), ("vary", "accept-encoding")]
        # The page holds the workspace's names and, by its hashes, belongs to this one answer.
        added += [("content-length", str(len(body))), ("cache-control", "no-store")]
        await send(_with_headers(start, added))
        await send({"type": "http.response.body", "body": body})


def _script_hashes(page: bytes) -> tuple[str, ...]:
    texts = [match["text"] for match in _SCRIPT.finditer(page) if b"src=" not in match["attributes"].lower()]
    return tuple(base64.b64encode(hashlib.sha256(text).digest()).decode() for text in texts)


def _header(message: Message, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in message["headers"] if key.lower() == name), "")


def _with_headers(message: Message, added: list[tuple[str, str]]) -> Message:
    new = {name.encode(): value.encode("latin-1") for name, value in added}
    kept = [(key, value) for key, value in message["headers"] if key.lower() not in new]
    return {**message, "headers": [*kept, *new.items()]}


async def _read_body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b""
        body += message.get("body", b"")
        if len(body) > _FORM_BYTES:
            return b""
        if not message.get("more_body"):
            return body


def _login_page(message: str) -> str:
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>LoRA Loom: log in</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ display: grid; place-items: center; min-height: 90vh; margin: 0; }}
form {{ display: grid; gap: .75rem; width: min(20rem, 90vw); }}
h1 {{ font-size: 1.4rem; margin: 0; }}
label {{ display: grid; gap: .2rem; font-size: .9rem; }}
input, button {{ font: inherit; padding: .5rem .6rem; border-radius: .4rem; border: 1px solid #8888; }}
button {{ background: #4f46e5; color: #fff; border: 0; cursor: pointer; }}
p {{ margin: 0; min-height: 1.5em; color: #d33; }}
</style>
</head>
<body>
<form method="post">
<h1>LoRA Loom</h1>
<label>Username<input name="username" autocomplete="username" autofocus required></label>
<label>Password<input name="password" type="password" autocomplete="current-password" required></label>
<button>Log in</button>
<p role="alert">{escape(message)}</p>
</form>
</body>
</html>
"""
