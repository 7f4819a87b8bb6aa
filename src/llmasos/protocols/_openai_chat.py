"""Chat and completions: from their requests to what is written, and from that to their answers and chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from fastapi import Request

from ..generation.pieces import Done, Piece
from ..serving.app import said
from ..serving.calls import Call
from ..tasks.base import Generation
from ._openai_schema import Chat, Completion, Sampled
from ._openai_writing import Tools, Wanted, chances, chat_prompt, reason, settings, shape, usage
from .base import Refused

if TYPE_CHECKING:
    from ..serving.desk import Desk
    from ..serving.served import Served

COMPLETION_TOKENS = 16
"""The longest completion if nothing is said, which is OpenAI's; a chat answer has what room there is."""

DONE = b"data: [DONE]\n\n"


# -- what is wanted -----------------------------------------------------------------------------------


async def chat_wanted(desk: Desk, served: Served, asking: Chat, request: Request) -> Wanted:
    """Return what a chat request asks a model to write.

    Raises:
        Refused: the request asks for what cannot be had.
    """
    choice = asking.tool_choice
    tools = Tools(
        [tool.function.model_dump(exclude_none=True) for tool in asking.tools or ()],
        "auto" if choice is None else choice.type,
        choice.function.name if choice and choice.function else None,
        asking.parallel_tool_calls is not False,
    )
    if asking.top_logprobs and not asking.logprobs:
        raise Refused("top_logprobs without logprobs does nothing", "top_logprobs", hint="logprobs=true")
    if None not in (asking.max_tokens, asking.max_completion_tokens):
        raise Refused("max_tokens is the older name of max_completion_tokens", "max_tokens", hint="give one of them")
    prompt = await chat_prompt(served, [one.for_template() for one in asking.messages], tools, "messages")
    param = "max_tokens" if asking.max_completion_tokens is None else "max_completion_tokens"
    prompts = [prompt] * (asking.n or 1)
    more: dict[str, Any] = {
        "stop": asking.stop or [],
        "json_schema": shape(tools, _schema(asking), "response_format"),
        "logprobs": bool(asking.logprobs),
        "top_logprobs": asking.top_logprobs or 0,
    }
    return Wanted(
        served, desk.asked(request), prompts,
        settings(desk, served, asking, prompts, most=getattr(asking, param), param=param),
        tools=tuple(tools.callable), most_calls=None if tools.parallel else 1, more=more,
        shaped_by="tools" if tools.demanded else "response_format", bounded_by=param,
    )  # fmt: skip


def _schema(asking: Chat) -> Any:
    wanted = asking.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.json_schema is None:
        raise Refused("json_schema is missing", "response_format.json_schema", code="invalid_value")
    return wanted.json_schema.schema_


async def completion_wanted(desk: Desk, served: Served, asking: Completion, request: Request) -> Wanted:
    """Return what a completion request asks a model to write.

    Raises:
        Refused: the request asks for what cannot be had.
    """
    if len(asking.prompt) > desk.config.max_inputs:
        raise Refused(f"{len(asking.prompt)} prompts, and a request may have {desk.config.max_inputs}", "prompt",
                      code="invalid_value", hint="ask in parts")  # fmt: skip
    served.check_writes()
    known = len(served.parts.tokenizer)
    if any(token >= known for one in asking.prompt if isinstance(one, list) for token in one):
        raise Refused(f"a token of the prompt is none of the model's {known}", "prompt", code="invalid_value",
                      hint="send text")  # fmt: skip
    read = [await served.prompt(one) if isinstance(one, str) else one for one in asking.prompt]
    prompts = [one for one in read for _ in range(asking.n or 1)]
    more = {
        "stop": asking.stop or [],
        "logprobs": asking.logprobs is not None,
        "top_logprobs": asking.logprobs or 0,
    }
    config = settings(desk, served, asking, prompts, most=asking.max_tokens, param="max_tokens",
                      default=COMPLETION_TOKENS)  # fmt: skip
    return Wanted(served, desk.asked(request), prompts, config, more=more, read_from="prompt")


# -- whole answers ------------------------------------------------------------------------------------


def _head(kind: str, prefix: str, served: Served) -> dict[str, Any]:
    return {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()),
            "model": served.name}  # fmt: skip


async def chat(desk: Desk, served: Served, asking: Chat, request: Request) -> dict[str, Any]:
    """Return a whole chat answer."""
    wanted = await chat_wanted(desk, served, asking, request)
    found = await wanted.answers(desk, request)
    choices = [_choice(wanted, asking, number, one) for number, one in enumerate(found)]
    return _head("chat.completion", "chatcmpl", served) | {"choices": choices, "usage": usage(found, asking.n or 1)}


def _choice(wanted: Wanted, asking: Chat, number: int, found: Generation) -> dict[str, Any]:
    text, calls = wanted.reader().finish(found.text)
    message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
    if calls:
        message["tool_calls"] = [_called(call) for call in calls]
    logprobs = None
    if asking.logprobs:
        rows = chances(wanted.served.parts.tokenizer, found, asking.top_logprobs or 0)
        logprobs = {"content": rows, "refusal": None}
    return {"index": number, "message": message, "logprobs": logprobs,
            "finish_reason": "tool_calls" if calls else reason(found)}  # fmt: skip


def _called(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


async def completion(desk: Desk, served: Served, asking: Completion, request: Request) -> dict[str, Any]:
    """Return whole completions."""
    wanted = await completion_wanted(desk, served, asking, request)
    found = await wanted.answers(desk, request)
    choices = [
        {"index": number, "text": one.text, "logprobs": _Table(wanted, asking).add(one),
         "finish_reason": reason(one)} for number, one in enumerate(found)
    ]  # fmt: skip
    return _head("text_completion", "cmpl", served) | {"choices": choices, "usage": usage(found, asking.n or 1)}


class _Table:
    """Chances as the older route has them: lists side by side, with where each token begins in the text."""

    def __init__(self, wanted: Wanted, asking: Completion) -> None:
        self._tokenizer, self._top = wanted.served.parts.tokenizer, asking.logprobs
        self._before: int | None = None
        self._at = 0

    def add(self, found: Generation | Piece) -> dict[str, Any] | None:
        """Return the chances of an answer, or of the next piece of it; None where none were asked for."""
        if self._top is None:
            return None
        rows = chances(self._tokenizer, found, self._top, self._before)
        offsets = []
        for row in rows:
            offsets.append(self._at)
            self._at += len(row["token"])
        self._before = found.tokens[-1] if found.tokens else self._before
        best = [{one["token"]: one["logprob"] for one in (*row["top_logprobs"], row)} for row in rows]
        return {"tokens": [row["token"] for row in rows], "token_logprobs": [row["logprob"] for row in rows],
                "top_logprobs": best if self._top else None, "text_offset": offsets}  # fmt: skip


# -- streams ------------------------------------------------------------------------------------------


class _Chunks:
    """The chunks of a stream: what all have in common, and the counts at its end."""

    def __init__(self, head: Mapping[str, Any], asking: Sampled) -> None:
        self._head, self._copies = head, asking.n or 1
        self._counts = bool(asking.stream_options and asking.stream_options.include_usage)
        self._found: dict[int, Generation] = {}

    def chunk(self, number: int, content: Mapping[str, Any], why: str | None = None, logprobs: Any = None) -> bytes:
        """Return one chunk of one choice."""
        choice = {"index": number, **content, "logprobs": logprobs, "finish_reason": why}
        return said({**self._head, "choices": [choice], **({"usage": None} if self._counts else {})})

    def ended(self, number: int, found: Generation) -> None:
        """Count a whole answer."""
        self._found[number] = found

    def last(self) -> list[bytes]:
        """Return what comes behind the last choice."""
        counts = usage((self._found[number] for number in sorted(self._found)), self._copies)
        return [*([said({**self._head, "choices": [], "usage": counts})] if self._counts else []), DONE]


async def chat_chunks(desk: Desk, served: Served, asking: Chat, request: Request) -> AsyncIterator[bytes]:
    """Return the chunks of a chat answer; what is wrong with the request shows before."""
    wanted = await chat_wanted(desk, served, asking, request)
    return _chat_chunks(wanted, asking, await wanted.pieces(desk, request))


async def _chat_chunks(wanted: Wanted, asking: Chat, pieces: AsyncIterator[Piece | Done]) -> AsyncIterator[bytes]:
    chunks = _Chunks(_head("chat.completion.chunk", "chatcmpl", wanted.served), asking)
    readers = [wanted.reader() for _ in wanted.prompts]
    before: dict[int, int] = {}
    told: dict[int, list[dict[str, Any]]] = {}

    def delta(number: int, text: str) -> bytes:
        """Return a chunk of text, with the chances of the tokens read so far."""
        rows = {"content": told.pop(number, []), "refusal": None} if asking.logprobs else None
        return chunks.chunk(number, {"delta": {"content": text}}, logprobs=rows)

    for number in range(len(readers)):
        yield chunks.chunk(number, {"delta": {"role": "assistant", "content": ""}})
    async for item in pieces:
        number, reader = item.number, readers[item.number]
        if isinstance(item, Piece):
            if asking.logprobs and item.tokens:
                rows = chances(wanted.served.parts.tokenizer, item, asking.top_logprobs or 0, before.get(number))
                told.setdefault(number, []).extend(rows)
                before[number] = item.tokens[-1]
            if text := reader.push(item.text):
                yield delta(number, text)
            continue
        text, calls = reader.finish(item.generation.text)
        if text:
            yield delta(number, text)
        if calls:
            listed = [{"index": place, **_called(call)} for place, call in enumerate(calls)]
            yield chunks.chunk(number, {"delta": {"tool_calls": listed}})
        yield chunks.chunk(number, {"delta": {}}, "tool_calls" if calls else reason(item.generation))
        chunks.ended(number, item.generation)
    for event in chunks.last():
        yield event


async def completion_chunks(desk: Desk, served: Served, asking: Completion, request: Request) -> AsyncIterator[bytes]:
    """Return the chunks of completions; what is wrong with the request shows before."""
    wanted = await completion_wanted(desk, served, asking, request)
    return _completion_chunks(wanted, asking, await wanted.pieces(desk, request))


async def _completion_chunks(
    wanted: Wanted, asking: Completion, pieces: AsyncIterator[Piece | Done]
) -> AsyncIterator[bytes]:
    chunks = _Chunks(_head("text_completion", "cmpl", wanted.served), asking)
    tables = [_Table(wanted, asking) for _ in wanted.prompts]
    told = [0] * len(tables)
    async for item in pieces:
        number = item.number
        if isinstance(item, Piece):
            told[number] += len(item.text)
            yield chunks.chunk(number, {"text": item.text}, logprobs=tables[number].add(item))
            continue
        yield chunks.chunk(number, {"text": item.generation.text[told[number] :]}, reason(item.generation))
        chunks.ended(number, item.generation)
    for event in chunks.last():
        yield event
