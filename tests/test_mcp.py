"""Models as tools: asked by the official client of the Model Context Protocol, over standard input and over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

pytest.importorskip("mcp")

import mcp

from served_models import Exact, sample, tuned
from tiny import save_tiny_bert

pytestmark = pytest.mark.slow  # processes of their own


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    made = {name: tuned(folder / name, task) for name, task in
            {"mood": "text-classification", "to-german": "translation"}.items()}  # fmt: skip
    return made | {"vectors": save_tiny_bert(folder / "vectors")}


@pytest.fixture(scope="module")
def words(folders: dict[str, Path]) -> list[str]:
    models = [f"{name}={path}" for name, path in folders.items()]
    return [
        "-m",
        "llmasos",
        "mcp",
        *models,
        "chat=starter-chat",
        "--max-new-tokens",
        "16",
        "--max-body",
        "20000",
        "--precision",
        "float32",
    ]


@pytest.fixture(scope="module")
def answers(words: list[str]) -> dict[str, Any]:
    """What the tools are and say, in one session over standard input."""
    calls: dict[str, tuple[str, dict[str, Any]]] = {
        "classify": ("classify-mood", sample("text-classification")[0]),
        "translate": ("translate-to-german", {"source": "ab", "max_new_tokens": 3}),
        "embed": ("embed-vectors", {"texts": ["ab", "c d"]}),
        "similarity": ("similarity-vectors", {"text": "ab", "other": "c d"}),
        "chat": ("chat-chat", {"prompt": "Hello!", "max_new_tokens": 8}),
        "messages": ("chat-chat", {"messages": [{"role": "user", "content": "Hello!"}], "max_new_tokens": 8}),
        "unknown argument": ("classify-mood", {"txt": "ab"}),
        "missing argument": ("translate-to-german", {}),
        "wrong argument": ("embed-vectors", {"texts": "ab"}),
        "too many tokens": ("chat-chat", {"prompt": "Hello!", "max_new_tokens": 17}),
        "too large": ("classify-mood", {"text": "a" * 30_000}),
        "too long": ("classify-mood", {"text": "a " * 1_000}),
    }

    async def whole() -> dict[str, Any]:
        server = mcp.StdioServerParameters(command=sys.executable, args=words, env={**os.environ})
        async with mcp.Client(server) as client:
            found: dict[str, Any] = {"tools": (await client.list_tools()).tools}
            for name, (tool, given) in calls.items():
                found[name] = await client.call_tool(tool, given)
            try:
                await client.call_tool("classify-moot", {})
            except mcp.MCPError as error:
                found["unknown tool"] = str(error)
            return found

    return anyio.run(whole)


def test_each_model_is_a_tool_with_a_schema(answers):
    tools = {tool.name: tool for tool in answers["tools"]}
    assert sorted(tools) == ["chat-chat", "classify-mood", "embed-vectors", "similarity-vectors", "translate-to-german"]
    schema = tools["classify-mood"].input_schema
    assert (schema["required"], schema["additionalProperties"]) == (["text"], False)
    assert schema["properties"]["text"]["maxLength"] == 20_000
    assert tools["chat-chat"].input_schema["properties"]["max_new_tokens"]["maximum"] == 16
    assert all(tool.annotations.read_only_hint for tool in tools.values())


def test_tools_answer_as_predict_and_generate_do(answers, folders):
    row = sample("text-classification")[0]
    wanted = Exact(folders["mood"]).predict([row])[0].as_dict()
    found = answers["classify"].structured_content
    assert found["label"] == wanted["label"]
    assert found["score"] == pytest.approx(wanted["score"], abs=2e-6)
    assert json.loads(answers["classify"].content[0].text) == found
    wanted = Exact(folders["to-german"]).predict("ab", max_new_tokens=3).as_dict()
    assert answers["translate"].structured_content == wanted
    vectors = Exact(folders["vectors"]).embed(["ab", "c d"])
    for one, other in zip(answers["embed"].structured_content["embeddings"], vectors, strict=True):
        assert one == pytest.approx(other.tolist(), abs=1e-5)
    assert answers["similarity"].structured_content["score"] == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-5)
    talk = Exact("starter-chat").predict({"prompt": "Hello!"}, max_new_tokens=8).as_dict()
    assert answers["chat"].structured_content == answers["messages"].structured_content == talk


@pytest.mark.parametrize(("name", "told"), [
    ("unknown argument", "did you mean 'text'"), ("missing argument", "source"), ("wrong argument", "texts"),
    ("too many tokens", "a request may have 16"), ("too large", "20000 bytes"), ("too long", "tokens"),
])  # fmt: skip
def test_a_mistake_is_the_result_of_the_call(name, told, answers):
    assert answers[name].is_error
    assert told in answers[name].content[0].text


def test_a_tool_that_is_not_there_is_an_error_of_the_protocol(answers):
    assert "did you mean 'classify-mood'" in answers["unknown tool"]


def test_tools_are_reached_over_http_on_this_machine_alone(words):
    with subprocess.Popen(
        [sys.executable, *words, "--http", "--port", "0"], text=True, stdout=subprocess.PIPE
    ) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:")

            async def whole() -> Any:
                async with mcp.Client(url) as client:
                    return await client.call_tool("similarity-vectors", {"text": "ab", "other": "ab"})

            assert anyio.run(whole).structured_content["score"] == pytest.approx(1.0, abs=1e-5)
            asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
            accept = {"accept": "application/json, text/event-stream"}
            assert httpx2.post(url, json=asked, headers={**accept, "host": "elsewhere.example"}).status_code == 421
            far = {**accept, "origin": "http://elsewhere.example"}
            assert httpx2.post(url, json=asked, headers=far).status_code == 403
            assert httpx2.post(url, json={"a": "b" * 30_000}, headers=accept).status_code == 413
        finally:
            server.terminate()
        assert server.wait(timeout=120) == 0  # a second on a quiet machine


def test_a_port_does_nothing_over_standard_input(capsys):
    from llmasos.cli import main

    assert main(["mcp", "starter-chat", "--port", "8001"]) == 2
    assert "add --http" in capsys.readouterr().err


def test_a_model_that_cannot_be_opened_is_told_in_a_line(tmp_path, capsys):
    from llmasos.cli import main

    assert main(["mcp", str(tmp_path / "nothing")]) == 2
    assert "Traceback" not in capsys.readouterr().err
