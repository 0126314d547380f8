"""The door of the web server: which Host is served, which Origin may call, who is logged in, what a browser may run.

An ASGI wrapper around the whole of Gradio's app, because Gradio itself checks no Host, accepts any Origin when it is
not on localhost, answers several routes without a login and serves files with whatever type they have.
"""

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from errno import EDQUOT, ENOSPC
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import ClientDisconnect

from backend.bodies import Body, Refusal, Uploads, refuse_plain
from backend.hosts import host_name, is_loopback
from backend.login_page import login_page
from backend.logins import DEVICE_SECONDS, SESSION_SECONDS, Account, Logins, Throttle, caller_of
from backend.policy import FILE_POLICY, content_policy, safety, script_hashes
from backend.sessions import EVERY_SECONDS, Sessions, session_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PAGE = "/"
START_UP = "/gradio_api/startup-events"
UPLOAD = "/gradio_api/upload"
# Wherever they stand in a path: no prefix makes a file anything else.
FILES = ("/gradio_api/file=", "/gradio_api/file/", "/gradio_api/stream/")
# Shown by a browser as what they are; everything else is only ever saved.
INLINE = re.compile(r"(image/(png|jpeg|webp|gif|avif|bmp)|audio/|video/|text/plain|application/json)")

_FORM_BYTES = 8192
_PORTS = {"http": ":80", "https": ":443"}
_HTML = [("content-type", "text/html; charset=utf-8")]
_JSON = [("content-type", "application/json")]


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
        folder: where logins outlive a restart; None forgets them.
        uploads: the folder that uploads are written to; without one there is no limit but a request's.
    """

    def __init__(
        self,
        account: Account | None = None,
        hosts: tuple[str, ...] = (),
        port: int = 7860,
        share: bool = False,
        folder: Path | None = None,
        uploads: Uploads | None = None,
    ) -> None:
        self.app: App | None = None
        self.starting = True
        self._account = account
        self._hosts = tuple(host.lower() for host in hosts)
        self._cookie, self._device = f"loraloom_{port}", f"loraloom_device_{port}"
        self._share = share
        self._logins = Logins(account, folder) if account is not None else None
        self._throttle = Throttle()
        self._uploads = uploads
        self._sessions: Sessions | None = None

    @asynccontextmanager
    async def install(self, app: Any) -> AsyncIterator[None]:
        """A lifespan for a Starlette app: from start-up on, every request comes through the guard first.

        Middleware that is handed to Gradio ends up inside its own, which answers preflight requests before anyone else.
        """
        self.app = app.middleware_stack
        app.middleware_stack = self
        if not hasattr(app, "state_holder"):
            yield
            return
        self._sessions = Sessions(app)
        task = asyncio.create_task(self._free_sessions(self._sessions))
        try:
            yield
        finally:
            task.cancel()

    async def _free_sessions(self, sessions: Sessions) -> None:
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            sessions.free()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path = route_path(scope)
        refusal = _refuse_doubled(scope) or self._refuse_host(headers) or self._refuse_origin(headers)
        if refusal is None and self._account is not None:
            if scope["type"] == "http" and path.rstrip("/") in ("/login", "/logout"):
                await self._log_in_or_out({**scope, "path": path}, headers, receive, send)
                return
            # Gradio asks itself this while it starts, and has no password; nobody else is answered then.
            own_call = self.starting and path == START_UP
            if not own_call and not self._logged_in(headers):
                refusal = (401, "Log in first.")
        if refusal is None:
            await self._take_in(scope, headers, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        elif refusal[0] == 401 and path == PAGE and scope["method"] in ("GET", "HEAD"):
            # Relative, so that it holds behind a proxy that serves us below a path.
            await self._answer(send, 303, "", [("location", "login")])
        else:
            await self._refuse(send, refusal)

    # What may come in

    async def _take_in(self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send) -> None:
        """Pass a request on whose body is not too large, and has come whole."""
        if scope["type"] == "websocket":
            await self._pass_on(scope, headers, receive, send)
            return
        uploads = self._uploads if scope["method"] == "POST" and route_path(scope).rstrip("/") == UPLOAD else None
        size = headers.get("content-length", "")
        announced = int(size) if size.isascii() and size.isdigit() and len(size) < 20 else 0
        refusal = refuse_plain(announced) if uploads is None else uploads.refuse(announced)
        if uploads is not None and refusal is None:
            refusal = await asyncio.to_thread(uploads.refuse_kept, announced)
        if refusal is not None:
            await self._refuse(send, refusal)
            return
        body = Body(receive, uploads)
        mark = uploads.begin() if uploads is not None else None
        session = session_of(route_path(scope)) if self._sessions is not None else None
        try:
            if self._sessions is not None and session is not None:
                self._sessions.opened(session)
            await self._pass_whole(scope, headers, body, send)
        finally:
            if self._sessions is not None and session is not None:
                self._sessions.closed(session)
            if uploads is not None and mark is not None:
                await asyncio.to_thread(uploads.end, mark)

    async def _pass_whole(self, scope: Scope, headers: dict[str, str], body: Body, send: Send) -> None:
        """Pass a request on; what the application says of a body that broke off is replaced by the reason."""
        begun = False
        held: list[Message] = []

        async def send_on(message: Message) -> None:
            nonlocal begun
            if body.refusal is not None and not begun:
                return
            # A failure is held back until it is known whether the disk was full.
            if held or (message["type"] == "http.response.start" and message["status"] == 500):
                held.append(message)
                return
            begun = True
            await send(message)

        refusal: Refusal | None = None
        try:
            await self._pass_on(scope, headers, body.receive, send_on)
        except ClientDisconnect:
            # Nobody is left to be told anything, or we have broken off ourselves.
            held.clear()
        except OSError as error:
            if error.errno not in (ENOSPC, EDQUOT):
                await _send_all(held, send)
                raise
            refusal = 507, "The disk of the workspace is full; delete old jobs or files."
            held.clear()
        except BaseException:
            await _send_all(held, send)
            raise
        refusal = body.refusal or refusal
        if refusal is not None and not begun:
            await self._refuse(send, refusal)
        else:
            await _send_all(held, send)

    async def _refuse(self, send: Send, refusal: Refusal) -> None:
        # What of the body is still on its way is not read.
        close = [("connection", "close")] if refusal[0] in (408, 413, 507) else []
        await self._answer(send, refusal[0], json.dumps({"detail": refusal[1]}), [*_JSON, *close])

    # Who may call

    def _listed(self, host: str) -> bool:
        return any(fnmatchcase(host, pattern) for pattern in self._hosts)

    def _refuse_host(self, headers: dict[str, str]) -> tuple[int, str] | None:
        host = host_name(headers.get("host", ""))
        if not host:
            return 400, "The request names no Host that is a name or an address."
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

    def _token(self, headers: dict[str, str], wanted: str) -> str:
        for part in headers.get("cookie", "").split(";"):
            name, _, value = part.strip().partition("=")
            if name == wanted:
                return value
        return ""

    def _logged_in(self, headers: dict[str, str]) -> bool:
        return self._logins is not None and self._logins.is_valid(self._token(headers, self._cookie))

    async def _log_in_or_out(self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send) -> None:
        home = [("location", "./")]
        if scope["path"].startswith("/logout"):
            if self._logins is not None:
                self._logins.end(self._token(headers, self._cookie))
            cookie = _set_cookie(scope, headers, self._cookie, "", 0)
            await self._answer(send, 303, "", [("location", "login"), cookie])
        elif scope["method"] == "POST":
            await self._log_in(scope, headers, receive, send)
        elif scope["method"] not in ("GET", "HEAD"):
            await self._answer(send, 405, "", [("allow", "GET, POST")])
        elif self._logged_in(headers):
            await self._answer(send, 303, "", home)
        else:
            await self._answer(send, 200, login_page(""), _HTML)

    async def _log_in(self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send) -> None:
        page = "text/html" in headers.get("accept", "")
        form = parse_qs((await _read_body(Body(receive, None).receive)).decode("utf-8", "replace"), True)
        username, password = form.get("username", [""])[0].strip(), form.get("password", [""])[0]
        assert self._account is not None and self._logins is not None
        caller = caller_of(scope.get("client"), headers, self._logins.device(self._token(headers, self._device)))
        if not self._throttle.hears(caller):
            status, text = 429, "Too many wrong passwords. Wait a minute."
        elif self._account.matches(username, password):
            given = ((self._cookie, self._logins.issue(), SESSION_SECONDS),)
            given += ((self._device, self._logins.issue_device(), DEVICE_SECONDS),)
            cookies = [_set_cookie(scope, headers, *cookie) for cookie in given]
            if page:
                await self._answer(send, 303, "", [("location", "./"), *cookies])
            else:
                await self._answer(send, 200, '{"success":true}', [*_JSON, *cookies])
            return
        else:
            self._throttle.failed(caller)
            status, text = 400, "Wrong name or password."
        if page:
            await self._answer(send, status, login_page(text), _HTML)
        else:
            await self._answer(send, status, json.dumps({"detail": text}), _JSON)

    # Answers

    async def _answer(self, send: Send, status: int, text: str, headers: list[tuple[str, str]]) -> None:
        body = text.encode()
        fixed = [("content-length", str(len(body))), ("cache-control", "no-store")]
        fixed += safety(content_policy((), self._share))
        raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in [*headers, *fixed]]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body})

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
                added = safety(FILE_POLICY if is_file else content_policy((), self._share))
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
        added = safety(content_policy(script_hashes(body), self._share))
        if compress:
            body = gzip.compress(body, 6, mtime=0)
            added += [("content-encoding", "gzip"), ("vary", "accept-encoding")]
        # The page holds the workspace's names and, by its hashes, belongs to this one answer.
        added += [("content-length", str(len(body))), ("cache-control", "no-store")]
        await send(_with_headers(start, added))
        await send({"type": "http.response.body", "body": body})


def _set_cookie(
    scope: Scope, headers: dict[str, str], name: str, token: str, seconds: int
) -> tuple[str, str]:
    encrypted = "https" in (scope.get("scheme"), headers.get("x-forwarded-proto", "").split(",")[0].strip())
    secure = "; Secure" if encrypted else ""
    return "set-cookie", f"{name}={token}; Max-Age={seconds}; Path=/; HttpOnly; SameSite=Lax{secure}"


def _refuse_doubled(scope: Scope) -> Refusal | None:
    """Of two Host or Origin headers somebody else may believe the other one."""
    names = [name.lower() for name, _ in scope["headers"]]
    if names.count(b"host") > 1 or names.count(b"origin") > 1:
        return 400, "The request names more than one Host or Origin."
    return None


async def _send_all(messages: list[Message], send: Send) -> None:
    for message in messages:
        await send(message)


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
