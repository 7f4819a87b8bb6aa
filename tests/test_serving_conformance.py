"""Requests made from the server's own OpenAPI document, right ones and wrong ones: none is an error of the server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from llmasos.core import plugins
from served import Server, serving
from tiny import save_tiny, save_tiny_bert

schemathesis = pytest.importorskip("schemathesis", reason="needs the extra conformance")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

EXAMPLES = 60
"""Requests for each operation, right ones and as many wrong ones."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("conformance")
    models = {"base": save_tiny_bert(folder / "base"), "starter-chat": "starter-chat",
              "writer": save_tiny(folder / "writer", "AutoModelForCausalLM", max_length=512)}  # fmt: skip
    with serving(models, max_new_tokens=64, timeout=30.0) as running:
        yield running


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["positive", "negative"])
def test_no_request_is_an_error_of_the_server(server: Server, way: str) -> None:
    from hypothesis import HealthCheck, given, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis import GenerationMode

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", timeout=120)
    operations = [found.ok() for found in schema.get_all_operations()]
    paths = [operation.path for operation in operations]
    for name in plugins.names("protocols"):
        assert any(path.startswith(plugins.load("protocols", name).prefixes) for path in paths), name
    statuses: set[int] = set()
    for operation in operations:

        @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(case=operation.as_strategy(GenerationMode(way)))
        def ask(case: schemathesis.Case) -> None:
            answer = case.call(timeout=120)
            statuses.add(answer.status_code)
            assert answer.status_code < 500, (case.method, case.formatted_path, case.body, answer.text)

        with suppress(Unsatisfiable):  # where nothing can be wrong: no parameters, or a body that may be anything
            ask()
    assert statuses & {400, 404, 413, 422, 200}
    until = time.monotonic() + 60
    while server.desk.inflight:  # an answer is there a moment before its request has ended
        assert time.monotonic() < until, "a request has not ended"
        time.sleep(0.01)


@pytest.mark.slow
def test_no_phase_of_schemathesis_finds_an_error_of_the_server(server: Server, tmp_path: Path) -> None:
    (tmp_path / "openapi.json").write_bytes(server.http.get("/openapi.json", timeout=120).content)
    phases = ("examples", "coverage", "fuzzing", "stateful")
    options = {
        "url": server.url, "phases": ",".join(phases), "mode": "all", "checks": "not_a_server_error",
        "max-examples": "15", "request-timeout": "120", "warnings": "off", "suppress-health-check": "all",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", "--generation-deterministic",
         *(word for name, value in options.items() for word in (f"--{name}", value))],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert all(phase.capitalize() in done.stdout for phase in phases), done.stdout
    assert "No issues found" in done.stdout
    assert server.http.get("/health/ready").status_code == 200
