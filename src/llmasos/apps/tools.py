"""Functions that a model may call, and the loop that lets it: bounded in steps, in time and in what comes back.

A tool is a typed function. What the model gives is held against the types before the function sees it; whatever goes
wrong (a name that is none, arguments that do not fit, an exception, no answer in time) is told to the model as the
tool's result, and kept in the record of the run.
"""

from __future__ import annotations

import inspect
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_type_hints, overload

from ..core.errors import AnswerError, MissingExtraError, UsageError, did_you_mean
from .quoting import harmless
from .schemas import plain, worded

if TYPE_CHECKING:
    from ..client import Client, ToolCall

Message = dict[str, Any]
MAX_RESULT = 20_000
"""Characters of a tool's result that a model is shown."""
_CALLS = 16  # of one step that are done


class Tool:
    """A function that a model may call; calling the tool calls the function.

    Args:
        function: its name, types and docstring are what the model is told. Lines under ``Args:`` describe arguments.
        timeout: seconds after which the model is told that it has not answered; that of the loop if None.

    Raises:
        UsageError: an argument has no type, or takes any number of values.
    """

    def __init__(self, function: Callable[..., Any], *, name: str | None = None, timeout: float | None = None) -> None:
        try:
            from pydantic import create_model
        except ImportError as error:
            raise MissingExtraError("a tool", install='"llmasos[apps]"') from error
        self.function, self.name, self.timeout = function, name or function.__name__, timeout
        about, told = _documented(inspect.getdoc(function) or "")
        self._arguments = create_model(self.name, __config__={"extra": "forbid"}, **_fields(function, told))
        schema = self._arguments.model_json_schema()
        self.schema: dict[str, Any] = {
            "type": "function",
            "function": {"name": self.name, "description": about, "parameters": plain(schema)},
        }
        self.__doc__ = function.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.function(*args, **kwargs)

    def arguments(self, text: str) -> dict[str, Any]:
        """Return the arguments that a model wrote as JSON, as their types.

        Raises:
            ValueError: they do not fit; the message says where.
        """
        from pydantic import ValidationError

        try:
            read = self._arguments.model_validate_json(text or "{}")
        except ValidationError as error:
            raise ValueError(worded(error.errors())) from error
        return {name: getattr(read, name) for name in type(read).model_fields}


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(*, name: str | None = None, timeout: float | None = None) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a tool of a typed function: ``@tool``, or ``@tool(name=..., timeout=...)``.

    Example:
        >>> @tool
        ... def weather(city: str) -> str:
        ...     "Tell the weather of a city."
        ...     return f"Sun in {city}."
        >>> weather("Oslo"), weather.schema["function"]["parameters"]["required"]
        ('Sun in Oslo.', ['city'])
    """
    return Tool(function, **options) if function is not None else lambda one: Tool(one, **options)


@dataclass(frozen=True)
class Call:
    """A call that a model made: what it asked for, and what came of it.

    ``arguments`` is the text where it did not fit; ``error`` is None where all went well.
    """

    name: str
    arguments: Mapping[str, Any] | str
    result: Any = None
    error: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class ToolRun:
    """How a run ended: the model's last words, all messages, and all calls in their order."""

    text: str
    messages: list[Message] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)


def run_tools(
    client: Client,
    messages: str | Sequence[Message],
    tools: Iterable[Tool | Callable[..., Any]],
    *,
    max_steps: int = 8,
    timeout: float = 30.0,
    tool_choice: str | Mapping[str, Any] | None = None,
    on_call: Callable[[Call], None] | None = None,
    **options: Any,
) -> ToolRun:
    """Let a model call tools until it answers in words.

    Args:
        client: asked by ``client.chat``.
        messages: a question, or messages.
        tools: what may be called: tools, or typed functions.
        max_steps: how many answers of the model are waited for.
        timeout: seconds that a tool may take. A function cannot be ended from outside: one that never returns is left
            behind in a thread that ends with the program.
        tool_choice: of the first step alone: ``"required"``, or a function that must be called.
        on_call: told of each call when it is done.
        options: what else ``client.chat`` takes.

    Raises:
        AnswerError: the model still calls tools after ``max_steps``; ``error.calls`` are those that were made.
        UsageError: two tools have one name, or a bound makes no sense.
    """
    known = _by_name(tools)
    if max_steps < 1 or timeout <= 0:
        raise UsageError(f"max_steps={max_steps} and timeout={timeout} leave nothing to do", hint="give more than 0")
    said: list[Message] = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    calls: list[Call] = []
    schemas = [one.schema for one in known.values()]
    for step in range(max_steps):
        reply = client.chat(said, tools=schemas, tool_choice=tool_choice if step == 0 else None, **options)
        said.append(_spoken(reply.text, reply.tool_calls))
        if not reply.tool_calls:
            return ToolRun(reply.text, said, calls)
        for place, asked in enumerate(reply.tool_calls):
            call = _done(asked, known, timeout) if place < _CALLS else Call(
                asked.name, asked.arguments, error=f"only {_CALLS} calls are done at a time")  # fmt: skip
            calls.append(call)
            said.append({"role": "tool", "tool_call_id": asked.id, "content": _told(call)})
            if on_call is not None:
                on_call(call)
    raise AnswerError(
        f"the model still calls tools after {max_steps} steps: {', '.join(one.name for one in calls[-3:])}",
        text=reply.text, messages=said, calls=calls, hint="a larger max_steps, or tools that say when they are done",
    )  # fmt: skip


def _by_name(tools: Iterable[Tool | Callable[..., Any]]) -> dict[str, Tool]:
    known: dict[str, Tool] = {}
    for one in tools:
        made = one if isinstance(one, Tool) else Tool(one)
        if made.name in known:
            raise UsageError(f"two tools are called {made.name!r}", hint='give one another: @tool(name="...")')
        known[made.name] = made
    return known


def _done(asked: ToolCall, known: Mapping[str, Tool], timeout: float) -> Call:
    start = time.monotonic()
    if asked.name not in known:
        near = did_you_mean(asked.name, known)
        return Call(asked.name, asked.arguments,
                    error=f"there is no tool {asked.name!r}. {near}tools: {', '.join(known)}")  # fmt: skip
    tool = known[asked.name]
    try:
        arguments = tool.arguments(asked.arguments)
    except ValueError as error:
        return Call(asked.name, asked.arguments, error=f"the arguments do not fit: {error}")
    allowed = tool.timeout or timeout
    result, wrong = _within(tool.function, arguments, allowed)
    if wrong is None:
        try:
            _text(result)
        except (TypeError, ValueError) as error:
            wrong = f"its result is not JSON: {error}"
    return Call(asked.name, arguments, result if wrong is None else None, wrong, time.monotonic() - start)


def _within(function: Callable[..., Any], arguments: Mapping[str, Any], seconds: float) -> tuple[Any, str | None]:
    """Call a function in a thread of its own; return its result, or what went wrong."""
    found: list[tuple[Any, str | None]] = []

    def work() -> None:
        try:
            found.append((function(**arguments), None))
        except BaseException as error:  # also SystemExit: a tool does not end the program
            found.append((None, f"{type(error).__name__}: {error}"))

    thread = threading.Thread(target=work, daemon=True, name="tool")
    thread.start()
    thread.join(seconds)
    return found[0] if found else (None, f"no answer within {seconds:g} s")


def _spoken(text: str, calls: Sequence[ToolCall]) -> Message:
    made = [
        {"id": one.id, "type": "function", "function": {"name": one.name, "arguments": one.arguments}} for one in calls
    ]
    return {"role": "assistant", "content": text or None, **({"tool_calls": made} if made else {"content": text})}


def _told(call: Call) -> str:
    """Return what the model reads of a call: data, whatever the tool fetched."""
    text = harmless(json.dumps({"error": call.error}, ensure_ascii=False) if call.error else _text(call.result))
    more = len(text) - MAX_RESULT
    return text if more <= 0 else f"{text[:MAX_RESULT]}\n({more} characters more were cut)"


def _text(result: Any) -> str:
    if isinstance(result, str):
        return result
    if hasattr(result, "model_dump"):
        result = result.model_dump(mode="json")
    return json.dumps(result, ensure_ascii=False)


def _fields(function: Callable[..., Any], told: Mapping[str, str]) -> dict[str, Any]:
    from pydantic import Field

    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    for name, one in inspect.signature(function).parameters.items():
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD, one.POSITIONAL_ONLY) or name not in hints:
            raise UsageError(f"the argument {name} of {function.__name__} has no type, or no place for a model to fill",
                             hint=f"write {name}: str, without * and /")  # fmt: skip
        given = ... if one.default is one.empty else one.default
        fields[name] = (hints[name], Field(given, description=told.get(name)))
    return fields


def _documented(doc: str) -> tuple[str, dict[str, str]]:
    """Take a docstring apart: what stands before ``Args:``, and a line for each argument."""
    about, _, rest = doc.partition("\nArgs:\n")
    block = re.split(r"\n(?=\S)", rest)[0]
    found = re.findall(r"^ {1,8}(\w+)(?: \([^)]*\))?:\s*(.+(?:\n {6,}.+)*)", block, re.MULTILINE)
    return " ".join(about.split()), {name: " ".join(text.split()) for name, text in found}
