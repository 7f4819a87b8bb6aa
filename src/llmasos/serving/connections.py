"""Connections that do not wait for ever: a client has so many seconds and bytes for the head of a request.

Uvicorn limits how long a connection may rest between requests, and nothing else; clients that send a letter now and
then, or headers without end, could hold all that there are.

Nor does a connection end in the face of a request: when the server stops, each that is there may send one more, and is
told with its answer that it was the last.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD = 64 << 10
"""Bytes that the head of a request may have."""


class Patient(HttpToolsProtocol):
    """A connection that is closed when a request has not come to the end of its head in time, or in ``HEAD`` bytes."""

    seconds = 15.0
    ends = False
    """Whether the next answer is the last."""
    _head: asyncio.TimerHandle | None = None
    _in_head, _read = True, 0

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take what has come; a head that has begun is waited for."""
        cycle, in_head = self.cycle, self._in_head
        super().data_received(data)
        if self.cycle is not cycle:
            self._stop()
        elif self._between:
            self._wait()
        self._read = self._read + len(data) if in_head and self._in_head and self.cycle is cycle else 0
        if self._read > HEAD and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def on_headers_complete(self) -> None:
        """Begin a request; what is raised here is answered with a 400."""
        if sum(len(name) + len(value) + 4 for name, value in self.headers) + len(self.url) > HEAD:
            raise ValueError
        self._in_head = False
        self.scope["state"]["ends"] = self.ends
        super().on_headers_complete()
        if self.ends and self.cycle is not None:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """Expect the next head."""
        self._in_head = True
        super().on_message_complete()

    @property
    def rests(self) -> bool:
        """Whether nothing is asked by it just now."""
        return self._in_head and self._between

    def end(self) -> None:
        """Let the answer that is due be the last, or, where it has begun or none is due, the next one."""
        self.ends = True
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False
            self.cycle.scope["state"]["ends"] = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop()
        super().connection_lost(exc)

    @property
    def _between(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(self.seconds, self._over)

    def _stop(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _over(self) -> None:
        self._head = None
        if self._between and not self.transport.is_closing():
            self.transport.close()
