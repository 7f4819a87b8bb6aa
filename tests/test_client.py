"""The client against the real server: every route, every option, both clients, streams, and golden rows."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
import pytest

from llmasos import client as public
from llmasos.client import AsyncClient, Client, Reply, calls
from llmasos.client.answers import read_prediction
from llmasos.core.errors import ParityError, RemoteError, UsageError
from test_client_faults import Handler, answering, told

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

TASKS = (
    "text-classification", "token-classification", "question-answering", "sentence-similarity", "translation",
    "language-modeling",
)  # fmt: skip
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Tiny models of tasks, the starter as it is and with tools, and an encoder that was never saved here."""
    from served_models import tuned
    from servers import with_tools
    from tiny import save_tiny_bert

    folder = tmp_path_factory.mktemp("models")
    found: dict[str, Any] = {name: tuned(folder / name, name) for name in TASKS}
    return {"chat": "starter-chat", **found, "tools": with_tools(folder / "tools"),
            "near": save_tiny_bert(folder / "near")}  # fmt: skip


@pytest.fixture(scope="module")
def server(models: dict[str, Any]) -> Iterator[Any]:
    from served import serving

    with serving(models) as running:
        yield running


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with Client(server.url) as made:
        yield made


def asked(server: Any) -> int:
    """Return how many requests the server has answered."""
    page = server.http.get("/metrics").text
    lines = [
        line for line in page.splitlines() if line.startswith("llmasos_requests_total{") and "/metrics" not in line
    ]
    return sum(int(float(line.split()[-1])) for line in lines)


# -- tasks --------------------------------------------------------------------------------------------

ROUTES = {"text-classification": "classify", "token-classification": "tag", "question-answering": "answer",
          "translation": "translate", "sentence-similarity": "predict"}  # fmt: skip


@pytest.mark.parametrize("name", ROUTES)
def test_answers_are_those_of_predict(models: dict[str, Any], client: Client, name: str) -> None:
    from served_models import Exact, sample

    rows, options = sample(name), {"max_new_tokens": 8} if name == "translation" else {}
    ask = partial(getattr(client, ROUTES[name]), model=name, **options)
    wanted = [one.as_dict() for one in Exact(models[name]).predict(rows, **options)]
    found = ask(rows)
    for one, other in zip(found, wanted, strict=True):
        if isinstance(one, dict):
            assert one == pytest.approx(other, abs=1e-5)
            continue
        assert {field.name for field in fields(one)} - {"labels"} == other.keys()
        assert all(getattr(one, key) == pytest.approx(value, abs=1e-5) for key, value in other.items()
                   if not isinstance(value, list))  # fmt: skip
    assert ask(rows[0]) == found[0]
    assert client.predict(rows, model=name, **options) == found
    assert ask([]) == []


def test_predictions_are_known_by_their_fields() -> None:
    several = read_prediction({"label": 1, "labels": [1, 2], "score": 0.9, "scores": {"1": 0.9, "2": 0.6}, "new": 0})
    assert several == public.Classification(1, 0.9, {1: 0.9, 2: 0.6}, (1, 2))
    assert read_prediction({"anything": 1}) == {"anything": 1}
    place = {"text": "Ada", "start": 0, "end": 3, "score": 0.5}
    entity = {**place, "label": "PER", "start_word": 0, "end_word": 1}
    tagged = read_prediction({"text": "Ada", "words": [{**place, "tag": "B"}], "entities": [entity]})
    assert tagged == public.Tagged("Ada", (public.TaggedWord(**place, tag="B"),), (public.Entity(**entity),))
    answer = {"answer": "", "score": 0.1, "start": None, "end": None, "no_answer_score": 0.9}
    span = {"answer": "Ada", "score": 0.1, "start": 0, "end": 3}
    assert read_prediction({**answer, "n_best": [span]}) == public.Answer(**answer, n_best=(public.Span(**span),))


def test_long_inputs_are_cut_only_where_that_is_allowed(client: Client) -> None:
    long = "good " * 500
    with pytest.raises(UsageError, match="truncate"):
        client.classify(long, model="text-classification")
    assert client.classify(long, model="text-classification", truncate=True).label in ("praise", "complaint")
    for ask in (partial(client.similarity, [(long, "bad")]), partial(client.rerank, "bad", [long])):
        with pytest.raises(UsageError, match="truncate"):
            ask(model="near")
        assert len(ask(model="near", truncate=True)) == 1


def test_a_written_answer_is_as_long_as_allowed(client: Client) -> None:
    assert client.translate("one two", model="translation", max_new_tokens=2).tokens <= 2
    with pytest.raises(UsageError, match="max_new_tokens"):
        client.classify("a good day", model="text-classification", max_new_tokens=2)


def test_texts_are_compared(models: dict[str, Any], client: Client) -> None:
    from served_models import Exact

    texts = ["a good day", "bad", "good good"]
    vectors = Exact(models["near"]).embed(texts)
    found = client.embed(texts, model="near")
    assert (found.dtype, found.shape) == (np.float32, (3, 32))
    assert found == pytest.approx(vectors, abs=1e-5)
    assert client.embed("bad", model="near") == pytest.approx(vectors[1], abs=1e-5)
    assert client.embed(texts, model="near", extra={"encoding_format": "float"}) == pytest.approx(vectors, abs=1e-5)
    pairs = [(texts[0], texts[1]), (texts[0], texts[2])]
    cosines = [float(vectors[0] @ vectors[1]), float(vectors[0] @ vectors[2])]
    assert client.similarity(pairs, model="near") == pytest.approx(cosines, abs=1e-5)
    ranked = client.rerank(texts[0], texts[1:], model="near")
    assert [one.score for one in ranked] == pytest.approx(sorted(cosines, reverse=True), abs=1e-5)
    assert [one.document for one in ranked] == [texts[1:][one.index] for one in ranked]
    assert client.rerank(texts[0], texts[1:], 1, model="near") == ranked[:1]


# -- the server ---------------------------------------------------------------------------------------


def test_the_server_tells_of_itself(server: Any, models: dict[str, Any], client: Client) -> None:
    known = client.models()
    assert [one.id for one in known] == list(models)
    assert client.model("near") == known[-1]
    assert (known[-1].task, known[-1].embeds, known[-1].writes, known[-1].checked) == (None, True, False, False)
    assert known[1].checked
    assert known[1].about["engine"] == "torch"
    assert client.health() == "ready"
    assert "llmasos_info" in client.metrics()
    server.desk.draining = True
    try:
        assert client.health() == "draining"
    finally:
        server.desk.draining = False
    with pytest.raises(UsageError, match="no model 'far'") as caught:
        client.model("far")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


def test_the_model_is_the_calls_or_the_clients_or_the_first(server: Any) -> None:
    with Client(server.url, model="near") as client:
        assert client.embed("bad").shape == (32,)
        assert client.chat("Hello", model="chat", max_tokens=1).model == "chat"
        with pytest.raises(UsageError, match="near"):
            client.chat("Hello")
    with Client(server.url) as client:
        assert client.chat("Hello", max_tokens=1).model == "chat"


def test_the_address_and_the_key_come_from_the_environment(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMASOS_URL", f"{server.url}/v1")
    with Client() as client:
        assert client.url == server.url
        assert client.health() == "ready"
    seen: list[str | None] = []

    def note(handler: Handler) -> None:
        seen.append(handler.headers.get("authorization"))
        told({"data": []})(handler)

    monkeypatch.setenv("LLMASOS_API_KEY", "lm-one")
    with answering(note) as other:
        for key in (None, "lm-two", ""):
            with Client(other.url, key=key) as client:
                client.models()
    assert seen == ["Bearer lm-one", "Bearer lm-two", None]


def test_every_route_of_the_document_is_an_operation(server: Any) -> None:
    paths = server.app.openapi()["paths"]
    routes = {operation["operationId"]: (path, method) for path, operations in paths.items()
              for method, operation in operations.items() if path.startswith("/v1/")}  # fmt: skip
    described = {
        name: getattr(calls, name)(*args) for name, args in {
            "models": (), "model": ("{name}",), "golden": (), "similarity": ([],), "rerank": ("", []), "embed": ("",),
            "chat": ("",), "complete": ("",), "respond": ("",), "classify": ("",), "tag": ("",), "answer": ("",),
            "translate": ("",), "summarize": ("",), "predict": ("",),
        }.items()
    }  # fmt: skip
    found = {name: (call.path.replace("%7Bname%7D", "{name}"), call.method.lower()) for name, call in described.items()}
    assert found == routes
    assert all(hasattr(kind, name) for kind in (Client, AsyncClient) for name in found)


EVERYTHING = {
    "chat": {"max_tokens": 1, "temperature": 0, "top_p": 1, "seed": 1, "stop": "a", "n": 1, "tools": [TOOL],
             "tool_choice": "auto", "response_format": {"type": "text"}, "logprobs": True, "top_logprobs": 1},
    "complete": {"max_tokens": 1, "temperature": 0, "top_p": 1, "seed": 1, "stop": "a", "n": 1, "logprobs": 1},
    "respond": {"instructions": "a", "max_tokens": 1, "temperature": 0, "top_p": 1, "tools": [], "tool_choice": "auto",
                "text": {"format": {"type": "text"}}},
    "embed": {}, "rerank": {"documents": [], "top_n": 1, "truncate": True},
    "classify": {"truncate": True, "max_new_tokens": 1},
    "similarity": {"truncate": True},
}  # fmt: skip


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_field_that_is_sent_is_in_the_document(server: Any, name: str) -> None:
    import inspect

    options = EVERYTHING[name]
    call = getattr(calls, name)([] if name == "similarity" else "a", **options)
    document = server.app.openapi()
    schema = document["paths"][call.path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    known = document["components"]["schemas"][schema["$ref"].split("/")[-1]]["properties"]
    sent = {**call.body, **(call.streamed if isinstance(call, calls.Writing) else {})}
    assert sent.keys() <= known.keys()
    own = {"model", "extra", "timeout", "system"} | set(list(inspect.signature(getattr(calls, name)).parameters)[:1])
    assert inspect.signature(getattr(calls, name)).parameters.keys() - own == options.keys()
    assert len(call.body) == 1 + len(options) + (name == "embed")


# -- writing ------------------------------------------------------------------------------------------


def test_a_chat(client: Client) -> None:
    hello = client.chat("Hello", temperature=0)
    assert hello.text == str(hello) == hello.choices[0].text
    assert hello.finish_reason == "stop"
    assert hello.tool_calls == ()
    assert hello.usage is not None
    assert hello.usage.prompt_tokens > 0 < hello.usage.completion_tokens
    assert hello.request_id
    assert hello.request_id.startswith("req_")
    said = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": hello.text}]
    assert client.chat([*said, {"role": "user", "content": "thanks"}], temperature=0).text != hello.text
    assert client.chat([{"role": "user", "content": "Hello"}], temperature=0) != hello  # it has another id


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 2}, {"stop": "!"}, {"stop": ["nice"]}, {"system": "You are a pirate. Answer: arr."},
        {"temperature": 1, "seed": 11}, {"response_format": {"type": "json_schema", "json_schema":
         {"name": "mood", "schema": {"enum": ["glad", "sad"]}}}}, {"extra": {"max_completion_tokens": 1}},
    ],
)  # fmt: skip
def test_each_option_changes_an_answer(client: Client, options: dict[str, Any]) -> None:
    pytest.importorskip("llguidance")
    usual = {"temperature": 0}
    assert client.chat("Hello", **{**usual, **options}).text != client.chat("Hello", **usual).text


def test_draws_follow_their_seed(client: Client) -> None:
    found = [client.chat("Tell me a story.", temperature=1.5, top_p=top_p, seed=seed, max_tokens=12).text
             for top_p, seed in ((1, 1), (1, 1), (1, 2), (1e-6, 1), (1e-6, 2))]  # fmt: skip
    assert found[0] == found[1] != found[2]
    assert found[3] == found[4]


def test_several_answers_with_their_chances(client: Client) -> None:
    found = client.chat("Hello", n=2, temperature=1, seed=3, logprobs=True, top_logprobs=2, max_tokens=3)
    assert [one.index for one in found.choices] == [0, 1]
    assert found.choices[0].logprobs is not None
    first = found.choices[0].logprobs[0]
    assert first.token in found.text
    assert len(first.top_logprobs) == 2
    assert first.logprob <= max(first.top_logprobs.values()) <= 0
    assert client.chat("Hello", max_tokens=1).choices[0].logprobs is None


def test_tools_are_called(client: Client) -> None:
    pytest.importorskip("llguidance")
    options: dict[str, Any] = {"model": "tools", "tools": [TOOL], "tool_choice": "required", "temperature": 0}
    found = client.chat("weather", **options)
    (call,) = found.tool_calls
    assert call.name == "weather"
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    assert (found.finish_reason, found.text) == ("tool_calls", "")
    stream = client.stream("weather", **options)
    assert list(stream) == []
    assert [(one.name, one.arguments) for one in stream.reply.tool_calls] == [(call.name, call.arguments)]
    flat = {"type": "function", **TOOL["function"]}  # type: ignore[dict-item]
    other = client.respond("weather", **{**options, "tools": [flat]})
    assert (other.tool_calls[0].arguments, other.finish_reason) == (call.arguments, "tool_calls")


def test_completions(client: Client) -> None:
    found = client.complete("Hello", temperature=0, max_tokens=4, logprobs=2)
    assert found.choices[0].logprobs is not None
    assert len(found.choices[0].logprobs) == 4
    assert found.finish_reason == "length"
    both = client.complete(["Hello", "Good"], temperature=0, max_tokens=4, n=2)
    assert [one.index for one in both.choices] == [0, 1, 2, 3]
    assert both.choices[0].text == both.choices[1].text == found.text != both.choices[2].text
    assert client.complete([1753, 15], max_tokens=1, temperature=0, stop="a", top_p=1, seed=1).text


def test_responses(client: Client) -> None:
    hello = client.chat("Hello", temperature=0)
    found = client.respond("Hello", temperature=0)
    assert (found.text, found.usage, found.finish_reason) == (hello.text, hello.usage, "stop")
    short = client.respond([{"role": "user", "content": "Hello"}], temperature=0, max_tokens=2)
    assert (short.finish_reason, short.text) == ("length", client.chat("Hello", temperature=0, max_tokens=2).text)
    assert client.respond("Hello", instructions="You are a pirate. Answer: arr.", temperature=0).text != hello.text


@pytest.mark.parametrize(
    ("ask", "stream", "options"),
    [
        ("chat", "stream", {"n": 2, "logprobs": True, "top_logprobs": 1}),
        ("complete", "stream_completion", {"n": 2, "logprobs": 1, "max_tokens": 8}),
        ("respond", "stream_response", {}),
    ],
)
def test_a_stream_is_the_whole_answer_in_pieces(client: Client, ask: str, stream: str, options: Any) -> None:
    options = {"temperature": 0.8, "seed": 5, **options} if "n" in options else {"temperature": 0}
    whole: Reply = getattr(client, ask)("Hello", **options)
    with getattr(client, stream)("Hello", **options) as pieces:
        texts = [""] * len(whole.choices)
        for piece in pieces:
            texts[piece.choice] += piece
            assert pieces.text == texts[0]
    assert len(pieces.text) > 0
    assert texts == [one.text for one in whole.choices]
    assert (pieces.reply.choices, pieces.reply.usage, pieces.reply.model) == (whole.choices, whole.usage, "chat")
    assert pieces.reply.request_id != whole.request_id


def test_a_stream_that_is_left_ends_the_work(server: Any, client: Client) -> None:
    def cancelled() -> float:
        lines = client.metrics().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith('llmasos_cancelled_total{model="chat"'))

    before = cancelled()
    with client.stream("Tell me a long story.", temperature=1, seed=1, extra={"min_p": 0.0}) as stream:
        next(stream)
    until = time.monotonic() + 10
    while cancelled() == before and time.monotonic() < until:
        time.sleep(0.02)
    assert cancelled() == before + 1
    while server.desk.shelves["chat"].served.scheduler.running[0] and time.monotonic() < until:
        time.sleep(0.02)
    assert server.desk.shelves["chat"].served.scheduler.running[0] == 0


# -- awaited ------------------------------------------------------------------------------------------


def test_the_same_is_awaited(server: Any, client: Client) -> None:
    async def whole() -> None:
        async with AsyncClient(server.url) as other:
            hello = client.chat("Hello", temperature=0)
            found = await asyncio.gather(*(other.chat("Hello", temperature=0) for _ in range(40)))
            assert {one.text for one in found} == {hello.text}
            async with other.stream("Hello", temperature=0) as stream:
                assert "".join([piece async for piece in stream]) == hello.text
            assert stream.reply.usage == hello.usage
            rows = ["a good day", "bad"]
            labels = await other.classify(rows, model="text-classification")
            assert labels == client.classify(rows, model="text-classification")
            assert (await other.embed(rows, model="near")).shape == (2, 32)
            assert (await other.health(), len(await other.models())) == ("ready", len(client.models()))
            assert await other.verify("text-classification") == client.verify("text-classification")

    asyncio.run(whole())


# -- golden rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_a_model_is_verified_once(server: Any, client: Client, name: str) -> None:
    golden = client.golden(name)
    before = asked(server)
    found = client.verify(name)
    assert asked(server) - before == 1 + len(golden["rows"])
    assert (found.model, found.version, found.task) == (name, golden["version"], name)
    assert found.rows == len(golden["rows"]) >= 4
    assert found.largest <= found.tolerance < 0.01
    before = asked(server)
    assert client.verify(name) is found
    assert asked(server) - before == 1


def test_golden_rows_in_another_precision(models: dict[str, Any], client: Client) -> None:
    from served import serving

    name = "text-classification"
    with serving({name: models[name]}, precision="bfloat16") as other, Client(other.url) as half:
        found, exact = half.verify(), client.verify(name)
        assert found.version != exact.version
        assert found.tolerance == pytest.approx(100 * exact.tolerance, rel=0.2)  # as the precision's own
        assert 1e-6 < found.largest <= found.tolerance


def test_golden_answers_are_no_longer_than_a_request_may_ask_for(models: dict[str, Any]) -> None:
    from served import serving

    names = ("language-modeling", "translation")
    with serving({name: models[name] for name in names}, max_new_tokens=4) as other, Client(other.url) as client:
        for name in names:
            assert client.verify(name).rows >= 4


def test_a_model_without_golden_rows(client: Client) -> None:
    with pytest.raises(UsageError, match="never saved") as caught:
        client.verify("near")
    assert (caught.value.status, caught.value.code) == (404, "no_golden_rows")


@contextmanager
def in_front(server: Any, change: Callable[[str, Any], Any]) -> Iterator[str]:
    """Stand before a server, and change what it answers."""

    def relay(handler: Handler) -> None:
        path, body = handler.server.asked[-1]
        answer = server.http.post(path, json=body) if body else server.http.get(path)
        told(change(path, answer.json()), answer.status_code)(handler)

    with answering(relay) as other:
        yield other.url


def test_other_numbers_are_told(server: Any) -> None:
    def other(path: str, answer: Any) -> Any:
        if path == "/v1/classify":
            answer["result"]["scores"]["praise"] += 0.1
        return answer

    with in_front(server, other) as url, Client(url) as client:
        for _ in range(2):  # what is wrong is not remembered as right
            with pytest.raises(ParityError, match=r"the worst is row \d: result\.scores\.praise is 0\.5\d+, not 0\.4"):
                client.verify("text-classification")


def test_another_model_under_the_name_is_told(server: Any, models: dict[str, Any]) -> None:
    def other(path: str, answer: Any) -> Any:
        if path == "/v1/completions":
            answer["choices"][0]["text"] += "!"
        return answer

    with in_front(server, other) as url, Client(url) as client, pytest.raises(ParityError, match=r"choices\[0\]\.text"):
        client.verify("language-modeling")


def test_golden_rows_that_make_no_sense() -> None:
    for body in ({}, {"model": "a", "version": "b", "tolerance": "c", "rows": []}, {"rows": 3}):
        with answering(told(body)) as server, Client(server.url) as client, pytest.raises(RemoteError):
            client.verify()


def test_methods_say_what_they_do(client: Client) -> None:
    names = [name for name in dir(Client) if not name.startswith("_")]
    docs = {name: getattr(client, name).__doc__ for name in names}
    assert all(doc and "partial" not in doc for doc in docs.values())
    assert docs["classify"].startswith("Put texts into classes.")
    assert docs["stream"].startswith(docs["chat"][:20])


# -- what it costs ------------------------------------------------------------------------------------


def test_it_needs_no_torch() -> None:
    code = "import sys; from llmasos.client import Client; Client('http://a'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "numpy", "pydantic", "transformers", "fastapi", "openai"}
