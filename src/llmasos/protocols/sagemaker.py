"""Amazon SageMaker: ``/ping`` and ``/invocations``, for any model, in JSON, JSON Lines or CSV.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from fastapi import APIRouter, HTTPException, Request, Response

from ..core import environment
from ..core.errors import UsageError
from ..serving.rows import answered, columns_of, fields_of, plain, read_json, unwrapped
from .base import Contract, Failure, Protocol

if TYPE_CHECKING:
    from ..serving.desk import Desk
    from ..serving.served import Served

JSON, LINES, CSV, TEXT = "application/json", "application/jsonlines", "text/csv", "text/plain"
_NAMES = {JSON: JSON, LINES: LINES, "application/jsonl": LINES, "application/x-ndjson": LINES, CSV: CSV, TEXT: TEXT}
"""What each media type is read as."""
_ANSWERS = (JSON, LINES, CSV)


class SageMaker(Protocol):
    """The two routes of a container."""

    name = "sagemaker"
    prefixes: ClassVar[tuple[str, ...]] = ("/ping", "/invocations")
    probes: ClassVar[tuple[str, ...]] = ("/ping",)
    contract = Contract(("/ping", "/invocations"), environment.sagemaker_port, environment.sagemaker_model)

    def routes(self, desk: Desk) -> APIRouter:
        """Return the routes."""
        router = APIRouter(tags=["SageMaker"])

        @router.get("/ping", summary="Tell whether the model can be asked", operation_id="ping")
        async def ping() -> Response:
            return Response(status_code=200 if desk.state == "ready" else 503)

        body = {"requestBody": {"content": {
            JSON: {"schema": {}, "example": {"inputs": ["I love this!"]}},
            **{kind: {"schema": {"type": "string"}} for kind in (LINES, CSV, TEXT)},
        }}}  # fmt: skip

        @router.post("/invocations", summary="Answer rows", operation_id="invocations", openapi_extra=body)
        async def invocations(request: Request) -> Response:
            kind, settings = _content_type(request.headers.get("content-type", JSON))
            wanted, header = _accepted(request.headers.get("accept", "*/*"), kind)
            served = await desk.model(request.headers.get("x-amzn-sagemaker-target-model"))
            inputs, form, given = _read(served, await request.body(), kind, settings)
            answers = await answered(desk, request, served, inputs, given)
            return Response(_written(answers, wanted, form, header=header), media_type=wanted)

        return router

    def failure(self, failure: Failure) -> dict[str, Any]:
        """Return an error as SageMaker's own containers say it."""
        return {"code": failure.status, "type": failure.code, "message": failure.message}


# -- media types --------------------------------------------------------------------------------------


def _parts(text: str) -> tuple[str, dict[str, str]]:
    kind, *settings = (part.strip().lower() for part in text.split(";"))
    return kind, {name.strip(): value.strip() for name, _, value in (one.partition("=") for one in settings)}


def _content_type(text: str) -> tuple[str, dict[str, str]]:
    """Return the media type of a request and its settings."""
    kind, settings = _parts(text)
    if kind not in _NAMES:
        raise HTTPException(415, f"Content-Type {kind!r} is not read; known: {', '.join(_NAMES)}")
    if settings.get("charset", "utf-8") not in ("utf-8", "utf8", "us-ascii"):
        raise HTTPException(415, f"charset {settings['charset']!r} is not read; write UTF-8")
    return _NAMES[kind], settings


def _accepted(text: str, given: str) -> tuple[str, bool]:
    """Return the media type of the answer, and whether a table has a header; what was given, where all is the same."""
    usual = JSON if given == TEXT else given
    found: list[tuple[float, str, bool]] = []
    for one in text.split(","):
        kind, settings = _parts(one)
        try:
            weight = float(settings.get("q", "1"))
        except ValueError:
            weight = 0.0
        main, _, rest = kind.partition("/")
        fitting = [usual, *_ANSWERS] if kind == "*/*" else [k for k in (usual, *_ANSWERS) if k.startswith(f"{main}/")]
        name = fitting[0] if rest == "*" and fitting else _NAMES.get(kind, "")
        if weight > 0 and name in _ANSWERS:
            found.append((weight, name, settings.get("header") == "present"))
    if not found:
        raise HTTPException(406, f"Accept {text[:80]!r} is not written; known: {', '.join(_ANSWERS)}")
    return max(found, key=lambda one: one[0])[1:]


# -- bodies -------------------------------------------------------------------------------------------


def _read(served: Served, body: bytes, kind: str, settings: dict[str, str]) -> tuple[list[Any], str, dict[str, Any]]:
    """Return inputs, the form of the answer, and options; see ``unwrapped``."""
    if kind == JSON:
        return unwrapped(read_json(body), {"instances": "predictions"})
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError("the request is not UTF-8", hint="write it in UTF-8") from error
    if kind == TEXT:
        return [text], "one", {}
    if kind == LINES:
        lines = enumerate(text.split("\n"), 1)
        return [read_json(line, f"line {number}: ") for number, line in lines if line.strip()], "many", {}
    return _table(served, text, header=settings.get("header") == "present"), "many", {}


def _table(served: Served, text: str, *, header: bool) -> list[dict[str, Any]]:
    """Read CSV: the fields of a row in their order, or under the names of its first line."""
    fields = {field.name: field for field in fields_of(served)}
    try:
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), strict=True) if line]
    except csv.Error as error:
        raise UsageError(f"the request is not CSV: {error}", hint="quote cells with commas or line ends") from error
    names = lines.pop(0) if header and lines else list(fields)
    rows = []
    for number, line in enumerate(lines, 1):
        if len(line) > len(names):
            raise UsageError(f"input {number} has {len(line)} cells", hint=f"in this order: {', '.join(names)}")
        row: dict[str, Any] = dict(zip(names, line, strict=False))
        for name in row:
            if name in fields and fields[name].kind == "json" and row[name]:
                row[name] = read_json(row[name], f"input {number}, {name}: ")
        optional = {name for name, field in fields.items() if not field.required}
        rows.append({name: value for name, value in row.items() if value != "" or name not in optional})
    return rows


def _written(answers: Sequence[Any], kind: str, form: str, *, header: bool) -> bytes:
    said = [plain(one) for one in answers]
    if kind == CSV:
        return _as_table(answers, header=header).encode()
    if kind == LINES:
        return b"".join(_json(one) + b"\n" for one in said)
    return _json(said[0] if form == "one" else said if form == "many" else {form: said})


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False).encode()


def _as_table(answers: Sequence[Any], *, header: bool) -> str:
    """Write a line for each answer: its texts and numbers, in their order."""
    names: list[str] = []
    cells: list[list[Any]] = [[] for _ in answers]
    for name, column in (columns_of(answers) if answers else {}).items():
        is_list = isinstance(column.values[0], list)
        names += ([f"{name}.{n}" for n in column.names or range(len(column.values[0]))]) if is_list else [name]
        for line, value in zip(cells, column.values, strict=True):
            line += value if is_list else [value]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([names, *cells] if header else cells)
    return out.getvalue()


PLUGIN = SageMaker()
