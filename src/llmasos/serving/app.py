"""The server: one application of all wire formats, guarded, watched, and stopped without losing an answer.

Everything that holds for every request stands here: who may ask, how large a request may be, how an error becomes a
status, and what happens when the server is told to stop. What is asked and answered is the protocols'.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import json
import logging
import re
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..core import plugins
from ..core.config import ServeConfig
from ..core.errors import (
    BundleError,
    BusyError,
    DataError,
    LLMasOSError,
    OverdueError,
    ParityError,
    RemoteError,
    TooLongError,
    UnavailableError,
    UsageError,
)
from ..protocols.base import Failure, Protocol, Refused
from .connections import Patient
from .desk import PATIENCE, Desk, GoneError, UnknownModelError
from .expected import NoGoldenError
from .guard import Entry, Guard
from .meter import LimitError
from .metrics import Metrics
from .pages import SAFE, routes_page
from .start import contract_of
from .watching import Watch


def application(desk: Desk, guard: Guard, *, version: str, watch: Watch | None = None) -> FastAPI:
    """Return the application of a desk, with the routes of every protocol."""
    watch = watch or Watch(Metrics(desk, version, PATIENCE))
    protocols: list[Protocol] = [plugins.load("protocols", name) for name in plugins.names("protocols")]
    app = FastAPI(title="LLMasOS", version=version, lifespan=_lifespan(desk), docs_url=None, redoc_url=None,
                  telemetry={"tracing": False, "metrics": False, "logs": False})  # fmt: skip
    app.state.desk = desk
    for protocol in sorted(protocols, key=_often, reverse=True):  # a path is compared with one route after the other
        app.include_router(protocol.routes(desk))
    _health(app, desk)
    _metrics(app, watch.metrics)
    _docs(app)
    probes = {path for protocol in protocols for path in protocol.probes}
    say = _Sayer(protocols)
    for kind in (LLMasOSError, RequestValidationError, HTTPException, GoneError):
        app.add_exception_handler(kind, say)
    only = None if desk.config.behind is None else frozenset(contract_of(desk.config.behind).routes)
    open_ = frozenset(probes if only is None else probes & only) | {"/health/live", "/health/ready"}
    app.add_middleware(Gate, desk=desk, guard=guard, probes=open_, only=only, say=say, watch=watch)
    return app


def _often(protocol: Protocol) -> bool:
    return any(prefix.startswith("/v1") for prefix in protocol.prefixes)


def _lifespan(desk: Desk) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def whole(app: FastAPI) -> AsyncIterator[None]:
        del app
        try:
            await desk.open_pinned()
            yield
        finally:
            await asyncio.get_running_loop().run_in_executor(None, desk.close)

    return whole


def _health(app: FastAPI, desk: Desk) -> None:
    @app.get("/health/live", include_in_schema=False)
    async def live() -> JSONResponse:
        stalled = desk.stalled(PATIENCE)
        return JSONResponse({"status": "stalled" if stalled else "live"}, 503 if stalled else 200)

    @app.get("/health/ready", include_in_schema=False)
    async def ready() -> JSONResponse:
        return JSONResponse({"status": desk.state}, 200 if desk.state == "ready" else 503)


def _metrics(app: FastAPI, metrics: Metrics) -> None:
    @app.get("/metrics", include_in_schema=False)
    async def page() -> Response:
        return Response(metrics.page(), media_type=CONTENT_TYPE_LATEST)


def _docs(app: FastAPI) -> None:
    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(routes_page(app.openapi(), str(request.base_url).rstrip("/")), headers=SAFE)


# -- errors -------------------------------------------------------------------------------------------


LAST = 2
"""Seconds that connections have to close when all requests have ended, or their time has."""
RESTING = 2.0
"""Seconds that connections at rest are kept when the server is told to stop: their next request may be under way."""

MESSAGE = 2000
"""Characters of what is told of an error: a value that is wrong may be as long as a request."""


def failure_of(error: BaseException) -> Failure:
    """Return how HTTP tells an error. What is not ours is told by its kind alone, for its text may hold a prompt."""
    found = _failure_of(error)
    if len(found.message) <= MESSAGE:
        return found
    return replace(found, message=f"{found.message[: MESSAGE - 4]} ...")


def _failure_of(error: BaseException) -> Failure:
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        if isinstance(own := first.get("ctx", {}).get("error"), LLMasOSError):
            return _failure_of(own)
        where = _place([part for part in first["loc"] if part not in ("body", "query")])
        if first["type"] == "json_invalid":
            return Failure(400, "invalid_json", f"the request is not JSON: {first.get('ctx', {}).get('error', '')}")
        known = "unsupported_parameter" if first["type"] == "extra_forbidden" else "invalid_value"
        text = first["msg"].removeprefix("Value error, ")
        return Failure(400, known, f"{where or 'the request'}: {text}", where or None)
    if isinstance(error, HTTPException):
        code = "not_found" if error.status_code == 404 else "invalid_request"
        return Failure(error.status_code, code, str(error.detail))
    if isinstance(error, GoneError):
        return Failure(499, "client_left", "the client has left")
    if not isinstance(error, LLMasOSError):
        return Failure(500, "internal_error", f"the server failed ({type(error).__name__})")
    text = f"{error.message}; {error.hint}" if error.hint else error.message
    if isinstance(error, Refused):
        return Failure(400, error.code, text, error.param)
    if isinstance(error, UnavailableError):
        return Failure(503, "unavailable", text, retry_after=error.retry_after)
    if isinstance(error, BusyError):
        code = "rate_limit_exceeded" if isinstance(error, LimitError) else "queue_full"
        return Failure(429, code, text, retry_after=error.retry_after)
    for kind, status, code in (
        (OverdueError, 504, "timeout"), (UnknownModelError, 404, "model_not_found"),
        (NoGoldenError, 404, "no_golden_rows"),
        (TooLongError, 400, "context_length_exceeded"), (UsageError, 400, "invalid_value"),
        (DataError, 400, "invalid_value"),
    ):  # fmt: skip
        if isinstance(error, kind):
            return Failure(status, code, text)
    if isinstance(error, _UNOPENED):  # the text names folders of this machine
        code = "model_unreachable" if isinstance(error, RemoteError) else "model_damaged"
        return Failure(503, code, "the model cannot be opened; the server's log says why")
    return Failure(500, "internal_error", text)


def _place(parts: Sequence[Any]) -> str:
    """Word the place of a field: messages[0].content."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")


_UNOPENED = (BundleError, ParityError, RemoteError)
_LOG = logging.getLogger(__name__)


class _Sayer:
    """Answers with an error in the format of the path that was asked."""

    def __init__(self, protocols: list[Protocol]) -> None:
        self._protocols = protocols

    async def __call__(self, request: Request, error: Exception) -> JSONResponse:
        """Turn an error into a response."""
        if isinstance(error, _UNOPENED):
            _LOG.warning("%s", error)
        return self.response(request.url.path, failure_of(error))

    def response(self, path: str, failure: Failure) -> JSONResponse:
        """Return the response for a path."""
        owners = [(len(prefix), protocol) for protocol in self._protocols for prefix in protocol.prefixes
                  if path.startswith(prefix)]  # fmt: skip
        body = max(owners, key=lambda one: one[0])[1].failure(failure) if owners else Protocol.failure(_ANY, failure)
        headers = {} if failure.retry_after is None else {"Retry-After": str(failure.retry_after)}
        if failure.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(body, failure.status, headers)


_ANY: Any = None


# -- every request ------------------------------------------------------------------------------------


class Gate:
    """What every request goes through: host and origin, key, size, and the count of those under way.

    ``only``: behind a cloud that has checked who asks, the paths that it calls, and nobody calls any other.
    """

    def __init__(
        self, app: ASGIApp, *, desk: Desk, guard: Guard, probes: frozenset[str], only: frozenset[str] | None = None,
        say: _Sayer, watch: Watch,
    ) -> None:  # fmt: skip
        self._app, self._desk, self._guard, self._probes, self._say = app, desk, guard, probes, say
        self._only, self._watch = only, watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "websocket":  # nothing speaks it
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http" or scope["path"] in self._probes:
            await self._app(scope, receive, send)
        else:
            await self._watched(scope, receive, send)

    async def _watched(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        number, began = _request_id(headers), time.monotonic()
        answer = _Answer(send, self._desk.config.read_timeout, [(b"x-request-id", number.encode())])
        if self._guard.lists(headers.get("origin")):
            answer.headers += _shared(headers["origin"])
        entry: Entry | Failure | Response = self._entry(scope, headers)
        try:
            if isinstance(entry, Failure):
                entry = self._say.response(scope["path"], entry)
            if isinstance(entry, Response):
                await entry(scope, receive, answer)
            else:
                await self._inside(scope, receive, answer, entry, number)
        finally:
            route = getattr(scope.get("route"), "path", None) or "other"
            self._watch.ended(
                number, entry if isinstance(entry, Entry) else Entry(), headers, began, method=scope["method"],
                route=route, status=answer.status or 499, left=not answer.whole,
            )  # fmt: skip

    def _entry(self, scope: Scope, headers: Mapping[str, str]) -> Entry | Failure | Response:
        if self._only is not None and scope["path"] not in self._only:
            return Failure(403, "not_open", f"this server answers {' and '.join(sorted(self._only))} alone")
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            return self._preflight(headers)
        if self._desk.draining and not scope.get("state", {}).get("ends"):
            return Failure(503, "unavailable", "the server is stopping", retry_after=5)
        size, most = headers.get("content-length", "0"), self._desk.config.max_body
        if size.isdigit() and int(size) > most:
            return Failure(413, "request_too_large", f"the request has {size} bytes, and at most {most} are read")
        if scope["method"] == "POST" and self._desk.inflight >= self._desk.config.max_requests:
            return Failure(429, "queue_full", f"{self._desk.inflight} requests are under way", retry_after=1)
        return self._guard.enter(headers) if self._only is None else Entry()

    def _preflight(self, headers: Mapping[str, str]) -> Failure | Response:
        """Tell a browser whether a page may ask; a preflight carries no key."""
        if not self._guard.lists(headers.get("origin")):
            return Failure(403, "origin_not_allowed", "this page may not ask; the server's --allow-origin adds it")
        wanted = headers.get("access-control-request-headers", "")
        return Response(status_code=204, headers={
            "Access-Control-Allow-Methods": "GET, POST, DELETE", "Access-Control-Max-Age": "600",
            "Access-Control-Allow-Headers": wanted or "authorization, content-type, x-api-key, api-key",
        })  # fmt: skip

    async def _inside(self, scope: Scope, receive: Receive, answer: _Answer, entry: Entry, number: str) -> None:
        scope.setdefault("state", {}).update(
            key=entry.name, entry=entry, request_id=number, arrived=time.monotonic()
        )  # fmt: skip
        self._watch.begun(entry, number)
        answer.entry = entry
        self._desk.inflight += 1
        try:
            await self._app(scope, _bounded(receive, self._desk.config), answer)
        except Exception as error:
            self._watch.failed(number, error)
            if answer.status:
                raise  # the client sees that the answer breaks off
            await self._say.response(scope["path"], failure_of(error))(scope, receive, answer)
        finally:
            self._desk.inflight -= 1
            entry.leave()


class _Answer:
    """Sends an answer, and knows how far it is.

    Args:
        send: to the client.
        patience: seconds that the client may take for a part of it.
        headers: that every answer has.
    """

    def __init__(self, send: Send, patience: float, headers: list[tuple[bytes, bytes]]) -> None:
        self._send, self._patience, self.headers = send, patience, headers
        self.status, self.whole = 0, False
        self.entry = Entry()

    async def __call__(self, message: Message) -> None:
        """Send a part."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self.headers]
        whole = message["type"] == "http.response.body" and not message.get("more_body", False)
        if whole:
            self.entry.leave()  # before its client can ask again
        async with asyncio.timeout(self._patience):
            await self._send(message)
        self.whole = whole


def _shared(origin: str) -> list[tuple[bytes, bytes]]:
    return [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin"),
            (b"access-control-expose-headers", b"x-request-id, retry-after")]  # fmt: skip


def _bounded(receive: Receive, config: ServeConfig) -> Receive:
    """Read no more of a body than allowed, whatever its headers say, and wait for it no longer than allowed."""
    read, until, whole = 0, time.monotonic() + config.read_timeout, False

    async def some() -> Message:
        nonlocal read, whole
        if whole:
            return await receive()
        try:
            async with asyncio.timeout(until - time.monotonic()):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, f"the request did not arrive in {config.read_timeout:g} s") from None
        read, whole = read + len(message.get("body", b"")), not message.get("more_body", False)
        if read > config.max_body:
            raise HTTPException(413, f"the request has more than {config.max_body} bytes")
        return message

    return some


def _request_id(headers: Mapping[str, str]) -> str:
    given = headers.get("x-request-id", "")
    return given if re.fullmatch(r"[\w.:+/=-]{1,64}", given, re.ASCII) else f"req_{secrets.token_hex(12)}"


# -- the process --------------------------------------------------------------------------------------


class _Uvicorn(uvicorn.Server):
    """Uvicorn, which drains before it stops: a first signal lets requests end, a second does not wait.

    Args:
        config: how it runs.
        desk: what it asks.
        handed: a socket that listens already, and that its owner keeps: what comes after the signal waits in it for
            the next server.
    """

    def __init__(self, config: uvicorn.Config, desk: Desk, handed: socket.socket | None = None) -> None:
        super().__init__(config)
        self._desk, self._handed = desk, handed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told = False
        self._draining: asyncio.Future[None] | None = None

    async def startup(self, sockets: Any = None) -> None:
        """Begin to listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup([self._handed] if self._handed else sockets)

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"{'https' if self.config.is_ssl else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin to drain; the handler of a signal may not do more than tell the loop."""
        del sig, frame
        if self._loop is None or self._told:
            self.should_exit = self.force_exit = True
        else:
            self._told = True
            until = time.monotonic() + self._desk.config.drain  # the loop may be busy for a while
            self._loop.call_soon_threadsafe(self._drain, until)

    def _drain(self, until: float) -> None:
        self._desk.draining = True
        if self._handed:
            for server in self.servers:
                server.close()
            kind: type[Patient] = self.config.http_protocol_class  # type: ignore[assignment]
            kind.ends = True  # also of a connection that was taken from the socket just now, and comes in the next step
        for connection in self._connections():
            connection.end()
        rested = min(until, time.monotonic() + RESTING)

        async def end() -> None:
            await asyncio.sleep(0)
            while any(one.ends and one.rests for one in self._connections()) and time.monotonic() < rested:
                await asyncio.sleep(0.05)
            if not await self._desk.drained(until):  # what is left is told so
                await asyncio.get_running_loop().run_in_executor(None, self._desk.close)
            self.should_exit = True

        self._draining = asyncio.ensure_future(end())

    def _connections(self) -> list[Patient]:
        return [one for one in self.server_state.connections if isinstance(one, Patient)]


def server_config(
    desk: Desk, guard: Guard, *, version: str, watch: Watch | None = None, **options: Any
) -> uvicorn.Config:  # fmt: skip
    """Return how uvicorn runs the application."""
    connection = type("Connection", (Patient,), {"seconds": desk.config.read_timeout})
    return uvicorn.Config(
        application(desk, guard, version=version, watch=watch), host=desk.config.host, port=desk.config.port,
        http=connection, log_config=None, access_log=False, server_header=False, timeout_keep_alive=65,
        timeout_graceful_shutdown=LAST, **options,
    )  # fmt: skip


def run(
    desk: Desk, guard: Guard, *, version: str, watch: Watch, started: Callable[[str], None],
    handed: socket.socket | None = None, **options: Any,
) -> None:  # fmt: skip
    """Serve until a signal stops it; ``started`` is told the address once it listens."""
    try:
        config = server_config(desk, guard, version=version, watch=watch, **options)
        listen(config, desk, handed=handed, started=started)
    finally:
        watch.close()


def listen(
    config: uvicorn.Config, desk: Desk, *, handed: socket.socket | None = None, started: Callable[[str], None]
) -> None:  # fmt: skip
    """Open what is to stay open, and listen until a signal, on a socket that was handed over, if any; then drain.

    Raises:
        LLMasOSError: a model cannot be opened, or does not answer as it did when it was saved.
    """
    server = _Uvicorn(config, desk, handed)

    async def whole() -> None:
        gc.disable()  # nearly all that libraries make stays; to go through it again and again is a sixth of the start
        try:
            await desk.open_pinned()  # before the server's own start, which would tell of an error in its own words
        except BaseException:
            desk.close()
            raise
        finally:
            gc.enable()
        serving = asyncio.create_task(server.serve())
        while not server.started and not serving.done():
            await asyncio.sleep(0.02)
        if server.started:
            started(server.url)
        await serving

    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(whole())


def _new_loop() -> asyncio.AbstractEventLoop:
    """Return the quickest loop there is: uvloop is not made for Windows."""
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


def said(body: Mapping[str, Any], event: str = "") -> bytes:
    """Return one event of a stream, as server-sent events have it; with its name, where it has one."""
    name = f"event: {event}\n".encode() if event else b""
    return name + b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
