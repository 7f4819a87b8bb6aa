"""The task routes: one text or many, and answers as ``model.predict`` gives them.

``inputs`` is a text, a row with the task's fields, or a list of either; a single input gives a single answer.
``/v1/golden`` gives requests with the answers that a model must give, by which clients compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from pydantic import Field

from ..core.errors import UsageError
from ..serving.rows import options_of, plain, row_of
from ._bodies import Body, Direct, Many
from .base import Protocol

if TYPE_CHECKING:
    from ..serving.desk import Desk
    from ..serving.expected import Case

Row = str | dict[str, Any]
KINDS: Mapping[str, tuple[tuple[str, ...], str, Any]] = {
    "classify": (("text-classification",), "Put texts into classes", "I love this!"),
    "tag": (("token-classification",), "Find names and other entities in texts", "Ada Lovelace lived in London."),
    "answer": (("question-answering",), "Find answers in contexts",
               {"question": "Who wrote it?", "context": "It was written by Ada."}),
    "translate": (("translation",), "Translate texts", "Where is the station?"),
    "summarize": (("summarization",), "Summarise texts", "The council met on Monday to speak about the bridge."),
    "predict": ((), "Answer rows, whatever the model's task", "I love this!"),
}  # fmt: skip
"""Routes: the tasks that they are for, what they do, and an example of an input."""


class Asking(Body):
    """Inputs for a model with a task."""

    inputs: Row | Many[Row] = Field(description="a text, a row with the task's fields, or a list of either")
    model: str | None = Field(None, description="the model's name; the server's first if not given")
    truncate: bool = Field(False, description="cut inputs that are longer than the model takes, instead of refusing")
    max_new_tokens: int | None = Field(None, description="the longest answer, in tokens, of a model that writes it")


class Similar(Body):
    """Pairs of texts."""

    pairs: Many[tuple[str, str]] = Field(min_length=1, examples=[[["a small house", "a tiny home"]]])
    model: str | None = None
    truncate: bool = False


class Ranking(Body):
    """Texts to be put into order by how close they are to a query."""

    query: str = Field(examples=["where is my parcel"])
    documents: Many[str] = Field(min_length=1, examples=[["It left on Monday.", "We are closed on Sunday."]])
    top_n: int | None = Field(None, ge=1, description="how many to return; all if not given")
    return_documents: bool = Field(False, description="return the texts too")
    model: str | None = None
    truncate: bool = False


class TaskRoutes(Protocol):
    """``/v1/classify``, ``/v1/tag``, ``/v1/answer``, ``/v1/translate``, ``/v1/summarize``, and what compares texts."""

    name = "task-routes"
    prefixes: ClassVar[tuple[str, ...]] = tuple(f"/v1/{kind}" for kind in (*KINDS, "similarity", "rerank", "golden"))

    def routes(self, desk: Desk) -> APIRouter:
        """Return the routes."""
        router = APIRouter(tags=["tasks"], route_class=Direct)
        for kind, (tags, doc, example) in KINDS.items():
            body = {"requestBody": {"content": {"application/json": {"example": {"inputs": example}}}}}
            router.add_api_route(f"/v1/{kind}", _answering(desk, kind, tags), methods=["POST"], summary=doc,
                                 operation_id=kind, openapi_extra=body)  # fmt: skip

        @router.post(
            "/v1/similarity", summary="Tell how close pairs of texts are in meaning", operation_id="similarity"
        )
        async def similarity(asking: Similar, request: Request) -> dict[str, Any]:
            served = await desk.model(asking.model)
            texts = [text for pair in asking.pairs for text in pair]
            asked = desk.asked(request, truncate=asking.truncate)
            vectors, tokens = await desk.while_there(request, served.embed(texts, asked))
            scores = (vectors[::2] * vectors[1::2]).sum(axis=1)
            return {"model": served.name, "scores": [float(one) for one in scores], "usage": {"prompt_tokens": tokens}}

        @router.post("/v1/rerank", summary="Order texts by how close they are to a query", operation_id="rerank")
        async def rerank(asking: Ranking, request: Request) -> dict[str, Any]:
            served = await desk.model(asking.model)
            asked = desk.asked(request, truncate=asking.truncate)
            vectors, tokens = await desk.while_there(request, served.embed([asking.query, *asking.documents], asked))
            scores = vectors[1:] @ vectors[0]
            order = sorted(range(len(scores)), key=lambda i: -scores[i])[: asking.top_n]
            found: list[dict[str, Any]] = [{"index": i, "relevance_score": float(scores[i])} for i in order]
            if asking.return_documents:
                found = [one | {"document": asking.documents[one["index"]]} for one in found]
            return {"model": served.name, "results": found, "usage": {"prompt_tokens": tokens}}

        async def golden(model: str | None = None) -> dict[str, Any]:
            served = await desk.model(model)
            found = await served.cases()
            return {
                "model": served.name,
                "version": found.origin.version,
                "task": found.task.tag,
                "tolerance": found.tolerance,
                "rows": [_golden(served.name, found.task.tag, case) for case in found.cases],
            }

        router.add_api_route(
            "/v1/golden", golden, methods=["GET"], operation_id="golden", route_class_override=APIRoute,
            summary="Give requests with the answers that a model must give",
        )  # fmt: skip

        return router


def _golden(model: str, tag: str, case: Case) -> dict[str, Any]:
    """Return a golden row as a request, and what of its answer must be so."""
    if case.writes:
        return {"path": "/v1/completions", "body": {"model": model, **case.body}, "expected": case.expected}
    kind = next((kind for kind, (tags, *_) in KINDS.items() if tag in tags), "predict")
    return {"path": f"/v1/{kind}", "body": {"model": model, **case.body}, "expected": {"result": case.expected}}


def _answering(desk: Desk, kind: str, tags: tuple[str, ...]) -> Any:
    async def answer(asking: Asking, request: Request) -> dict[str, Any]:
        served = await desk.model(asking.model)
        task = served.parts.task
        if task is None or (tags and task.tag not in tags):
            has = "no task" if task is None else f"the task {task.tag}"
            raise UsageError(f"{served.name} has {has}, and /v1/{kind} asks for {' or '.join(tags) or 'one'}",
                             hint="another route or model")  # fmt: skip
        single = not isinstance(asking.inputs, list)
        inputs: list[Row] = [asking.inputs] if not isinstance(asking.inputs, list) else asking.inputs
        rows = [row_of(served, one, number) for number, one in enumerate(inputs, 1)]
        options = options_of(served, desk, asking.model_dump(include={"max_new_tokens"}, exclude_none=True))
        asked = desk.asked(request, truncate=asking.truncate)
        found = await desk.while_there(request, served.predict(rows, asked, **options)) if rows else []
        answers = [plain(one) for one in found]
        return {
            "model": served.name,
            "task": task.tag,
            "result" if single else "results": answers[0] if single else answers,
        }

    return answer


PLUGIN = TaskRoutes()
