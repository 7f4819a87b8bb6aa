"""The client and what goes wrong: each fault made by a real server on a real port, and how often it is asked."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from llmasos.client import AsyncClient, Client
from llmasos.core.errors import (
    BrokenOffError,
    BusyError,
    LLMasOSError,
    OverdueError,
    RemoteError,
    TooLongError,
    UnavailableError,
    UsageError,
)

Answer = Callable[["Handler"], None]
HELLO = {"choices": [{"index": 0, "message": {"content": "Hello"}, "finish_reason": "stop"}], "model": "toy"}


class Handler(BaseHTTPRequestHandler):
    """Answers as the test says, one after the other, the last for ever."""

    protocol_version = "HTTP/1.1"
    server: Server

    def handle_one_request(self) -> None:
        """As its own, but that a client which leaves is no news."""
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def do_GET(self) -> None:
        """Answer."""
        self.do_POST()

    def do_POST(self) -> None:
        """Answer."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.append((self.path, json.loads(body) if body else None))
        answers = self.server.answers
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def gone(self) -> bool:
        """Wait until the client has left."""
        self.connection.settimeout(10)
        return self.connection.recv(1) == b""


class Server(ThreadingHTTPServer):
    """A server that answers as the test says, and remembers what it was asked."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, answers: list[Answer], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.answers, self.asked = answers, list[Any]()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *args: Any) -> None:
        """Say nothing: tests break connections."""


@contextmanager
def answering(*answers: Answer, port: int = 0) -> Iterator[Server]:
    server = Server(list(answers), port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def told(body: Any, status: int = 200, **headers: str) -> Answer:
    """Answer with JSON, or with these very bytes."""

    def answer(handler: Handler) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def refused(status: int, code: str | None = None, param: str | None = None, **headers: str) -> Answer:
    return told({"error": {"message": f"no: {status}", "code": code, "param": param}}, status,
                x_request_id="req_1", **headers)  # fmt: skip


def streaming(*events: Any, ends: bool = True, then: Answer | None = None) -> Answer:
    """Answer with a stream of these events, and end it, or break it off."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for event in events:
            data = event if isinstance(event, bytes) else b"data: " + json.dumps(event).encode() + b"\n\n"
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        if then is not None:
            then(handler)
        elif ends:
            handler.wfile.write(b"0\r\n\r\n")
        handler.close_connection = True

    return answer


def piece(text: str, why: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": why}], "model": "toy"}


def dropped(handler: Handler) -> None:
    """Close the connection without a word."""
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def silent(handler: Handler) -> None:
    """Say nothing until the client leaves."""
    handler.gone()
    handler.close_connection = True


DONE = b"data: [DONE]\n\n"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Make pauses between tries short, and note how long they should have been."""
    found: list[float] = []
    monkeypatch.setattr("llmasos.client.clients.time.sleep", found.append)
    return found


# -- what is sent again -------------------------------------------------------------------------------


def test_a_busy_server_is_asked_again_when_it_says(pauses: list[float]) -> None:
    busy = refused(429, "queue_full", Retry_After="3")
    with answering(busy, refused(503), told(HELLO)) as server, Client(server.url, model="toy") as client:
        assert client.chat("Hello").text == "Hello"
    assert len(server.asked) == 3
    assert 3 <= pauses[0] <= 3.5
    assert 0 <= pauses[1] <= 1


def test_pauses_differ_from_client_to_client(pauses: list[float]) -> None:
    with (
        answering(refused(503)) as server,
        Client(server.url, retries=6, timeout=1e9) as client,
        pytest.raises(UnavailableError),
    ):
        client.models()
    assert len(set(pauses)) == 6
    assert all(pause <= min(8, 0.5 * 2**tried) for tried, pause in enumerate(pauses))


@pytest.mark.parametrize("retries", [0, 2])
def test_there_is_an_end_of_it(pauses: list[float], retries: int) -> None:
    with (
        answering(refused(503, "unavailable")) as server,
        Client(server.url, retries=retries) as client,
        pytest.raises(UnavailableError) as caught,
    ):
        client.classify("a good day")
    assert len(server.asked) == retries + 1
    assert (caught.value.status, caught.value.code, caught.value.request_id) == (503, "unavailable", "req_1")


def test_nobody_waits_for_longer_than_the_call_may_take(pauses: list[float]) -> None:
    busy = refused(429, Retry_After="100")
    with answering(busy) as server, Client(server.url, timeout=5) as client, pytest.raises(BusyError) as caught:
        client.models()
    assert (len(server.asked), pauses, caught.value.retry_after) == (1, [], 100)


def test_a_server_that_says_a_date(pauses: list[float]) -> None:
    from email.utils import formatdate

    busy = refused(503, Retry_After=formatdate(time.time() + 20, usegmt=True))
    with answering(busy, told({"data": []})) as server, Client(server.url) as client:
        assert client.models() == []
    assert 18 <= pauses[0] <= 21


@pytest.mark.parametrize("status", [502, 504])
def test_what_stands_before_a_server_may_not_reach_it(pauses: list[float], status: int) -> None:
    with answering(told(b"<html>", status), told(HELLO)) as server, Client(server.url, model="toy") as client:
        assert client.chat("Hello").text == "Hello"
    assert len(server.asked) == 2


def test_a_server_that_has_worked_as_long_as_it_may_is_not_asked_again() -> None:
    with (
        answering(refused(504, "timeout")) as server,
        Client(server.url, model="toy") as client,
        pytest.raises(OverdueError),
    ):
        client.chat("Hello")
    assert len(server.asked) == 1


def test_a_server_that_is_not_there_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmasos.client.faults.PAUSE", 0.2)
    with answering(told(HELLO)) as server:
        port = server.server_port
    asked: list[str] = []

    def ask() -> None:
        with Client(f"http://127.0.0.1:{port}", model="toy", retries=10) as client:
            asked.append(client.chat("Hello").text)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.3)
    with answering(told(HELLO), port=port) as server:
        thread.join(30)
    assert (asked, len(server.asked)) == (["Hello"], 1)


def test_a_server_that_never_comes(pauses: list[float]) -> None:
    with answering(told(HELLO)) as server:
        url = server.url
    with Client(url) as client, pytest.raises(RemoteError, match="cannot be reached") as caught:
        client.models()
    assert (len(pauses), caught.value.hint) == (2, "is it running?")


def test_a_model_does_not_write_twice(pauses: list[float]) -> None:
    with answering(dropped) as server, Client(server.url, model="toy") as client:
        with pytest.raises(RemoteError):
            client.chat("Hello")
        assert len(server.asked) == 1
        with pytest.raises(RemoteError):
            client.classify("a good day")
        assert len(server.asked) == 1 + 3


# -- what is not --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_value", UsageError), (400, "context_length_exceeded", TooLongError),
        (401, "invalid_key", UsageError), (403, "not_open", UsageError), (404, "model_not_found", UsageError),
        (408, None, OverdueError), (413, "request_too_large", UsageError), (422, None, UsageError),
        (500, "internal_error", RemoteError), (307, None, RemoteError),
    ],
)  # fmt: skip
def test_a_refusal_is_told_once(status: int, code: str, kind: type[LLMasOSError]) -> None:
    with (
        answering(refused(status, code, "messages")) as server,
        Client(server.url, model="toy") as client,
        pytest.raises(kind) as caught,
    ):
        client.chat("Hello")
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.code, error.param, error.request_id) == (status, code, "messages", "req_1")
    assert len(server.asked) == 1
    assert f"no: {status}" in error.message
    assert (error.hint == "give its key, for example in LLMASOS_API_KEY") is (status in (401, 403))


@pytest.mark.parametrize(
    "body", [b"", b"<html>hello</html>", b"{", b"[]", b'{"data": 3}', b'{"data": [3]}', b"\xff\xfe", b"[" * 10**5]
)
def test_garbage_is_no_answer(body: bytes) -> None:
    with (
        answering(told(body)) as server,
        Client(server.url) as client,
        pytest.raises(RemoteError, match="something else") as caught,
    ):
        client.models()
    assert len(server.asked) == 1
    assert len(str(caught.value)) < 400


def test_a_refusal_in_another_form_is_told_as_it_is() -> None:
    for body, said in (
        (b'{"detail": "nope"}', "nope"),
        (b'{"error": "nope"}', "nope"),
        (b"what?", "answers 404: what?"),
    ):
        with answering(told(body, 404)) as server, Client(server.url) as client, pytest.raises(UsageError, match=said):
            client.models()


def test_an_answer_that_never_comes(pauses: list[float]) -> None:
    with answering(silent) as server, Client(server.url, model="toy", timeout=0.2) as client:
        for ask in (client.chat, client.classify):
            with pytest.raises(OverdueError, match=r"did not answer in 0\.2 s"):
                ask("Hello")
    assert (len(server.asked), pauses) == (2, [])


def test_an_answer_that_comes_in_drops() -> None:
    def drops(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(100):
            handler.wfile.write(b" ")
            time.sleep(0.05)

    with answering(drops) as server, Client(server.url) as client:
        start = time.monotonic()
        with pytest.raises(OverdueError):
            client.models(timeout=0.3)
    assert time.monotonic() - start < 2


def test_what_is_no_json_is_not_sent() -> None:
    with answering(told(HELLO)) as server, Client(server.url, model="toy") as client:
        for wrong in (float("nan"), {"a"}, "\ud800"):
            with pytest.raises(UsageError, match="JSON"):
                client.chat("Hello", extra={"seed": wrong})
    assert server.asked == []


@pytest.mark.parametrize("url", ["ftp://a", "http://", "a b", "127.0.0.1:80", "http://a:99999999"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(UsageError, match="no address"):
        Client(url)


def test_what_is_no_key_or_time() -> None:
    for wrong in ({"key": "schlüssel"}, {"key": "lm-a\nb"}, {"timeout": 0}, {"retries": -1}):
        with pytest.raises(UsageError) as caught:
            Client("http://127.0.0.1:1", **wrong)
        assert "lm-a" not in str(caught.value)
    client = Client("http://127.0.0.1:1")
    client.close()
    for ask in (client.models, lambda: next(client.stream("Hello", model="toy"))):
        with pytest.raises(UsageError, match="closed"):
            ask()


# -- streams ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "ends"),
    [
        ((), True), ((), False), ((b"data: {\n\n",), True), ((b"data: 3\n\n",), True),
        (({"error": {"message": "the server is stopping", "code": "unavailable"}},), True),
    ],
)  # fmt: skip
def test_a_stream_that_breaks_off_tells_what_had_come(rest: tuple[Any, ...], ends: bool) -> None:
    broken = streaming(piece("Hel"), piece("lo"), *rest, ends=ends)
    with answering(broken) as server, Client(server.url, model="toy") as client:
        stream = client.stream("Hello")
        with pytest.raises(BrokenOffError) as caught:
            list(stream)
        assert (caught.value.text, stream.text) == ("Hello", "Hello")
        assert caught.value.code == ("unavailable" if rest and isinstance(rest[0], dict) else None)
        with pytest.raises(UsageError, match="has not ended"):
            _ = stream.reply
    assert len(server.asked) == 1


def test_a_stream_that_falls_silent() -> None:
    with (
        answering(streaming(piece("Hel"), then=silent)) as server,
        Client(server.url, model="toy") as client,
        pytest.raises(BrokenOffError) as caught,
    ):
        list(client.stream("Hello", timeout=0.2))
    assert (caught.value.text, len(server.asked)) == ("Hel", 1)


def test_a_stream_that_has_not_begun_is_asked_for_again(pauses: list[float]) -> None:
    whole = streaming(b": wait\n\n", piece("Hello", "stop"), DONE)
    with answering(refused(429, Retry_After="1"), whole) as server, Client(server.url, model="toy") as client:
        with client.stream("Hello") as stream:
            assert list(stream) == ["Hello"]
        assert stream.reply.finish_reason == "stop"
    assert len(server.asked) == 2
    assert len(pauses) == 1


def test_a_stream_of_a_server_that_ends_without_a_word() -> None:
    with answering(streaming(piece("Hello", "stop"))) as server, Client(server.url, model="toy") as client:
        stream = client.stream("Hello")
        assert "".join(stream) == stream.reply.text == "Hello"


def test_a_refused_stream_is_an_error_as_any_other() -> None:
    with answering(refused(400, "invalid_value", "seed")) as server, Client(server.url, model="toy") as client:
        stream = client.stream("Hello")
        assert server.asked == []  # nothing is asked before a piece is wanted
        with pytest.raises(UsageError) as caught:
            next(stream)
    assert caught.value.param == "seed"


def test_what_is_no_stream() -> None:
    with answering(told(HELLO)) as server, Client(server.url, model="toy") as client, pytest.raises(BrokenOffError):
        list(client.stream("Hello"))


def left(event: threading.Event) -> Answer:
    """Note that the client has left."""

    def wait(handler: Handler) -> None:
        if handler.gone():
            event.set()

    return wait


@pytest.mark.parametrize("how", ["close", "with", "break"])
def test_a_stream_that_is_left_is_closed(how: str) -> None:
    gone = threading.Event()
    with answering(streaming(piece("Hel"), then=left(gone))) as server, Client(server.url, model="toy") as client:
        if how == "with":
            with client.stream("Hello") as stream:
                next(stream)
        elif how == "close":
            stream = client.stream("Hello")
            next(stream)
            stream.close()
        else:
            for _ in client.stream("Hello"):
                break
        assert gone.wait(5)


def test_ctrl_c_leaves_the_server() -> None:
    gone = threading.Event()
    with (
        answering(streaming(piece("Hel"), then=left(gone)), left(gone)) as server,
        Client(server.url, model="toy") as client,
    ):
        for ask in (lambda: list(client.stream("Hello")), lambda: client.chat("Hello")):
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            with pytest.raises(KeyboardInterrupt):
                ask()
            assert gone.wait(5)
            gone.clear()
    assert len(server.asked) == 2


# -- the client that is awaited -----------------------------------------------------------------------


def test_the_same_errors_are_awaited() -> None:
    async def whole(url: str) -> None:
        async with AsyncClient(url, model="toy", retries=1) as client:
            assert (await client.chat("Hello")).text == "Hello"
            stream = client.stream("Hello")
            with pytest.raises(BrokenOffError) as broken:
                async for _ in stream:
                    pass
            assert broken.value.text == stream.text == "Hel"
            with pytest.raises(OverdueError):
                await client.classify("Hello", timeout=0.2)

    with answering(refused(503), told(HELLO), refused(429), streaming(piece("Hel")), silent) as server:
        asyncio.run(whole(server.url))
    assert len(server.asked) == 5


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_an_awaited_stream_that_is_left_is_closed(how: str) -> None:
    gone = threading.Event()

    async def whole(url: str) -> None:
        async with AsyncClient(url, model="toy") as client:
            if how == "close":
                async with client.stream("Hello") as stream:
                    await anext(stream)
            else:
                task = asyncio.create_task(_all(client.stream("Hello")))
                await asyncio.sleep(0.2)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert await asyncio.to_thread(gone.wait, 5)

    with answering(streaming(piece("Hel"), then=left(gone))) as server:
        asyncio.run(whole(server.url))


async def _all(stream: Any) -> list[str]:
    return [piece async for piece in stream]


# -- servers that others made -------------------------------------------------------------------------


def plain(handler: Handler) -> None:
    """Answer as a small server of OpenAI's protocol does: it wants a model's name, and knows little."""
    path, body = handler.server.asked[-1]
    if path == "/v1/models":
        return told({"object": "list", "data": [{"id": "toy", "object": "model"}]})(handler)
    if path not in ("/v1/chat/completions", "/v1/embeddings"):
        return told({"detail": "Not Found"}, 404)(handler)
    unknown = set(body) - {"model", "messages", "stream", "input", "encoding_format", "max_tokens"}
    if body.get("model") != "toy" or unknown:
        return told({"error": {"message": f"no: {body.get('model')} {unknown}"}}, 400)(handler)
    if path == "/v1/embeddings":
        rows = [{"index": n, "embedding": [float(len(text)), 0.5]} for n, text in enumerate(body["input"])]
        return told({"data": rows[::-1]})(handler)
    if body.get("stream"):
        return streaming(piece("Hel"), piece("lo"), piece("", "stop"), DONE)(handler)
    return told(HELLO)(handler)


def test_a_server_of_the_protocol_that_is_not_ours() -> None:
    with answering(plain) as server, Client(f"{server.url}/v1/") as client:
        assert [model.id for model in client.models()] == ["toy"]
        assert client.chat("Hello", max_tokens=3).text == "Hello"
        stream = client.stream("Hello", extra={"stream_options": None})
        assert "".join(stream) == "Hello"
        assert stream.reply.usage is None
        assert client.embed(["a", "bc"]).tolist() == [[1.0, 0.5], [2.0, 0.5]]
        with pytest.raises(UsageError, match="Not Found"):
            client.classify("Hello")
    assert [path for path, _ in server.asked].count("/v1/models") == 2  # once more, to name a model
