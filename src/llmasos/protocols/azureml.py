"""Azure Machine Learning's online endpoints: ``/`` tells that the server lives and is ready, ``/score`` answers rows.

https://learn.microsoft.com/azure/machine-learning/how-to-deploy-custom-container
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse

from ..core import environment
from ..core.errors import UsageError, shown
from ..serving.rows import answered, plain, read_json, unwrapped
from .base import Contract, Failure, Protocol

if TYPE_CHECKING:
    from ..serving.desk import Desk


def _port() -> int:
    return 5001  # of Azure's own inference server; another one stands in a deployment's inference_config


class AzureML(Protocol):
    """The routes that a deployment names in its ``inference_config``."""

    name = "azureml"
    prefixes: ClassVar[tuple[str, ...]] = ("/score",)
    probes: ClassVar[tuple[str, ...]] = ("/",)
    contract = Contract(("/", "/score"), _port, environment.azureml_model)

    def routes(self, desk: Desk) -> APIRouter:
        """Return the routes."""
        router = APIRouter(tags=["Azure Machine Learning"])

        @router.get("/", summary="Tell whether the model can be asked", operation_id="azure_ready")
        async def ready() -> JSONResponse:
            # one that drains still lives: it is not asked any more, and must not be killed for it
            return JSONResponse({"status": desk.state}, 200 if desk.state in ("ready", "draining") else 503)

        body = {"requestBody": {"content": {"application/json": {
            "schema": {}, "example": {"input_data": ["I love this!"]},
        }}}}  # fmt: skip

        @router.post("/score", summary="Answer rows", operation_id="score", openapi_extra=body)
        async def score(request: Request) -> JSONResponse:
            kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise HTTPException(415, f"Content-Type {kind!r} is not read; known: application/json")
            content = read_json(await request.body())
            if isinstance(content, Mapping) and isinstance(content.get("input_data"), Mapping):
                content = {**content, "input_data": _rows(content["input_data"])}
            inputs, form, given = unwrapped(content, {"input_data": "", "data": ""})
            served = await desk.model()
            answers = [plain(one) for one in await answered(desk, request, served, inputs, given)]
            return JSONResponse(answers[0] if form == "one" else answers)

        return router

    def failure(self, failure: Failure) -> dict[str, Any]:
        """Return an error as Azure's services say it."""
        error = {"code": failure.code, "message": failure.message}
        return {"error": error | ({"target": failure.param} if failure.param else {})}


def _rows(table: Mapping[str, Any]) -> list[Any]:
    """Return the rows of a table as pandas and MLflow write it: columns, and lines of cells."""
    columns, lines = table.get("columns"), table.get("data")
    unknown = next((name for name in table if name not in ("columns", "data", "index")), None)
    if unknown is not None or not isinstance(columns, list) or not isinstance(lines, list):
        raise UsageError("input_data is no table" if unknown is None else f"input_data has a field {unknown!r}",
                         hint='{"columns": ["text"], "data": [["..."]]}, or a list of inputs')  # fmt: skip
    for number, line in enumerate(lines, 1):
        if not isinstance(line, list) or len(line) != len(columns):
            raise UsageError(f"input {number} is {shown(line)}", hint=f"a list of {len(columns)} cells")
    return [dict(zip(map(str, columns), line, strict=True)) for line in lines]


PLUGIN = AzureML()
