"""Ollama's routes over real HTTP: by hand, and by the official client."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

pytest.importorskip("fastapi")

from served import Server, serving
from served_models import Exact
from tiny import save_tiny_bert

HELLO = [{"role": "user", "content": "Hello! Who are you?"}]
GREEDY = {"temperature": 0, "num_predict": 12}


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return save_tiny_bert(tmp_path_factory.mktemp("bert") / "vectors")


@pytest.fixture(scope="module")
def server(vectors: Any) -> Iterator[Server]:
    with serving({"starter-chat": "starter-chat", "vectors": vectors}, max_new_tokens=200) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> httpx2.Client:
    return server.http


@pytest.fixture(scope="module")
def llm() -> Exact:
    return Exact("starter-chat")


def chat(client: httpx2.Client, **more: Any) -> httpx2.Response:
    asked = {"model": "starter-chat", "messages": HELLO, "options": GREEDY, "stream": False} | more
    return client.post("/api/chat", json=asked)


def generate(client: httpx2.Client, **more: Any) -> httpx2.Response:
    asked = {"model": "starter-chat", "prompt": "Hello!", "options": GREEDY, "stream": False} | more
    return client.post("/api/generate", json=asked)


def lines(reply: httpx2.Response) -> list[dict[str, Any]]:
    assert reply.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in reply.text.splitlines()]


def test_a_chat_is_answered_as_by_generate_with_counts_and_durations(client, llm):
    wanted = llm.generate(HELLO, max_new_tokens=12)
    found = chat(client).json()
    assert found["message"] == {"role": "assistant", "content": wanted.text}
    assert (found["done"], found["done_reason"]) == (True, wanted.finish_reason)
    assert (found["prompt_eval_count"], found["eval_count"]) == (wanted.prompt_tokens, len(wanted.tokens))
    parts = [found[f"{name}_duration"] for name in ("load", "prompt_eval", "eval")]
    assert all(isinstance(part, int) and part >= 0 for part in parts)
    assert sum(parts) <= found["total_duration"] < 60e9
    assert found["created_at"].endswith("Z")


def test_a_stream_is_lines_that_make_the_whole_answer(client, llm):
    wanted = llm.generate(HELLO, max_new_tokens=12)
    *pieces, last = lines(chat(client, stream=True))
    assert "".join(piece["message"]["content"] for piece in pieces) == wanted.text
    assert not any(piece["done"] for piece in pieces)
    assert (last["done"], last["message"]["content"], last["eval_count"]) == (True, "", len(wanted.tokens))


def test_a_prompt_goes_through_the_chat_template_unless_it_is_raw(client, llm):
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]
    assert generate(client, system="Be brief.").json()["response"] == llm.generate(asked, max_new_tokens=12).text
    assert generate(client, raw=True).json()["response"] == llm.generate("Hello!", max_new_tokens=12).text
    assert "".join(one["response"] for one in lines(generate(client, raw=True, stream=True))) == (
        llm.generate("Hello!", max_new_tokens=12).text
    )


@pytest.mark.parametrize(("options", "same"), [
    ({"temperature": 0.9, "seed": 3}, {"temperature": 0.9, "seed": 3}),
    ({"top_k": 5, "seed": 3}, {"temperature": 0.8, "top_k": 5, "seed": 3}),
    ({"temperature": 1.0, "top_p": 0.5, "seed": 4}, {"temperature": 1.0, "top_p": 0.5, "seed": 4}),
    ({"temperature": 1.0, "min_p": 0.3, "seed": 5}, {"temperature": 1.0, "min_p": 0.3, "seed": 5}),
    ({"temperature": 0, "top_p": 0.5, "top_k": 1}, {}),
    ({"temperature": 1e-300}, {}),
    ({"repeat_penalty": 1.7}, {"repetition_penalty": 1.7}),
    ({"stop": ["a"]}, {"stop": ["a"]}),
    ({"num_ctx": 4096, "num_thread": 3, "presence_penalty": 0}, {}),
])  # fmt: skip
def test_options_do_what_they_do_in_python(options, same, client, llm):
    found = chat(client, options={"num_predict": 20, **options}).json()
    assert found["message"]["content"] == llm.generate(HELLO, max_new_tokens=20, **same).text


def test_without_a_seed_draws_differ(client):
    texts = {chat(client, options={"temperature": 1.5, "num_predict": 20}).json()["message"]["content"] for _ in "1234"}
    assert len(texts) > 1


def test_an_answer_is_as_long_as_the_model_and_the_server_allow(client):
    for options in ({"temperature": 0}, {"temperature": 0, "num_predict": -1}):
        assert chat(client, options=options).json()["eval_count"] <= 200
    reply = chat(client, options={"num_predict": 201})
    assert reply.status_code == 400
    assert "num_predict=201" in reply.json()["error"]


def test_a_format_is_obeyed(client):
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
              "additionalProperties": False}  # fmt: skip
    found = chat(client, format=schema, options={"temperature": 0}).json()
    assert set(json.loads(found["message"]["content"])) == {"ok"}
    assert found["done_reason"] == "stop"
    assert generate(client, format="json").json()["response"].startswith("{")


def test_texts_become_vectors(client, vectors):
    wanted = Exact(vectors).embed(["ab", "c d"])
    found = client.post("/api/embed", json={"model": "vectors:latest", "input": ["ab", "c d"]}).json()
    for one, other in zip(found["embeddings"], wanted, strict=True):
        assert one == pytest.approx(other.tolist(), abs=1e-5)
    assert found["prompt_eval_count"] == 4 + 4  # with the tokens around them
    one = client.post("/api/embeddings", json={"model": "vectors", "prompt": "ab"}).json()["embedding"]
    assert one == pytest.approx(wanted[0].tolist(), abs=1e-5)
    assert client.post("/api/embed", json={"model": "vectors", "input": []}).json()["embeddings"] == []
    long = {"model": "vectors", "input": "a" * 100}
    assert len(client.post("/api/embed", json=long).json()["embeddings"]) == 1
    reply = client.post("/api/embed", json=long | {"truncate": False})
    assert (reply.status_code, "102 tokens" in reply.json()["error"]) == (400, True)


def test_models_are_listed_and_told_of(client):
    assert [one["name"] for one in client.get("/api/tags").json()["models"]] == ["starter-chat", "vectors"]
    opened = client.get("/api/ps").json()["models"]
    assert [one["size"] > 0 for one in opened] == [True, True]
    told = client.post("/api/show", json={"model": "starter-chat"}).json()
    assert told["capabilities"] == ["completion"]
    assert told["model_info"]["llama.context_length"] == opened[0]["context_length"]
    assert told["template"]
    assert client.post("/api/show", json={"name": "vectors"}).json()["capabilities"] == ["embedding"]
    assert client.get("/api/version").json() == {"version": "test"}
    opening = chat(client, messages=[]).json()
    assert (opening["done"], opening["done_reason"], opening["message"]["content"]) == (True, "load", "")


@pytest.mark.parametrize(("route", "body", "told"), [
    ("chat", {"model": "starter-chat", "messages": HELLO, "option": {}}, "option"),
    ("chat", {"model": "starter-chat", "messages": HELLO, "tools": [{"type": "function"}]}, "tools"),
    ("chat", {"model": "starter-chat", "messages": HELLO, "think": True}, "think"),
    ("chat", {"model": "starter-chat", "messages": HELLO, "logprobs": True}, "logprobs"),
    ("chat", {"model": "starter-chat", "messages": [{**HELLO[0], "images": ["aGk="]}]}, "images"),
    ("chat", {"model": "starter-chat", "messages": [{"role": "wizard", "content": "?"}]}, "messages"),
    ("chat", {"model": "starter-chat", "messages": HELLO, "format": "xml"}, "xml"),
    ("chat", {"model": "starter-chat", "messages": HELLO, "format": {"type": "no such type"}}, "json_schema"),
    ("chat", {"model": "vectors", "messages": HELLO}, "does not write"),
    ("generate", {"model": "starter-chat", "prompt": "a", "suffix": "b"}, "suffix"),
    ("generate", {"model": "starter-chat", "prompt": "a", "template": "{{ 1 }}"}, "template"),
    ("generate", {"model": "starter-chat", "prompt": "a", "context": [1]}, "context"),
    ("generate", {"model": "starter-chat", "prompt": "a", "raw": True, "system": "b"}, "system"),
    ("generate", {"model": "starter-chat", "prompt": "a" * 20_000}, "does not fit"),
    ("generate", {"model": "starter-chat", "prompt": "\ud800"}, "surrogate"),
    ("generate", {"model": "starter-chat", "prompt": "a", "options": {"mirostat": 2}}, "mirostat"),
    ("generate", {"model": "starter-chat", "prompt": "a", "options": {"temprature": 0}}, "did you mean 'temperature'"),
    ("generate", {"model": "starter-chat", "prompt": "a", "options": {"top_k": "3"}}, "top_k"),
    ("generate", {"model": "starter-chat", "prompt": "a", "options": {"top_p": 3}}, "top_p"),
    ("generate", {"model": "starter-chat", "prompt": "a", "options": {"num_predict": 0.5}}, "num_predict"),
    ("generate", {"model": "starter-chat", "prompt": "a", "options": {"stop": [1]}}, "stop"),
    ("embed", {"model": "vectors", "input": "a", "dimensions": 3}, "dimensions"),
    ("embed", {"model": "vectors", "input": "a", "options": {"seed": 3}}, "seed"),
    ("embed", {"model": "starter-chat", "input": "a"}, "makes no vectors"),
    ("show", {}, "no model"),
    ("show", {"model": "starter-chat", "\ud800": 1}, "surrogate"),
])  # fmt: skip
def test_what_cannot_be_done_is_told_by_name(route, body, told, client):
    reply = client.post(f"/api/{route}", content=json.dumps(body), headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert list(reply.json()) == ["error"]
    assert told in reply.json()["error"]


def test_what_is_not_there_is_404_in_ollamas_words(client):
    reply = chat(client, model="starter")
    assert reply.status_code == 404
    assert "did you mean 'starter-chat'" in reply.json()["error"]
    assert list(client.post("/api/pull", json={"model": "x"}).json()) == ["error"]


def test_when_a_client_leaves_its_text_is_given_up(server, client):
    pytest.importorskip("llguidance")
    counts = server.desk.shelves["starter-chat"].served.scheduler.counts
    left, endless = counts.left, {"type": "array", "items": {"type": "boolean"}, "minItems": 500}
    asked = {"model": "starter-chat", "messages": HELLO, "options": {"num_predict": 200}, "format": endless}
    with client.stream("POST", "/api/chat", json=asked) as reply:
        next(reply.iter_lines())
    until = time.monotonic() + 20
    while counts.left == left and time.monotonic() < until:
        time.sleep(0.02)
    assert counts.left == left + 1


# -- the official client ------------------------------------------------------------------------------


def test_the_official_client_talks_as_to_ollama(client, llm, vectors):
    ollama = pytest.importorskip("ollama")
    with ollama.Client(host=str(client.base_url)) as theirs:
        wanted = llm.generate(HELLO, max_new_tokens=12)
        found = theirs.chat("starter-chat", HELLO, options=GREEDY)
        assert (found.message.content, found.eval_count, found.done_reason) == (
            wanted.text, len(wanted.tokens), wanted.finish_reason,
        )  # fmt: skip
        pieces = list(
            theirs.chat("starter-chat", HELLO, options=ollama.Options(**GREEDY), stream=True, keep_alive="5m")
        )
        assert "".join(piece.message.content for piece in pieces) == wanted.text
        assert pieces[-1].total_duration > 0
        raw = llm.generate("Hello!", max_new_tokens=12).text
        assert theirs.generate("starter-chat", "Hello!", raw=True, options=GREEDY).response == raw
        assert "".join(one.response for one in theirs.generate("starter-chat", "Hello!", raw=True, options=GREEDY,
                                                               stream=True)) == raw  # fmt: skip
        (vector,) = theirs.embed("vectors", "ab").embeddings
        assert list(vector) == pytest.approx(Exact(vectors).embed("ab").tolist(), abs=1e-5)
        assert len(theirs.embeddings("vectors", "ab").embedding) == 32
        assert [one.model for one in theirs.list().models] == ["starter-chat", "vectors"]
        assert [one.model for one in theirs.ps().models] == ["starter-chat", "vectors"]
        assert theirs.show("starter-chat").capabilities == ["completion"]
        with pytest.raises(ollama.ResponseError, match="did you mean") as caught:
            theirs.chat("starter", HELLO)
        assert caught.value.status_code == 404
        with pytest.raises(ollama.ResponseError, match="mirostat"):
            list(theirs.generate("starter-chat", "a", options={"mirostat": 1}, stream=True))
