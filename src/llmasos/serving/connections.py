"""Connections that do not wait for ever: a client has so many seconds for the head of a request.

Uvicorn limits how long a connection may rest between requests, and nothing else; clients that send a letter now and
then could hold all that there are.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class Patient(H11Protocol):
    """A connection that is closed when a request has not come to the end of its head in time."""

    seconds = 15.0
    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take what has come; a head that has begun is waited for."""
        cycle = self.cycle
        super().data_received(data)
        if self.cycle is not cycle:
            self._stop()
        elif self._between:
            self._wait()

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
