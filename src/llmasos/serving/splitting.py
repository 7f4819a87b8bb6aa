"""A share of the requests, handed on to a new version of the model; what that does not take is answered here.

Only what asks for work (POST) is handed on and counted; probes and pages are not. A request is handed on whole, so one
that is larger than may be read stays here.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..core.config import ServeConfig

TAKEN = 5.0
"""Seconds in which the new version must have taken a request; then it is as if it had failed."""
READING = 64
"""Requests that are read at once to be handed on, before anybody has looked at their keys; all others stay here."""
PARTS = ("type", "asgi", "http_version", "server", "client", "scheme", "method", "path", "query_string", "headers",
         "root_path", "app_root_path")  # fmt: skip
"""What of a request is handed on besides its body."""

Hand = Callable[[Mapping[str, Any], bytes], AsyncIterator[Any]]
"""Hands a request on: yields anything when it is taken, then the messages of the answer."""
Count = Callable[[str, bool], Any]
"""Told of each request which version was sent it, ``old`` or ``new``, and whether that failed."""


class Split:
    """Splits the requests of an application; the outermost middleware.

    Args:
        config: bounds of what is read.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._app: ASGIApp | None = None
        self._share, self._reading = 0.0, 0
        self._hand: Hand | None = None
        self._count: Count | None = None

    def before(self, app: ASGIApp) -> ASGIApp:
        """Stand before what answers here."""
        self._app = app
        return self

    def to(self, share: float, hand: Hand | None, count: Count | None) -> None:
        """Hand a share of the requests on from now, and count all; without ``count`` they are left alone."""
        self._share, self._hand, self._count = share, hand, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        app, hand, count = self._app, self._hand, self._count
        assert app is not None
        scope = _below(scope)
        if count is None or scope.get("method") != "POST":
            await app(scope, receive, send)
            return
        seen = _Seen(send)
        if hand is not None and self._reading < READING and random.random() < self._share:
            self._reading += 1
            try:
                read = await self._read(receive)
            finally:
                self._reading -= 1
            if _is_whole(read) and await _handed(hand(_parts(scope), _body(read)), seen, count):
                return
            receive = _again(read, receive)
        try:
            await app(scope, receive, seen)
        except Exception:
            count("old", True)
            raise
        count("old", seen.failed)

    async def _read(self, receive: Receive) -> list[Message]:
        """Read a request, as much as may be read and as long."""
        read, size = list[Message](), 0
        with suppress(TimeoutError):
            async with asyncio.timeout(self._config.read_timeout):
                while size <= self._config.max_body and not _is_over(read):
                    read.append(await receive())
                    size += len(read[-1].get("body", b""))
        return read


async def _handed(parts: AsyncIterator[Any], seen: _Seen, count: Count) -> bool:
    """Hand a request on; say whether it was answered, which it may not be twice."""
    try:
        async with asyncio.timeout(TAKEN):
            await anext(parts)
        async for message in parts:
            await seen(message)
    except Exception:
        count("new", True)
        if seen.status:
            raise  # the client sees that the answer breaks off
        return False
    count("new", seen.failed)
    return bool(seen.status)


class _Seen:
    """Sends an answer, and knows what it is."""

    def __init__(self, send: Send) -> None:
        self._send, self.status = send, 0

    async def __call__(self, message: Message) -> None:
        """Send a part."""
        self.status = message.get("status", self.status)
        await self._send(message)

    @property
    def failed(self) -> bool:
        """Whether the server was at fault."""
        return not 0 < self.status < 500


def _below(scope: Scope) -> Scope:
    """Return a request as it is without the path that this application is mounted at."""
    root = scope.get("root_path", "").rstrip("/")
    if not root or not scope.get("path", "").startswith(f"{root}/"):
        return scope
    return {**scope, "path": scope["path"][len(root) :], "root_path": "", "app_root_path": root}


def _parts(scope: Scope) -> dict[str, Any]:
    return {name: scope[name] for name in PARTS if name in scope}


def _is_over(read: Sequence[Message]) -> bool:
    """Say whether nothing comes any more, also since the client has left."""
    return bool(read) and not read[-1].get("more_body", False)


def _is_whole(read: Sequence[Message]) -> bool:
    return _is_over(read) and read[-1]["type"] == "http.request"


def _body(read: Sequence[Message]) -> bytes:
    return b"".join(message.get("body", b"") for message in read)


def _again(read: Sequence[Message], receive: Receive) -> Receive:
    """Return what reads a request once more from its begin."""
    first = iter(read)

    async def some() -> Message:
        for message in first:
            return message
        return await receive()

    return some
