"""llmasos-edge over HTTP: the model's answers, bounds, keys, an end that loses nothing; and where it is put."""

from __future__ import annotations

import importlib.util
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from golden_targets import deployment
from llmasos import LLM, hosting
from llmasos.core import plugins
from llmasos.core.children import PACKAGE
from llmasos.core.environment import child_environment
from llmasos.core.errors import UsageError
from llmasos.core.events import result_of
from llmasos.deployment import settled
from llmasos.edge import Model
from llmasos.hosting import Host
from llmasos.rehearsal import rehearse
from llmasos.serving.keys import KeyFile
from tiny import save_tiny_bert

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in plugins.load("exporters", "edge").requires),
    reason="needs the extra onnx",
)
TEXTS = ["a good day", "a bad day"]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hosting")
    task, rows = plugins.load("tasks", "text-classification").sample()
    llm = LLM.from_pretrained(save_tiny_bert(folder / "base"))
    llm.finetune(task, rows, max_steps=4, output=folder / "model", progress=False)
    llm.export(folder / "mine", "edge", data=rows)
    return folder / "mine"


@pytest.fixture(scope="module")
def model(artifact: Path) -> Model:
    return Model.open(artifact, threads=1)


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMASOS_KEYS", str(tmp_path / "keys.json"))
    return tmp_path / "keys.json"


@contextmanager
def hosted(model: Model, **options: Any) -> Iterator[httpx2.Client]:
    host = Host(model, "mine", port=0, **options)
    thread = threading.Thread(target=host.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        with httpx2.Client(base_url=host.url, trust_env=False, timeout=20) as client:
            yield client
    finally:
        host.shutdown()
        thread.join()
        host.server_close()


def test_it_answers_as_the_model_does(model: Model) -> None:
    wanted = [one.as_dict() for one in model.predict(TEXTS)]
    with hosted(model) as client:
        many = client.post("/v1/predict", json={"inputs": TEXTS}).json()
        assert many == {"model": "mine", "task": "text-classification", "results": json.loads(json.dumps(wanted))}
        one = client.post("/v1/predict", json={"inputs": {"text": TEXTS[0]}, "model": "mine"}).json()
        assert one["result"] == many["results"][0]
        assert client.post("/v1/predict", json={"inputs": []}).json()["results"] == []
        assert [client.get(f"/health/{kind}").status_code for kind in ("live", "ready", "none")] == [200, 200, 404]


@pytest.mark.parametrize(("body", "status", "code"), [
    ("{", 400, "invalid_json"), ("[" * 100_000, 400, "invalid_json"), ("[]", 400, "missing_field"),
    ('{"inputs": "a", "input": 1}', 400, "unknown_field"), ('{"inputs": "a", "model": "b"}', 404, "model_not_found"),
    ('{"inputs": [1]}', 400, "invalid_input"), ('{"inputs": {"txt": "a"}}', 400, "invalid_input"),
    (json.dumps({"inputs": ["a"] * 1025}), 413, "too_many_rows"), ("x" * (hosting.BODY + 1), 413, "body_too_large"),
])  # fmt: skip
def test_what_cannot_be_answered_is_told(model: Model, body: str, status: int, code: str) -> None:
    with hosted(model) as client:
        try:
            reply = client.post("/v1/predict", content=body)
        except httpx2.TransportError:
            assert status == 413  # it was closed while the body was still sent
            return
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)


def test_a_text_is_cut_only_where_that_is_asked_for(model: Model) -> None:
    with hosted(model) as client:
        long = {"inputs": "a good day " * 400}
        assert client.post("/v1/predict", json=long).status_code == 400
        with _quiet():
            assert client.post("/v1/predict", json={**long, "truncate": True}).status_code == 200


@contextmanager
def _quiet() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_a_key_is_needed_as_soon_as_there_is_one(model: Model, own: Path) -> None:
    with pytest.raises(UsageError, match="can be reached from elsewhere, and there is no key"):
        Host(model, "mine", "0.0.0.0", 0)
    with hosted(model) as client:
        ask = {"url": "/v1/predict", "json": {"inputs": "a"}}
        assert client.post(**ask).status_code == 200
        assert client.post(**ask, headers={"host": "evil.example"}).status_code == 403
        assert client.post(**ask, headers={"origin": "https://evil.example"}).status_code == 403
        secret = KeyFile(own).add("me")
        assert client.post(**ask).status_code == 401
        assert client.post(**ask, headers={"authorization": "Bearer none"}).status_code == 401
        assert client.post(**ask, headers={"authorization": f"Bearer {secret}"}).status_code == 200
        assert client.get("/health/ready").status_code == 200


def test_too_many_are_told_to_come_again(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting, "WAITING", 1)
    entered, go = threading.Event(), threading.Event()
    real = Model.predict

    def slow(self: Model, *words: Any, **options: Any) -> Any:
        entered.set()
        go.wait(10)
        return real(self, *words, **options)

    monkeypatch.setattr(Model, "predict", slow)
    with hosted(model) as client:
        first = threading.Thread(target=client.post, args=("/v1/predict",), kwargs={"json": {"inputs": "a"}})
        first.start()
        assert entered.wait(10)
        try:
            reply = client.post("/v1/predict", json={"inputs": "b"})
            assert client.get("/health/live").status_code == 200
        finally:
            go.set()
            first.join()
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert reply.json()["error"]["code"] == "queue_full"


def test_connections_are_bounded(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting, "CONNECTIONS", 1)
    with hosted(model) as client:
        place = (client.base_url.host, client.base_url.port)
        with socket.create_connection(place):  # says nothing
            time.sleep(0.2)
            assert client.get("/health/live").status_code == 503
        time.sleep(0.2)
        assert client.get("/health/live").status_code == 200


@pytest.mark.parametrize("begun", ["x: ", "host: localhost\r\ncontent-length: 1000\r\n\r\n"])
def test_a_client_that_drips_is_cut_off(model: Model, monkeypatch: pytest.MonkeyPatch, begun: str) -> None:
    monkeypatch.setattr(hosting, "ARRIVAL", 0.5)
    with hosted(model) as client, socket.create_connection((client.base_url.host, client.base_url.port)) as dripping:
        began = time.monotonic()
        dripping.settimeout(0.05)
        dripping.sendall(f"POST /v1/predict HTTP/1.1\r\n{begun}".encode())
        answer, ended = b"", False
        while not ended and time.monotonic() < began + 5:
            with suppress(TimeoutError):
                piece = dripping.recv(1 << 12)
                answer, ended = answer + piece, not piece
            with suppress(OSError):
                dripping.sendall(b"a")  # never silent
        assert ended
        assert 0.4 < time.monotonic() - began < 3
        assert client.get("/health/live").status_code == 200
    assert answer.startswith(b"HTTP/1.0 408") == ("content-length" in begun)


def test_the_command_serves_a_socket_that_was_handed_over_and_ends_at_sigterm(artifact: Path, own: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        code = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); os.set_inheritable(3, True)\n"
            "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
            "words = ['-P', '-m', 'llmasos.cli._edge', 'serve', f'mine={sys.argv[2]}']\n"
            "os.execv(sys.executable, [sys.executable, *words])"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(listening.fileno()), str(artifact)], stdout=subprocess.PIPE, text=True,
            pass_fds=[listening.fileno()], env=child_environment(PACKAGE.parent, LLMASOS_KEYS=str(own)),
        )  # fmt: skip
        try:
            assert process.stdout is not None
            assert f"http://127.0.0.1:{port}/v1/predict" in process.stdout.readline()
            reply = httpx2.post(f"http://127.0.0.1:{port}/v1/predict", json={"inputs": TEXTS}, trust_env=False)
            assert len(reply.json()["results"]) == 2
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.communicate()


# -- where it is put ----------------------------------------------------------------------------------


def test_an_edge_artifact_is_served_by_llmasos_edge(artifact: Path) -> None:
    unit = next(text for name, text in _files("systemd", artifact).items() if name.endswith(".service"))
    assert "ExecStart=/opt/llmasos/bin/llmasos-edge serve mine=/srv/models/mine" in unit
    files = _files("compose", artifact)
    assert set(files) == {"compose.yaml", "Dockerfile", ".dockerignore"}
    server = yaml.safe_load(files["compose.yaml"])["services"]["server"]
    assert (server["image"].partition(":")[0], server["build"]["additional_contexts"]) == (
        "llmasos-edge", {"model": str(artifact.resolve())})  # fmt: skip
    assert 'ENTRYPOINT ["llmasos-edge"]' in files["Dockerfile"]
    assert "torch" not in files["Dockerfile"]
    assert _files("docker", artifact)["Dockerfile"] == files["Dockerfile"]
    job = settled("docker", artifact, {"root": "/mnt/image"})
    assert f"--build-context model={artifact.resolve()} " in job.target.steps(job.deployment, "OUT")[0]
    contract = job.target.contract(job.deployment)
    assert (contract.root, contract.module, contract.words[0]) == ("/mnt/image", "llmasos-edge", "serve")
    assert settled("compose", artifact, {}).deployment.memory < 400_000_000
    assert not settled("kubernetes", artifact, {}).deployment.light


def _files(target: str, folder: Path) -> dict[str, str]:
    job = settled(target, folder, {})
    return job.target.render(job.deployment)


def test_other_exports_keep_the_whole_server(artifact: Path) -> None:
    d = deployment("systemd")
    whole = plugins.load("targets", "systemd").render(d)["mine.service"]
    light = plugins.load("targets", "systemd").render(replace(d, light=True))["mine.service"]
    assert "bin/llmasos serve" in whole
    assert "bin/llmasos-edge serve" in light
    with pytest.raises(UsageError, match="engine does nothing where llmasos-edge serves"):
        settled("systemd", artifact, {"engine": "onnxruntime"})


@pytest.mark.slow
@pytest.mark.parametrize("target", ["systemd", "docker"])
def test_the_contract_is_kept_by_llmasos_edge(artifact: Path, target: str) -> None:
    found = result_of(rehearse(settled(target, artifact, {"cpus": 1})))
    print(*((step.asked, step.seen, step.seconds) for step in found.steps), sep="\n")
    assert found.command[:2] == ("llmasos.cli._edge", "serve")
    assert "no request lost at SIGTERM" in [step.asked for step in found.steps]
