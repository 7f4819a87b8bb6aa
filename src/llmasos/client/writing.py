"""Texts that a model wrote, read from the three routes' JSON: whole, and as the events of a stream add up to them."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from ..core.errors import BrokenOffError, UsageError
from .answers import Choice, Reply, TokenLogprob, ToolCall, Usage


def read_chat(told: Mapping[str, Any], request_id: str | None) -> Reply:
    """Read an answer of ``/v1/chat/completions``."""
    return _reply(told, request_id, [_chat_choice(one) for one in told["choices"]])


def _chat_choice(told: Mapping[str, Any]) -> Choice:
    message = told["message"]
    calls = [ToolCall(one["id"], one["function"]["name"], one["function"]["arguments"])
             for one in message.get("tool_calls") or ()]  # fmt: skip
    rows = (told.get("logprobs") or {}).get("content")
    logprobs = None if rows is None else tuple(_chances(row) for row in rows)
    return Choice(int(told["index"]), message.get("content") or "", tuple(calls), told.get("finish_reason"), logprobs)


def _chances(row: Mapping[str, Any]) -> TokenLogprob:
    top = {one["token"]: float(one["logprob"]) for one in row.get("top_logprobs") or ()}
    return TokenLogprob(row["token"], float(row["logprob"]), top)


def read_completion(told: Mapping[str, Any], request_id: str | None) -> Reply:
    """Read an answer of ``/v1/completions``, whose chances are lists side by side."""
    choices = []
    for one in told["choices"]:
        table = one.get("logprobs")
        logprobs = None
        if table is not None:
            tops = table.get("top_logprobs") or [{}] * len(table["tokens"])
            rows = zip(table["tokens"], table["token_logprobs"], tops, strict=True)
            logprobs = tuple(TokenLogprob(token, float(chance), dict(top or {})) for token, chance, top in rows)
        choices.append(Choice(int(one["index"]), one["text"], (), one.get("finish_reason"), logprobs))
    return _reply(told, request_id, choices)


def _reply(told: Mapping[str, Any], request_id: str | None, choices: list[Choice]) -> Reply:
    if not choices:
        raise ValueError("no choices")
    usage = told.get("usage")
    counts = Usage(int(usage["prompt_tokens"]), int(usage["completion_tokens"])) if usage else None
    return Reply(tuple(sorted(choices, key=lambda one: one.index)), str(told.get("model", "")), counts, request_id)


def read_response(told: Mapping[str, Any], request_id: str | None) -> Reply:
    """Read an answer of ``/v1/responses``."""
    if told.get("error"):
        raise ValueError(str(told["error"].get("message")))
    parts = [part for item in told["output"] if item["type"] == "message" for part in item["content"]]
    text = "".join(part.get("text", "") for part in parts)
    calls = tuple(ToolCall(item["call_id"], item["name"], item["arguments"])
                  for item in told["output"] if item["type"] == "function_call")  # fmt: skip
    why = "length" if told.get("status") == "incomplete" else "tool_calls" if calls else "stop"
    usage = told.get("usage")
    counts = Usage(int(usage["input_tokens"]), int(usage["output_tokens"])) if usage else None
    return Reply((Choice(0, text, calls, why),), str(told.get("model", "")), counts, request_id)


# -- streams --------------------------------------------------------------------------------------------


class Piece(str):
    """A piece of an answer; ``choice`` tells which of ``n`` answers it belongs to, from 0."""

    __slots__ = ("choice",)
    choice: int

    def __new__(cls, text: str, choice: int = 0) -> Piece:
        """Make one."""
        piece = super().__new__(cls, text)
        piece.choice = choice
        return piece


class Growing(ABC):
    """An answer that grows by events, without a connection."""

    counts: ClassVar[bool] = False
    """Whether its tokens are counted only where that is asked for."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}
        self.request_id: str | None = None
        self.ended = False

    @property
    def text(self) -> str:
        """What has come of the first answer."""
        return self.texts.get(0, "")

    def take(self, data: str) -> Iterator[Piece]:
        """Take an event; yield the text that it brings.

        Raises:
            BrokenOffError: it tells of an error.
        """
        if data in ("", "[DONE]"):
            self.ended = self.ended or bool(data)
            return
        event = json.loads(data)
        wrong = event if event.get("type") == "error" else event.get("error")
        if wrong:
            raise self.broken(str(wrong.get("message") or wrong) if isinstance(wrong, Mapping) else str(wrong),
                              wrong.get("code") if isinstance(wrong, Mapping) else None)  # fmt: skip
        for index, text in self._pieces(event):
            if text:
                self.texts[index] = self.texts.get(index, "") + text
                yield Piece(text, index)

    def broken(self, why: str, code: str | None = None) -> BrokenOffError:
        """Return the error of an answer that breaks off here."""
        error = BrokenOffError(f"the answer broke off: {why}", text=self.text,
                               hint="ask again; what had come is in the error's text")  # fmt: skip
        error.code, error.request_id = code, self.request_id
        return error

    def reply(self) -> Reply:
        """Return the whole answer.

        Raises:
            UsageError: it has not ended.
        """
        if not self.ended:
            raise UsageError("the stream has not ended, so there is no reply", hint="go through its pieces first")
        return self._reply()

    @abstractmethod
    def _pieces(self, event: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
        """Take an event; yield what it brings of which answer."""

    @abstractmethod
    def _reply(self) -> Reply:
        """Return the whole answer."""


class GrowingChoices(Growing):
    """The chunks of a chat or of completions, gathered to what the route answers without a stream."""

    counts: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[str, Any] = {"choices": []}
        self._choices: dict[int, dict[str, Any]] = {}

    def _pieces(self, event: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
        self._told |= {name: event[name] for name in ("model", "usage") if event.get(name)}
        for chunk in event.get("choices") or ():
            index = int(chunk["index"])
            choice = self._choices.setdefault(index, {"index": index, "finish_reason": None, "logprobs": None})
            yield index, self._grow(choice, chunk)
            choice["finish_reason"] = chunk.get("finish_reason") or choice["finish_reason"]
            for name, rows in (chunk.get("logprobs") or {}).items():
                choice["logprobs"] = choice["logprobs"] or {}
                choice["logprobs"][name] = [*(choice["logprobs"].get(name) or ()), *(rows or ())]
        ends = [one["finish_reason"] for one in self._choices.values()]
        self.ended = bool(ends) and all(ends)  # some servers end without a word

    def _whole(self) -> Mapping[str, Any]:
        return {**self._told, "choices": list(self._choices.values())}

    @abstractmethod
    def _grow(self, choice: dict[str, Any], chunk: Mapping[str, Any]) -> str:
        """Add a chunk to a choice, and return the text that it brings."""


class GrowingChat(GrowingChoices):
    """A chat."""

    def _grow(self, choice: dict[str, Any], chunk: Mapping[str, Any]) -> str:
        delta, message = chunk["delta"], choice.setdefault("message", {"content": "", "tool_calls": {}})
        text = delta.get("content") or ""
        message["content"] += text
        for part in delta.get("tool_calls") or ():
            empty = {"id": "", "function": {"name": "", "arguments": ""}}
            call = message["tool_calls"].setdefault(part["index"], empty)
            call["id"] = part.get("id") or call["id"]
            for name, more in (part.get("function") or {}).items():
                call["function"][name] += more or ""
        return text

    def _reply(self) -> Reply:
        whole = self._whole()
        for choice in whole["choices"]:
            calls = choice["message"]["tool_calls"]
            choice["message"]["tool_calls"] = [calls[place] for place in sorted(calls)]
        return read_chat(whole, self.request_id)


class GrowingCompletion(GrowingChoices):
    """Completions."""

    def _grow(self, choice: dict[str, Any], chunk: Mapping[str, Any]) -> str:
        text = chunk.get("text") or ""
        choice["text"] = choice.get("text", "") + text
        return text

    def _reply(self) -> Reply:
        return read_completion(self._whole(), self.request_id)


class GrowingResponse(Growing):
    """A response, whose last event holds the whole."""

    def __init__(self) -> None:
        super().__init__()
        self._told: Mapping[str, Any] = {}

    def _pieces(self, event: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
        kind = event.get("type")
        if kind == "response.output_text.delta":
            yield 0, event["delta"]
        elif kind in ("response.completed", "response.incomplete"):
            self._told, self.ended = event["response"], True
        elif kind == "response.failed":
            raise self.broken(str((event["response"].get("error") or {}).get("message")))

    def _reply(self) -> Reply:
        return read_response(self._told, self.request_id)
