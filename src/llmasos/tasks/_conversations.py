"""Conversations out of any usual layout of rows, checked: messages, prompt and completion, Alpaca, ShareGPT.

- OpenAI: ``messages`` of role and content, with tool calls, and ``tools``; ``weight: 0`` leaves an answer unlearned;
- ShareGPT: ``conversations`` of from (human, gpt, ...) and value;
- prompt and completion, each a text or messages; instruction, input and output (Alpaca) or instruction, context
  and response (Dolly) are the same with other names: what is in ``input`` follows the prompt after a blank line.

All become one thing, messages as chat templates take them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..core.errors import did_you_mean, shown
from .base import Field, Problem, Row

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
_SHAREGPT = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "model": "assistant", "bot": "assistant", "system": "system", "tool": "tool", "observation": "tool",
    "function_response": "tool", "function_call": "assistant",
}  # fmt: skip
_BEFORE = {
    "user": ("system", "developer", "assistant", ""),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


class Conversation(NamedTuple):
    """Messages in order; whether each is an answer to learn; where each stands in its row; the tools on offer."""

    messages: list[Message]
    learned: list[bool]
    places: list[str]
    tools: list[dict[str, Any]] | None = None

    def until(self, count: int) -> Conversation:
        """Return the first messages."""
        return Conversation(self.messages[:count], self.learned[:count], self.places[:count], self.tools)


class Wrong(Exception):
    """Carries what is wrong with a row up to whoever asked."""

    def __init__(self, field: str, found: str, expected: str, *, drop: bool = False) -> None:
        super().__init__(f"{field}: found {found}, expected {expected}")
        self.problem = Problem(field, found, expected, drop)


PROMPT_FIELDS = (
    Field(
        "prompt",
        ("prompt", "instruction", "question", "query", "text", "input"),
        kind="content",
        required=False,
        doc="what is asked: a text, or messages",
    ),
    Field("input", ("input", "context"), required=False, doc="a text that belongs to the prompt, or nothing"),
    Field("system", ("system", "system_prompt"), required=False, doc="what the assistant is told about itself"),
    Field("tools", ("tools", "functions"), kind="json", required=False, doc="JSON schemas of functions on offer"),
)
"""The fields of what comes before an answer."""


def conversation(row: Row, answer: str | None = "completion") -> Conversation:
    """Read the conversation of a row.

    Args:
        row: in any of the layouts.
        answer: the field of the answer to the prompt; None reads no answer, and leaves out the assistant's
            message at the end of a whole conversation: what a model shall answer is what comes before.

    Raises:
        Wrong: the row is none, or its messages make no conversation.
    """
    tools = _tools(row.get("tools"))
    whole = "messages" if row.get("messages") is not None else answer if _is_whole(row.get(answer or "")) else None
    if whole is not None:
        messages, learned, places = _messages(row[whole], whole)
        if answer is None and messages and messages[-1]["role"] == "assistant":
            messages, learned, places = messages[:-1], learned[:-1], places[:-1]
    else:
        messages, _, places = _prompt(row)
        learned = [False] * len(messages)
        if answer is not None:
            more, taught, there = _side(row, answer, "assistant")
            messages, learned, places = messages + more, learned + taught, places + there
    if row.get("system"):
        messages = [{"role": "system", "content": row["system"]}, *messages]
        learned, places = [False, *learned], ["system", *places]
    found = Conversation(messages, learned, places, tools)
    _check_order(found, answered=answer is not None)
    return found


def asked(messages: Any, tools: Any = None) -> Conversation:
    """Read the conversation that a model is asked to go on with: its order is the template's to judge.

    Raises:
        Wrong: a message is none, or the last one is an answer already.
    """
    found, _, places = _messages(messages, "messages", empty=True)
    if found[-1]["role"] == "assistant":
        raise Wrong(f"{places[-1]}.role", "an answer at the end", "a message of the user or a tool at the end")
    return Conversation(found, [False] * len(found), places, _tools(tools))


def _is_whole(value: Any) -> bool:
    """Say whether an answer is a whole conversation, its prompt included."""
    first = value[0] if isinstance(value, list) and value and isinstance(value[0], Mapping) else {}
    return first.get("role") in ("system", "developer", "user") or first.get("from") in ("system", "human", "user")


def _prompt(row: Row) -> tuple[list[Message], list[bool], list[str]]:
    messages, learned, places = _side(row, "prompt", "user")
    more = row.get("input")
    if more is not None and not isinstance(more, str):
        raise Wrong("input", shown(more), "a text")
    if more and more.strip():
        last = messages[-1]
        messages = [*messages[:-1], {**last, "content": f"{last['content']}\n\n{more}"}]
    return messages, learned, places


def _side(row: Row, field: str, role: str) -> tuple[list[Message], list[bool], list[str]]:
    """Return the messages of a field that is a text of one role, or a list of messages."""
    value = row.get(field)
    if isinstance(value, str):
        if not value.strip():
            raise Wrong(field, "an empty text", "some text", drop=True)
        return [{"role": role, "content": value}], [role == "assistant"], [field]
    if not isinstance(value, list):
        raise Wrong(field, shown(value), "a text or a list of messages" + ("" if value else ", or a field messages"))
    return _messages(value, field)


def _messages(value: Any, field: str, *, empty: bool = False) -> tuple[list[Message], list[bool], list[str]]:
    if not isinstance(value, list) or not value:
        raise Wrong(field, shown(value) if value else "no message", "a list of messages")
    messages, learned, places = [], [], []
    for i, item in enumerate(value):
        place = f"{field}[{i}]"
        if not isinstance(item, Mapping):
            raise Wrong(place, shown(item), 'a message: {"role": "user", "content": "..."}')
        message = _sharegpt(item, place) if "from" in item and "role" not in item else _openai(item, place, empty=empty)
        weight = message.pop("weight", 1)
        if weight not in (0, 1):
            raise Wrong(f"{place}.weight", shown(weight), "0 or 1")
        messages.append(message)
        learned.append(message["role"] == "assistant" and bool(weight))
        places.append(place)
    return messages, learned, places


def _sharegpt(item: Mapping[str, Any], place: str) -> Message:
    speaker, value = item["from"], item.get("value")
    if speaker not in _SHAREGPT:
        hint = did_you_mean(str(speaker), _SHAREGPT).strip()
        raise Wrong(f"{place}.from", repr(speaker), f"one of {', '.join(_SHAREGPT)}{f' ({hint})' if hint else ''}")
    message: dict[str, Any] = {"role": _SHAREGPT[speaker], "content": value}
    if speaker == "function_call":
        message = {"role": "assistant", "content": "", "tool_calls": [_parsed(value)]}
    weight = {"weight": item["weight"]} if "weight" in item else {}
    return _openai({**message, **weight}, place, content=f"{place}.value")


def _openai(item: Mapping[str, Any], place: str, content: str = "", *, empty: bool = False) -> Message:
    role = item.get("role")
    if role not in ROLES:
        hint = did_you_mean(str(role), ROLES).strip()
        raise Wrong(f"{place}.role", repr(role), f"one of {', '.join(ROLES)}{f' ({hint})' if hint else ''}")
    message = dict(item)
    if message.get("tool_calls"):
        message["tool_calls"] = _calls(message["tool_calls"], f"{place}.tool_calls")
        if role != "assistant":
            raise Wrong(f"{place}.tool_calls", f"tool calls of the {role}", "tool calls of the assistant only")
    else:
        message.pop("tool_calls", None)
    message["content"] = _content(message, content or f"{place}.content", empty=empty)
    return message


def _content(message: Message, place: str, *, empty: bool) -> str:
    """Return the text of a message; one that only calls tools may have none, others where they may be ``empty``."""
    content = message.get("content")
    if isinstance(content, list):
        kinds = [part.get("type") if isinstance(part, Mapping) else type(part).__name__ for part in content]
        if any(kind != "text" for kind in kinds):
            raise Wrong(place, f"content of type {next(k for k in kinds if k != 'text')}", "text")
        content = "".join(str(part.get("text", "")) for part in content)
    if content is None and "tool_calls" in message:
        return ""
    if not isinstance(content, str):
        raise Wrong(place, shown(content), "a text")
    if not content.strip() and not empty and "tool_calls" not in message and message["role"] != "tool":
        raise Wrong(place, "an empty text", "some text", drop=True)
    return content


def _calls(calls: Any, place: str) -> list[dict[str, Any]]:
    """Return tool calls as templates want them: with their arguments as an object, not as JSON text."""
    if not isinstance(calls, list):
        raise Wrong(place, shown(calls), "a list of calls")
    out = []
    for i, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            expected = '{"type": "function", "function": {"name": "...", "arguments": {...}}}'
            raise Wrong(f"{place}[{i}]", shown(call), expected)
        arguments = _parsed(function.get("arguments", {}))
        outer = dict(call) if "function" in call else {"type": "function"}
        out.append({**outer, "function": {**function, "arguments": arguments}})
    return out


def _parsed(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _tools(tools: Any) -> list[dict[str, Any]] | None:
    if tools is None or tools == "" or tools == []:
        return None
    if not isinstance(tools, list):
        raise Wrong("tools", shown(tools), "a list of JSON schemas")
    for i, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise Wrong(f"tools[{i}]", shown(tool), "the JSON schema of a function, with its name")
    return [dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)} for tool in tools]


def _check_order(found: Conversation, *, answered: bool) -> None:
    before = ""
    for message, place in zip(found.messages, found.places, strict=True):
        role = message["role"]
        allowed = _BEFORE.get(role, ("",))  # what the assistant is told comes first
        if before not in allowed:
            where = f"after {before}" if before else "at the beginning"
            follow = " or ".join(name or "at the beginning" for name in allowed)
            raise Wrong(f"{place}.role", f"{role} {where}", f"{role} only after {follow}" if any(allowed) else
                        f"{role} only at the beginning")  # fmt: skip
        before = role
    if answered and before != "assistant":
        raise Wrong(found.places[-1], f"a {before} message at the end", "an answer of the assistant at the end")
    if not answered and before not in ("user", "tool"):
        raise Wrong(found.places[-1] if found.places else "messages", "nothing to answer", "a message of the user")
