"""OpenAI's routes, asked by OpenAI's own Python client over a real port."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx2
import numpy as np
import pytest

from llmasos import LLM, ChatTask
from llmasos.serving.calls import Reader, schemas
from llmasos.serving.choosing import sampling
from llmasos.serving.limits import SCHEMA, SCHEMA_DEPTH
from llmasos.serving.shapes import checked, one_of
from servers import serving, with_tools
from tiny import save_tiny_bert

openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")
pytest.importorskip("fastapi")
pytest.importorskip("llguidance")

OpenAI, AsyncOpenAI = openai.OpenAI, openai.AsyncOpenAI
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
                       "additionalProperties": False},
    },
}  # fmt: skip
FLAT: Any = {"type": "function", **WEATHER["function"], "strict": True}
ASKED: list[Any] = [{"role": "user", "content": "Weather in Rome?"}]
CALLED: Any = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}},
]}  # fmt: skip


class Parcel(pydantic.BaseModel):
    """What is to be written."""

    kind: Literal["box", "letter"]  # a text without bounds, a toy can go on with for ever
    weight: Literal[1, 2]


LONG: Any = {"type": "json_schema", "json_schema": {"name": "long", "schema": {"type": "string", "minLength": 1500}}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the starter; the same with tools in its template and settings of its own; and a model that embeds."""
    folder = tmp_path_factory.mktemp("openai")
    settled = with_tools(folder / "settled")
    told = json.loads((settled / "generation_config.json").read_text())
    settled.joinpath("generation_config.json").write_text(json.dumps({**told, "temperature": 0.25, "top_p": 0.5}))
    return {"chat": Path("starter-chat"), "settled": settled, "near": save_tiny_bert(folder / "near")}


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> Iterator[httpx2.Client]:
    with serving(folders) as running:
        yield running


@pytest.fixture(scope="module")
def taught(folders: dict[str, Path]) -> Iterator[Any]:
    """Ask a model that has learned one call by heart."""
    rows = [{"messages": [*ASKED, CALLED], "tools": [WEATHER]}]
    LLM.from_pretrained(folders["settled"]).finetune(
        ChatTask(), rows * 4, eval_data=rows, epochs=12, batch_size=2, learning_rate=2e-3, progress=False,
        output=folders["settled"].parent / "tools",
    )  # fmt: skip
    with serving({"tools": folders["settled"].parent / "tools"}) as running:
        yield OpenAI(base_url=f"{running.base_url}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def client(server: httpx2.Client) -> Iterator[Any]:
    with OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM.from_pretrained("starter-chat")


def chat(client: Any, **more: Any) -> Any:
    return client.chat.completions.create(**{"model": "chat", "messages": HELLO, "temperature": 0, **more})


# -- models -------------------------------------------------------------------------------------------


def test_models_are_listed_and_shown(client: Any) -> None:
    chat(client, max_tokens=1)
    assert [one.id for one in client.models.list()] == ["chat", "settled", "near"]
    shown = client.models.retrieve("chat").model_dump()
    assert (shown["max_model_len"], shown["writes"], shown["embeds"]) == (2048, True, False)
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("chut")
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="did you mean 'chat'"):
        chat(client, model="chut")


# -- chat ---------------------------------------------------------------------------------------------


def test_an_answer_is_that_of_generate_and_its_tokens_are_counted(client: Any, llm: LLM) -> None:
    expected = llm.generate(HELLO, precision="float32")
    found = chat(client)
    assert found.choices[0].message.content == expected.text
    assert (found.choices[0].finish_reason, found.choices[0].message.role) == ("stop", "assistant")
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (expected.prompt_tokens, len(expected.tokens))
    assert found.usage.total_tokens == expected.prompt_tokens + len(expected.tokens)
    assert found._request_id.startswith("req_")


def test_tokens_that_were_read_before_are_told(client: Any) -> None:
    """Only an earlier question of the same key's counts, and at least a token is always read."""
    asked = [{"role": "user", "content": "A long story of parcels and of letters. " * 8}]
    first, again = (chat(client, messages=asked, max_tokens=1).usage for _ in range(2))
    assert first.prompt_tokens_details.cached_tokens < 32 < again.prompt_tokens_details.cached_tokens
    assert again.prompt_tokens_details.cached_tokens < again.prompt_tokens == first.prompt_tokens
    told = client.responses.create(model="chat", input=asked, max_output_tokens=1, temperature=0).usage
    assert told.input_tokens_details.cached_tokens == again.prompt_tokens_details.cached_tokens


def test_a_stream_is_the_same_answer(client: Any) -> None:
    whole = chat(client)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len(chunks) > 10
    assert "".join(one.choices[0].delta.content or "" for one in chunks[:-1]) == whole.choices[0].message.content
    assert [one.choices[0].finish_reason for one in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert len({one.id for one in chunks}) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(one.usage is None for one in chat(client, stream=True))


def test_a_system_text_and_a_developers_are_heard_alike(client: Any, llm: LLM) -> None:
    found = [
        chat(client, messages=[{"role": role, "content": "You are a cat."}, *HELLO]) for role in ("system", "developer")
    ]
    assert found[0].choices[0].message.content == found[1].choices[0].message.content
    assert found[0].usage.prompt_tokens == found[1].usage.prompt_tokens > chat(client).usage.prompt_tokens


def test_content_in_parts_is_one_text_and_turns_may_come_in_any_order(client: Any) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert chat(client, messages=[{"role": "user", "content": parts}]).choices == chat(client).choices
    twice = chat(client, messages=[*HELLO, *HELLO])
    assert twice.usage.prompt_tokens > chat(client).usage.prompt_tokens


def test_a_seed_gives_the_same_draws_and_n_gives_several(client: Any) -> None:
    how = {"temperature": 1.5, "n": 3, "max_tokens": 12}
    first, again, other = (chat(client, seed=seed, **how) for seed in (7, 7, 8))
    texts = [[choice.message.content for choice in one.choices] for one in (first, again, other)]
    assert [one.index for one in first.choices] == [0, 1, 2]
    assert len(set(texts[0])) == 3
    assert texts[0] == texts[1] != texts[2]
    assert first.usage.prompt_tokens == chat(client).usage.prompt_tokens  # read once
    streamed: dict[int, str] = {}
    for chunk in chat(client, seed=7, stream=True, **how):
        for choice in chunk.choices:
            streamed[choice.index] = streamed.get(choice.index, "") + (choice.delta.content or "")
    assert [streamed[number] for number in range(3)] == texts[0]


def test_without_a_seed_draws_are_by_chance(client: Any) -> None:
    assert len({chat(client, temperature=2, max_tokens=16).choices[0].message.content for _ in range(3)}) > 1


def test_what_a_request_does_not_say_the_model_settles(server: httpx2.Client, client: Any) -> None:
    chat(client, model="settled", max_tokens=1)
    served = server.desk.shelves["settled"].served  # type: ignore[attr-defined]
    found = sampling(served, max_new_tokens=5)
    assert (found.temperature, found.top_p, found.max_new_tokens) == (0.25, 0.5, 5)
    assert sampling(served, max_new_tokens=5, temperature=0.0).top_p == 1.0
    assert sampling(served, max_new_tokens=5, top_p=0.75, seed=-1).top_p == 0.75
    served = server.desk.shelves["chat"].served  # type: ignore[attr-defined]
    assert (sampling(served, max_new_tokens=5).temperature, sampling(served, max_new_tokens=5).top_k) == (1.0, 0)


@pytest.mark.parametrize(
    "option", [{"top_p": 1e-6}, {"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1.0}}], ids=str
)
def test_each_filter_of_draws_is_heard(client: Any, option: dict[str, Any]) -> None:
    assert chat(client, temperature=2, seed=1, **option).choices[0].message == chat(client).choices[0].message


def test_a_penalty_of_repetitions_is_heard(client: Any) -> None:
    found = chat(client, extra_body={"repetition_penalty": 5.0}, max_tokens=14).choices[0].message.content
    assert found != chat(client, max_tokens=14).choices[0].message.content


def test_a_stop_string_ends_an_answer_and_is_no_part_of_it(client: Any) -> None:
    whole = chat(client).choices[0].message.content
    word = whole.split()[2]
    for stop in (word, ["nothing of it", word]):
        found = chat(client, stop=stop).choices[0]
        assert (found.message.content, found.finish_reason) == (whole.partition(word)[0], "stop")
    chunks = list(chat(client, stop=word, stream=True))
    assert "".join(one.choices[0].delta.content or "" for one in chunks) == whole.partition(word)[0]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_length_is_kept_to(client: Any, name: str) -> None:
    found = chat(client, **{name: 3})
    assert (found.usage.completion_tokens, found.choices[0].finish_reason) == (3, "length")


def test_chances_of_tokens_are_those_of_generate(client: Any, llm: LLM) -> None:
    expected = llm.generate(HELLO, precision="float32", logprobs=True)
    found = chat(client, logprobs=True, top_logprobs=3).choices[0]
    rows = found.logprobs.content
    assert [row.logprob for row in rows] == pytest.approx(expected.logprobs, abs=1e-4)
    assert "".join(row.token for row in rows) == found.message.content
    assert bytes(byte for row in rows for byte in row.bytes).decode() == found.message.content
    for row in rows:
        assert len(row.top_logprobs) == 3
        assert (row.top_logprobs[0].token, row.top_logprobs[0].logprob) == (row.token, row.logprob)
        assert [one.logprob for one in row.top_logprobs] == sorted((o.logprob for o in row.top_logprobs), reverse=True)
    streamed = [
        row for chunk in chat(client, logprobs=True, top_logprobs=3, stream=True)
        if chunk.choices[0].logprobs for row in chunk.choices[0].logprobs.content
    ]  # fmt: skip
    assert [row.token for row in streamed] == [row.token for row in rows]
    assert [row.logprob for row in streamed] == pytest.approx([row.logprob for row in rows], abs=1e-4)
    assert chat(client).choices[0].logprobs is None
    assert chat(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


def test_many_at_once_get_their_own_answers(server: httpx2.Client, client: Any) -> None:
    asked = ["Hello", "thanks", "who made you", "bye", "谢谢", "Good morning"]
    alone = [chat(client, messages=[{"role": "user", "content": text}]).choices[0].message.content for text in asked]

    async def together() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="none", timeout=120) as many:

            async def one(text: str) -> str:
                stream = await many.chat.completions.create(
                    model="chat", messages=[{"role": "user", "content": text}], temperature=0, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(one(text) for text in asked))

    assert asyncio.run(together()) == alone


# -- shapes -------------------------------------------------------------------------------------------


def test_an_answer_obeys_a_json_schema(client: Any) -> None:
    found = client.chat.completions.parse(
        model="chat", messages=HELLO, response_format=Parcel, temperature=1, seed=2, max_tokens=400
    )
    assert isinstance(found.choices[0].message.parsed, Parcel)
    assert found.choices[0].finish_reason == "stop"
    shape = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": [12, 13]}}}
    assert json.loads(chat(client, response_format=shape).choices[0].message.content) in (12, 13)


def test_json_object_begins_an_object(client: Any) -> None:
    found = chat(client, response_format={"type": "json_object"}, max_tokens=8).choices[0].message.content
    assert found.startswith("{")
    plain = chat(client, response_format={"type": "text"}).choices[0].message.content
    assert plain == chat(client).choices[0].message.content


def test_an_answer_that_is_cut_is_not_parsed(client: Any) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="chat", messages=HELLO, response_format=Parcel, max_tokens=2)


@pytest.mark.parametrize(
    ("schema", "words"),
    [({"type": "strange"}, "cannot be enforced"), ({"a": "x" * SCHEMA}, "characters"),
     (json.loads('{"items":' * (SCHEMA_DEPTH + 1) + "{}" + "}" * (SCHEMA_DEPTH + 1)), "levels")],
)  # fmt: skip
def test_a_schema_that_cannot_be_enforced_is_named(client: Any, schema: Any, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as error:
        chat(client, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    assert error.value.param == "response_format"


def test_schemas_in_one_keep_their_references() -> None:
    own = {"$defs": {"a": {"type": "integer"}}, "type": "object", "properties": {"x": {"$ref": "#/$defs/a"}}}
    found = one_of([checked(own), *schemas({"f": own, "g": None})])
    part = found["$defs"]["part0"]
    assert part["properties"]["x"] == {"$ref": "#/$defs/part0/$defs/a"}
    call = found["$defs"]["part1"]["properties"]["arguments"]
    assert call["properties"]["x"] == {"$ref": "#/$defs/part1/properties/arguments/$defs/a"}
    assert one_of([own]) == own


def test_objects_have_no_properties_but_their_own_unless_they_may() -> None:
    one: Any = {"type": "object", "properties": {"properties": {"type": "string"}}}
    assert checked(one) == {**one, "additionalProperties": False}
    assert checked({"items": one})["items"]["additionalProperties"] is False
    assert checked({"anyOf": [one], "$defs": {"a": one}}) == {"anyOf": [checked(one)], "$defs": {"a": checked(one)}}
    for open_ in ({**one, "additionalProperties": True}, {"allOf": [one]}, {"type": "object"}, {"const": one},
                  {**one, "anyOf": [{"required": ["a"]}]}):  # fmt: skip
        assert checked(open_) == open_


# -- tools --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_calls_a_tool_as_it_has_learned(taught: Any) -> None:
    found = chat(taught, model="tools", messages=ASKED, tools=[WEATHER]).choices[0]
    assert (found.finish_reason, found.message.content) == ("tool_calls", None)
    (call,) = found.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Rome"})
    with taught.chat.completions.stream(model="tools", messages=ASKED, tools=[WEATHER], temperature=0) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert (streamed.finish_reason, streamed.message.content or "") == ("tool_calls", "")
    assert streamed.message.tool_calls[0].function.arguments == call.function.arguments
    how: Any = {"model": "tools", "input": ASKED, "tools": [FLAT], "temperature": 0}
    (item,) = taught.responses.create(**how).output
    assert (item.type, item.name, item.arguments) == ("function_call", "weather", call.function.arguments)
    with taught.responses.stream(**how) as events:
        assert events.get_final_response().output[0].arguments == call.function.arguments
    text = chat(taught, model="tools", messages=ASKED, tools=[WEATHER], tool_choice="none", max_tokens=60).choices[0]
    assert text.message.tool_calls is None
    assert text.message.content


def test_a_call_and_what_came_of_it_reach_the_model(client: Any) -> None:
    told = [*ASKED, CALLED, {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."}]
    with_tools, without = (chat(client, model="settled", messages=told, max_tokens=4, **more)
                           for more in ({"tools": [WEATHER]}, {"tools": [WEATHER], "tool_choice": "none"}))  # fmt: skip
    bare = chat(client, model="settled", messages=told, max_tokens=4)
    assert with_tools.usage.prompt_tokens > without.usage.prompt_tokens == bare.usage.prompt_tokens
    assert without.choices[0].message == bare.choices[0].message
    items = [*ASKED, {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city": "Rome"}'},
             {"type": "function_call_output", "call_id": "call_1", "output": "Sunny."}]  # fmt: skip
    same = client.responses.create(model="settled", input=items, tools=[FLAT], max_output_tokens=4, temperature=0)
    assert same.usage.input_tokens == with_tools.usage.prompt_tokens
    assert same.output_text == with_tools.choices[0].message.content


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}], ids=str)
@pytest.mark.parametrize("stream", [False, True])
def test_a_demanded_call_is_enforced(client: Any, choice: Any, stream: bool) -> None:
    other = {"type": "function", "function": {"name": "other"}}
    how = {"model": "settled", "messages": HELLO, "tools": [other, WEATHER], "tool_choice": choice, "max_tokens": 60}
    for seed in range(3):
        if stream:
            with client.chat.completions.stream(**how, temperature=2, seed=seed) as events:
                found = events.get_final_completion().choices[0]
        else:
            found = client.chat.completions.create(**how, temperature=2, seed=seed).choices[0]
        (call,) = found.message.tool_calls
        assert found.finish_reason == "tool_calls"
        if call.function.name == "other":
            assert choice == "required"
            assert json.loads(call.function.arguments) == {}
        else:
            assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


def test_tools_of_pydantic_models_are_parsed(client: Any) -> None:
    found = client.chat.completions.parse(
        model="settled", messages=HELLO, tools=[openai.pydantic_function_tool(Parcel)], tool_choice="required",
        temperature=1, seed=3, max_tokens=400,
    ).choices[0].message.tool_calls  # fmt: skip
    assert found
    assert isinstance(found[0].function.parsed_arguments, Parcel)


def test_beside_tools_a_shape_allows_both(client: Any) -> None:
    one = {"type": "object", "properties": {"n": {"enum": [1]}}, "required": ["n"], "additionalProperties": False}
    how = {"model": "settled", "tools": [WEATHER], "max_tokens": 60,
           "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": one}}}  # fmt: skip
    shaped = chat(client, tool_choice="none", **how).choices[0]
    assert json.loads(shaped.message.content) == {"n": 1}
    for seed in range(2):
        either = chat(client, **{**how, "temperature": 2, "seed": seed}).choices[0]
        if either.finish_reason == "tool_calls":
            assert json.loads(either.message.tool_calls[0].function.arguments)["city"] in ("Paris", "Rome")
        else:
            assert json.loads(either.message.content) == {"n": 1}


ARGUMENTS = '{"name": "f", "arguments": {"a": "é"}}'


@pytest.mark.parametrize(
    ("text", "left", "calls"),
    [
        ("Hello.", "Hello.", []),
        (f"<tool_call>\n{ARGUMENTS}\n</tool_call>", "", ["f"]),
        (f"Well: <tool_call>{ARGUMENTS}</tool_call>\n<tool_call>{ARGUMENTS}</tool_call>", "Well:", ["f", "f"]),
        (f"<tool_call>{ARGUMENTS}", "", ["f"]),
        (ARGUMENTS, "", ["f"]),
        (ARGUMENTS.replace("arguments", "parameters"), "", ["f"]),
        (f"{ARGUMENTS}; {ARGUMENTS}", "", ["f", "f"]),
        (f"[{ARGUMENTS}]", "", ["f"]),
        (ARGUMENTS.replace('"f"', '"g"'), ARGUMENTS.replace('"f"', '"g"'), []),
        ('{"a": 1}', '{"a": 1}', []),
        (f"See {ARGUMENTS}", f"See {ARGUMENTS}", []),
        ("a <tool_call>{</tool_call> b", "a <tool_call>{</tool_call> b", []),
        ("1 <tool 2", "1 <tool 2", []),
    ],
)
def test_calls_are_told_from_text(text: str, left: str, calls: list[str]) -> None:
    for size in (1, 3, len(text)):
        reader = Reader(["f"])
        said = "".join(reader.push(text[at : at + size]) for at in range(0, len(text), size))
        assert left.startswith(said)
        rest, found = reader.finish()
        assert (said + rest, [call.name for call in found]) == (left, calls)
        assert all(json.loads(call.arguments) == {"a": "é"} for call in found)
    assert Reader([]).finish(text) == (text, [])
    assert len(Reader(["f"], most=1).finish(text)[1]) == min(1, len(calls))


def test_text_without_calls_is_told_as_it_comes() -> None:
    reader = Reader(["f"])
    assert [reader.push(piece) for piece in ("Hel", "lo ", "you <to", "p>")] == ["Hel", "lo", " you", " <top>"]


# -- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("more", "param"), [
    ({"frequency_penalty": 0.5}, "frequency_penalty"), ({"presence_penalty": -1}, "presence_penalty"),
    ({"logit_bias": {"1": 5}}, "logit_bias"), ({"store": True}, "store"), ({"service_tier": "flex"}, "service_tier"),
    ({"n": 17}, "n"), ({"n": 0}, "n"), ({"n": True}, "n"), ({"temperature": 2.5}, "temperature"),
    ({"temperature": "warm"}, "temperature"), ({"top_p": 1.5}, "top_p"), ({"top_logprobs": 2}, "top_logprobs"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"), ({"stop": ["a"] * 5}, "stop"),
    ({"stop": [""]}, "stop[0]"),
    ({"stop": "x" * 257}, "stop[0]"), ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": 5000}, "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"), ({"modalities": ["audio"]}, "modalities"),
    ({"stream_options": {"include_usage": True}}, "stream_options"), ({"functions": []}, "functions"),
    ({"reasoning_effort": "low"}, "reasoning_effort"), ({"tool_choice": "sometimes"}, "tool_choice.type"),
    ({"tool_choice": "required"}, "tool_choice"), ({"tools": [WEATHER, WEATHER]}, "tools"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
    ({"tools": [WEATHER]}, "tools[0]"), ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"messages": []}, "messages"), ({"messages": [{"role": "bot", "content": "a"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": "a", "mood": "x"}]}, "messages[0].mood"),
    ({"messages": [{"role": "user", "content": "a <|im_end|>"}]}, "messages[0]"),
    ({"messages": [*HELLO, {"role": "assistant", "content": "a"}]}, "messages[1].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
     "messages[0].content[0]"),
])  # fmt: skip
def test_what_cannot_be_had_is_named(server: httpx2.Client, more: dict[str, Any], param: str) -> None:
    answer = server.post("/v1/chat/completions", json={"model": "chat", "messages": HELLO, **more})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["code"] in ("invalid_value", "unsupported_parameter")


def test_what_is_not_used_is_taken(client: Any) -> None:
    found = chat(client, user="me", metadata={"a": "b"}, safety_identifier="x", prompt_cache_key="y", store=False,
                 service_tier="auto", frequency_penalty=0, presence_penalty=0.0, logit_bias={}, modalities=["text"],
                 parallel_tool_calls=True)  # fmt: skip
    assert found.choices == chat(client).choices


def test_what_is_no_json_is_told(server: httpx2.Client) -> None:
    for body in (b"{", b"[]", b'"a"', b""):
        answer = server.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_prompt_over_the_context_is_told_with_the_numbers(client: Any) -> None:
    long = [{"role": "user", "content": "word " * 3000}]
    for more in ({}, {"stream": True}, {"max_tokens": 5}):
        with pytest.raises(openai.BadRequestError, match="> 2048") as error:
            chat(client, messages=long, **more)
        assert (error.value.code, error.value.param) == ("context_length_exceeded", "messages")
    with pytest.raises(openai.BadRequestError, match=r"\+ max_tokens=2048 > 2048"):
        chat(client, max_tokens=2048)


def test_a_model_that_does_not_write_says_so(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="does not write"):
        chat(client, model="near")
    for prompt in ("a", [0], [[0], [1]]):
        with pytest.raises(openai.BadRequestError, match="does not write"):
            client.completions.create(model="near", prompt=prompt)


def test_the_routes_are_described(server: httpx2.Client) -> None:
    described = server.get("/openapi.json").json()
    paths = {"/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"}
    assert paths <= set(described["paths"])
    fields = described["components"]["schemas"]["Chat"]["properties"]
    assert {"type": "string"} in fields["stop"]["anyOf"]
    assert fields["n"]["anyOf"][0]["maximum"] == 16


# -- completions --------------------------------------------------------------------------------------


def test_completions_go_on_with_texts_and_tokens(client: Any, llm: LLM) -> None:
    prompts = ["It is a truth", "Once upon"]
    expected = llm.generate(prompts, precision="float32", max_new_tokens=16)
    found = client.completions.create(model="chat", prompt=prompts, temperature=0)
    assert [one.text for one in found.choices] == [one.text for one in expected]
    assert found.usage.prompt_tokens == sum(one.prompt_tokens for one in expected)
    ids = llm.tokenizer(prompts)["input_ids"]
    assert client.completions.create(model="chat", prompt=ids, temperature=0).choices == found.choices
    one = client.completions.create(model="chat", prompt=ids[0], temperature=0, n=2, best_of=2, max_tokens=4)
    assert [choice.text for choice in one.choices] == [
        llm.generate(prompts[0], precision="float32", max_new_tokens=4).text
    ] * 2
    streamed = ["", ""]
    for chunk in client.completions.create(model="chat", prompt=prompts, temperature=0, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [one.text for one in expected]


def test_completions_tell_chances(client: Any) -> None:
    choice = client.completions.create(model="chat", prompt="It is", temperature=0, logprobs=2, max_tokens=5).choices[0]
    table = choice.logprobs
    assert "".join(table.tokens) == choice.text
    assert [choice.text[at : at + len(token)] for at, token in zip(table.text_offset, table.tokens)] == table.tokens
    assert [best[token] for best, token in zip(table.top_logprobs, table.tokens)] == table.token_logprobs
    chunks = list(
        client.completions.create(model="chat", prompt="It is", temperature=0, logprobs=2, max_tokens=5, stream=True)
    )
    rows = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [token for row in rows for token in row.tokens] == table.tokens
    assert [at for row in rows for at in row.text_offset] == table.text_offset


@pytest.mark.parametrize(("more", "param"), [
    ({"echo": True}, "echo"), ({"suffix": "a"}, "suffix"), ({"best_of": 3}, "best_of"), ({"prompt": []}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"), ({"prompt": [99999]}, "prompt"), ({"prompt": ["a"] * 1025}, "prompt"),
    ({"messages": []}, "messages"), ({"tools": []}, "tools"),
])  # fmt: skip
def test_what_completions_cannot_is_named(server: httpx2.Client, more: dict[str, Any], param: str) -> None:
    answer = server.post("/v1/completions", json={"model": "chat", "prompt": "a", **more})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


# -- responses ----------------------------------------------------------------------------------------


def test_a_response_is_the_same_answer(client: Any) -> None:
    expected = chat(client)
    found = client.responses.create(model="chat", input="Hello", temperature=0)
    assert found.output_text == expected.choices[0].message.content
    assert (found.status, found.store) == ("completed", False)
    assert (found.usage.input_tokens, found.usage.output_tokens) == (
        expected.usage.prompt_tokens, expected.usage.completion_tokens,
    )  # fmt: skip
    again = client.responses.create(
        model="chat", temperature=0, instructions="You are a cat.",
        input=[{"role": "user", "content": "Hello"}, *found.output, {"role": "user", "content": "Bye"}],
    )  # fmt: skip
    told = [{"role": "system", "content": "You are a cat."}, *HELLO,
            {"role": "assistant", "content": found.output_text}, {"role": "user", "content": "Bye"}]  # fmt: skip
    assert again.output_text == chat(client, messages=told).choices[0].message.content
    assert again.usage.input_tokens == chat(client, messages=told).usage.prompt_tokens


def test_a_response_comes_as_events(client: Any) -> None:
    with client.responses.stream(model="chat", input="Hello", temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == chat(client).choices[0].message.content
    assert [event.sequence_number for event in events if hasattr(event, "sequence_number")] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"


def test_a_response_that_is_cut_says_so(client: Any) -> None:
    found = client.responses.create(model="chat", input="Hello", temperature=0, max_output_tokens=2)
    assert (found.status, found.incomplete_details.reason, found.usage.output_tokens) == (
        "incomplete", "max_output_tokens", 2,
    )  # fmt: skip


def test_a_response_calls_tools_and_obeys_schemas(client: Any) -> None:
    how: Any = {
        "model": "settled",
        "input": "Hello",
        "tools": [FLAT],
        "tool_choice": {"type": "function", "name": "weather"},
    }
    (call,) = client.responses.create(**how).output
    assert (call.type, call.name, call.status) == ("function_call", "weather", "completed")
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    with client.responses.stream(**how) as events:
        assert json.loads(events.get_final_response().output[0].arguments)["city"] in ("Paris", "Rome")
    parsed = client.responses.parse(
        model="chat", input="Hello", text_format=Parcel, temperature=1, extra_body={"top_k": 200}, max_output_tokens=400
    )
    assert isinstance(parsed.output_parsed, Parcel)


@pytest.mark.parametrize(("more", "param"), [
    ({"store": True}, "store"), ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"truncation": "auto"}, "truncation"), ({"background": True}, "background"),
    ({"conversation": "c"}, "conversation"),
    ({"reasoning": {"effort": "low"}}, "reasoning"), ({"include": ["file_search_call.results"]}, "include"),
    ({"top_logprobs": 2}, "top_logprobs"), ({"max_tool_calls": 1}, "max_tool_calls"),
    ({"prompt": {"id": "x"}}, "prompt"),
    ({"input": [{"type": "reasoning", "summary": []}]}, "input[0].type"), ({"input": [{"role": "user"}]}, "input[0]"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"), ({"stop": "a"}, "stop"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].name"), ({"max_output_tokens": 5000}, "max_output_tokens"),
    ({"input": "word " * 3000}, "input"),
])  # fmt: skip
def test_what_responses_cannot_is_named(server: httpx2.Client, more: dict[str, Any], param: str) -> None:
    answer = server.post("/v1/responses", json={"model": "chat", "input": "Hello", **more})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


# -- embeddings ---------------------------------------------------------------------------------------


def test_vectors_are_those_of_embed_in_both_formats(client: Any, folders: dict[str, Path]) -> None:
    texts = ["a good day", "bad"]
    expected = LLM.from_pretrained(folders["near"]).embed(texts, precision="float32")
    for form in ("float", "base64"):
        raw = client.with_raw_response.embeddings.create(model="near", input=texts, encoding_format=form)
        assert isinstance(json.loads(raw.text)["data"][0]["embedding"], str if form == "base64" else list)
    found = client.embeddings.create(model="near", input=texts, dimensions=32, user="me")
    np.testing.assert_allclose([one.embedding for one in found.data], expected, atol=1e-4)
    assert found.usage.prompt_tokens == found.usage.total_tokens > 10
    assert client.embeddings.create(model="near", input=texts[0]).data[0].index == 0


@pytest.mark.parametrize(("more", "words"), [
    ({"dimensions": 16}, "32 dimensions"), ({"input": [[1, 2]]}, "a text or a list"), ({"input": []}, "input"),
    ({"input": "a " * 100}, "takes at most 64"), ({"model": "chat"}, "makes no vectors"),
    ({"encoding_format": "int8"}, "encoding_format"), ({"task": "x"}, "task"), ({"input": ["a"] * 1025}, "1024"),
])  # fmt: skip
def test_what_embeddings_cannot_is_told(server: httpx2.Client, more: dict[str, Any], words: str) -> None:
    answer = server.post("/v1/embeddings", json={"model": "near", "input": "a", **more})
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


# -- clients that leave, and servers that fail --------------------------------------------------------


def waited(what: Any) -> bool:
    until = time.monotonic() + 30
    while not (found := what()) and time.monotonic() < until:
        time.sleep(0.02)
    return bool(found)


@pytest.mark.parametrize("stream", [True, False])
def test_the_work_for_a_client_that_leaves_ends(server: httpx2.Client, client: Any, stream: bool) -> None:
    counts = server.desk.shelves["chat"].served.scheduler.counts  # type: ignore[attr-defined]
    left, saved = counts.left, counts.tokens_saved
    if stream:
        with chat(client, stream=True, response_format=LONG) as chunks:
            assert next(chunks).choices[0].delta.role == "assistant"
    else:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=1.0).chat.completions.create(model="chat", messages=HELLO, response_format=LONG)
    assert waited(lambda: counts.left == left + 1)
    assert counts.tokens_saved > saved


def test_a_full_queue_and_an_end_amid_a_stream(folders: dict[str, Path]) -> None:
    """A third request is refused, as one is written and one waits; when the model closes, both are told."""
    with (
        serving({"chat": folders["chat"]}, max_waiting=1, max_streams=1) as busy,
        OpenAI(base_url=f"{busy.base_url}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        chunks = chat(client, stream=True, response_format=LONG)
        next(chunks)
        told: list[Exception] = []

        def wait() -> None:
            try:
                chat(client)
            except Exception as error:
                told.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        scheduler = busy.desk.shelves["chat"].served.scheduler  # type: ignore[attr-defined]
        assert waited(lambda: scheduler.waiting[0] == 1)
        with pytest.raises(openai.RateLimitError) as error:
            chat(client)
        assert (error.value.code, int(error.value.response.headers["retry-after"]) >= 1) == ("queue_full", True)
        scheduler.close()
        with pytest.raises(openai.APIError, match="being closed"):
            list(chunks)
        waiting.join(30)
        assert isinstance(told[0], openai.InternalServerError)
        assert told[0].code == "unavailable"


def test_a_response_whose_model_closes_ends_in_an_event(folders: dict[str, Path]) -> None:
    with serving({"chat": folders["chat"]}) as running:
        body = {"input": "Hello", "stream": True, "text": {"format": {**LONG["json_schema"], "type": "json_schema"}}}
        with running.stream("POST", "/v1/responses", json=body) as answer:
            lines = answer.iter_lines()
            assert next(lines) == "event: response.created"
            running.desk.shelves["chat"].served.scheduler.close()  # type: ignore[attr-defined]
            rest = [line for line in lines if line]
        assert rest[-2] == "event: error"
        event = json.loads(rest[-1].removeprefix("data: "))
        assert (event["type"], event["code"]) == ("error", "unavailable")
        assert event["sequence_number"] == len([line for line in rest if line.startswith("data: ")]) - 1
