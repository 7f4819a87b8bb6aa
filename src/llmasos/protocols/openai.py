"""OpenAI's routes, for clients that were made for OpenAI: models, chat, completions, responses and embeddings.

What is asked for is done or refused, never ignored: a field that is unknown, or a value that cannot be had, is a 400
whose ``param`` names it. Fields that tell OpenAI who asks (``user``, ``metadata``, ``safety_identifier``,
``prompt_cache_key``) are taken and not used.

- **Choice of tokens.** What a request does not say is taken from the model's ``generation_config.json``; what that does
  not say either is OpenAI's: temperature 1, all tokens. vLLM does the same (llama.cpp's server has 0.8 for 1). Draws
  come from ``seed``, or from chance; the same seed gives the same answer, whatever is asked beside it.
- **Length.** A chat answer ends by itself, or when the context or the server's ``max_new_tokens`` is full; a completion
  has 16 tokens if nothing is said.
- **Tools** are shown by the model's chat template; where it shows none they are refused. ``tool_choice`` ``required``
  or a named function is enforced while the model writes, and gives one call. With ``auto`` the model writes as it was
  trained to: ``<tool_call>`` (Hermes, Qwen) or JSON alone (Llama 3) is read as a call, all else is text. ``none`` hides
  the tools. ``strict`` adds nothing: arguments are enforced where a call is demanded.
- **Shapes.** ``response_format`` json_object and json_schema are enforced; beside tools, a call is possible instead.
- **Responses** keep nothing: ``store=true`` and ``previous_response_id`` are refused, and no ``store`` means false.
- **Streams** are server-sent events. An error behind the first byte is an event ``error``.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from ..serving.app import failure_of, said
from ..serving.desk import UnknownModelError
from ._openai_chat import chat, chat_chunks, completion, completion_chunks
from ._openai_responses import response, response_events
from ._openai_schema import Chat, Completion, Embedding, Respond
from ._openai_writing import streaming
from .base import Failure, Protocol, Refused

if TYPE_CHECKING:
    from ..serving.desk import Desk, Shelf


class OpenAI(Protocol):
    """``/v1/models``, ``/v1/chat/completions``, ``/v1/completions``, ``/v1/responses``, ``/v1/embeddings``."""

    name = "openai"
    prefixes: ClassVar[tuple[str, ...]] = (
        "/v1/models", "/v1/chat", "/v1/completions", "/v1/responses", "/v1/embeddings",
    )  # fmt: skip

    def routes(self, desk: Desk) -> APIRouter:
        """Return the routes."""
        router = APIRouter(tags=["openai"])

        @router.get("/v1/models", summary="List the models", operation_id="models")
        async def models() -> dict[str, Any]:
            return {"object": "list", "data": [_model(desk, shelf) for shelf in desk.shelves.values()]}

        @router.get("/v1/models/{name:path}", summary="Show a model", operation_id="model")
        async def model(name: str) -> dict[str, Any]:
            if name not in desk.shelves:
                raise UnknownModelError(f"there is no model {name!r}", hint=f"known: {', '.join(desk.shelves)}")
            return _model(desk, desk.shelves[name])

        @router.post("/v1/chat/completions", summary="Answer a conversation", operation_id="chat", response_model=None)
        async def chat_completions(asking: Chat, request: Request) -> Any:
            served = await desk.model(asking.model)
            if asking.stream:
                return streaming(await chat_chunks(desk, served, asking, request), self._failed)
            return JSONResponse(await chat(desk, served, asking, request))

        @router.post("/v1/completions", summary="Write on from texts", operation_id="complete", response_model=None)
        async def completions(asking: Completion, request: Request) -> Any:
            served = await desk.model(asking.model)
            if asking.stream:
                return streaming(await completion_chunks(desk, served, asking, request), self._failed)
            return JSONResponse(await completion(desk, served, asking, request))

        @router.post("/v1/responses", summary="Answer a conversation, by the newer route", operation_id="respond",
                     response_model=None)  # fmt: skip
        async def responses(asking: Respond, request: Request) -> Any:
            served = await desk.model(asking.model)
            if asking.stream:
                return streaming(*await response_events(desk, served, asking, request))
            return JSONResponse(await response(desk, served, asking, request))

        @router.post("/v1/embeddings", summary="Make vectors of texts", operation_id="embed", response_model=None)
        async def embeddings(asking: Embedding, request: Request) -> Any:
            return JSONResponse(await _embeddings(desk, asking, request))

        return router

    def _failed(self, failure: Failure) -> bytes:
        """Return the event that ends a stream with an error."""
        return said(self.failure(failure), "error")


_REASONS = ("checked_why", "engine", "engine_why")


def _model(desk: Desk, shelf: Shelf) -> dict[str, Any]:
    """Return what is known of a model; what it can do, once it is open."""
    about: dict[str, Any] = {"id": shelf.name, "object": "model", "created": int(desk.started), "owned_by": "llmasos"}
    if shelf.base is not None:
        about["parent"] = shelf.base.name
    if shelf.refused is not None:
        about["refused"] = failure_of(shelf.refused).code
    if shelf.served is not None:
        parts = shelf.served.parts
        about |= {"max_model_len": parts.max_length, "task": parts.task.tag if parts.task else None,
                  "writes": shelf.served.writes, "embeds": parts.embeds is not None,
                  "checked": bool(parts.about.get("checked")),
                  **{name: parts.about[name] for name in _REASONS if name in parts.about}}  # fmt: skip
    return about


async def _embeddings(desk: Desk, asking: Embedding, request: Request) -> dict[str, Any]:
    if len(asking.input) > desk.config.max_inputs:
        raise Refused(f"{len(asking.input)} texts, and a request may have {desk.config.max_inputs}", "input",
                      code="invalid_value", hint="ask in parts")  # fmt: skip
    served = await desk.model(asking.model)
    vectors, tokens = await desk.while_there(request, served.embed(asking.input, desk.asked(request)))
    if asking.dimensions not in (None, vectors.shape[1]):
        raise Refused(f"this model's vectors have {vectors.shape[1]} dimensions", "dimensions", code="invalid_value",
                      hint="leave it out")  # fmt: skip
    made: list[Any] = vectors.tolist()
    if asking.encoding_format == "base64":
        made = [base64.b64encode(one.astype(np.dtype("<f4")).tobytes()).decode() for one in vectors]
    data = [{"object": "embedding", "index": number, "embedding": one} for number, one in enumerate(made)]
    return {"object": "list", "data": data, "model": served.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}  # fmt: skip


PLUGIN = OpenAI()
