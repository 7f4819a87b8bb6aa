"""``Client`` waits for answers and ``AsyncClient`` is awaited: both perform the operations of ``calls.py``."""

from __future__ import annotations

import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from functools import wraps
from types import TracebackType
from typing import Any, ClassVar, Generic, ParamSpec, Protocol, Self, TypeVar, cast, overload

import httpx2

from .. import __version__
from ..core.environment import api_key, server_url
from ..core.errors import LLMasOSError, RemoteError, UsageError
from . import calls
from .answers import Answer, Classification, Model, Prediction, Tagged, Verified, Written
from .calls import Answered, Call, Row, Writing
from .faults import Tries, refusal
from .streams import AsyncStream, Stream
from .verifying import Steps, verifying

P = ParamSpec("P")
T = TypeVar("T")

CONNECT = 10.0
"""Seconds in which a server must take a connection, where a call has more."""
_LIMITS = httpx2.Limits(max_connections=256, max_keepalive_connections=256, keepalive_expiry=30)


# -- operations as methods of both ----------------------------------------------------------------------


class Operation(Generic[P, T]):
    """A method made of what describes an operation: of ``Client`` it returns the answer, else it is awaited."""

    def __init__(self, describe: Callable[P, Call[T]]) -> None:
        self._describe, self.__doc__ = describe, describe.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, client: _Operations | None, owner: type) -> Any:
        if client is None:
            return self

        @wraps(self._describe)
        def ask(*args: P.args, **options: P.kwargs) -> Any:
            return client._done(self._describe(*args, **options))

        return ask


class _Asks(Protocol[T]):
    @overload  # a text is a sequence of texts, too
    def __call__(  # type: ignore[overload-overlap]
        self, inputs: Row, *, model: str | None = None, truncate: bool = False,
        max_new_tokens: int | None = None, timeout: float | None = None,
    ) -> T: ...  # fmt: skip
    @overload
    def __call__(
        self, inputs: Sequence[Row], *, model: str | None = None, truncate: bool = False,
        max_new_tokens: int | None = None, timeout: float | None = None,
    ) -> list[T]: ...  # fmt: skip


class _AsksAsync(Protocol[T]):
    @overload  # a text is a sequence of texts, too
    def __call__(  # type: ignore[overload-overlap]
        self, inputs: Row, *, model: str | None = None, truncate: bool = False,
        max_new_tokens: int | None = None, timeout: float | None = None,
    ) -> Awaitable[T]: ...  # fmt: skip
    @overload
    def __call__(
        self, inputs: Sequence[Row], *, model: str | None = None, truncate: bool = False,
        max_new_tokens: int | None = None, timeout: float | None = None,
    ) -> Awaitable[list[T]]: ...  # fmt: skip


class TaskOperation(Generic[T]):
    """An operation on a text or a row, which gives one answer, or on a list, which gives a list."""

    def __init__(self, describe: Callable[..., Call[Any]]) -> None:
        self._operation, self.__doc__ = Operation(describe), describe.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Client, owner: type) -> _Asks[T]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> _AsksAsync[T]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        return self if client is None else self._operation.__get__(client, owner)


class Streaming(Generic[P]):
    """A method made of what describes a text that is written: it returns the stream of it."""

    def __init__(self, describe: Callable[P, Writing]) -> None:
        self._describe, self.__doc__ = describe, describe.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, Stream]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, AsyncStream]: ...
    def __get__(self, client: _Operations | None, owner: type) -> Any:
        if client is None:
            return self

        @wraps(self._describe)
        def ask(*args: P.args, **options: P.kwargs) -> Any:
            return client._streamed(self._describe(*args, **options).as_stream())

        return ask


class _Operations(ABC):
    """What both clients can be asked, and what they know."""

    _http: Any
    _connects: ClassVar[Callable[..., Any]]

    models = Operation(calls.models)
    model = Operation(calls.model)
    health = Operation(calls.health)
    metrics = Operation(calls.metrics)
    classify = TaskOperation[Classification](calls.classify)
    tag = TaskOperation[Tagged](calls.tag)
    answer = TaskOperation[Answer](calls.answer)
    translate = TaskOperation[Written](calls.translate)
    summarize = TaskOperation[Written](calls.summarize)
    predict = TaskOperation[Prediction](calls.predict)
    golden = Operation(calls.golden)
    similarity = Operation(calls.similarity)
    rerank = Operation(calls.rerank)
    embed = Operation(calls.embed)
    chat = Operation(calls.chat)
    complete = Operation(calls.complete)
    respond = Operation(calls.respond)
    stream = Streaming(calls.chat)
    stream_completion = Streaming(calls.complete)
    stream_response = Streaming(calls.respond)

    def __init__(
        self, url: str | None = None, *, key: str | None = None, timeout: float = 60.0, retries: int = 2,
        model: str | None = None,
    ) -> None:  # fmt: skip
        self.url = (url or server_url()).rstrip("/").removesuffix("/v1").rstrip("/")
        self._headers = {"Accept": "*/*", "Content-Type": "application/json", "User-Agent": f"llmasos/{__version__}"}
        if secret := api_key() if key is None else key:
            if not (secret.isascii() and secret.isprintable()):  # the error of a header would show it
                raise UsageError("key=... is no key", hint="printable characters of ASCII, such as lm-...")
            self._headers["Authorization"] = f"Bearer {secret}"
        try:
            known = httpx2.URL(self.url)
        except httpx2.InvalidURL as error:
            raise UsageError(f"{self.url} is no address of a server", hint="http://127.0.0.1:8000") from error
        if known.scheme not in ("http", "https") or not known.host or (known.port or 0) >= 1 << 16:
            raise UsageError(f"{self.url} is no address of a server", hint="http://127.0.0.1:8000")
        if not timeout > 0 or retries < 0:
            raise UsageError(f"timeout={timeout!r}, retries={retries!r}", hint="timeout=60.0, retries=2")
        self._timeout, self._retries, self._model = timeout, retries, model
        self._verified: dict[tuple[str, str], Verified] = {}
        self._http = self._connects(**_options(self.url))

    @property
    def headers(self) -> dict[str, str]:
        """What each request carries: the key, where there is one, among it."""
        return dict(self._headers)

    def _tries(self, call: Call[T]) -> Tries[T]:
        if self._http.is_closed:
            raise UsageError("this client is closed", hint="make another one")
        return Tries(call, self.url, call.timeout or self._timeout, self._retries)

    def _verifying(self, model: str | None, timeout: float | None) -> Steps:
        return verifying(self.url, model or self._model, timeout, self._verified)

    def _lacks_a_name(self, call: Call[Any]) -> bool:
        """Say whether a model must be found first: other servers have no default one."""
        return call.of_openai and call.model is None and self._model is None

    def _found(self, models: list[Model]) -> None:
        if not models:
            raise RemoteError(f"{self.url} has no models", hint="model=...")
        self._model = models[0].id

    def _request(self, call: Call[Any], left: float) -> httpx2.Request:
        """Return what is sent; a stream may take the whole time between two of its parts."""
        wait = (call.timeout or self._timeout) if call.streams else left
        timeout = httpx2.Timeout(wait, connect=min(left, CONNECT)).as_dict()
        content = call.content(call.model or self._model)
        return httpx2.Request(call.method, self.url + call.path, headers=self._headers, content=content,
                              extensions={"timeout": timeout})  # fmt: skip

    @abstractmethod
    def _done(self, call: Call[Any]) -> Any:
        """Perform a call."""

    @abstractmethod
    def _streamed(self, call: Writing) -> Any:
        """Return the stream of a call."""


def _options(url: str) -> dict[str, Any]:
    """Return how httpx connects to an address."""
    if url.startswith("https:"):
        return {"limits": _LIMITS}
    trusts_nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # and is made without reading the machine's certificates
    return {"limits": _LIMITS, "verify": trusts_nobody}


_FAULTS = (httpx2.RequestError, LLMasOSError)


class Client(_Operations):
    """A client that waits for each answer; threads may share it.

    Args:
        url: of the server, with or without ``/v1``; ``LLMASOS_URL`` if not given, else port 8000 of this machine.
        key: what it asks for, if it does; ``LLMASOS_API_KEY`` if not given.
        timeout: seconds that a call may take, tries included; of a stream, those to its beginning and between two
            pieces.
        retries: how often a request is sent again, where that does no harm (see ``faults.py``).
        model: who is asked where a call names nobody; the server's first if not given.

    Raises:
        UsageError: the address or the key is none.

    Example:
        >>> with Client("http://127.0.0.1:8000") as client:
        ...     client.classify("I love this!").label
    """

    _http: httpx2.Client
    _connects = httpx2.Client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def _done(self, call: Call[T]) -> T:
        def whole(response: httpx2.Response, tries: Tries[T]) -> T:
            with closing(response):
                content = b"".join(part for part in response.iter_bytes() if tries.left())
            return tries.read(Answered(response.status_code, response.headers, content))

        return self._tried(call, whole)

    def verify(self, model: str | None = None, *, timeout: float | None = None) -> Verified:
        """Compare what a model answers to its golden rows with what it did when it was saved, once for each version.

        Raises:
            ParityError: it answers otherwise: the worst row.
            UsageError: it has no golden rows.
        """
        steps, answer = self._verifying(model, timeout), None
        try:
            while True:
                answer = self._done(steps.send(answer))
        except StopIteration as end:
            return cast(Verified, end.value)

    def _streamed(self, call: Writing) -> Stream:
        return Stream(self, call)

    @contextmanager
    def _opened(self, call: Writing) -> Generator[httpx2.Response]:
        """Open a stream."""

        def begun(response: httpx2.Response, _: Tries[Any]) -> httpx2.Response:
            if response.status_code == 200:
                return response
            with closing(response):
                answered = Answered(response.status_code, response.headers, response.read())
            raise refusal(answered, self.url)

        with closing(self._tried(call, begun)) as response:
            yield response

    def _tried(self, call: Call[Any], take: Callable[[httpx2.Response, Tries[Any]], T]) -> T:
        """Send a call until ``take`` has what it wants of the answer."""
        if self._lacks_a_name(call):
            self._found(self._done(calls.models(timeout=call.timeout)))
        tries = self._tries(call)
        while True:
            try:
                return take(self._http.send(self._request(call, tries.left()), stream=True), tries)
            except _FAULTS as error:
                time.sleep(tries.pause(error))


class AsyncClient(_Operations):
    """As ``Client``, with every answer awaited; arguments and errors are the same."""

    _http: httpx2.AsyncClient
    _connects = httpx2.AsyncClient

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def _done(self, call: Call[T]) -> T:
        async def whole(response: httpx2.Response, tries: Tries[T]) -> T:
            async with aclosing(response):
                content = b"".join([part async for part in response.aiter_bytes() if tries.left()])
            return tries.read(Answered(response.status_code, response.headers, content))

        return await self._tried(call, whole)

    async def verify(self, model: str | None = None, *, timeout: float | None = None) -> Verified:
        """Compare a model with what it was, as ``Client.verify`` does."""
        steps, answer = self._verifying(model, timeout), None
        try:
            while True:
                answer = await self._done(steps.send(answer))
        except StopIteration as end:
            return cast(Verified, end.value)

    def _streamed(self, call: Writing) -> AsyncStream:
        return AsyncStream(self, call)

    @asynccontextmanager
    async def _opened(self, call: Writing) -> AsyncGenerator[httpx2.Response]:
        """Open a stream."""

        async def begun(response: httpx2.Response, _: Tries[Any]) -> httpx2.Response:
            if response.status_code == 200:
                return response
            async with aclosing(response):
                answered = Answered(response.status_code, response.headers, await response.aread())
            raise refusal(answered, self.url)

        async with aclosing(await self._tried(call, begun)) as response:
            yield response

    async def _tried(self, call: Call[Any], take: Callable[[httpx2.Response, Tries[Any]], Awaitable[T]]) -> T:
        """Send a call until ``take`` has what it wants of the answer."""
        if self._lacks_a_name(call):
            self._found(await self._done(calls.models(timeout=call.timeout)))
        from asyncio import sleep  # a fifth of what it takes to import this file, and of no use to who waits

        tries = self._tries(call)
        while True:
            try:
                return await take(await self._http.send(self._request(call, tries.left()), stream=True), tries)
            except _FAULTS as error:
                await sleep(tries.pause(error))
