"""Calls of tools: found in what a model wrote, and enforced where a request demands one.

Two ways to write a call are known: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` (Hermes, Qwen), and
the same JSON alone, with ``arguments`` or ``parameters``, once, several times or in a list (Llama 3, Mistral). What
names no tool of the request, or has no arguments, is text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .shapes import checked, inside

MARK = "<tool_call>"
_MARKED = re.compile(rf"{MARK}(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_BETWEEN = re.compile(r"[\s;,]*")


@dataclass(frozen=True)
class Call:
    """One call of a tool, with its arguments as JSON."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")


def schemas(tools: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the schema of a call of each tool: the schema of its arguments by its name, or None without any.

    Raises:
        UsageError: one is too long or too deep.
    """
    return [_call(name, parameters) for name, parameters in tools.items()]


def _call(name: str, parameters: Any) -> dict[str, Any]:
    own = checked(parameters) if parameters else {"type": "object", "properties": {}, "additionalProperties": False}
    properties = {"name": {"const": name}, "arguments": inside(own, "#/properties/arguments")}
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


class Reader:
    """Reads what a model writes as it comes: text at once, and what may be a call once it is whole.

    Args:
        names: the tools that can be called; without any, all is text.
        most: how many calls are taken; the first ones, or all.
    """

    def __init__(self, names: Iterable[str] = (), most: int | None = None) -> None:
        self._names, self._most = frozenset(names), most
        self._text, self._told = "", 0

    def push(self, piece: str) -> str:
        """Take a piece; return the text that is certain to be no call."""
        self._text += piece
        return self._certain(len(self._text) - self._held())

    def _held(self) -> int:
        """Return how many characters at the end may belong to a call."""
        if not self._names:
            return 0
        text = self._text
        if text.lstrip()[:1] in ("", "{", "["):
            return len(text)
        if (at := text.find(MARK)) >= 0:
            return len(text) - len(text[:at].rstrip())
        part = next((size for size in range(len(MARK) - 1, 0, -1) if text.endswith(MARK[:size])), 0)
        return len(text) - len(text[: len(text) - part].rstrip())

    def finish(self, whole: str | None = None) -> tuple[str, list[Call]]:
        """Return the text that is left, and the calls; ``whole``: the text, where it was not pushed."""
        self._text = self._text if whole is None else whole
        calls, until = self._calls()
        return self._certain(until if calls else len(self._text)), calls[: self._most]

    def _certain(self, until: int) -> str:
        piece, self._told = self._text[self._told : until], max(self._told, until)
        return piece

    def _calls(self) -> tuple[list[Call], int]:
        """Return the calls, and where the text before them ends."""
        if not self._names:
            return [], 0
        at = self._text.find(MARK)
        written = _MARKED.findall(self._text) if at >= 0 else [self._text]
        found: list[Call] = []
        for part in written:
            calls = [self._call(value) for value in _values(part)]
            if not calls or None in calls:
                return [], 0
            found += [call for call in calls if call]
        return found, len(self._text[: max(at, 0)].rstrip())

    def _call(self, value: Any) -> Call | None:
        if not isinstance(value, Mapping):
            return None
        name, arguments = value.get("name"), value.get("arguments", value.get("parameters"))
        if not isinstance(name, str) or name not in self._names or not isinstance(arguments, Mapping):
            return None
        return Call(name, json.dumps(arguments, ensure_ascii=False))


def _values(text: str) -> Sequence[Any]:
    """Return the JSON values that a text is made of, those of a list one by one; none where it is not made of such."""
    values: list[Any] = []
    place = _end(_BETWEEN, text, 0)
    while place < len(text):
        try:
            value, place = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            return []
        values += value if isinstance(value, list) else [value]
        place = _end(_BETWEEN, text, place)
    return values


def _end(pattern: re.Pattern[str], text: str, place: int) -> int:
    found = pattern.match(text, place)
    return found.end() if found else place


_DECODER = json.JSONDecoder()
