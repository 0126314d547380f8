"""Clients that bring nothing or take nothing, at a server of uvicorn's two protocols."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from backend import connections
from backend.connections import hurried
from tests.serving.client import run

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def app(scope, receive, send) -> None:
    """Answers at once, with much where it is asked for much; an answer that takes its time is one too."""
    size = 50_000_000 if scope["path"] == "/much" else 2
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
    if scope["path"] == "/later":
        await asyncio.sleep(0.6)
    await send({"type": "http.response.body", "body": b"x" * size})


@contextlib.asynccontextmanager
async def served(protocol) -> AsyncIterator[int]:
    """The port of a server whose connections have a class."""
    config = uvicorn.Config(app, port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    config.load()
    config.http_protocol_class = protocol
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.force_exit = True
        await server.shutdown()


def talk(conversation, protocol=H11Protocol) -> None:
    async def held() -> None:
        async with served(hurried(protocol)) as port:
            await conversation(port)

    run(held())


@pytest.fixture(params=["h11", "httptools"])
def protocol(request):
    if request.param == "h11":
        return H11Protocol
    return pytest.importorskip("uvicorn.protocols.http.httptools_impl").HttpToolsProtocol


@pytest.fixture
def soon(monkeypatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(connections, "TAKE_SECONDS", 0.2)


@pytest.mark.parametrize("begin", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_a_head_that_does_not_come_is_not_waited_for(soon, protocol, begin) -> None:
    async def conversation(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(begin)
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"a" if begin.endswith(b"X: ") else b"")
                with contextlib.suppress(TimeoutError):
                    assert await asyncio.wait_for(reader.read(100), 0.05) == b""
                    break
        writer.close()

    talk(lambda port: asyncio.wait_for(conversation(port), 20), protocol)


def test_neither_is_the_head_of_a_second_request(soon, protocol) -> None:
    async def conversation(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(REQUEST)
            assert (await reader.readuntil(b"xx")).startswith(b"HTTP/1.1 200")
        writer.write(REQUEST[:20])
        with contextlib.suppress(ConnectionError):
            assert await reader.read(100) == b""
        writer.close()

    talk(lambda port: asyncio.wait_for(conversation(port), 20), protocol)


def test_an_answer_may_take_its_time(soon, protocol) -> None:
    async def conversation(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST.replace(b"/ ", b"/later "))
        assert (await reader.readuntil(b"xx")).startswith(b"HTTP/1.1 200")
        writer.close()

    talk(conversation, protocol)


def test_an_answer_that_is_not_taken_is_not_kept(soon, protocol) -> None:
    async def conversation(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(REQUEST.replace(b"/ ", b"/much "))
        await asyncio.sleep(1.0)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(40_000_000)
        writer.close()

    talk(lambda port: asyncio.wait_for(conversation(port), 30), protocol)
