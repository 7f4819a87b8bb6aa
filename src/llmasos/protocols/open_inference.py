"""The Open Inference Protocol, version 2, as KServe, Triton and others speak it: tensors in, tensors out.

https://github.com/kserve/open-inference-protocol. Each field of a model's rows is a tensor of texts (BYTES), or all of
them one of JSON objects, ``rows``. An answer is such a JSON object too, ``prediction``, and whatever of it is always of
one type has a tensor of its own: labels (BYTES), scores (FP32), numbers for each class beside the ``.names`` of the
classes, vectors (FP32). Models here have no versions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from ..core.errors import UsageError, did_you_mean
from ..serving.rows import answered, columns_of, fields_of, plain, read_json
from ._bodies import Body, Fields, Many
from .base import Failure, Protocol

if TYPE_CHECKING:
    from ..serving.desk import Desk
    from ..serving.served import Served

ROWS = "rows"
_TYPES = {"text": "BYTES", "integer": "INT64", "number": "FP32", "numbers": "FP32", "vector": "FP32"}


class Given(Fields):
    """A tensor of a request."""

    name: str = Field(examples=["text"])
    shape: Many[int] = Field(examples=[[2]])
    datatype: str = Field(examples=["BYTES"])
    data: list[Any] = Field(examples=[["I love this!", "Never again."]])
    parameters: dict[str, Any] = Field(default_factory=dict)


class Wanted(Fields):
    """A tensor that the answer shall have."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class Inference(Body):
    """A request."""

    id: str | None = Field(None, description="comes back with the answer")
    parameters: dict[str, Any] = Field(default_factory=dict, description="truncate, and options of writing")
    inputs: Many[Given] = Field(min_length=1)
    outputs: Many[Wanted] | None = Field(None, description="which tensors to return; all if not given")


class OpenInference(Protocol):
    """``/v2``."""

    name = "open-inference"
    prefixes: ClassVar[tuple[str, ...]] = ("/v2",)
    probes: ClassVar[tuple[str, ...]] = ("/v2/health/live", "/v2/health/ready")

    def routes(self, desk: Desk) -> APIRouter:
        """Return the routes."""
        router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
        kinds: WeakKeyDictionary[Served, list[dict[str, Any]]] = WeakKeyDictionary()

        @router.get("", summary="Tell what the server is", operation_id="oip_server")
        async def server(request: Request) -> dict[str, Any]:
            return {"name": "llmasos", "version": request.app.version, "extensions": []}

        @router.get("/health/live", summary="Tell whether the server lives", operation_id="oip_live")
        async def live() -> JSONResponse:
            return JSONResponse({"live": desk.state != "stalled"}, 503 if desk.state == "stalled" else 200)

        @router.get("/health/ready", summary="Tell whether all models can be asked", operation_id="oip_ready")
        async def ready() -> JSONResponse:
            return JSONResponse({"ready": desk.state == "ready"}, 200 if desk.state == "ready" else 503)

        @router.get("/models/{name}", summary="Tell what a model takes and gives", operation_id="oip_model")
        async def model(name: str, request: Request) -> dict[str, Any]:
            served = await desk.model(name)
            if served not in kinds:
                kinds[served] = await _outputs(desk, served, request)
            inputs = [{"name": field.name, "datatype": "BYTES", "shape": [-1]} for field in fields_of(served)]
            inputs.append({"name": ROWS, "datatype": "BYTES", "shape": [-1]})
            return {"name": name, "platform": "llmasos", "inputs": inputs, "outputs": kinds[served]}

        @router.get("/models/{name}/ready", summary="Tell whether a model is open", operation_id="oip_model_ready")
        async def model_ready(name: str) -> JSONResponse:
            is_open = desk.shelf(name).served is not None
            return JSONResponse({"name": name, "ready": is_open}, 200 if is_open else 503)

        @router.post("/models/{name}/infer", summary="Answer rows", operation_id="oip_infer")
        async def infer(name: str, asking: Inference, request: Request) -> dict[str, Any]:
            served = await desk.model(name)
            rows = _rows(served, asking.inputs)
            found = _tensors(await answered(desk, request, served, rows, asking.parameters)) if rows else []
            out = {"model_name": name, "outputs": _picked(found, asking.outputs)}
            return out if asking.id is None else out | {"id": asking.id}

        @router.api_route("/models/{name}/versions/{version}{rest:path}", methods=["GET", "POST"],
                          include_in_schema=False)  # fmt: skip
        async def versions(name: str, version: str, rest: str) -> None:
            desk.shelf(name)
            raise UsageError(f"{name} has no versions, and so no {version!r}", hint=f"ask /v2/models/{name}{rest}")

        return router

    def failure(self, failure: Failure) -> dict[str, Any]:
        """Return an error as the protocol has it."""
        return {"error": failure.message}


# -- tensors of a request -----------------------------------------------------------------------------


def _rows(served: Served, tensors: Sequence[Given]) -> list[Any]:
    """Return the rows that tensors hold.

    Raises:
        UsageError: they are of another type, of unequal length, or none of the model's.
    """
    fields = {field.name: field for field in fields_of(served)}
    columns: dict[str, list[Any]] = {}
    for tensor in tensors:
        if tensor.name not in (*fields, ROWS):
            known = ", ".join((*fields, ROWS))
            raise UsageError(f"there is no input {tensor.name!r}",
                             hint=f"{did_you_mean(tensor.name, (*fields, ROWS))}known: {known}")  # fmt: skip
        if tensor.name in columns:
            raise UsageError(f"input {tensor.name} is there twice", hint="send one tensor with all texts")
        columns[tensor.name] = _texts(tensor)
    if len({len(column) for column in columns.values()}) > 1:
        told = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
        raise UsageError(f"the inputs are of unequal length: {told}", hint="send one text of each for every row")
    if ROWS in columns:
        if len(columns) > 1:
            raise UsageError(f"{ROWS} holds whole rows", hint="leave the other inputs out")
        return [read_json(text, f"{ROWS}, {number}: ") for number, text in enumerate(columns[ROWS], 1)]
    read = {
        name: [read_json(text, f"{name}, {number}: ") for number, text in enumerate(column, 1)]
        if fields[name].kind == "json" else column
        for name, column in columns.items()
    }  # fmt: skip
    return [dict(zip(read, values, strict=True)) for values in zip(*read.values(), strict=True)]


def _texts(tensor: Given) -> list[str]:
    if tensor.datatype != "BYTES":
        raise UsageError(f"input {tensor.name} is of datatype {tensor.datatype!r}", hint="BYTES, as texts")
    for name, value in tensor.parameters.items():
        if (name, value) != ("content_type", "str"):
            raise UsageError(f"input {tensor.name} has the parameter {name}={value!r}",
                             hint="leave it out: texts are sent as JSON strings")  # fmt: skip
    data: list[Any] = tensor.data
    if len(tensor.shape) == 2 and data and all(isinstance(line, list) for line in data):
        data = [text for line in data for text in line]
    wrong = next((text for text in data if not isinstance(text, str)), None)
    if wrong is not None:
        raise UsageError(f"input {tensor.name} holds a {type(wrong).__name__}", hint="BYTES are sent as JSON strings")
    if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ([], [1]) or prod(tensor.shape) != len(data):
        raise UsageError(f"input {tensor.name} has the shape {tensor.shape} and {len(data)} texts",
                         hint=f"shape [{len(data)}] or [{len(data)}, 1]")  # fmt: skip
    return data


# -- tensors of an answer -----------------------------------------------------------------------------


def _tensors(answers: Sequence[Any]) -> list[dict[str, Any]]:
    """Return answers as tensors."""
    out = []
    for name, column in columns_of(answers).items():
        shape, data = [len(answers)], column.values
        if isinstance(data[0], list):
            shape, data = [len(answers), len(data[0])], [value for line in data for value in line]
        out.append({"name": name, "datatype": _TYPES[column.kind], "shape": shape, "data": data})
        if column.names:
            out.append(_bytes(f"{name}.names", list(column.names)))
    if hasattr(answers[0], "as_dict"):
        out.append(_bytes("prediction", [json.dumps(plain(one), ensure_ascii=False) for one in answers]))
    return out


def _bytes(name: str, data: list[str]) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": [len(data)], "data": data}


def _picked(tensors: list[dict[str, Any]], wanted: Sequence[Wanted] | None) -> list[dict[str, Any]]:
    """Return those that are asked for."""
    known: Mapping[str, dict[str, Any]] = {tensor["name"]: tensor for tensor in tensors}
    for one in wanted or () if tensors else ():
        if one.name not in known:
            raise UsageError(f"there is no output {one.name!r}",
                             hint=f"{did_you_mean(one.name, known)}known: {', '.join(known)}")  # fmt: skip
        if one.parameters:
            raise UsageError(f"output {one.name} has the parameter {next(iter(one.parameters))!r}",
                             hint="leave it out: answers are sent as JSON")  # fmt: skip
    return tensors if wanted is None else [known[one.name] for one in wanted if one.name in known]


async def _outputs(desk: Desk, served: Served, request: Request) -> list[dict[str, Any]]:
    """Return what a model gives, by an answer of it to a row of its task's own sample."""
    task, fields = served.parts.task, [field.name for field in fields_of(served)]
    rows = [] if task is None else [{name: value for name, value in task.golden()[0].items() if name in fields}]
    if task is None or served.parts.embeds:
        rows.append({fields[-1]: "Hello."})
    options: dict[str, Any] = {"truncate": True} | ({"max_new_tokens": 1} if served.parts.generator else {})
    found = [one for row in rows for one in _tensors(await answered(desk, request, served, [row], options))]
    return [
        {"name": one["name"], "datatype": one["datatype"],
         "shape": one["shape"] if one["name"].endswith(".names") else [-1, *one["shape"][1:]]}
        for one in found
    ]  # fmt: skip


PLUGIN = OpenInference()
