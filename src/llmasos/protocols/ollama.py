"""Ollama's routes, for the many programs that speak it: ``/api/chat``, ``/api/generate``, ``/api/embed`` and lists.

https://github.com/ollama/ollama/blob/main/docs/api.md. Streams are lines of JSON. Options that would change an answer
are used or refused by name; those that say how Ollama shall load a model are not used, for the server settles that.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import Field

from ..core.config import GenerateConfig
from ..core.errors import LLMasOSError, UsageError, did_you_mean
from ..generation.pieces import Done, Piece
from ..serving.desk import begun
from ._bodies import Body, Fields, Many
from .base import Failure, Protocol

if TYPE_CHECKING:
    from ..serving.desk import Desk, Shelf
    from ..serving.served import Served

USED = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p", "seed": "seed",
        "repeat_penalty": "repetition_penalty"}  # fmt: skip
"""Ollama's options of writing, by the names that they have here; ``num_predict`` and ``stop`` are read besides."""
SETTLED = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "numa", "low_vram", "f16_kv",
           "logits_all", "vocab_only", "use_mmap", "use_mlock", "embedding_only")  # fmt: skip
"""How Ollama shall load a model: not used, and without influence on an answer that fits."""
NEUTRAL = {"presence_penalty": (0,), "frequency_penalty": (0,), "mirostat": (0,), "tfs_z": (1,), "typical_p": (1,),
           "repeat_last_n": (-1,), "penalize_newline": (True,)}  # fmt: skip
"""What there is not here, with the values that ask for nothing."""
DRAWS = ("top_p", "top_k", "min_p", "seed")
USUAL_TEMPERATURE = 0.8
"""Ollama's own, where a request speaks of how to draw and not how freely."""


class _Asking(Body):
    model: str = Field(min_length=1, examples=["starter-chat"])
    stream: bool = Field(True, description="lines of JSON as the text comes; one object if false")
    format: str | dict[str, Any] | None = Field(None, description='"json", or a JSON schema that the answer obeys')
    options: dict[str, Any] = Field(default_factory=dict, examples=[{"temperature": 0, "num_predict": 32}])
    keep_alive: float | str | None = Field(None, description="not used: the server's memory decides")
    think: bool | str | None = Field(None, description="there is no separate thinking; false is fine")
    logprobs: bool | None = None
    top_logprobs: int | None = None


class Message(Fields):
    """A turn of a conversation."""

    role: str
    content: str | None = ""
    images: list[Any] | None = None
    tool_calls: list[Any] | None = None
    tool_name: str | None = None
    thinking: str | None = None


class OllamaChat(_Asking):
    """A conversation to be answered."""

    messages: Many[Message] = Field(default_factory=list, examples=[[{"role": "user", "content": "Hello!"}]])
    tools: list[Any] | None = None


class OllamaGenerate(_Asking):
    """A prompt to be answered, or with ``raw`` to be written on from."""

    prompt: str | None = ""
    system: str | None = None
    raw: bool | None = Field(None, description="take the prompt as it is, without the model's chat template")
    suffix: str | None = None
    template: str | None = None
    context: Many[int] | None = None
    images: list[Any] | None = None


class Embed(Body):
    """Texts to become vectors."""

    model: str = Field(min_length=1)
    input: str | Many[str] = Field(examples=[["a small house", "a tiny home"]])
    truncate: bool | None = Field(None, description="cut texts that are too long, as Ollama does; false refuses them")
    dimensions: int | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    keep_alive: float | str | None = None


class EmbedOne(Body):
    """A text to become a vector, in Ollama's older way."""

    model: str = Field(min_length=1)
    prompt: str
    options: dict[str, Any] = Field(default_factory=dict)
    keep_alive: float | str | None = None


class Show(Body):
    """Which model to tell of."""

    model: str = Field("", examples=["starter-chat"])
    name: str = ""
    verbose: bool | None = None


@dataclass
class Clock:
    """When things happened, for the durations of an answer."""

    start: int = field(default_factory=time.perf_counter_ns)
    opened: int = 0
    first: int = 0

    def told(self, done: Done) -> dict[str, Any]:
        """Return what Ollama tells with the last piece; the time to read the prompt holds that in the queue."""
        end, answer = time.perf_counter_ns(), done.generation
        first = self.first or end
        return {
            "done_reason": "length" if answer.finish_reason == "length" else "stop",
            "total_duration": end - self.start,
            "load_duration": self.opened - self.start,
            "prompt_eval_count": answer.prompt_tokens,
            "prompt_eval_duration": first - self.opened,
            "eval_count": len(answer.tokens),
            "eval_duration": end - first,
        }


class Ollama(Protocol):
    """``/api``."""

    name = "ollama"
    prefixes: ClassVar[tuple[str, ...]] = ("/api/",)

    def routes(self, desk: Desk) -> APIRouter:
        """Return the routes."""
        router = APIRouter(prefix="/api", tags=["Ollama"])

        @router.post("/chat", summary="Answer a conversation", operation_id="ollama_chat")
        async def chat(asking: OllamaChat, request: Request) -> Any:
            clock = Clock()
            served = await _opened(desk, asking.model, clock)
            _refuse(asking, {"tools": asking.tools})
            messages = [_message(one, number) for number, one in enumerate(asking.messages, 1)]

            def said(text: str) -> dict[str, Any]:
                return {"message": {"role": "assistant", "content": text}}

            return await _answer(desk, request, served, asking, clock, messages, said)

        @router.post("/generate", summary="Answer a prompt", operation_id="ollama_generate")
        async def generate(asking: OllamaGenerate, request: Request) -> Any:
            clock = Clock()
            served = await _opened(desk, asking.model, clock)
            _refuse(asking, {name: getattr(asking, name) for name in ("suffix", "template", "context", "images")})
            prompt: Any = asking.prompt or ""
            if prompt and not asking.raw and served.parts.tokenizer.chat_template:
                system = [{"role": "system", "content": asking.system}] if asking.system else []
                prompt = [*system, {"role": "user", "content": prompt}]
            elif asking.system:
                raise UsageError("system does nothing to a raw prompt", hint="write it into the prompt")
            return await _answer(desk, request, served, asking, clock, prompt, lambda text: {"response": text})

        @router.post("/embed", summary="Turn texts into vectors", operation_id="ollama_embed")
        async def embed(asking: Embed, request: Request) -> dict[str, Any]:
            clock = Clock()
            if asking.dimensions is not None:
                raise UsageError("dimensions is not there: vectors come whole", hint="leave it out")
            texts = [asking.input] if isinstance(asking.input, str) else asking.input
            served = await _opened(desk, asking.model, clock)
            vectors, tokens = await _vectors(desk, request, served, texts, asking.options,
                                             cut=asking.truncate is not False)  # fmt: skip
            return {"model": asking.model, "embeddings": vectors, "prompt_eval_count": tokens,
                    "total_duration": time.perf_counter_ns() - clock.start,
                    "load_duration": clock.opened - clock.start}  # fmt: skip

        @router.post("/embeddings", summary="Turn a text into a vector", operation_id="ollama_embeddings")
        async def embeddings(asking: EmbedOne, request: Request) -> dict[str, Any]:
            served = await _opened(desk, asking.model, Clock())
            vectors, _ = await _vectors(desk, request, served, [asking.prompt], asking.options, cut=True)
            return {"embedding": vectors[0]}

        @router.get("/tags", summary="List the models", operation_id="ollama_tags")
        async def tags() -> dict[str, Any]:
            return {"models": [_listed(desk, shelf) for shelf in desk.shelves.values()]}

        @router.get("/ps", summary="List the models that are open", operation_id="ollama_ps")
        async def ps() -> dict[str, Any]:
            found = [shelf for shelf in desk.shelves.values() if shelf.served is not None]
            return {"models": [_listed(desk, shelf) | {"size_vram": 0, "context_length": shelf.served.parts.max_length}
                               for shelf in found if shelf.served]}  # fmt: skip

        @router.post("/show", summary="Tell of a model", operation_id="ollama_show")
        async def show(asking: Show) -> dict[str, Any]:
            if not (asking.model or asking.name):
                raise UsageError("no model is named", hint='{"model": "..."}')
            served = await _opened(desk, asking.model or asking.name, Clock())
            parts = served.parts
            able = [name for name, can in (("completion", served.writes), ("embedding", parts.embeds)) if can]
            return {
                "modified_at": _when(served.created), "details": _details(served), "capabilities": able,
                "model_info": {"general.architecture": _family(served), "general.task": parts.about.get("task"),
                               f"{_family(served)}.context_length": parts.max_length},
                "template": parts.tokenizer.chat_template or "",
            }  # fmt: skip

        @router.get("/version", summary="Tell the server's version", operation_id="ollama_version")
        async def version(request: Request) -> dict[str, Any]:
            return {"version": request.app.version}

        return router

    def failure(self, failure: Failure) -> dict[str, Any]:
        """Return an error as Ollama has it."""
        return {"error": failure.message}


# -- requests -----------------------------------------------------------------------------------------


async def _opened(desk: Desk, name: str, clock: Clock) -> Served:
    """Return a model; ``:latest`` behind its name says nothing, as in Ollama."""
    plain = name.removesuffix(":latest")
    served = await desk.model(plain if name not in desk.shelves and plain in desk.shelves else name)
    clock.opened = time.perf_counter_ns()
    return served


def _refuse(asking: _Asking, more: Mapping[str, Any]) -> None:
    """Refuse what is asked for by name and is not there."""
    missing = {"think": asking.think, "logprobs": asking.logprobs, "top_logprobs": asking.top_logprobs, **more}
    wrong = next((name for name, value in missing.items() if value), None)
    if wrong:
        raise UsageError(f"{wrong} is not there on Ollama's routes", hint="leave it out; /docs lists the others")


def _message(message: Message, number: int) -> dict[str, Any]:
    for name in ("images", "tool_calls", "tool_name", "thinking"):
        if getattr(message, name):
            raise UsageError(f"message {number} has {name}, which is not there on Ollama's routes", hint="leave it out")
    return {"role": message.role, "content": message.content or ""}


def _config(desk: Desk, options: Mapping[str, Any]) -> tuple[GenerateConfig, list[str]]:
    """Return how to write, and what ends an answer.

    Raises:
        UsageError: an option that there is not here, or not such a value.
    """
    found: dict[str, Any] = {}
    known = (*USED, "num_predict", "stop", *SETTLED, *NEUTRAL)
    for name, value in options.items():
        if name in NEUTRAL and value is not None and value not in NEUTRAL[name]:
            raise UsageError(f"the option {name}={value!r} is not there", hint="leave it out")
        if name not in known:
            used = ", ".join((*USED, "num_predict", "stop"))
            raise UsageError(f"there is no option {name!r}", hint=f"{did_you_mean(name, known)}known: {used}")
        if name in USED and value is not None:
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise UsageError(f"the option {name}={value!r} is not a number", hint="write it without quotes")
            if name == "seed" and value < 0:  # any will do
                continue
            found[USED[name]] = GenerateConfig.checked(USED[name], max(value, 0) if name == "top_k" else value)
    if "temperature" not in found and any(name in found for name in DRAWS):
        found["temperature"] = USUAL_TEMPERATURE
    if found.get("temperature", 0.0) == 0.0:  # where nothing is drawn, they say nothing
        found = {name: value for name, value in found.items() if name not in DRAWS}
    elif "seed" not in found:
        found["seed"] = secrets.randbelow(1 << 31)
    most, stop = options.get("num_predict"), options.get("stop") or []
    if most is not None and (not isinstance(most, int) or isinstance(most, bool)):
        raise UsageError(f"the option num_predict={most!r} is not a whole number", hint="128, or -1 for no bound")
    if most is not None and most > desk.config.max_new_tokens:
        raise UsageError(f"num_predict={most}, and a request may have {desk.config.max_new_tokens}",
                         hint=f"num_predict={desk.config.max_new_tokens}")  # fmt: skip
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or not all(isinstance(one, str) for one in stop):
        raise UsageError(f"the option stop={stop!r} is no list of texts", hint='such as ["\\n"]')
    return GenerateConfig(**found, max_new_tokens=most if most is not None and most >= 0 else None), stop


def _schema(wanted: str | dict[str, Any] | None) -> Any:
    if isinstance(wanted, str) and wanted not in ("", "json"):
        raise UsageError(f"format={wanted!r}", hint='"json", or a JSON schema')
    return {"type": "object"} if wanted == "json" else wanted or None


async def _answer(
    desk: Desk, request: Request, served: Served, asking: _Asking, clock: Clock, content: Any, said: Any
) -> Any:
    """Answer a prompt or a conversation: lines of JSON, or one object."""
    head = {"model": asking.model, "created_at": _when()}
    config, stop = _config(desk, asking.options)
    if not content:  # Ollama opens a model so
        return JSONResponse(head | said("") | {"done": True, "done_reason": "load"})
    prompt = await served.prompt(content)
    room = max(1, min(desk.config.max_new_tokens, served.parts.max_length - len(prompt)))
    config = replace(config, max_new_tokens=min(config.max_new_tokens or room, room))
    pieces = served.write([prompt], config, desk.asked(request), stop=stop, json_schema=_schema(asking.format),
                          streams=True)  # fmt: skip
    if asking.stream:
        return StreamingResponse(_lines(await desk.while_there(request, begun(pieces)), head, said, clock),
                                 media_type="application/x-ndjson")  # fmt: skip
    done = await desk.while_there(request, _last(pieces, clock))
    return JSONResponse(head | said(done.generation.text) | {"done": True} | clock.told(done))


async def _last(pieces: AsyncIterator[Piece | Done], clock: Clock) -> Done:
    async for item in pieces:
        clock.first = clock.first or time.perf_counter_ns()
        if isinstance(item, Done):
            return item
    raise AssertionError("an answer has an end")


async def _lines(
    pieces: AsyncIterator[Piece | Done], head: dict[str, Any], said: Any, clock: Clock
) -> AsyncIterator[bytes]:
    try:
        async for item in pieces:
            clock.first = clock.first or time.perf_counter_ns()
            if isinstance(item, Done):
                yield _line(head | {"created_at": _when()} | said("") | {"done": True} | clock.told(item))
            else:
                yield _line(head | {"created_at": _when()} | said(item.text) | {"done": False})
    except LLMasOSError as error:
        yield _line({"error": error.message})


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"


async def _vectors(
    desk: Desk, request: Request, served: Served, texts: list[str], options: Mapping[str, Any], *, cut: bool
) -> tuple[list[list[float]], int]:
    unknown = next((name for name in options if name not in SETTLED), None)
    if unknown is not None:
        raise UsageError(f"the option {unknown} does nothing to a vector", hint="leave it out")
    if not texts:
        return [], 0
    vectors, tokens = await desk.while_there(request, served.embed(texts, desk.asked(request, truncate=cut)))
    return vectors.tolist(), tokens


# -- what is told of models ---------------------------------------------------------------------------


def _when(seconds: float | None = None) -> str:
    return datetime.fromtimestamp(time.time() if seconds is None else seconds, UTC).isoformat().replace("+00:00", "Z")


def _listed(desk: Desk, shelf: Shelf) -> dict[str, Any]:
    return {"name": shelf.name, "model": shelf.name, "modified_at": _when(desk.started), "size": shelf.bytes,
            "digest": "", "details": _details(shelf.served)}  # fmt: skip


def _family(served: Served | None) -> str:
    if served is None:
        return ""
    generator = served.parts.generator
    return str(generator.model.config.model_type) if generator else "encoder"


def _details(served: Served | None) -> dict[str, Any]:
    family = _family(served)
    return {"parent_model": "", "format": "safetensors", "family": family, "families": [family] if family else [],
            "parameter_size": "", "quantization_level": ""}  # fmt: skip


PLUGIN = Ollama()
