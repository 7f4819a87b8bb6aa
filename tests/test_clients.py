"""OpenAI's routes, asked by clients that others made, as they are: LangChain, pydantic-ai, instructor, and for Node.js.

``make test-clients`` installs them; what is absent is skipped, saying so.
"""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx2
import pytest

pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")
pytest.importorskip("fastapi")
pytest.importorskip("llguidance")
# some of them leave their connections to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
CLIENTS = Path(__file__).parent / "clients"


class Parcel(pydantic.BaseModel):
    """A parcel to be sent; a text without bounds, a toy can go on with for ever."""

    kind: Literal["box", "letter"]
    weight: Literal[1, 2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """Serve the starter as it is and with tools in its template, and a model that embeds."""
    from servers import serving, with_tools
    from tiny import save_tiny_bert

    folder = tmp_path_factory.mktemp("clients")
    models = {"chat": "starter-chat", "tools": with_tools(folder / "tools"), "near": save_tiny_bert(folder / "near")}
    with serving(models) as running:
        yield running
    gc.collect()


@pytest.fixture(scope="module")
def url(server: httpx2.Client) -> str:
    return f"{server.base_url}/v1"


@pytest.fixture(scope="module")
def hello(server: httpx2.Client) -> str:
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
    answer: str = server.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    return answer


# -- LangChain ----------------------------------------------------------------------------------------


@pytest.fixture
def lang(url: str) -> Any:
    chat = pytest.importorskip("langchain_openai").ChatOpenAI
    return lambda **more: chat(**{"model": "chat", "base_url": url, "api_key": "none", "max_retries": 0, **more})


def test_langchain_asks_and_streams(lang: Any, hello: str) -> None:
    found = lang(temperature=0).invoke([("user", "Hello")])
    assert found.content == hello
    assert found.usage_metadata["input_tokens"] > 0
    assert found.response_metadata["finish_reason"] == "stop"
    chunks = list(lang(temperature=0, stream_usage=True).stream([("user", "Hello")]))
    assert "".join(chunk.content for chunk in chunks) == hello
    assert len(chunks) > 5
    assert lang(temperature=0).batch(["Hello", "Hello"])[1].content == hello


def test_langchain_calls_tools_and_obeys_schemas(lang: Any) -> None:
    bound = lang(model="tools", temperature=1, max_tokens=400, seed=1).bind_tools([Parcel], tool_choice="required")
    (call,) = bound.invoke("Hello").tool_calls
    assert Parcel(**call["args"])
    for method in ("json_schema", "function_calling"):
        made = lang(model="tools", temperature=1, max_tokens=400, seed=1)
        assert isinstance(made.with_structured_output(Parcel, method=method).invoke("Hello"), Parcel)
    cat = lang(use_responses_api=True, temperature=0)
    assert cat.invoke("Hello").text


def test_langchain_embeds(url: str) -> None:
    made = pytest.importorskip("langchain_openai").OpenAIEmbeddings(
        model="near", base_url=url, api_key="none", check_embedding_ctx_length=False
    )
    found = made.embed_documents(["a good day", "bad"])
    assert [len(one) for one in found] == [32, 32]
    assert made.embed_query("bad") == pytest.approx(found[1], abs=1e-5)


# -- pydantic-ai --------------------------------------------------------------------------------------


@pytest.fixture
def agent(url: str) -> Any:
    """Return what makes agents of a model; each takes settings."""
    ai = pytest.importorskip("pydantic_ai")
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=url, api_key="none")
    return lambda model="chat", **more: ai.Agent(OpenAIChatModel(model, provider=provider), **more)


def test_pydantic_ai_asks_and_streams(agent: Any, hello: str) -> None:
    import asyncio

    made = agent(model_settings={"temperature": 0})
    found = made.run_sync("Hello")
    assert found.output == hello
    again = made.run_sync("thanks", message_history=found.all_messages())
    assert again.output

    async def streamed() -> str:
        async with made.run_stream("Hello") as run:
            return "".join([piece async for piece in run.stream_text(delta=True)])

    assert asyncio.run(streamed()) == hello


def test_pydantic_ai_calls_tools_for_its_output(agent: Any) -> None:
    made = agent("tools", output_type=Parcel, model_settings={"temperature": 1, "seed": 1, "max_tokens": 400})
    assert isinstance(made.run_sync("Hello").output, Parcel)


# -- instructor ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_instructor_gets_what_it_asks_for(url: str, mode: str) -> None:
    instructor = pytest.importorskip("instructor")
    from openai import OpenAI

    client = instructor.from_openai(OpenAI(base_url=url, api_key="none"), mode=instructor.Mode[mode])
    found = client.chat.completions.create(
        model="tools", messages=[{"role": "user", "content": "Hello"}], response_model=Parcel, temperature=1, seed=1,
        max_tokens=400, max_retries=1,
    )  # fmt: skip
    assert isinstance(found, Parcel)


# -- Node.js ------------------------------------------------------------------------------------------


def test_the_package_for_node(server: httpx2.Client, hello: str) -> None:
    if shutil.which("node") is None or not (CLIENTS / "node_modules" / "openai").is_dir():
        pytest.skip("needs Node.js and tests/clients/node_modules: make test-clients installs them")
    done = subprocess.run(["node", "openai.mjs", str(server.base_url)], cwd=CLIENTS, capture_output=True, text=True,
                          timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["models"] == ["chat", "tools", "near"]
    assert found["answer"]["choices"][0]["message"]["content"] == found["streamed"] == found["response"] == hello
    assert found["usage"] == found["answer"]["usage"]
    for choice in (found["called"], found["calledInAStream"]):
        assert choice["finish_reason"] == "tool_calls"
        assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"])["city"] in ("Paris", "Rome")
    assert (found["events"][0], found["events"][-1]) == ("response.created", "response.completed")
    assert found["vectors"] == [32, 32]
    assert found["errors"] == [
        [True, 400, "unsupported_parameter", "logit_bias"], [True, 404, "model_not_found", None],
    ]  # fmt: skip
    assert found["aborted"]
