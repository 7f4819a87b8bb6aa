"""Answers that come piece by piece."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

import httpx2

from .answers import Reply
from .calls import Writing
from .writing import Growing, Piece

if TYPE_CHECKING:
    from .clients import AsyncClient, Client

LARGEST_EVENT = 16 << 20
"""Bytes of an event: a response's last one holds the whole answer."""


class _Streamed:
    """What both kinds of stream have: the answer as far as it has come."""

    def __init__(self, call: Writing) -> None:
        self._growing = call.grows()

    @property
    def text(self) -> str:
        """What has come of the first answer."""
        return self._growing.text

    @property
    def reply(self) -> Reply:
        """The whole answer, with the tools that it calls and what was counted.

        Raises:
            UsageError: it has not ended.
        """
        return self._growing.reply()


@contextmanager
def _whole(growing: Growing, response: httpx2.Response) -> Iterator[None]:
    """Say of what ends too early that it broke off."""
    growing.request_id = response.headers.get("x-request-id")
    try:
        yield
    except httpx2.TransportError as error:
        if not growing.ended:
            raise growing.broken(str(error) or type(error).__name__) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise growing.broken(f"an event makes no sense ({error!r})") from error
    if not growing.ended:
        raise growing.broken("the server ended it")


# Functions, for as methods they would keep their streams alive: one that nobody has any more is closed at once.


def _read(client: Client, call: Writing, growing: Growing) -> Generator[Piece]:
    with client._opened(call) as response, _whole(growing, response):
        for event in httpx2.EventSource(response, max_event_size=LARGEST_EVENT):
            yield from growing.take(event.data)


async def _read_async(client: AsyncClient, call: Writing, growing: Growing) -> AsyncGenerator[Piece]:
    async with client._opened(call) as response:
        with _whole(growing, response):
            async for event in httpx2.EventSource(response, max_event_size=LARGEST_EVENT):
                for piece in growing.take(event.data):
                    yield piece


class Stream(_Streamed):
    """An answer that is written: go through its pieces, texts that know their answer (``piece.choice``).

    Nothing is asked before the first piece is wanted. Closing it, or leaving its ``with`` block, ends the work at the
    server.

    Example:
        >>> with client.stream("Hello") as stream:
        ...     for piece in stream:
        ...         print(piece, end="")
        >>> stream.reply.usage
    """

    def __init__(self, client: Client, call: Writing) -> None:
        super().__init__(call)
        self._pieces = _read(client, call, self._growing)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it, here and at the server."""
        self._pieces.close()


class AsyncStream(_Streamed):
    """As ``Stream``, with ``async with`` and ``async for``."""

    def __init__(self, client: AsyncClient, call: Writing) -> None:
        super().__init__(call)
        self._pieces = _read_async(client, call, self._growing)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        return await anext(self._pieces)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End it, here and at the server."""
        await self._pieces.aclose()
