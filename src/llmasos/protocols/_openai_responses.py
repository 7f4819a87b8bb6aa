"""Responses, the newer route of OpenAI: without a memory here, so the whole conversation comes with each request."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fastapi import Request

from ..generation.pieces import Done, Piece
from ..serving.app import said
from ..serving.calls import Call, Reader
from ..tasks.base import Generation
from ._openai_schema import Item, Respond, text_of
from ._openai_writing import Tools, Wanted, chat_prompt, reason, settings, shape
from .base import Failure, Refused

if TYPE_CHECKING:
    from ..serving.desk import Desk
    from ..serving.served import Served


async def response_wanted(desk: Desk, served: Served, asking: Respond, request: Request) -> Wanted:
    """Return what a request asks a model to write.

    Raises:
        Refused: the request asks for what cannot be had.
    """
    choice = asking.tool_choice
    tools = Tools(
        [tool.model_dump(exclude_none=True, exclude={"type"}) for tool in asking.tools or ()],
        "auto" if choice is None else choice.type, choice.name if choice else None,
        asking.parallel_tool_calls is not False,
    )  # fmt: skip
    prompts = [await chat_prompt(served, messages(asking), tools, "input")]
    more = {"json_schema": shape(tools, _schema(asking), "text.format")}
    config = settings(desk, served, asking, prompts, most=asking.max_output_tokens, param="max_output_tokens")
    return Wanted(served, desk.asked(request), prompts, config, tools=tuple(tools.callable),
                  most_calls=None if tools.parallel else 1, more=more,
                  read_from="input", shaped_by="tools" if tools.demanded else "text.format",
                  bounded_by="max_output_tokens")  # fmt: skip


def _schema(asking: Respond) -> Any:
    wanted = asking.text.format if asking.text else None
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.schema_ is None:
        raise Refused("the schema is missing", "text.format.schema", code="invalid_value")
    return wanted.schema_


def messages(asking: Respond) -> list[dict[str, Any]]:
    """Return the conversation as chat templates take it: calls belong to the assistant's message before them."""
    out: list[dict[str, Any]] = []
    if asking.instructions is not None:
        out.append({"role": "system", "content": asking.instructions})
    for item in asking.input:
        if item.type == "function_call":
            call = {"id": item.call_id, "type": "function",
                    "function": {"name": item.name, "arguments": item.arguments}}  # fmt: skip
            if not out or out[-1]["role"] != "assistant":
                out.append({"role": "assistant", "content": None})
            out[-1].setdefault("tool_calls", []).append(call)
        else:
            out.append(_message(item))
    return out


def _message(item: Item) -> dict[str, Any]:
    if item.type == "function_call_output":
        return {"role": "tool", "tool_call_id": item.call_id, "content": text_of(item.output)}
    return {"role": "system" if item.role == "developer" else item.role, "content": text_of(item.content)}


# -- answers ------------------------------------------------------------------------------------------


class _Response:
    """One response as it grows, and the events that tell of it."""

    def __init__(self, wanted: Wanted, asking: Respond) -> None:
        self._asking, self._config = asking, wanted.config
        self._reader: Reader = wanted.reader()
        self._number = 0
        self._text: dict[str, Any] | None = None
        text = asking.text.model_dump(by_alias=True, exclude_none=True) if asking.text else {}
        choice = asking.tool_choice
        self.body: dict[str, Any] = {
            "id": f"resp_{secrets.token_hex(16)}", "object": "response", "created_at": int(time.time()),
            "status": "in_progress", "error": None, "incomplete_details": None, "instructions": asking.instructions,
            "max_output_tokens": asking.max_output_tokens, "model": wanted.served.name, "output": [],
            "parallel_tool_calls": asking.parallel_tool_calls is not False, "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None}, "store": False, "temperature": self._config.temperature,
            "text": {"format": {"type": "text"}, **text}, "truncation": "disabled", "top_p": self._config.top_p,
            "tools": [{"parameters": None, "strict": None, **tool.model_dump(exclude_none=True)}
                      for tool in asking.tools or ()],
            "tool_choice": "auto" if choice is None else {"type": "function", "name": choice.name}
            if choice.type == "function" else choice.type,
            "usage": None, "user": asking.user, "metadata": asking.metadata or {},
        }  # fmt: skip

    def begin(self) -> Iterator[bytes]:
        """Say that it has begun."""
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self.body)

    def piece(self, text: str) -> Iterator[bytes]:
        """Take a piece of what is written."""
        if certain := self._reader.push(text):
            yield from self._said(certain)

    def finish(self, found: Generation) -> Iterator[bytes]:
        """Take the whole answer."""
        text, calls = self._reader.finish(found.text)
        if text or (not calls and self._text is None):
            yield from self._said(text)
        cut = reason(found) == "length"
        if self._text is not None:
            yield from self._text_ended("incomplete" if cut else "completed")
        for call in calls:
            yield from self._called(call)
        read, written = found.prompt_tokens, len(found.tokens)
        self.body |= {
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": {
                "input_tokens": read,
                "input_tokens_details": {"cached_tokens": found.cached_tokens or 0, "cache_write_tokens": 0},
                "output_tokens": written, "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": read + written,
            },
        }  # fmt: skip
        yield self._event("response.incomplete" if cut else "response.completed", response=self.body)

    def failed(self, failure: Failure) -> bytes:
        """Say that it has ended with an error."""
        return self._event("error", code=failure.code, message=failure.message, param=failure.param)

    def _event(self, kind: str, **content: Any) -> bytes:
        event = said({"type": kind, "sequence_number": self._number, **content}, kind)
        self._number += 1
        return event

    def _said(self, text: str) -> Iterator[bytes]:
        """Tell of more text of the one message that there is."""
        if self._text is None:
            self._text = {"id": f"msg_{secrets.token_hex(16)}", "type": "message", "status": "in_progress",
                          "role": "assistant", "content": []}  # fmt: skip
            self.body["output"].append(self._text)
            yield self._event("response.output_item.added", output_index=0, item=self._text)
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield self._event("response.content_part.added", **self._where(), part=part)
            self._text["content"].append(part)
        self._text["content"][0]["text"] += text
        if text:
            yield self._event("response.output_text.delta", **self._where(), delta=text, logprobs=[])

    def _where(self) -> Mapping[str, Any]:
        assert self._text is not None
        return {"item_id": self._text["id"], "output_index": 0, "content_index": 0}

    def _text_ended(self, status: str) -> Iterator[bytes]:
        assert self._text is not None
        part = self._text["content"][0]
        yield self._event("response.output_text.done", **self._where(), text=part["text"], logprobs=[])
        yield self._event("response.content_part.done", **self._where(), part=part)
        self._text["status"] = status
        yield self._event("response.output_item.done", output_index=0, item=self._text)

    def _called(self, call: Call) -> Iterator[bytes]:
        """Tell of a call."""
        place = len(self.body["output"])
        item = {"id": f"fc_{secrets.token_hex(16)}", "type": "function_call", "status": "in_progress",
                "call_id": call.id, "name": call.name, "arguments": ""}  # fmt: skip
        where = {"item_id": item["id"], "output_index": place}
        yield self._event("response.output_item.added", output_index=place, item=item)
        yield self._event("response.function_call_arguments.delta", **where, delta=call.arguments)
        yield self._event("response.function_call_arguments.done", **where, name=call.name, arguments=call.arguments)
        item |= {"arguments": call.arguments, "status": "completed"}
        self.body["output"].append(item)
        yield self._event("response.output_item.done", output_index=place, item=item)


async def response(desk: Desk, served: Served, asking: Respond, request: Request) -> dict[str, Any]:
    """Return a whole response."""
    wanted = await response_wanted(desk, served, asking, request)
    (found,) = await wanted.answers(desk, request)
    made = _Response(wanted, asking)
    for _ in made.finish(found):  # the same growth as in a stream, heard by nobody
        pass
    return made.body


async def response_events(
    desk: Desk, served: Served, asking: Respond, request: Request
) -> tuple[AsyncIterator[bytes], Any]:
    """Return the events of a response, and what words an error in it; what is wrong with the request shows before."""
    wanted = await response_wanted(desk, served, asking, request)
    made = _Response(wanted, asking)
    return _events(made, await wanted.pieces(desk, request)), made.failed


async def _events(made: _Response, pieces: AsyncIterator[Piece | Done]) -> AsyncIterator[bytes]:
    for event in made.begin():
        yield event
    async for item in pieces:
        for event in made.piece(item.text) if isinstance(item, Piece) else made.finish(item.generation):
            yield event
