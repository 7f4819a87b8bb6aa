"""What clients may throw at a server: nothing of it is an error of the server's, and nothing stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from served import Server, serving
from tiny import save_tiny, save_tiny_bert

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from fastapi import Request
from fastapi.responses import JSONResponse, StreamingResponse

BODY = json.dumps({"pairs": [["a good day", "a day"]]}).encode()
JSON = {"content-type": "application/json"}
PATIENCE = 2.0
"""Seconds that the server of these tests gives a client."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("abused")
    models = {"base": save_tiny_bert(folder / "base"), "writer": save_tiny(folder / "writer", "AutoModelForCausalLM",
                                                                           max_length=4096)}  # fmt: skip
    bounds = {"max_new_tokens": 3000, "read_timeout": PATIENCE, "max_body": 100_000, "max_inputs": 50}
    models["chat"] = "starter-chat"  # whose tokenizer can keep to a schema
    with serving(models, pinned=("base", "writer"), **bounds) as running:
        running.desk._trying._seconds = 60.0  # this machine may have much else to do
        add_writing(running)
        yield running


def add_writing(server: Server) -> None:
    """A wire format of these tests: events with the pieces of an answer."""
    from llmasos.core.config import GenerateConfig
    from llmasos.generation.pieces import Piece
    from llmasos.serving.app import said
    from llmasos.serving.desk import begun

    async def write(asking: dict[str, Any], request: Request) -> Any:
        served = await server.desk.model(asking.pop("model", "writer"))
        config = GenerateConfig.of({"max_new_tokens": asking.pop("max_new_tokens", 20), **asking.pop("config", {})})
        stream, asked = asking.pop("stream", False), server.desk.asked(request)
        prompts = [await served.prompt(text) for text in asking.pop("prompts", ["a good day"])]
        if not stream:
            found = await server.desk.while_there(request, served.answers(prompts, config, asked, **asking))
            return JSONResponse([one.text for one in found])
        pieces = await begun(served.write(prompts, config, asked, streams=True, **asking))
        events = (said({"text": one.text}) async for one in pieces if isinstance(one, Piece))
        return StreamingResponse(events, media_type="text/event-stream")

    server.app.add_api_route("/test/write", write, methods=["POST"])

    async def held() -> dict[str, int]:
        """Tell what the server holds: tasks, and files with those of the tests, which are few."""
        return {"tasks": len(asyncio.all_tasks()), "files": len(os.listdir("/proc/self/fd"))}

    server.app.add_api_route("/test/held", held, methods=["GET"])


MORE_FILES = 8
"""What a model that is opened by a test, and the process that tries schemas, may keep open."""


@pytest.fixture(autouse=True)
def _nothing_stays(server: Server) -> Iterator[None]:
    before = server.http.get("/test/held").json()
    yield
    until = time.monotonic() + 60
    while server.desk.inflight or any(s.served and (s.served.scheduler.state(60) != "idle"
                                                    or s.served.scheduler.waiting != (0, 0)
                                                    or s.served.scheduler.running != (0, 0))
                                      for s in server.desk.shelves.values()):  # fmt: skip
        assert time.monotonic() < until, "something is still under way"
        time.sleep(0.01)
    while (after := server.http.get("/test/held").json()) and (
        after["tasks"] > before["tasks"] or after["files"] > before["files"] + MORE_FILES
    ):
        assert time.monotonic() < until, (before, after)
        time.sleep(0.05)
    assert server.http.post("/v1/similarity", content=BODY, headers=JSON).status_code == 200


def connected(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def head(path: str = "/v1/similarity", **more: str) -> bytes:
    names = {"host": "localhost", **JSON, **{name.replace("_", "-"): value for name, value in more.items()}}
    return f"POST {path} HTTP/1.1\r\n".encode() + b"".join(f"{n}: {v}\r\n".encode() for n, v in names.items()) + b"\r\n"


def answered(connection: socket.socket) -> bytes:
    """Read until the server closes."""
    out = b""
    while part := connection.recv(65536):
        out += part
    return out


# -- bodies -------------------------------------------------------------------------------------------


def malformed() -> Iterator[bytes]:
    yield from (b"", b"{", b"[]", b"null", b'"a"', b"1e999", b"\xff\xfe", b"\x00" * 50, BODY[:-1], BODY + b"}")
    yield from (b"[" * 50_000, b'{"pairs":' * 10_000, b'{"pairs": ' + b"9" * 5000 + b"}", b'{"pairs": NaN}')
    yield from (b'{"pairs": [["\\ud800", "b"]]}', b'{"pairs": [["a", "b"]], "model": "\\udfff"}', b'{"\\ud800": 1}')
    yield from (
        b'{"pairs": [["a", "b"]], "pairs": [["a"]]}',
        b'{"pairs": [["a", "\\u0000"]]}',
        b'{"pairs": [["", ""]]}',
    )
    rng = random.Random(0)
    for _ in range(60):
        body = bytearray(BODY)
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(body))
            change = rng.choice((b"", bytes([rng.randrange(256)]), b'"', b"}", b"[", b"\\u", b"\xf0\x9f", b"-"))
            body[at : at + rng.randint(0, 2)] = change
        yield bytes(body)


def test_no_body_is_an_error_of_the_server(server: Server) -> None:
    for body in malformed():
        for path in ("/v1/similarity", "/v1/classify"):
            answer = server.http.post(path, content=body, headers=JSON)
            assert answer.status_code < 500, (path, body[:80], answer.text)
            if answer.status_code != 200:
                assert answer.json()["error"]["message"]


HALF, DEEP = "\ud800", json.loads("[" * 400 + "]" * 400)
HI = [{"role": "user", "content": "hi"}]
TENSOR = {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["a"]}


@pytest.mark.parametrize("wrong", [HALF, DEEP, {HALF: 1}], ids=["half", "deep", "name"])
@pytest.mark.parametrize(
    ("path", "asking"),
    [
        ("/v1/responses", {"model": "chat", "input": "hi", "metadata": {"a": ...}}),
        ("/v1/responses", {"model": "chat", "input": "hi", "tool_choice": "none",
                           "tools": [{"type": "function", "name": "f", "parameters": {"a": ...}}]}),
        ("/v1/chat/completions", {"model": "chat", "messages": HI, "logit_bias": {"a": ...}}),
        ("/v1/embeddings", {"model": "base", "input": [...]}),
        ("/v1/similarity", {"model": "base", "pairs": [["a", ...]]}),
        ("/v1/predict", {"inputs": {"text": ...}}),
        ("/v2/models/writer/infer", {"inputs": [TENSOR], "id": ...}),
        ("/v2/models/writer/infer", {"inputs": [{**TENSOR, "parameters": {"a": ...}}]}),
        ("/v2/models/writer/infer", {"inputs": [{**TENSOR, "data": [...]}]}),
        ("/api/chat", {"model": "chat", "messages": HI, "options": {"stop": [...]}}),
        ("/api/chat", {"model": "chat", "messages": HI, "format": {"enum": [...]}}),
        ("/invocations", {"inputs": [...]}),
        ("/score", {"input_data": {"columns": ["text"], "data": [[...]]}}),
    ],
)  # fmt: skip
def test_no_text_and_no_nesting_anywhere_is_an_error_of_the_server(
    server: Server, path: str, asking: Any, wrong: Any
) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: filled(one) for name, one in value.items()}
        return [filled(one) for one in value] if isinstance(value, list) else wrong if value is ... else value

    answer = server.http.post(path, content=json.dumps(filled(asking)), headers=JSON)
    assert answer.status_code == 400
    assert len(answer.text) < 4000


def test_a_body_full_of_mistakes_is_told_one_of_them() -> None:
    """A list of all would take more memory than the server has, and its time."""
    from pydantic import ValidationError

    from llmasos.core import plugins
    from llmasos.protocols._bodies import Fields

    for name in plugins.names("protocols"):
        plugins.load("protocols", name)
    kinds = [Fields]
    for kind in kinds:  # which grows
        kinds += kind.__subclasses__()
    assert len(kinds) > 20
    named = {f"x{i}": [i] for i in range(200)}
    wrong: list[Any] = [[None] * 200, [{}] * 200, [[1]] * 200, [{"x": 1}] * 200, named]
    for kind in kinds[1:]:
        names = [about.alias or name for name, about in kind.model_fields.items()]
        for asking in (named, *({name: value} for name in names for value in wrong)):
            try:
                kind.model_validate(asking)
            except ValidationError as error:
                told = error.error_count()
            except ValueError:  # refused as a whole
                told = 1
            else:
                told = 0
            assert told <= 4 * (len(names) + 2), (kind, str(asking)[:80])


def test_what_is_told_of_a_mistake_is_not_as_long_as_the_request(server: Server) -> None:
    asking = {"model": "chat", "input": "hi", "reasoning": {"a": "b" * 50_000}}
    answer = server.http.post("/v1/responses", json=asking)
    assert answer.status_code == 400
    assert 1000 < len(answer.json()["error"]["message"]) <= 2000


@pytest.mark.parametrize(
    "kind",
    ["", "text/plain", "application/xml", "multipart/form-data", "application/json; charset=utf-7", "x" * 1000],
)
def test_no_type_is_an_error_of_the_server(server: Server, kind: str) -> None:
    assert server.http.post("/v1/similarity", content=BODY, headers={"content-type": kind}).status_code < 500


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "PROPFIND"])
def test_no_method_is_an_error_of_the_server(server: Server, method: str) -> None:
    for path in ("/v1/similarity", "/nothing", "/metrics", "/v1/../metrics", "/%00", "/%ff", "//", "/" + "a" * 5000):
        assert server.http.request(method, path).status_code < 500, path


def test_too_large_a_body_is_refused_whatever_its_head_says(server: Server) -> None:
    large = server.http.post("/v1/similarity", content=b" " * 200_000, headers=JSON)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")
    parts = server.http.post("/v1/similarity", content=(b" " * 10_000 for _ in range(20)), headers=JSON)
    assert parts.status_code == 413
    with connected(server) as connection:
        connection.sendall(head(content_length="9" * 15) + BODY)
        assert b" 413 " in connection.recv(4096)


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\n\r\n", b"GET /\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\r\n" * 1000,
        b"POST /v1/similarity HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/similarity HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        b"POST /v1/similarity HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nhost: evil.example.com\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n" + b"".join(b"x%d: a\r\n" % i for i in range(10_000)) + b"\r\n",
    ],
)  # fmt: skip
def test_what_is_no_request_ends_a_connection_and_nothing_else(server: Server, raw: bytes) -> None:
    with connected(server) as connection:
        try:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            answer = answered(connection)
        except (BrokenPipeError, ConnectionResetError):  # the server did not wait for the end
            return
        assert not answer.startswith(b"HTTP/1.1 5")
        assert b"Traceback" not in answer


@pytest.mark.parametrize("end", [b"", b"\r\n"])
def test_a_head_is_read_to_its_bound_and_no_further(server: Server, end: bytes) -> None:
    for more in (b"x: " + b"a" * 70_000, b"".join(b"x%d: a\r\n" % i for i in range(10_000))):
        with connected(server) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n" + more + end + end)
            assert b" 400 " in connection.recv(4096)


@pytest.mark.parametrize("body", [b"{", b"[" * 50_000, b"\xff", b'{"pairs": NaN}'])
def test_what_is_no_json_is_told_so(server: Server, body: bytes) -> None:
    answer = server.http.post("/v1/similarity", content=body, headers=JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


def test_a_body_is_not_counted_as_a_head(server: Server) -> None:
    for size in (70_000, 200_000, 70_000):  # the second is refused, and its rest read by nobody
        answer = server.http.post("/v1/similarity", content=BODY + b" " * size, headers=JSON)
        assert (answer.status_code, "x-request-id" in answer.headers) == (413 if size > 100_000 else 200, True)


# -- slow clients -------------------------------------------------------------------------------------


def test_a_head_that_does_not_end_is_not_waited_for(server: Server) -> None:
    with connected(server) as silent, connected(server) as slow:
        start = time.monotonic()
        slow.settimeout(0.1)
        for letter in head()[:-2] + b"x-more: " + b"a" * 1000:
            try:
                slow.sendall(bytes([letter]))
                if not slow.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert PATIENCE / 2 < time.monotonic() - start < 15
        assert silent.recv(1) == b""


def test_a_body_that_does_not_come_is_not_waited_for(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall(head(content_length="1000") + b'{"pairs"')
        assert b" 408 " in connection.recv(4096)


def test_a_body_that_comes_in_letters_is_not_waited_for(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall(head(content_length="1000"))
        connection.settimeout(0.1)
        start, answer = time.monotonic(), b""
        while not answer and time.monotonic() - start < 15:
            try:
                connection.sendall(b" ")
                answer = connection.recv(4096)
            except TimeoutError:
                continue
            except OSError:
                break
        assert b" 408 " in answer


def test_a_connection_may_rest_between_requests(server: Server) -> None:
    with httpx2.Client(base_url=server.url) as http:
        assert http.post("/v1/similarity", content=BODY, headers=JSON).status_code == 200
        time.sleep(1.5 * PATIENCE)
        before = server.desk.inflight
        assert http.post("/v1/similarity", content=BODY, headers=JSON).status_code == 200
        assert before == 0


def test_a_client_that_does_not_take_its_answer_is_not_waited_for(server: Server) -> None:
    async def large() -> StreamingResponse:
        return StreamingResponse(b"x" * (1 << 20) for _ in range(1000))

    server.app.add_api_route("/test/large", large, methods=["GET"])
    with connected(server) as connection:
        connection.sendall(b"GET /test/large HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b" 200 " in connection.recv(100)
        assert server.desk.inflight == 1
        until = time.monotonic() + 30
        while server.desk.inflight:
            assert time.monotonic() < until
            time.sleep(0.05)


# -- clients that leave -------------------------------------------------------------------------------


def written(server: Server) -> int:
    shelf = server.desk.shelves["writer"].served
    return shelf.scheduler.counts.tokens_written if shelf else 0


@pytest.mark.parametrize("hard", [False, True])
def test_a_stream_that_is_left_is_written_no_further(server: Server, hard: bool) -> None:
    body = json.dumps({"stream": True, "max_new_tokens": 3000}).encode()
    before, left = written(server), server.desk.shelves["writer"].served
    gone = left.scheduler.counts.left if left else 0
    with connected(server) as connection:
        connection.sendall(head("/test/write", content_length=str(len(body))) + body)
        assert b"text/event-stream" in connection.recv(4096)
        if hard:  # a reset instead of a goodbye
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until = time.monotonic() + 30
    counts = server.desk.shelves["writer"].served.scheduler.counts
    while counts.left == gone:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert written(server) - before < 3000
    assert counts.tokens_saved > 0


def test_clients_that_leave_at_any_time_leave_nothing(server: Server) -> None:
    body = json.dumps({"stream": True, "max_new_tokens": 2000}).encode()
    whole = head("/test/write", content_length=str(len(body))) + body
    rng = random.Random(1)
    for _ in range(30):
        with connected(server) as connection:
            connection.sendall(whole[: rng.choice((rng.randrange(1, len(whole)), len(whole)))])
            if rng.random() < 0.5:
                connection.settimeout(rng.random() / 5)
                with contextlib.suppress(TimeoutError):
                    connection.recv(rng.randrange(1, 2000))


# -- bounds of writing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asking", "named"),
    [
        ({"max_new_tokens": 3001}, "max_new_tokens"),
        ({"config": {"num_beams": 9}}, "num_beams"),
        ({"stop": ["a"] * 17}, "number of stop strings"),
        ({"stop": ["a" * 257]}, "length of a stop string"),
        ({"prompts": ["a"] * 51}, "51 inputs"),
        ({"json_schema": {"enum": ["a" * 66_000]}}, "json_schema has"),
        ({"json_schema": "{"}, "json_schema is not JSON"),
        ({"json_schema": "[" * 60_000}, "32 levels"),
        ({"json_schema": {"$ref": "http://127.0.0.1:9/schema"}}, "does not fetch"),
        ({"json_schema": {"type": "wrong"}}, "json_schema cannot be enforced"),
    ],
)
def test_what_is_larger_than_the_server_allows_is_named(server: Server, asking: dict[str, Any], named: str) -> None:
    pytest.importorskip("llguidance")
    for more in ({}, {"stream": True}):
        answer = server.http.post("/test/write", json=asking | more)
        assert answer.status_code == 400
        assert named in answer.json()["error"]["message"]


def test_what_is_just_as_large_as_allowed_is_written(server: Server) -> None:
    pytest.importorskip("llguidance")
    for asking in ({"stop": ["x" * 256, *map(str, range(15))]}, {"config": {"num_beams": 8}}, {"prompts": ["a"] * 50},
                   {"json_schema": {"type": "boolean"}, "model": "chat"}):  # fmt: skip
        answer = server.http.post("/test/write", json={"max_new_tokens": 8} | asking)
        assert answer.status_code == 200, answer.text
    assert answer.json()[0] in ("true", "false")


def test_a_schema_has_so_many_levels_and_no_more() -> None:
    from llmasos.core.errors import UsageError
    from llmasos.serving.limits import SCHEMA_DEPTH, check_schema

    schema: Any = {"type": "string"}
    for _ in range(SCHEMA_DEPTH):
        check_schema(schema)
        schema = {"items": schema}
    with pytest.raises(UsageError, match="deeper"):
        check_schema(schema)


def test_a_schema_that_takes_too_long_is_ended_with_its_process() -> None:
    pytest.importorskip("llguidance")
    from llmasos.core.errors import UsageError
    from llmasos.serving.grammar import Trying

    trying = Trying(0.001)
    try:
        large = {"enum": [f"{i} {'abc' * 20}" for i in range(20_000)]}
        with pytest.raises(UsageError, match=r"more than 0.001 s"):
            asyncio.run(trying.check(large))
        assert trying._child is None
        trying._seconds = 60.0
        asyncio.run(trying.check({"type": "string"}))  # in a new process
        first = trying._child
        asyncio.run(trying.check({"type": "string"}))
        assert trying._child is first
    finally:
        trying.close()


def test_a_schema_that_takes_long_holds_up_no_request_without_one(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llguidance")
    from llmasos.serving import grammar

    monkeypatch.setattr(grammar, "WAITING", 6)
    ready = threading.Event()
    server.desk._trying._thread.submit(ready.wait, 60)  # as a schema that takes long

    def shaped(number: int) -> int:
        schema = {"const": f"a{number}"}
        with httpx2.Client(base_url=server.url, timeout=120) as http:
            asking = {"model": "chat", "json_schema": schema, "max_new_tokens": 8}
            return int(http.post("/test/write", json=asking).status_code)

    with ThreadPoolExecutor(6) as clients:
        try:
            asked = [clients.submit(shaped, number) for number in range(6)]
            until = time.monotonic() + 30
            while len(server.desk._trying._trials) < 6:
                assert time.monotonic() < until
                time.sleep(0.01)
            assert server.http.post("/v1/similarity", content=BODY, headers=JSON).status_code == 200
            assert server.http.post("/test/write", json={"model": "chat"}).status_code == 200
            refused = server.http.post("/test/write", json={"model": "chat", "json_schema": {"const": "b"}})
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
        finally:
            ready.set()
        assert [one.result() for one in asked] == [200] * 6


@pytest.mark.slow
def test_what_is_thrown_at_it_takes_no_memory(server: Server) -> None:
    from llmasos.core.hardware import resident_memory

    bodies = list(malformed())
    stream = json.dumps({"stream": True, "max_new_tokens": 2000}).encode()

    def some() -> int:
        for body in bodies:
            server.http.post("/v1/similarity", content=body, headers=JSON)
        for _ in range(20):
            with connected(server) as connection:
                connection.sendall(head("/test/write", content_length=str(len(stream))) + stream)
                connection.recv(1000)
            with connected(server) as connection:
                connection.sendall(head(content_length="1000") + b"{")
        return resident_memory()

    before = [some() for _ in range(3)][-1]
    after = [some() for _ in range(6)][-1]
    assert after - before < 24 << 20
