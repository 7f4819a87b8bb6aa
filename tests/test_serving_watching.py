"""Those who watch a server: numbers, logs without contents, contents without persons, spans, and the views of them."""

from __future__ import annotations

import io
import json
import re
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from served import Server, serving
from tiny import save_tiny_bert

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from fastapi import Request

from llmasos.cli import main
from llmasos.cli.top import read, summary, view
from llmasos.serving import logs
from llmasos.serving.app import PATIENCE
from llmasos.serving.buckets import Buckets
from llmasos.serving.guard import Entry, Guard
from llmasos.serving.keys import KeyFile
from llmasos.serving.logs import Contents, Lines, Plain
from llmasos.serving.metrics import Metrics
from llmasos.serving.start import watch_of
from llmasos.serving.watching import Watch

ROOT = Path(__file__).resolve().parents[1]
SECRET_TEXT = "the parcel of ada@example.com"


class Watched:
    """A server with a key, and what is written down of it."""

    def __init__(self, folder: Path) -> None:
        self.stream, self.path = io.StringIO(), folder / "logs" / "contents.jsonl"
        self.contents, self.server = Contents(self.path), None
        keys = KeyFile(folder / "keys.json")
        self.secret, self.guard = keys.add("ada"), Guard(keys)

    def watch(self, desk: Any) -> Watch:
        return Watch(Metrics(desk, "1.2.3", PATIENCE), Lines(self.stream), self.contents)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    models = {"base": save_tiny_bert(folder / "base"), "writer": "starter-chat"}
    found = Watched(folder)
    with serving(models, guard=found.guard, watch=found.watch, pinned=("base",)) as server:
        server.http.headers["authorization"] = f"Bearer {found.secret}"
        found.server = server
        add_writing(server)
        yield found
        found.contents.close()


def add_writing(server: Server) -> None:
    from llmasos.core.config import GenerateConfig

    async def write(asking: dict[str, Any], request: Request) -> Any:
        served, config = await server.desk.model("writer"), GenerateConfig(max_new_tokens=asking["tokens"])
        prompts = [await served.prompt(text) for text in asking["prompts"]]
        found = await server.desk.while_there(request, served.answers(prompts, config, server.desk.asked(request)))
        return [one.text for one in found]

    async def fail() -> None:
        raise ValueError(SECRET_TEXT)

    server.app.add_api_route("/test/write/{number}", write, methods=["POST"])
    server.app.add_api_route("/test/fail", fail, methods=["POST"])


def numbers(server: Server) -> Any:
    """Read the numbers once the last step is counted, which it is after its answers were said."""
    while True:
        answer = server.http.get("/metrics")
        assert answer.status_code == 200
        found = read(answer.text)
        if found.total("steps_total") == found.total("batch_rows_count"):
            return found


def embed(server: Server, count: int = 1) -> dict[str, Any]:
    return server.http.post("/v1/similarity", json={"pairs": [[SECRET_TEXT, "a day"]] * count, "model": "base"}).json()


# -- numbers ------------------------------------------------------------------------------------------


def test_requests_are_counted_by_route_and_status(watched: Watched) -> None:
    server = watched.server
    before = numbers(server)
    embed(server)
    server.http.post("/v1/similarity", json={})
    server.http.post("/test/write/17", json={"prompts": ["a"], "tokens": 2})
    server.http.get("/v1/nothing/at/all")
    server.http.get("/metrics", headers={"authorization": "Bearer lm-wrong"})
    now = numbers(server)
    for labels, count in ((("/v1/similarity", "200"), 1), (("/v1/similarity", "400"), 1), (("other", "404"), 1),
                          (("/test/write/{number}", "200"), 1), (("other", "401"), 1)):  # fmt: skip
        assert now.of("requests_total", *labels) - before.of("requests_total", *labels) == count, labels
    assert now.of("request_seconds_count", "/v1/similarity") - before.of("request_seconds_count", "/v1/similarity") == 2


def test_a_model_that_answers_is_counted(watched: Watched) -> None:
    before = numbers(watched.server)
    used = embed(watched.server, 3)["usage"]["prompt_tokens"]
    now = numbers(watched.server)

    def more(name: str) -> float:
        return now.of(name, "base") - before.of(name, "base")

    assert (more("works_total"), more("tokens_read_total"), more("queue_seconds_count")) == (1, used, 1)
    assert more("first_token_seconds_count") == 1
    assert more("batch_rows_sum") == 6
    assert more("busy_seconds_total") > 0
    assert more("tokens_written_total") == 0


def test_a_model_that_writes_is_counted_by_its_tokens(watched: Watched) -> None:
    server = watched.server
    server.http.post("/test/write/1", json={"prompts": ["a"], "tokens": 1})
    before = numbers(server)
    server.http.post("/test/write/1", json={"prompts": ["a day", "b"], "tokens": 5})
    now = numbers(server)

    def more(name: str) -> float:
        return now.of(name, "writer") - before.of(name, "writer")

    written = more("tokens_written_total")
    assert 2 <= written <= 10
    assert more("token_seconds_count") == written
    assert 0 < more("token_seconds_sum") < 60
    assert more("first_token_seconds_count") == 2
    assert more("steps_total") >= 1
    assert more("batch_rows_sum") == written


def test_states_memory_and_queues_are_told_as_they_are(watched: Watched) -> None:
    server = watched.server
    embed(server)
    served = server.desk.shelves["base"].served
    lane, engine = served.scheduler._lane, served.parts.engine
    stop, compute = threading.Event(), engine.together
    engine.together = lambda batches: (stop.wait(20), compute(batches))[1]
    thread = threading.Thread(target=embed, args=(server,))
    thread.start()
    while not lane.running:
        stop.wait(0.01)
    busy = numbers(server)
    stop.set()
    thread.join()
    engine.together = compute
    idle = numbers(server)
    assert (busy.of("model_state", "base", "busy"), busy.of("model_state", "base", "idle")) == (1, 0)
    assert (idle.of("model_state", "base", "busy"), idle.of("model_state", "base", "idle")) == (0, 1)
    assert (busy.of("running", "base"), idle.of("running", "base")) == (1, 0)
    assert busy.of("running_tokens", "base") > 0
    assert idle.of("running_tokens", "base") == 0
    assert busy.of("requests_in_flight") == 2  # this reading is one
    assert idle.of("model_bytes", "base") == server.desk.shelves["base"].bytes
    assert idle.of("memory_limit_bytes") == server.desk.memory
    assert idle.of("info", "1.2.3") == 1


def test_a_bucket_counts_what_is_not_above_its_bound() -> None:
    buckets = Buckets((1.0, 2.0))
    for value, times in ((0.5, 1), (1.0, 2), (1.5, 1), (9.0, 3)):
        buckets.add(value, times)
    assert list(buckets.cumulative()) == [("1.0", 3), ("2.0", 4), ("+Inf", 7)]
    assert (buckets.count, buckets.total) == (7, 31.0)


# -- logs ---------------------------------------------------------------------------------------------


def logged(watched: Watched, number: str, count: int) -> list[dict[str, Any]]:
    """Wait for the lines of a request, which come after its answer."""
    until = time.monotonic() + 20
    while len(found := [line for line in watched.lines if line.get("id") == number]) < count:
        assert time.monotonic() < until
        time.sleep(0.01)
    return found


def test_each_request_is_a_line_without_a_word_of_it(watched: Watched) -> None:
    answer = watched.server.http.post(
        "/v1/similarity?token=geheim", json={"pairs": [[SECRET_TEXT, "b"]], "model": "base"},
        headers={"x-request-id": "mine-7"},
    )  # fmt: skip
    (line,) = logged(watched, "mine-7", 1)
    assert line["tokens"] == answer.json()["usage"]["prompt_tokens"]
    assert {name: line[name] for name in ("event", "key", "route", "model", "status", "method")} == {
        "event": "request", "key": "ada", "route": "/v1/similarity", "model": "base", "status": 200, "method": "POST"
    }  # fmt: skip
    assert line["ms"] > 0
    text = watched.stream.getvalue()
    for secret in (SECRET_TEXT, "parcel", "geheim", watched.secret):
        assert secret not in text


def test_an_unexpected_error_is_told_without_its_message(watched: Watched) -> None:
    answer = watched.server.http.post("/test/fail", headers={"x-request-id": "bad-1"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert answer.headers["x-request-id"] == "bad-1"
    told = logged(watched, "bad-1", 2)
    assert [line["event"] for line in told] == ["error", "request"]
    assert told[0]["error"] == "ValueError"
    assert told[0]["at"][-1].startswith(Path(__file__).name)
    assert "parcel" not in watched.stream.getvalue() + answer.text


def test_what_libraries_say_becomes_a_line_too() -> None:
    import logging

    stream = io.StringIO()
    Plain.instead(Lines(stream), "test-library")
    logger = logging.getLogger("test-library.part")
    logger.info("nothing")
    logger.warning("an %s", "event")
    try:
        raise ValueError(SECRET_TEXT)
    except ValueError:
        logger.exception("of %s", SECRET_TEXT)
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["event"], first["text"]) == ("warning", "an event")
    assert (second["event"], second["error"]) == ("error", "ValueError")
    assert SECRET_TEXT not in stream.getvalue()


def test_contents_are_written_down_without_persons(watched: Watched) -> None:
    embed(watched.server)
    written = watched.server.http.post("/test/write/1", json={"prompts": ["mail a@b.com"], "tokens": 3}).json()
    until = time.monotonic() + 20
    lines: list[dict[str, Any]] = []
    while not any(line["model"] == "writer" and line["answered"] == written[0] for line in lines):  # others' lie before
        assert time.monotonic() < until
        time.sleep(0.01)
        text = watched.path.read_text() if watched.path.exists() else ""
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    asked = next(line for line in reversed(lines) if line["model"] == "base")
    assert asked["key"] == "ada"
    assert asked["asked"][0] == "the parcel of [mail]"
    assert re.fullmatch(r"req_\w+", asked["id"])
    wrote = next(line for line in reversed(lines) if line["model"] == "writer")
    assert "[mail]" in wrote["asked"]
    assert "@" not in watched.path.read_text()
    assert stat.S_IMODE(watched.path.stat().st_mode) == 0o600


@pytest.mark.parametrize("wanted", ["on", "off"])
def test_contents_are_written_only_where_they_are_wanted(
    watched: Watched, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path))
    monkeypatch.setattr(Plain, "instead", lambda *_: None)  # the tests' own loggers stay
    desk = watched.server.desk
    monkeypatch.setattr(desk, "config", replace(desk.config, log_content=wanted))
    watch, entry = watch_of(desk, "1.2.3"), Entry("ada")
    watch.begun(entry, "req_1")
    if entry.keep is not None:
        entry.keep("base", SECRET_TEXT, "answer")
    watch.close()
    files = [path.read_text() for path in tmp_path.rglob("*.jsonl")]
    assert ["the parcel of [mail]" in text for text in files] == ([True] if wanted == "on" else [])


def test_contents_are_set_aside_when_they_are_large(tmp_path: Path) -> None:
    contents = Contents(tmp_path / "contents.jsonl")
    contents._handler.maxBytes = 1000
    for i in range(30):
        contents.write("id", "key", "model", {"text": "a" * 100, "n": i}, "\ud800")
    contents.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["contents.jsonl", *(f"contents.jsonl.{i}" for i in range(1, 6))]
    assert json.loads((tmp_path / "contents.jsonl").read_text().splitlines()[-1])["asked"]["n"] == 29


@pytest.mark.parametrize(("bound", "most"), [("WAITING", 4), ("CHARACTERS", 400)])
def test_contents_that_come_too_fast_are_dropped_and_counted(
    bound: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, bound, most)
    going, stop, stream, told = threading.Event(), threading.Event(), io.StringIO(), []
    monkeypatch.setattr(logs, "redacted_all", lambda value: (going.set(), stop.wait(20), value)[-1])
    contents = Contents(tmp_path / "contents.jsonl", Lines(stream), lambda: told.append(1))
    contents.write("0", "key", "model", "a" * 100, None)
    assert going.wait(20)  # the thread is at the first
    for number in range(1, 10):
        contents.write(str(number), "key", "model", "a" * 90, "b" * 10)
    stop.set()
    contents.close()
    lines = [json.loads(line) for line in (tmp_path / "contents.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines if "id" in line] == ["0", "1", "2", "3", "4"]
    assert [line["dropped"] for line in lines if "id" not in line] == [5] == [len(told)]
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert (line["event"], line["count"], line["why"]) == ("contents_dropped", 5, "too many waited")


def test_contents_that_cannot_be_written_are_counted_and_not_shown(tmp_path: Path, capfd: Any) -> None:
    stream, told = io.StringIO(), []
    contents = Contents(tmp_path / "logs" / "contents.jsonl", Lines(stream), lambda: told.append(1))
    (tmp_path / "logs").rmdir()
    contents.write("1", "key", "model", SECRET_TEXT, "answer")
    contents.close()
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert (line["event"], line["count"], line["why"]) == ("contents_dropped", 1, "FileNotFoundError")
    assert len(told) == 1
    assert not "".join(capfd.readouterr())


def test_dropped_contents_are_a_number_of_the_server(watched: Watched) -> None:
    metrics = Metrics(watched.server.desk, "1.2.3", PATIENCE)
    metrics.dropped()
    assert read(metrics.page().decode()).total("contents_dropped_total") == 1


# -- spans --------------------------------------------------------------------------------------------


def test_spans_tell_of_queue_and_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    from llmasos.serving.start import _tracer

    got: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            got.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert _tracer("1.2.3") is None
    collector = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    tracer = _tracer("1.2.3")
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    base = save_tiny_bert(tmp_path / "base")
    with serving({"base": base}, watch=lambda desk: Watch(Metrics(desk, "", 1), tracer=tracer)) as server:
        server.http.post("/v1/similarity", json={"pairs": [[SECRET_TEXT, "b"]]}, headers={"traceparent": parent})
    tracer.close()
    collector.shutdown()
    collector.server_close()
    assert got[0][0] == "/v1/traces"
    (scope,) = got[0][1].resource_spans
    assert {a.key: a.value.string_value for a in scope.resource.attributes}["service.name"] == "llmasos"
    spans = {span.name: span for span in scope.scope_spans[0].spans}
    assert set(spans) == {"POST /v1/similarity", "queue", "compute"}
    request = spans["POST /v1/similarity"]
    assert request.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert request.parent_span_id.hex() == "b7ad6b7169203331"
    assert spans["queue"].parent_span_id == spans["compute"].parent_span_id == request.span_id
    assert request.start_time_unix_nano <= spans["queue"].start_time_unix_nano <= spans["queue"].end_time_unix_nano
    assert spans["queue"].end_time_unix_nano == spans["compute"].start_time_unix_nano
    assert spans["compute"].end_time_unix_nano <= request.end_time_unix_nano
    assert abs(request.end_time_unix_nano / 1e9 - time.time()) < 60
    assert SECRET_TEXT not in str(got)


# -- views --------------------------------------------------------------------------------------------


def test_top_shows_a_server(
    watched: Watched, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMASOS_API_KEY", watched.secret)
    monkeypatch.setenv("COLUMNS", "200")
    words = ["top", "--url", watched.server.url, "--interval", "0.1"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["model"] for one in told["models"]] == ["base", "writer"]
    assert told["models"][0]["state"] == "idle"
    assert told["requests"] > 0
    assert main([*words, "--once"]) == 0
    shown = capsys.readouterr().out
    assert "base" in shown
    assert "idle" in shown
    assert "requests/s" in shown


def test_top_says_what_is_wrong(
    watched: Watched, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLMASOS_API_KEY", raising=False)
    assert main(["top", "--once", "--url", watched.server.url]) == 2
    assert "LLMASOS_API_KEY" in capsys.readouterr().err
    assert main(["top", "--once", "--url", "http://127.0.0.1:9"]) == 1
    assert "cannot be reached" in capsys.readouterr().err


def test_top_counts_between_two_looks(watched: Watched) -> None:
    from rich.console import Console

    before = numbers(watched.server)
    embed(watched.server, 4)
    told = summary(before, numbers(watched.server))
    base = told["models"][0]
    assert told["requests_per_second"] > 0
    assert base["tokens_read_per_second"] > 0
    assert base["batch_rows"] == 8
    assert base["queue_seconds"] >= 0
    assert told["models"][1]["token_seconds"] is None
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(view("http://x", told))
    assert "8.0" in console.export_text()


def test_every_metric_of_the_dashboard_and_of_the_guide_is_there(watched: Watched) -> None:
    names = {name for name in numbers(watched.server).values if name.startswith("llmasos_")}
    dashboard = (ROOT / "src" / "llmasos" / "targets" / "dashboard.json").read_text()
    used = set(re.findall(r"llmasos_\w+", " ".join(_expressions(json.loads(dashboard)))))
    assert len(used) >= 15
    assert used - names == set()
    for guide in ("serving-securely.md", "serving-securely.zh-CN.md"):
        told = set(re.findall(r"`(llmasos_\w+)`", (ROOT / "docs" / "guides" / guide).read_text()))
        families = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in names if not name.endswith("_created")}
        assert told == families


def _expressions(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, one in value.items():
            if name in ("expr", "query", "definition") and isinstance(one, str):
                yield one
            else:
                yield from _expressions(one)
    elif isinstance(value, list):
        for one in value:
            yield from _expressions(one)
