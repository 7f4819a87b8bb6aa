"""Requests made from the server's own OpenAPI document, right ones and wrong ones: none is an error of the server."""

from __future__ import annotations

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
