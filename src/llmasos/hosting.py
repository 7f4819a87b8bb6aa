"""An exported model over HTTP, where only ``llmasos-edge`` is: one model, one route, the standard library's server.

``POST /v1/predict`` takes and gives what ``llmasos serve`` does there, so clients need not know which of the two
answers. Everything that a request can make large is bounded; one request computes at a time, the others wait, and when
too many wait the next is told to come again. A connection is one request: what is small may be simple.
"""

from __future__ import annotations

import io
import json
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from .core.errors import LLMasOSError, UsageError, did_you_mean
from .core.hosts import handed_socket, is_loopback
from .edge import Model
from .serving.keys import KeyFile, owner_of

ROWS, BODY = 1024, 4 << 20
"""Rows and bytes of a request, at the most."""
CONNECTIONS, WAITING = 64, 32
"""Connections at once, and of these requests that wait for the model."""
PATIENCE, ARRIVAL, DRAIN = 10.0, 30.0, 45.0
"""Seconds that a client may be silent, that a request may take to arrive, however busily it drips, and that requests
have to end when the server is told to stop."""
FIELDS = ("inputs", "model", "truncate")
_LOG = logging.getLogger(__name__)


class Refusal(Exception):  # an answer, not a fault
    """A request that is not answered: status, a word for machines, and what is wrong."""

    def __init__(self, status: int, code: str, message: str, retry: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry = status, code, retry


class Reply(NamedTuple):
    """What a request is answered with."""

    status: int
    body: dict[str, Any]
    retry: int | None = None


class Host(ThreadingMixIn, HTTPServer):
    """A server of one model.

    Args:
        model: as ``Model.open`` gives it.
        name: of the model, to clients.
        host, port: where it listens; port 0 for a free one.
        drain: seconds that requests have to end when it is told to stop.

    Raises:
        UsageError: it would be reached from elsewhere, and there is no key; or it cannot listen there.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, model: Model, name: str, host: str = "127.0.0.1", port: int = 8000, *, drain: float = DRAIN):
        self.model, self.name, self._drain, self._keys = model, name, drain, KeyFile()
        self._places = threading.BoundedSemaphore(CONNECTIONS)
        self._waiting, self._turn = threading.BoundedSemaphore(WAITING), threading.Lock()
        self._under_way, self._change = 0, threading.Condition()
        handed = handed_socket()
        if handed is not None:
            host, port = handed.getsockname()[:2]
        self.is_closed = not is_loopback(host)
        if self.is_closed and not self._keys.current():
            raise UsageError(f"{host} can be reached from elsewhere, and there is no key",
                             hint="llmasos keys add NAME, and its keys.json here as LLMASOS_KEYS")  # fmt: skip
        self.address_family = handed.family if handed else socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler, bind_and_activate=False)
        if handed is not None:
            self.socket.close()
            self.socket = handed
            self.server_address = handed.getsockname()
            self.server_name, self.server_port = host, port
            return
        try:
            self.server_bind()
            self.server_activate()
        except OSError as error:
            self.server_close()
            raise UsageError(f"{host}:{port} cannot be listened to: {error.strerror}", hint="another --port") from error

    def server_bind(self) -> None:
        """Bind; names are not looked up, which may take long where there is no network."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @property
    def url(self) -> str:
        """Where it is asked."""
        host = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        return f"http://{host}:{self.server_port}"

    def run(self, started: Callable[[str], None]) -> None:
        """Answer until SIGTERM or Ctrl-C; what is under way is answered first."""

        def stop(*_: Any) -> None:
            threading.Thread(target=self.shutdown, daemon=True).start()

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        started(self.url)
        try:
            self.serve_forever(poll_interval=0.1)
        finally:
            until = time.monotonic() + self._drain
            with self._change:
                while self._under_way and (left := until - time.monotonic()) > 0:
                    self._change.wait(left)
            self.server_close()
            for number, old in before.items():
                signal.signal(number, old)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a connection in a thread of its own, or turn it away where there are too many."""
        if not self._places.acquire(blocking=False):
            with suppress(OSError):
                request.sendall(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)
            return
        with self._change:
            self._under_way += 1
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()
            with self._change:
                self._under_way -= 1
                self._change.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say that a connection broke off; clients go when they like."""
        del request, client_address
        _LOG.warning("a connection broke off: %s", type(sys.exception()).__name__)

    # -- requests -------------------------------------------------------------------------------------

    def let_in(self, headers: Mapping[str, str]) -> None:
        """Check who asks: by a key as soon as there is one, else only programs and pages of this machine."""
        try:
            keys = self._keys.current()
        except LLMasOSError:
            raise Refusal(503, "unavailable", "the server cannot read its keys", 30) from None
        if keys or self.is_closed:
            kind, _, secret = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or owner_of(secret.strip(), keys) is None:
                raise Refusal(401, "invalid_api_key", "this key is not known; send `Authorization: Bearer KEY`")
            return
        host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        page = urlsplit(headers["origin"]).hostname or "" if "origin" in headers else "localhost"
        if not (is_loopback(host) and is_loopback(page)):
            raise Refusal(403, "host_not_allowed", "without keys only this machine may ask, by its own name")

    def answer(self, body: bytes) -> Reply:
        """Answer ``POST /v1/predict``."""
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            raise Refusal(400, "invalid_json", "the body is no JSON") from None
        if not isinstance(asked, dict) or "inputs" not in asked:
            raise Refusal(400, "missing_field", "the body is an object with `inputs`: a text, a row, or a list of them")
        if unknown := next((key for key in asked if key not in FIELDS), None):
            raise Refusal(400, "unknown_field", f"there is no field {unknown!r}; {did_you_mean(unknown, FIELDS)}")
        if asked.get("model") not in (None, self.name):
            raise Refusal(404, "model_not_found", f"there is no model {asked['model']!r}; known: {self.name}")
        single = not isinstance(asked["inputs"], list)
        inputs: list[Any] = [asked["inputs"]] if single else asked["inputs"]
        if len(inputs) > ROWS:
            raise Refusal(413, "too_many_rows", f"{len(inputs)} rows, and {ROWS} are the most")
        if wrong := next((one for one in inputs if not isinstance(one, str | dict)), None):
            raise Refusal(400, "invalid_input", f"{str(wrong)[:40]!r} is neither a text nor a row")
        rows = [self._row(one) for one in inputs]
        with self._taking_turns():
            try:
                truncated = 1.0 if asked.get("truncate") is True else 0.0
                found = self.model.predict(rows, allow_truncated=truncated) if rows else []
            except LLMasOSError as error:
                raise Refusal(400, "invalid_input", str(error)) from None
        answers = [one.as_dict() if hasattr(one, "as_dict") else one.tolist() for one in found]
        told = {"result": answers[0]} if single else {"results": answers}
        return Reply(200, {"model": self.name, "task": self.model.task.tag, **told})

    def _row(self, given: str | dict[str, Any]) -> dict[str, Any]:
        fields = [field for field in self.model.task.fields if not field.is_answer]
        if isinstance(given, str):
            return {next((field for field in fields if field.required), fields[0]).name: given}
        return given

    @contextmanager
    def _taking_turns(self) -> Iterator[None]:
        if not self._waiting.acquire(blocking=False):
            raise Refusal(503, "queue_full", f"{WAITING} requests are waiting already", 1)
        try:
            with self._turn:
                yield
        finally:
            self._waiting.release()


class _Arriving(io.RawIOBase):
    """What a client sends, until a deadline."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._until = connection, time.monotonic() + ARRIVAL

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Wait for what comes next, no longer than is left."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(min(PATIENCE, left))
        try:
            return self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(PATIENCE)  # also what an answer has, which is sent under one timeout


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Host
    server_version, sys_version = "llmasos-edge", ""

    def setup(self) -> None:
        """Bound the time in which the request arrives."""
        super().setup()
        self.rfile = io.BufferedReader(_Arriving(self.connection))

    def do_GET(self) -> None:
        """Answer the probes; before it listens the model was opened and compared, so it is ready."""
        if self.path in ("/health/live", "/health/ready"):
            self._send(Reply(200, {"status": "ok"}))
        else:
            self._send(_told(Refusal(404, "not_found", "GET /health/live, /health/ready; POST /v1/predict")))

    def do_POST(self) -> None:
        """Answer rows."""
        try:
            self._send(self._answered())
        except Refusal as refusal:
            self._send(_told(refusal))

    def _answered(self) -> Reply:
        if self.path != "/v1/predict":
            raise Refusal(404, "not_found", "POST /v1/predict")
        self.server.let_in({name.lower(): value for name, value in self.headers.items()})
        length = self.headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refusal(411, "length_required", "send Content-Length")
        if int(length) > BODY:
            raise Refusal(413, "body_too_large", f"{length} bytes, and {BODY} are the most")
        try:
            body = self.rfile.read(int(length))
        except TimeoutError:
            raise Refusal(408, "request_timeout", "the request did not arrive in time") from None
        if len(body) != int(length):
            raise Refusal(400, "invalid_json", "the body broke off")
        return self.server.answer(body)

    def _send(self, reply: Reply) -> None:
        body = json.dumps(reply.body, ensure_ascii=False).encode()
        self.send_response(reply.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if reply.retry is not None:
            self.send_header("Retry-After", str(reply.retry))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of requests: what is asked is nobody's business."""
        del format, args


def _told(refusal: Refusal) -> Reply:
    kind = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
    usual = "invalid_request_error" if refusal.status < 500 else "server_error"
    error = {"message": str(refusal), "type": kind.get(refusal.status, usual), "param": None, "code": refusal.code}
    return Reply(refusal.status, {"error": error}, refusal.retry)
