"""Models as tools of the Model Context Protocol, through its official SDK: what a model can do is a tool's schema.

A mistake in a call is told as the result of the tool, so that the model that called it can read it and do better.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import mcp_types as mcp
import uvicorn
from mcp.server import Server
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError

from ..core.errors import LLMasOSError, UnavailableError, UsageError, did_you_mean
from ..tasks.base import Field
from .desk import Desk
from .limits import check_texts
from .rows import OPTIONS, answers_to, fields_of, plain
from .served import Asked, Served

VERBS: Mapping[str, tuple[str, str]] = {
    "text-classification": ("classify", "Put a text into one of the classes that this model knows"),
    "token-classification": ("tag", "Find names and other entities in a text"),
    "question-answering": ("answer", "Find the answer to a question in a text"),
    "translation": ("translate", "Translate a text"),
    "summarization": ("summarize", "Summarise a text"),
    "text-generation": ("chat", "Have this model answer a prompt or a conversation"),
    "code-generation": ("code", "Have this model write code"),
    "language-modeling": ("score", "Tell how likely a text is to this model"),
    "fill-mask": ("fill", "Fill in what is masked in a text"),
}
"""Of a task: the tool, and what it does. Any other is ``predict``."""
_TYPES: Mapping[str, dict[str, Any]] = {"text": {"type": "string"}, "number": {"type": "number"},
                                        "content": {"type": ["string", "array"]}}  # fmt: skip


@dataclass(frozen=True)
class Offer:
    """One tool.

    Args:
        model: whose it is.
        verb: what it does, in a word; ``about`` in a sentence.
        arguments: JSON schema of what it takes.
    """

    model: str
    verb: str
    about: str
    arguments: dict[str, Any]


class Tools:
    """The server of a desk's models.

    Args:
        desk: the models.
        version: of this server.
    """

    def __init__(self, desk: Desk, *, version: str) -> None:
        self.desk = desk
        self._offers: dict[str, Offer] = {}
        self.server: Server[Any] = Server(
            "llmasos", version=version, instructions="Models that run on this machine, each as a tool.",
            lifespan=self._open, on_list_tools=self._list, on_call_tool=self._call,
        )  # fmt: skip

    @asynccontextmanager
    async def _open(self, server: Server[Any]) -> AsyncIterator[dict[str, Any]]:
        """Open all models, for their tasks say what the tools are; close them in the end."""
        del server
        try:
            for name, shelf in self.desk.shelves.items():
                if shelf.refused is not None:  # a damaged adapter: the log says why
                    continue
                for offer in offers(await self.desk.model(name), self.desk):
                    called = re.sub(r"[^A-Za-z0-9_-]", "_", f"{offer.verb}-{name}")[:64]
                    if called in self._offers:
                        raise UsageError(f"two tools are called {called}", hint="name a model otherwise: NAME=MODEL")
                    self._offers[called] = offer
            yield {}
        finally:
            await asyncio.get_running_loop().run_in_executor(None, self.desk.close)

    async def _list(self, context: Any, asked: Any) -> mcp.ListToolsResult:
        del context, asked
        hints = mcp.ToolAnnotations(read_only_hint=True, open_world_hint=False)
        return mcp.ListToolsResult(tools=[
            mcp.Tool(name=name, description=offer.about, input_schema=offer.arguments, annotations=hints)
            for name, offer in self._offers.items()
        ])  # fmt: skip

    async def _call(self, context: Any, call: mcp.CallToolRequestParams) -> mcp.CallToolResult:
        del context
        if call.name not in self._offers:
            raise MCPError(mcp.INVALID_PARAMS, f"there is no tool {call.name!r}; "
                           f"{did_you_mean(call.name, self._offers)}known: {', '.join(self._offers)}")  # fmt: skip
        self.desk.inflight += 1
        try:
            found = await self._answer(self._offers[call.name], call.arguments or {})
        except LLMasOSError as error:
            return mcp.CallToolResult(content=[mcp.TextContent(type="text", text=str(error))], is_error=True)
        finally:
            self.desk.inflight -= 1
        text = json.dumps(found, ensure_ascii=False)
        return mcp.CallToolResult(content=[mcp.TextContent(type="text", text=text)], structured_content=found)

    async def _answer(self, offer: Offer, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a call.

        Raises:
            UsageError: an argument that there is not, or that is too large.
            BusyError: too much is waiting.
        """
        if self.desk.draining:
            raise UnavailableError("the server is stopping", retry_after=5)
        known = offer.arguments["properties"]
        for name in given:
            if name not in known:
                raise UsageError(f"there is no argument {name!r}",
                                 hint=f"{did_you_mean(name, known)}known: {', '.join(known)}")  # fmt: skip
        check_texts(given)
        if len(json.dumps(given)) > self.desk.config.max_body:
            raise UsageError(f"the call has more than {self.desk.config.max_body} bytes", hint="send less at once")
        served = await self.desk.model(offer.model)
        asked = Asked(timeout=self.desk.config.timeout)
        if offer.verb == "embed":
            texts = _list_of_texts(given.get("texts"))
            return {"embeddings": [plain(one) for one in await answers_to(self.desk, served, texts, {}, asked)]}
        if offer.verb == "similarity":
            texts = _list_of_texts([given.get("text"), given.get("other")])
            one, other = await answers_to(self.desk, served, texts, {}, asked)
            return {"score": float(one @ other)}
        row = {name: value for name, value in given.items() if name not in OPTIONS}
        options = {name: value for name, value in given.items() if name in OPTIONS}
        (found,) = await answers_to(self.desk, served, [row], options, asked)
        answer: dict[str, Any] = plain(found)
        return answer


def offers(served: Served, desk: Desk) -> list[Offer]:
    """Return the tools of a model."""
    text = {"type": "string", "maxLength": desk.config.max_body}
    name, task = served.name, served.parts.task
    if served.parts.embeds is not None:
        texts = {"type": "array", "items": text, "minItems": 1, "maxItems": desk.config.max_inputs}
        return [
            Offer(name, "embed", f"Turn texts into vectors by {name}", _object({"texts": texts}, ["texts"])),
            Offer(name, "similarity", f"Tell how close two texts are in meaning, by {name}: 1 is the same",
                  _object({"text": text, "other": text}, ["text", "other"])),
        ]  # fmt: skip
    verb, about = "write", "Write on from a prompt"
    if task is not None:
        verb, about = VERBS.get(task.tag, ("predict", f"Answer by {task.tag}"))
    if labels := getattr(task, "labels", None):
        about += f": {', '.join(map(str, labels[:50]))}"
    needed = fields_of(served)
    properties = {field.name: _property(field, desk) for field in needed}
    if served.parts.generator is not None:
        properties |= {
            "max_new_tokens": {"type": "integer", "minimum": 1, "maximum": desk.config.max_new_tokens},
            "temperature": {"type": "number", "minimum": 0, "description": "0 takes the likeliest words"},
            "seed": {"type": "integer", "minimum": 0},
        }
    return [Offer(name, verb, f"{about} ({name})", _object(properties, [f.name for f in needed if f.required]))]


def _property(field: Field, desk: Desk) -> dict[str, Any]:
    kind = dict(_TYPES.get(field.kind, {}))
    if "string" in (kind.get("type") or ()):
        kind["maxLength"] = desk.config.max_body
    return kind | {"description": field.doc}


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _list_of_texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise UsageError("texts are missing", hint="strings")
    return value


# -- ways to be reached -------------------------------------------------------------------------------


def over_stdio(tools: Tools) -> None:
    """Serve whoever started this process, over its standard input and output, until the input ends."""

    async def whole() -> None:
        async with stdio_server() as (read, write):
            await tools.server.run(read, write, tools.server.create_initialization_options())

    try:
        anyio.run(whole)
    except BaseExceptionGroup as group:  # of the task that wrote or read; what went wrong stands in it
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


def over_http(tools: Tools, *, started: Callable[[str], None]) -> None:
    """Serve ``/mcp`` over streamable HTTP, on this machine alone, until a signal."""
    from .app import listen

    config = tools.desk.config
    app = tools.server.streamable_http_app(host=config.host, max_request_body_size=config.max_body)
    served = uvicorn.Config(app, host=config.host, port=config.port, log_config=None, access_log=False,
                            server_header=False)  # fmt: skip
    listen(served, tools.desk, started=lambda url: started(f"{url}/mcp"))
