"""The web side of an app: its pages, routes of its own, and a relay through which pages ask its models.

Pages are files of a folder; beside them lie ``kit.css``, ``kit.js`` and ``llmasos.js``, the client, unless the folder
has files of these names. They may run their own scripts, and load and ask nothing else: what a user or a model wrote
can do nothing there, even where a page forgot to treat it as text. Without a name in ``hosts`` an app is asked for as
this machine alone, and by its own pages alone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from ..client import Client
from ..core.errors import (
    BusyError,
    DataError,
    LLMasOSError,
    MissingExtraError,
    OverdueError,
    RemoteError,
    UnavailableError,
    UsageError,
    did_you_mean,
)
from ..core.hosts import is_loopback

try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response, StreamingResponse
    from fastapi.staticfiles import StaticFiles
    from starlette.exceptions import HTTPException
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    raise MissingExtraError("an app with pages", install="'llmasos[serve]'") from error

KIT = Path(__file__).parent / "page"
RELAYS = {
    "models": "GET", "chat/completions": "POST", "completions": "POST", "responses": "POST", "embeddings": "POST",
    "classify": "POST", "tag": "POST", "answer": "POST", "translate": "POST", "summarize": "POST", "predict": "POST",
    "similarity": "POST", "rerank": "POST",
}  # fmt: skip
"""What of ``/v1`` an app may relay."""
MOST_ANSWER = 1 << 24
"""Bytes of an answer that is relayed."""
_SECONDS = 600.0  # that a model may be silent
_SAFE = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
_LOG = logging.getLogger(__name__)


def page(
    folder: str | Path, client: Client | None = None, *, relays: Iterable[str] = (), hosts: Iterable[str] = (),
    max_body: int = 1 << 20,
) -> FastAPI:  # fmt: skip
    """Return an application that serves a folder of pages; add your own routes to it, and ``run`` it.

    Args:
        folder: ``index.html`` and what belongs to it.
        client: whose server answers what is relayed. Its key stays here.
        relays: routes under ``/v1`` by which pages may ask it, such as ``"chat/completions"``; none if not given.
        hosts: names besides this machine's own by which the app may be asked for, where something stands before it.
        max_body: bytes of a request that are read.

    Raises:
        UsageError: there is no such folder or route, or nobody to relay to.
    """
    folder, wanted = Path(folder), tuple(relays)
    if not (folder / "index.html").is_file():
        raise UsageError(f"{folder} holds no index.html", hint="name the folder of the app's pages")
    for name in wanted:
        if name not in RELAYS:
            raise UsageError(f"/v1/{name} is not relayed",
                             hint=f"{did_you_mean(name, RELAYS)}known: {', '.join(RELAYS)}")  # fmt: skip
    if wanted and client is None:
        raise UsageError("there is nobody to relay to", hint="page(folder, client, relays=...)")
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan)
    for kind in (LLMasOSError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _say)
    app.add_middleware(_Gate, hosts=frozenset(hosts), max_body=max_body)
    for name in wanted:
        assert client is not None
        app.add_api_route(f"/v1/{name}", _relay(client, name), methods=[RELAYS[name]])
    files = StaticFiles(directory=folder, html=True)
    files.all_directories.append(KIT)
    app.router.default = files  # behind the routes that are added later
    return app


def run(app: FastAPI, *, port: int = 8080, started: Callable[[str], None]) -> None:
    """Serve an app to this machine until Ctrl-C.

    Args:
        app: what ``page`` returned.
        port: 0 for a free one.
        started: told the address once it listens: ``print``, for example.

    Raises:
        UsageError: something else listens on the port.
    """
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", port))
        except OSError as error:
            raise UsageError(f"port {port} is taken", hint="choose another: --port 0 takes a free one") from error
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
        with suppress(KeyboardInterrupt):
            _Server(config, lambda: started(address)).run(sockets=[listening])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, tell: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = tell

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._tell()


# -- the relay ----------------------------------------------------------------------------------------


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with httpx2.AsyncClient(timeout=httpx2.Timeout(10, read=_SECONDS), follow_redirects=False) as http:
        app.state.http = http
        yield


def _relay(client: Client, name: str) -> Callable[[Request], Awaitable[Response]]:
    url = f"{client.url}/v1/{name}"

    async def relay(request: Request) -> Response:
        body = await request.body()
        asked = request.app.state.http.build_request(request.method, url, content=body or None,
                                                     headers=client.headers)  # fmt: skip
        try:
            answer = await _while_there(request, request.app.state.http.send(asked, stream=True))
        except httpx2.TimeoutException as error:
            raise OverdueError(f"{client.url} does not answer", hint="is it still running?") from error
        except httpx2.TransportError as error:
            raise RemoteError(f"{client.url} cannot be reached", hint="is it still running?") from error
        kind = answer.headers.get("content-type", "").partition(";")[0]
        if kind not in ("application/json", "text/event-stream"):
            await answer.aclose()
            raise RemoteError(f"{client.url} answers {answer.status_code} and no JSON",
                              hint="is it a server of models?")  # fmt: skip
        passed = {name: answer.headers[name] for name in ("retry-after", "x-request-id") if name in answer.headers}
        pieces = _pieces(answer) if kind == "application/json" else _told_of_its_end(_pieces(answer))
        return StreamingResponse(pieces, answer.status_code, passed, media_type=kind)

    return relay


async def _pieces(answer: httpx2.Response) -> AsyncGenerator[bytes]:
    """Yield what comes; closing this, as when the page leaves, ends the work at the server."""
    size = 0
    try:
        async for piece in answer.aiter_bytes():
            size += len(piece)
            if size > MOST_ANSWER:
                raise RemoteError(f"an answer of over {MOST_ANSWER:,} bytes", hint="ask for less")
            yield piece
    finally:
        with suppress(asyncio.CancelledError):
            await asyncio.shield(answer.aclose())


async def _told_of_its_end(pieces: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    """Yield a stream; one that breaks off ends with an event that says so, which clients turn into an error."""
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece
    except (httpx2.TransportError, RemoteError) as error:
        why = error.message if isinstance(error, RemoteError) else "the server of the models went away"
        yield f"\n\ndata: {json.dumps(_told(why))}\n\n".encode()


async def _while_there(request: Request, work: Awaitable[httpx2.Response]) -> httpx2.Response:
    """Wait for the beginning of an answer as long as the page does."""
    asked, left = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({asked, left}, return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            raise HTTPException(499, "the page has left")
        return await asked
    finally:
        for one in (asked, left):
            one.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# -- every request ------------------------------------------------------------------------------------


class _Gate:
    """What every request goes through: who asks for whom, how much, and what the answer allows the page to do."""

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str], max_body: int) -> None:
        self._app, self._hosts, self._max_body = app, hosts, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def safe(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                own = [(name.encode(), value.encode()) for name, value in _SAFE.items()]
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            if (refusal := self._refusal(headers)) is not None:
                await refusal(scope, receive, safe)
            else:
                await self._app(scope, self._bounded(receive), safe)
        except Exception as error:
            if begun:
                raise  # the page sees that the answer breaks off
            _LOG.exception("%s %s failed", scope["method"], scope["path"])
            told = _told(f"the app failed ({type(error).__name__})", "the terminal that it runs in says why")
            await JSONResponse(told, 500)(scope, receive, safe)

    def _refusal(self, headers: dict[str, str]) -> Response | None:
        host = _host(f"//{headers.get('host', '')}")
        if host not in self._hosts and not is_loopback(host):
            return JSONResponse(_told(f"{host or 'this name'} is not served here", "open 127.0.0.1"), 403)
        if "origin" in headers and urlsplit(headers["origin"]).netloc != headers.get("host"):
            return JSONResponse(_told("another page may not ask this app", "open the app itself"), 403)
        size = headers.get("content-length", "0")
        if size.isdigit() and int(size) > self._max_body:
            return JSONResponse(_too_large(self._max_body), 413)
        return None

    def _bounded(self, receive: Receive) -> Receive:
        size = 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max_body:
                raise HTTPException(413, _too_large(self._max_body)["error"]["message"])
            return message

        return bounded


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


# -- errors -------------------------------------------------------------------------------------------

_STATUS = (
    (UnavailableError, 503), (BusyError, 429), (OverdueError, 504), (RemoteError, 502), (UsageError, 400),
    (DataError, 400),
)  # fmt: skip


async def _say(_: Request, error: Exception) -> JSONResponse:
    """Answer with an error as pages show it: what is wrong, and what to do."""
    if isinstance(error, LLMasOSError):
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
        headers = {"Retry-After": str(error.retry_after)} if isinstance(error, BusyError) else {}
        return JSONResponse(_told(error.message, error.hint), status, headers)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))
        return JSONResponse(_told(f"{where or 'the request'}: {first['msg']}"), 400)
    assert isinstance(error, HTTPException)
    return JSONResponse(_told(str(error.detail)), error.status_code, error.headers)


def _told(message: str, hint: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "hint": hint}}


def _too_large(most: int) -> dict[str, Any]:
    return _told(f"that is more than the {most:,} bytes that are read", "send less")
