"""The formats of KServe, SageMaker and Azure Machine Learning over real HTTP: what ``model.predict`` answers."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

pytest.importorskip("fastapi")

from served import serving, started
from served_models import Exact, sample, tuned
from tiny import save_tiny_bert
from writers import save_writer

TASKS = {"classify": "text-classification", "answer": "question-answering", "translate": "translation"}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    made = {name: tuned(folder / name, task) for name, task in TASKS.items()}
    return made | {"vectors": save_tiny_bert(folder / "vectors"), "writer": save_writer(folder / "writer")}


@pytest.fixture(scope="module")
def llms(folders: dict[str, Path]) -> dict[str, Exact]:
    return {name: Exact(path) for name, path in folders.items()}


@pytest.fixture(scope="module")
def client(folders: dict[str, Path]) -> Iterator[httpx2.Client]:
    with serving(folders, max_inputs=16, max_body=1 << 16, max_new_tokens=64) as server:
        yield server.http


def rounded(value: Any) -> Any:
    """Numbers up to the sixth digit: batches of other sizes may differ in the last bit."""
    if isinstance(value, dict):
        return {str(key): rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return pytest.approx(value, abs=2e-6) if isinstance(value, float) else value


def texts(*values: str, name: str = "text") -> dict[str, Any]:
    return {"name": name, "shape": [len(values)], "datatype": "BYTES", "data": list(values)}


def tensors(reply: httpx2.Response) -> dict[str, dict[str, Any]]:
    assert reply.status_code == 200, reply.text
    return {one["name"]: one for one in reply.json()["outputs"]}


# -- Open Inference Protocol --------------------------------------------------------------------------


def test_the_server_tells_what_it_is_that_it_lives_and_is_ready(client):
    assert client.get("/v2").json() == {"name": "llmasos", "version": "test", "extensions": []}
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/classify/ready").json() == {"name": "classify", "ready": True}


def test_inferred_labels_and_scores_are_predicts(client, llms):
    rows = sample("text-classification")
    wanted = llms["classify"].predict(rows)
    asked = {"id": "42", "inputs": [texts(*(row["text"] for row in rows))]}
    reply = client.post("/v2/models/classify/infer", json=asked)
    assert (reply.json()["id"], reply.json()["model_name"]) == ("42", "classify")
    found = tensors(reply)
    assert found["label"] == texts(*(str(one.label) for one in wanted), name="label")
    assert found["score"]["datatype"] == "FP32"
    assert found["score"]["data"] == pytest.approx([one.score for one in wanted], abs=2e-6)
    names = found["scores.names"]["data"]
    assert found["scores"]["shape"] == [len(rows), len(names)]
    assert found["scores"]["data"] == pytest.approx([one.scores[n] for one in wanted for n in names], abs=2e-6)
    assert [json.loads(text) for text in found["prediction"]["data"]] == rounded([one.as_dict() for one in wanted])


def test_fields_are_tensors_or_rows_are_json(client, llms):
    rows = sample("question-answering")
    wanted = rounded([one.as_dict() for one in llms["answer"].predict(rows)])
    apart = [texts(*(row[name] for row in rows), name=name) for name in ("question", "context")]
    whole = [texts(*(json.dumps(row) for row in rows), name="rows")]
    for inputs in (apart, whole):
        found = tensors(client.post("/v2/models/answer/infer", json={"inputs": inputs}))
        assert [json.loads(text) for text in found["prediction"]["data"]] == wanted


def test_vectors_come_with_their_shape(client, llms):
    asked = {"inputs": [{**texts("ab", "c d"), "shape": [2, 1], "data": [["ab"], ["c d"]]}]}
    found = tensors(client.post("/v2/models/vectors/infer", json=asked))["embedding"]
    wanted = llms["vectors"].embed(["ab", "c d"])
    assert (found["datatype"], found["shape"]) == ("FP32", list(wanted.shape))
    assert found["data"] == pytest.approx(wanted.reshape(-1).tolist(), abs=1e-5)


def test_only_the_wanted_outputs_are_returned(client):
    asked = {"inputs": [texts("abc")], "outputs": [{"name": "label"}]}
    assert list(tensors(client.post("/v2/models/classify/infer", json=asked))) == ["label"]


@pytest.mark.parametrize("name", ["classify", "answer", "translate", "vectors", "writer"])
def test_a_model_tells_the_tensors_that_it_takes_and_gives(name, client):
    told = client.get(f"/v2/models/{name}").json()
    asked = {"inputs": [texts("ab", name=one["name"]) for one in told["inputs"] if one["name"] != "rows"]}
    found = tensors(client.post(f"/v2/models/{name}/infer", json=asked | {"parameters": {}}))
    known = {one["name"]: one for one in told["outputs"]}
    assert set(found) == set(known)
    for tensor in found.values():
        same = zip(tensor["shape"], known[tensor["name"]]["shape"], strict=True)
        assert tensor["datatype"] == known[tensor["name"]]["datatype"]
        assert all(length == told or told == -1 for length, told in same)


def test_options_of_writing_are_parameters(client, llms):
    asked = {"inputs": [texts("ab", name="source")], "parameters": {"max_new_tokens": 3}}
    found = tensors(client.post("/v2/models/translate/infer", json=asked))
    wanted = llms["translate"].predict("ab", max_new_tokens=3)
    assert found["text"]["data"] == [wanted.text]
    assert found["tokens"]["data"] == [wanted.tokens]


@pytest.mark.parametrize(("body", "told"), [
    ({"inputs": []}, "inputs"),
    ({"inputs": [{**texts("a"), "name": "txt"}]}, "did you mean 'text'"),
    ({"inputs": [{**texts("a"), "datatype": "FP32"}]}, "FP32"),
    ({"inputs": [{**texts("a"), "shape": [2]}]}, "shape [2]"),
    ({"inputs": [{**texts("a"), "data": [1]}]}, "holds a int"),
    ({"inputs": [{**texts("a"), "data": [["a"]]}]}, "holds a list"),
    ({"inputs": [texts("a"), texts("b")]}, "there twice"),
    ({"inputs": [texts("{", name="rows")]}, "not JSON"),
    ({"inputs": [texts('{"txt": "a"}', name="rows")]}, "'txt'"),
    ({"inputs": [texts("3", name="rows")]}, "input 1 is int 3"),
    ({"inputs": [texts("\ud800")]}, "surrogate"),
    ({"inputs": [texts("a")], "outputs": [{"name": "labels"}]}, "did you mean 'label'"),
    ({"inputs": [texts("a")], "outputs": [{"name": "label", "parameters": {"binary_data": True}}]}, "binary_data"),
    ({"inputs": [{**texts("a"), "parameters": {"binary_data_size": 4}}]}, "binary_data_size"),
    ({"inputs": [texts("a")], "parameters": {"max_new_tokens": 3}}, "max_new_tokens"),
    ({"inputs": [texts("a")], "more": 1}, "more"),
    ({"inputs": [texts(*["a"] * 17)]}, "17 inputs"),
    ([], "dictionary"),
])  # fmt: skip
def test_what_cannot_be_inferred_is_told_in_the_protocols_words(body, told, client):
    reply = client.post("/v2/models/classify/infer", content=json.dumps(body), headers=JSON)
    assert reply.status_code == 400
    assert list(reply.json()) == ["error"]
    assert told in reply.json()["error"]


@pytest.mark.parametrize(("name", "row", "told"), [
    ("vectors", {}, "input 1 has no text"),
    ("vectors", {"text": 5}, "text"),
    ("writer", {}, "input 1 has no prompt"),
    ("writer", {"prompt": 5}, "prompt"),
    ("writer", {"prompt": [5]}, "messages"),
])  # fmt: skip
def test_a_row_for_a_model_without_a_task_is_checked_as_others_are(name, row, told, client):
    reply = client.post(f"/v2/models/{name}/infer", json={"inputs": [texts(json.dumps(row), name="rows")]})
    assert (reply.status_code, told in reply.json()["error"]) == (400, True), reply.text


def test_versions_and_models_that_are_not_there_are_told_by_name(client):
    for path in ("/v2/models/classify/versions/7", "/v2/models/classify/versions/7/ready"):
        assert client.get(path).status_code == 400
        assert "no versions, and so no '7'" in client.get(path).json()["error"]
    assert client.post("/v2/models/classify/versions/7/infer", json={}).status_code == 400
    for path in ("/v2/models/classfy", "/v2/models/classfy/ready", "/v2/models/classfy/versions/1"):
        assert client.get(path).status_code == 404
        assert "did you mean 'classify'" in client.get(path).json()["error"]


# -- SageMaker ----------------------------------------------------------------------------------------


def invoke(client: httpx2.Client, content: str | bytes, model: str = "classify", **headers: str) -> httpx2.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post("/invocations", content=content,
                       headers={**JSON, "X-Amzn-SageMaker-Target-Model": model, **named})  # fmt: skip


def test_ping_is_empty_and_ready(client):
    assert (client.get("/ping").status_code, client.get("/ping").content) == (200, b"")


def test_invocations_answer_json_of_every_form(client, llms):
    rows = sample("text-classification")
    wanted = [rounded(one.as_dict()) for one in llms["classify"].predict(rows)]
    one, many = rows[0]["text"], [row["text"] for row in rows]
    for body, answer in [
        (one, wanted[0]), (rows[0], wanted[0]), ({"inputs": one}, wanted[0]), (many, wanted), (rows, wanted),
        ({"inputs": rows, "parameters": {"truncate": True}}, wanted), ({"instances": many}, {"predictions": wanted}),
        ([], []),
    ]:  # fmt: skip
        reply = invoke(client, json.dumps(body))
        assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json")
        assert reply.json() == answer


def test_lines_and_tables_are_read_and_written(client, llms):
    rows = sample("question-answering")
    wanted = llms["answer"].predict(rows)
    lines = "\n".join(json.dumps(row) for row in rows)
    reply = invoke(client, lines, "answer", content_type="application/jsonlines")
    assert [json.loads(line) for line in reply.text.splitlines()] == rounded([one.as_dict() for one in wanted])
    table = '"Who, then?","A, B"\n'
    reply = invoke(client, table, "answer", content_type="text/csv", accept="text/csv; header=present, */*;q=0.1")
    assert reply.headers["content-type"].startswith("text/csv")
    head, line = reply.text.splitlines()
    answer = llms["answer"].predict({"question": "Who, then?", "context": "A, B"})
    assert head == "answer,score"
    assert float(line.rpartition(",")[2]) == pytest.approx(answer.score, abs=2e-6)
    named = invoke(client, "context,question\nA B,Who?\n", "answer", content_type="text/csv; header=present",
                   accept="application/json")  # fmt: skip
    assert named.json()[0]["answer"] == llms["answer"].predict({"question": "Who?", "context": "A B"}).answer
    alone = invoke(client, "a, b", content_type="text/plain").json()
    assert alone == rounded(llms["classify"].predict("a, b").as_dict())


def test_a_writer_is_invoked_with_parameters(client, llms):
    reply = invoke(client, json.dumps({"inputs": "ab", "parameters": {"max_new_tokens": 4}}), "writer")
    assert reply.json() == llms["writer"].generate("ab", max_new_tokens=4).as_dict()


def test_other_media_types_are_refused(client):
    assert invoke(client, "x", content_type="image/png").status_code == 415
    assert invoke(client, "x", content_type="text/plain; charset=latin-1").status_code == 415
    reply = invoke(client, '"a"', accept="image/png, application/json;q=0")
    assert reply.status_code == 406
    assert reply.json()["code"] == 406
    assert "application/jsonlines" in reply.json()["message"]


@pytest.mark.parametrize(("body", "headers", "told"), [
    ("{", {}, "not JSON"),
    ("[" * 50_000, {}, "not JSON"),
    ("NaN", {}, "expected value at line 1"),
    (b"\xff", {}, "not JSON"),
    ("3", {}, "input 1 is int 3"),
    ('{"txt": "a"}', {}, "did you mean 'text'"),
    ('{"inputs": ["a"], "parameters": {"topk": 1}}', {}, "topk"),
    ('{"inputs": ["a"], "parameters": []}', {}, "parameters"),
    ('{"inputs": ["a"], "model": "x"}', {}, "'model'"),
    ('{"instances": "a"}', {}, "instances"),
    ('{"a": 1}\nx', {"content_type": "application/jsonlines"}, "line 2"),
    ('"a', {"content_type": "text/csv"}, "not CSV"),
    ("a,b,c", {"content_type": "text/csv"}, "3 cells"),
    (b"\xff", {"content_type": "text/csv"}, "UTF-8"),
])  # fmt: skip
def test_what_cannot_be_invoked_is_told(body, headers, told, client):
    reply = invoke(client, body, **headers)
    assert reply.status_code == 400
    assert set(reply.json()) == {"code", "type", "message"}
    assert told in reply.json()["message"]


def test_a_body_over_the_bound_is_413_in_the_formats_own_words(client):
    assert invoke(client, json.dumps("a" * (1 << 17))).json()["code"] == 413


# -- Azure Machine Learning ---------------------------------------------------------------------------


def test_score_answers_every_form(client, llms):
    rows = sample("text-classification")  # the server's first model
    wanted = [rounded(one.as_dict()) for one in llms["classify"].predict(rows)]
    many = [row["text"] for row in rows]
    table = {"columns": ["text"], "index": [0, 1, 2], "data": [[text] for text in many]}
    assert client.get("/").json() == {"status": "ready"}
    for body, answer in [({"input_data": many}, wanted), ({"input_data": table}, wanted), ({"data": rows}, wanted),
                         (many[0], wanted[0]), ({"inputs": many[0]}, wanted[0])]:  # fmt: skip
        reply = client.post("/score", json=body)
        assert reply.status_code == 200
        assert reply.json() == answer


@pytest.mark.parametrize(("body", "told"), [
    ('{"input_data": {"columns": ["text"]}}', "no table"),
    ('{"input_data": {"columns": ["text"], "data": [[1, 2]]}}', "1 cells"),
    ('{"input_data": {"columns": ["text"], "data": [], "names": 1}}', "'names'"),
    ('{"input_data": "a"}', "input_data"),
    ("", "not JSON"),
])  # fmt: skip
def test_what_cannot_be_scored_is_told(body, told, client):
    reply = client.post("/score", content=body, headers=JSON)
    assert reply.status_code == 400
    assert set(reply.json()["error"]) == {"code", "message"}
    assert told in reply.json()["error"]["message"]
    assert client.post("/score", content=b"a", headers={"content-type": "text/csv"}).status_code == 415


# -- behind a cloud -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("cloud", "names", "asked", "probe"), [
    ("sagemaker", {"SAGEMAKER_BASE_DIR": ""}, "/invocations", "/ping"),
    pytest.param("azureml", {"AZUREML_MODEL_DIR": "model"}, "/score", "/", marks=pytest.mark.slow),
])  # fmt: skip
def test_behind_a_cloud_its_routes_alone_are_open_and_its_model_is_served(
    cloud, names, asked, probe, folders, llms, tmp_path
):
    place = tmp_path / "model" / "unpacked"  # an archive may hold a folder
    place.parent.mkdir()
    os.symlink(folders["classify"], place)
    ((name, below),) = names.items()
    with started("--port", "0", "--precision", "float32", LLMASOS_BEHIND=cloud, **{name: str(tmp_path / below)}) as (
        process,
        url,
    ):
        with httpx2.Client(base_url=url.replace("0.0.0.0", "127.0.0.1"), timeout=60) as client:
            assert client.get(probe).status_code == 200
            reply = client.post(asked, json="abc")
            assert reply.json() == rounded(llms["classify"].predict("abc").as_dict())
            for path in ("/v1/classify", "/v2/models/model/infer", "/docs", "/openapi.json", "/api/tags", "/metrics"):
                assert client.post(path, json={}).status_code == 403
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0  # a second on a quiet machine


def test_listening_beyond_this_machine_needs_a_key_or_a_cloud(run_cli):
    code, error = run_cli("serve", "starter-chat", "--host", "0.0.0.0")
    assert code == 2
    assert "there is no key" in error
    code, error = run_cli("serve", "starter-chat", "--behind", "sagemakr")
    assert code == 2
    assert "did you mean 'sagemaker'" in error
    code, error = run_cli("serve", "--behind", "azureml")
    assert code == 2
    assert "AZUREML_MODEL_DIR is not set" in error
    assert run_cli("serve")[0] == 2


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    from llmasos.cli import main

    monkeypatch.delenv("AZUREML_MODEL_DIR", raising=False)
    monkeypatch.delenv("LLMASOS_BEHIND", raising=False)

    def call(*words: str) -> tuple[int, str]:
        return main(words), capsys.readouterr().err

    return call


def test_clouds_say_where_they_look_for_the_server(monkeypatch):
    from llmasos.serving.start import settled

    monkeypatch.setenv("SAGEMAKER_BIND_TO_PORT", "9001")
    config = settled({"behind": "sagemaker"})
    assert (config.host, config.port, config.drain) == ("0.0.0.0", 9001, 25.0)
    monkeypatch.setenv("SAGEMAKER_BIND_TO_PORT", "no port")
    assert settled({"behind": "sagemaker"}).port == 8080
    assert settled({"behind": "azureml", "port": 80}).port == 80
    assert settled({}).host == "127.0.0.1"


@pytest.mark.slow
def test_sagemakers_stop_ends_what_can_end_in_25_seconds_and_the_process_before_30(folders, llms, tmp_path):
    os.symlink(folders["classify"], tmp_path / "model")
    inputs, wanted = ["abc " * 12] * 1000, rounded(llms["classify"].predict("abc " * 12).as_dict())

    def ask(http: httpx2.Client) -> tuple[float, httpx2.Response]:
        answer = http.post("/invocations", json=inputs)
        return time.monotonic(), answer

    slowly = ("--threads", "1", "--max-batch-tokens", "1", "--max-waiting-tokens", str(10**8))
    plain = ("--port", "0", "--precision", "float32")
    with started(*plain, *slowly, LLMASOS_BEHIND="sagemaker", SAGEMAKER_BASE_DIR=str(tmp_path)) as (process, url):
        limits = httpx2.Limits(max_connections=250)
        with httpx2.Client(base_url=url.replace("0.0.0.0", "127.0.0.1"), timeout=120, limits=limits) as http:
            began = time.monotonic()
            count = min(250, 20 + int(60 / (ask(http)[0] - began)))  # what takes a minute, at the least
            with ThreadPoolExecutor(count) as pool:
                asked = [pool.submit(ask, http) for _ in range(count)]
                time.sleep(3)
                told = time.monotonic()
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 0
                lasted = time.monotonic() - told
                found = [one.result() for one in asked]
    whole = [(when - told, answer.json()) for when, answer in found if answer.status_code == 200]
    given_up = [answer.json() for _, answer in found if answer.status_code != 200]
    print(f"{len(whole)} answered, {len(given_up)} given up, ended after {lasted:.1f} s")
    assert 25 <= lasted < 30
    assert max(when for when, _ in whole) > 15
    assert all(answer == [wanted] * 1000 for _, answer in whole)
    assert given_up
    assert {one["code"] for one in given_up} == {503}
