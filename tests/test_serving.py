"""The server itself: answers as the model gives them, fair queues, clients that leave, memory, and a quiet end."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx2
import pytest

from llmasos import LLM, LanguageModelingTask, SentenceSimilarityTask, TextClassificationTask
from llmasos.serving.scheduler import Work
from served import Server, serving, started
from tiny import save_tiny, save_tiny_bert

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
TEXTS = ["a good day", "bad", "what is this", "no no no", "abc " * 10]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("serving")
    base = save_tiny_bert(folder / "base")
    rows = [{"text": "a good day", "label": "praise"}, {"text": "bad", "label": "complaint"}] * 8
    LLM.from_pretrained(base).finetune(
        TextClassificationTask(), rows, eval_data=rows, epochs=1, output=folder / "mood", progress=False
    )
    pairs = [{"anchor": "a good day", "positive": "a fine day"}, {"anchor": "bad", "positive": "worse"}] * 8
    LLM.from_pretrained(base).finetune(
        SentenceSimilarityTask(), pairs, eval_data=pairs, epochs=1, output=folder / "near", progress=False
    )
    writer = save_tiny(folder / "writer", "AutoModelForCausalLM", max_length=2048)
    return {"mood": folder / "mood", "near": folder / "near", "base": base, "writer": writer}


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> Iterator[Server]:
    with serving(folders, timeout=60) as running:
        yield running


def test_a_model_that_learned_to_go_on_writes(folders: dict[str, Path], tmp_path: Path) -> None:
    rows = [{"text": text} for text in TEXTS] * 4
    LLM.from_pretrained(folders["writer"]).finetune(
        LanguageModelingTask(), rows, eval_data=rows, epochs=1, output=tmp_path / "m", progress=False
    )
    expected = LLM.from_pretrained(tmp_path / "m").generate("a good day", max_new_tokens=8, precision="float32")
    with serving({"m": tmp_path / "m"}) as running:
        asking = {"model": "m", "prompt": "a good day", "max_tokens": 8, "temperature": 0}
        found = running.http.post("/v1/completions", json=asking).json()
    assert found["choices"][0]["text"] == expected.text


def idle(server: Server) -> bool:
    """Wait until nothing is under way."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        states = {shelf.served.scheduler.state(60) for shelf in server.desk.shelves.values() if shelf.served}
        if states == {"idle"} and not server.desk.inflight:
            return True
        time.sleep(0.02)
    return False


# -- answers ------------------------------------------------------------------------------------------


def test_answers_are_those_of_predict(server: Server, folders: dict[str, Path]) -> None:
    expected = [one.as_dict() for one in LLM.from_pretrained(folders["mood"]).predict(TEXTS, precision="float32")]
    found = server.http.post("/v1/classify", json={"inputs": TEXTS, "model": "mood"}).json()
    assert found["task"] == "text-classification"
    for one, other in zip(found["results"], expected, strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
    single = server.http.post("/v1/classify", json={"inputs": TEXTS[0]}).json()
    assert single["result"]["label"] == expected[0]["label"]


def test_rows_and_texts_are_inputs_alike(server: Server) -> None:
    found = server.http.post("/v1/classify", json={"inputs": [TEXTS[0], {"text": TEXTS[0]}]}).json()["results"]
    assert found[0] == found[1]


@pytest.mark.parametrize("model", ["near", "base"])
def test_similarity_and_rerank_use_the_vectors_of_embed(server: Server, folders: dict[str, Path], model: str) -> None:
    vectors = LLM.from_pretrained(folders[model]).embed(TEXTS, precision="float32")
    pairs = [[TEXTS[0], TEXTS[1]], [TEXTS[2], TEXTS[3]]]
    found = server.http.post("/v1/similarity", json={"pairs": pairs, "model": model}).json()
    expected = [float(vectors[0] @ vectors[1]), float(vectors[2] @ vectors[3])]
    assert found["scores"] == pytest.approx(expected, abs=1e-5)
    ranked = server.http.post("/v1/rerank", json={"query": TEXTS[0], "documents": TEXTS[1:], "model": model, "top_n": 2,
                                                  "return_documents": True}).json()["results"]  # fmt: skip
    scores = [float(vectors[0] @ one) for one in vectors[1:]]
    assert [one["index"] for one in ranked] == sorted(range(4), key=lambda i: -scores[i])[:2]
    assert ranked[0]["document"] == TEXTS[1:][ranked[0]["index"]]


def test_pairs_and_single_texts_of_one_model_may_come_together(server: Server) -> None:
    results: list[Any] = []

    def ask(path: str, body: Any) -> None:
        results.append(httpx2.post(f"{server.url}{path}", json=body, timeout=60).status_code)

    threads = []
    for _ in range(8):
        row = {"inputs": [{"anchor": "a", "positive": "b"}] * 5, "model": "near"}
        threads.append(threading.Thread(target=ask, args=("/v1/predict", row)))
        threads.append(threading.Thread(target=ask, args=("/v1/similarity", {"pairs": [["a", "b"]], "model": "near"})))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [200] * 16


def test_many_clients_each_get_their_own_answer(server: Server, folders: dict[str, Path]) -> None:
    texts = [f"{'abcdefgh'[i % 8]} {['day', 'no', 'what'][i % 3]} " * (1 + i % 5) for i in range(96)]
    expected = [one.scores for one in LLM.from_pretrained(folders["mood"]).predict(texts, precision="float32")]
    found: dict[int, Any] = {}

    def ask(start: int) -> None:
        with httpx2.Client(base_url=server.url, timeout=60) as http:
            for i in range(start, len(texts), 16):
                found[i] = http.post("/v1/classify", json={"inputs": texts[i]}).json()["result"]["scores"]

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, scores in enumerate(expected):
        assert found[i] == pytest.approx(scores, abs=1e-5)


# -- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/classify", {"inputs": "a", "temprature": 1}, 400, "unsupported_parameter"),
        ("/v1/classify", {}, 400, "invalid_value"),
        ("/v1/classify", {"inputs": "a", "model": "mod"}, 404, "model_not_found"),
        ("/v1/classify", {"inputs": "a", "model": "writer"}, 400, "invalid_value"),
        ("/v1/tag", {"inputs": "a"}, 400, "invalid_value"),
        ("/v1/classify", {"inputs": [{"text": 3}]}, 400, "invalid_value"),
        ("/v1/classify", {"inputs": ["a"] * 2000}, 400, "invalid_value"),
        ("/v1/classify", {"inputs": "word " * 500}, 400, "context_length_exceeded"),
        ("/v1/similarity", {"pairs": [["a", "b"]], "model": "mood"}, 400, "invalid_value"),
        ("/v1/nothing", {}, 404, "not_found"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(
    server: Server, path: str, body: Any, status: int, code: str
) -> None:
    response = server.http.post(path, json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.json()["error"]["message"]
    assert response.headers["x-request-id"]


def test_a_text_that_is_too_long_tells_the_numbers_or_is_cut(server: Server) -> None:
    text = "a " * 100
    message = server.http.post("/v1/classify", json={"inputs": ["b", text]}).json()["error"]["message"]
    assert "input 2 has 102 tokens" in message
    assert "64" in message
    assert server.http.post("/v1/classify", json={"inputs": text, "truncate": True}).status_code == 200


def test_a_body_that_is_no_json_or_too_large_is_refused(server: Server) -> None:
    kind = {"content-type": "application/json"}
    assert server.http.post("/v1/classify", content=b'{"inputs": ', headers=kind).status_code == 400
    large = server.http.post("/v1/classify", content=b" " * (5 << 20), headers=kind)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")

    def pieces() -> Iterator[bytes]:
        for _ in range(5):
            yield b" " * (1 << 20)

    assert server.http.post("/v1/classify", content=pieces(), headers=kind).status_code == 413


def test_a_request_keeps_its_number(server: Server) -> None:
    given = server.http.post("/v1/classify", json={"inputs": "a"}, headers={"x-request-id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    evil = server.http.post("/v1/classify", json={"inputs": "a"}, headers={"x-request-id": "x" * 100})
    assert evil.headers["x-request-id"].startswith("req_")


def test_garbage_is_not_looked_for_among_what_stays(server: Server) -> None:
    assert server.http.post("/v1/classify", json={"inputs": "a"}).status_code == 200
    assert gc.get_freeze_count() > 50_000


def test_a_loop_is_woken_once_for_all_that_is_said() -> None:
    async def told() -> tuple[list[int], int]:
        loop, woken = asyncio.get_running_loop(), []
        wake = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *args: (woken.append(1), wake(*args))  # type: ignore[method-assign, assignment]
        works = [Work("", 1, None) for _ in range(8)]
        for number, work in enumerate(works):
            work.say(number)
            work.end()
        return [item for work in works async for item in work.results()], len(woken)

    assert asyncio.run(told()) == (list(range(8)), 1)


# -- queues, deadlines, clients that leave ------------------------------------------------------------


def test_a_full_queue_refuses_at_once_and_says_when_to_come_again(folders: dict[str, Path]) -> None:
    with serving({"mood": folders["mood"]}, max_waiting=2, max_batch_tokens=1) as server:
        answers: list[httpx2.Response] = []
        body = {"inputs": ["a b c d e"] * 200}

        def ask() -> None:
            answers.append(httpx2.post(f"{server.url}/v1/classify", json=body, timeout=60))

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statuses = sorted(one.status_code for one in answers)
        assert statuses[0] == 200
        assert statuses[-1] == 429
        refused = next(one for one in answers if one.status_code == 429)
        assert refused.json()["error"]["code"] == "queue_full"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert idle(server)


def test_so_many_requests_are_under_way_and_no_more(folders: dict[str, Path]) -> None:
    with serving({"mood": folders["mood"]}, max_requests=2) as server:
        engine = server.desk.shelves["mood"].served.parts.engine
        stop, compute = threading.Event(), engine.together
        engine.together = lambda batches: (stop.wait(60), compute(batches))[1]
        with ThreadPoolExecutor(2) as clients:
            url, asking = f"{server.url}/v1/classify", {"inputs": "a"}
            asked = [clients.submit(httpx2.post, url, json=asking, timeout=120) for _ in range(2)]
            try:
                until = time.monotonic() + 60
                while server.desk.inflight < 2:
                    assert time.monotonic() < until
                    time.sleep(0.001)
                refused = server.http.post("/v1/classify", json=asking)
                assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
                assert refused.json()["error"]["code"] == "queue_full"
                assert server.http.get("/metrics").status_code == 200
            finally:
                stop.set()
            assert [one.result().status_code for one in asked] == [200, 200]
        assert server.http.post("/v1/classify", json=asking).status_code == 200


def test_a_request_whose_time_is_over_is_given_up(folders: dict[str, Path]) -> None:
    with serving({"mood": folders["mood"]}, timeout=0.3, max_batch_tokens=1) as server:
        response = server.http.post("/v1/classify", json={"inputs": ["a b c d e f g h"] * 1000})
        assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
        assert idle(server)
        counts = server.desk.shelves["mood"].served.scheduler.counts
        assert counts.overdue == 1
        assert counts.tokens_saved > 0


def test_work_ends_when_its_client_leaves(folders: dict[str, Path]) -> None:
    with serving({"mood": folders["mood"]}, max_batch_tokens=1) as server:
        counts = server.desk.shelves["mood"].served.scheduler.counts
        client = HTTPConnection(server.url.removeprefix("http://"), timeout=60)
        body = json.dumps({"inputs": ["a b c d e f g " * 4] * 1000})
        client.request("POST", "/v1/classify", body, {"content-type": "application/json"})
        until = time.monotonic() + 60
        while not counts.requests:
            assert time.monotonic() < until
            time.sleep(0.001)
        client.close()
        assert idle(server)
        assert counts.left == 1
        assert counts.tokens_saved > 1000


# -- memory, health, the end --------------------------------------------------------------------------


def test_models_come_and_go_as_memory_allows(folders: dict[str, Path]) -> None:
    two = {"mood": folders["mood"], "near": folders["near"]}
    with serving(two, pinned=("mood",)) as server:
        shelves = server.desk.shelves
        assert shelves["near"].served is None
        assert server.http.post("/v1/similarity", json={"pairs": [["a", "b"]], "model": "near"}).status_code == 200
        assert shelves["near"].served is not None
        server.desk.memory = max(shelf.bytes for shelf in shelves.values()) + 1
        server.desk._shut(shelves["near"])
        refused = server.http.post("/v1/similarity", json={"pairs": [["a", "b"]], "model": "near"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
        assert "MB" in refused.json()["error"]["message"]
        shelves["mood"].pinned = False
        assert server.http.post("/v1/similarity", json={"pairs": [["a", "b"]], "model": "near"}).status_code == 200
        assert shelves["mood"].served is None


def _of_openmp() -> set[int]:
    """Return the threads of this process that are not Python's, and stay: others begin and end between two looks."""

    def others() -> set[int]:
        ours = {one.native_id for one in threading.enumerate()}
        return {int(path.name) for path in Path("/proc/self/task").iterdir()} - ours

    found = others()
    for _ in range(5):
        time.sleep(0.1)
        found &= others()
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux tells of its threads")
def test_models_of_the_processor_share_threads_of_openmp(folders: dict[str, Path]) -> None:
    rows = [" ".join(["a b c d e f g"] * 4)] * 64  # enough for torch to deal out
    with serving(folders, threads=2) as server:
        vectors, texts = ("embeddings", {"input": rows}), ("completions", {"prompt": rows[:16], "max_tokens": 2})
        asked = {"mood": ("classify", {"inputs": rows}), "near": vectors, "base": vectors, "writer": texts}

        def ask(name: str) -> None:
            route, body = asked[name]
            response = server.http.post(f"/v1/{route}", json={"model": name, **body})
            assert response.status_code == 200, response.text

        ask("mood")
        one = _of_openmp()
        for name in folders:
            ask(name)
        assert _of_openmp() <= one, "each model has its own"
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, [*folders] * 3))
        assert _of_openmp() <= one
        closed = weakref.ref(server.desk.shelves["near"].served.parts.engine)
        server.desk._shut(server.desk.shelves["near"])
        gc.collect()
        assert closed() is None, "what computes keeps a model that was closed"


def test_keys_and_values_are_memory_of_their_model(folders: dict[str, Path]) -> None:
    with serving({"writer": folders["writer"]}) as server:
        own = server.desk.shelves["writer"].served.parts.generator.model.config
        each = 2 * own.num_hidden_layers * own.num_key_value_heads * own.head_dim * 4
        before, prompt = server.desk.used_bytes, "a b c d e f g h " * 8  # several blocks of what is kept
        read = len(LLM.from_pretrained(folders["writer"]).tokenizer(prompt)["input_ids"])
        asking = {"model": "writer", "prompt": prompt, "max_tokens": 1500, "temperature": 0, "stream": True}
        with server.http.stream("POST", "/v1/completions", json=asking) as stream:
            assert next(stream.iter_lines()).startswith("data: ")
            assert server.desk.used_bytes - before >= each * (1500 + read)
        assert idle(server)
        kept = server.desk.used_bytes - before
        assert 0 < kept <= each * read
        assert kept % (32 * each) == 0
        server.desk._shut(server.desk.shelves["writer"])
        assert server.desk.used_bytes == 0
        assert server.desk.shelves["writer"].bytes == before


def test_readiness_needs_models_and_liveness_needs_steps(server: Server) -> None:
    assert server.http.get("/health/live").json() == {"status": "live"}
    assert server.http.get("/health/ready").json() == {"status": "ready"}


def test_a_stalled_model_is_told_from_an_idle_and_a_busy_one(folders: dict[str, Path]) -> None:
    with serving({"mood": folders["mood"]}) as server:
        served = server.desk.shelves["mood"].served
        scheduler, engine = served.scheduler, served.parts.engine
        assert scheduler.state(0.0) == "idle"
        stop, compute = threading.Event(), engine.together
        engine.together = lambda batches: (stop.wait(20), compute(batches))[1]
        thread = threading.Thread(target=lambda: server.http.post("/v1/classify", json={"inputs": "a"}))
        thread.start()
        until = time.monotonic() + 10
        while scheduler.state(0.2) != "stalled" and time.monotonic() < until:
            time.sleep(0.02)
        assert scheduler.state(0.2) == "stalled"
        assert scheduler.state(1000.0) == "busy"
        stop.set()
        thread.join()


def test_an_engine_that_fails_answers_with_an_error_and_goes_on(folders: dict[str, Path]) -> None:
    with serving({"mood": folders["mood"]}) as server:
        engine = server.desk.shelves["mood"].served.parts.engine
        good = engine.together

        def bad(batches: Any) -> Any:
            raise RuntimeError("the secret prompt")

        engine.together = bad
        response = server.http.post("/v1/classify", json={"inputs": "a"})
        assert response.status_code == 500
        assert "secret" not in response.text
        engine.together = good
        assert server.http.post("/v1/classify", json={"inputs": "a"}).status_code == 200


def test_a_signal_lets_requests_end_and_refuses_new_ones(folders: dict[str, Path]) -> None:
    options = ["--port", "0", "--max-batch-tokens", "1", "--threads", "1"]
    with started(f"mood={folders['mood']}", *options) as (process, url), httpx2.Client(base_url=url) as kept:
        kept.get("/health/ready").raise_for_status()
        answers: list[httpx2.Response] = []
        body = {"inputs": ["a b c d e f g " * 4] * 1000}  # takes a second or more
        thread = threading.Thread(
            target=lambda: answers.append(httpx2.post(f"{url}/v1/classify", json=body, timeout=60))
        )
        thread.start()
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        refused = httpx2.post(f"{url}/v1/classify", json={"inputs": "a"}, timeout=60)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert httpx2.get(f"{url}/health/ready", timeout=60).status_code == 503
        last = kept.post("/v1/classify", json={"inputs": "a"}, timeout=60)  # its connection was there before
        assert (last.status_code, last.headers["connection"]) == (200, "close")
        thread.join()
        assert answers[0].status_code == 200
        assert len(answers[0].json()["results"]) == 1000
        assert process.wait(20) == 0


def test_a_server_of_these_tests_is_gone_after_an_error(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="of a test"), started(f"mood={folders['mood']}", "--port", "0") as running:
        raise ValueError("of a test")
    assert running[0].poll() == -signal.SIGKILL


def test_what_does_not_end_in_the_time_to_drain_is_told_and_not_waited_for(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "writer", "AutoModelForCausalLM", max_length=4096)
    asking = {"prompt": ["a good day"] * 4, "n": 8, "max_tokens": 4000, "stream": True}
    with started(str(folder), "--port", "0", "--threads", "1", "--drain", "0.2") as (process, url):
        with httpx2.stream("POST", f"{url}/v1/completions", json=asking, timeout=60) as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("data: ")
            process.send_signal(signal.SIGTERM)
            said = list(lines)
        assert "[DONE]" not in "".join(said)
        assert "event: error" in said
        assert "unavailable" in "".join(said[-3:])
        assert process.wait(120) == 0  # two seconds on a quiet machine


def test_a_server_beyond_this_machine_needs_a_key(folders: dict[str, Path], capsys: Any) -> None:
    from llmasos.cli import main

    assert main(["serve", str(folders["mood"]), "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "keys" in capsys.readouterr().err


def test_the_document_of_the_routes_has_an_example_for_each(server: Server) -> None:
    document = server.http.get("/openapi.json").json()
    for path in ("/v1/classify", "/v1/tag", "/v1/answer", "/v1/translate", "/v1/summarize"):
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert content["example"]["inputs"]
    assert json.dumps(document)


def test_the_page_of_the_routes_tells_each_and_loads_nothing(server: Server) -> None:
    document, page = server.http.get("/openapi.json").json(), server.http.get("/docs", headers={"host": "localhost:1"})
    for path, operations in document["paths"].items():
        assert all(f"<code>{method.upper()} {path}</code>" in page.text for method in operations)
    assert "-d &#x27;{&quot;inputs&quot;: &quot;I love this!&quot;}&#x27;" in page.text
    assert "curl http://localhost:1/v1/classify" in page.text
    assert "<td><code>inputs</code><td>string or object or list of string or object *" in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert not re.search("src=|<script|<link|https:|@import|url\\(", page.text)
