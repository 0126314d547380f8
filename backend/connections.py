"""Connections of the web server that bring nothing, or take nothing, are dropped."""

import asyncio
from typing import Any

# So long a client may take for the head of a request, and so long it may leave an answer lying that fills its line.
HEAD_SECONDS, TAKE_SECONDS = 20.0, 120.0


def hurried(protocol: type[Any]) -> type[Any]:
    """uvicorn's protocol of a connection, with these limits.

    Args:
        protocol: `uvicorn.protocols.http`'s class for h11 or httptools.
    """

    class Hurried(protocol):  # type: ignore[misc]
        """Drops a connection whose client is too slow."""

        _head: asyncio.TimerHandle | None = None
        _take: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._head = self.loop.call_later(HEAD_SECONDS, self._drop_slow_head)

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:
                self._cancel_head()
            elif self._head is None and (self.cycle is None or self.cycle.response_complete):
                # Between two requests uvicorn looks after the connection itself until the next byte comes.
                self._head = self.loop.call_later(HEAD_SECONDS, self._drop_slow_head)

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel_head()
            self._cancel_take()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._cancel_take()
            self._take = self.loop.call_later(TAKE_SECONDS, self.transport.abort)

        def resume_writing(self) -> None:
            self._cancel_take()
            super().resume_writing()

        def _drop_slow_head(self) -> None:
            # One that has become a WebSocket is another protocol's.
            if self.transport.get_protocol() is self:
                self.transport.abort()

        def _cancel_head(self) -> None:
            if self._head is not None:
                self._head.cancel()
                self._head = None

        def _cancel_take(self) -> None:
            if self._take is not None:
                self._take.cancel()
                self._take = None

    return Hurried
