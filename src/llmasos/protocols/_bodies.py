"""What requests have in common that come as JSON: they are looked through before anything is made of them.

Pydantic lists all that is wrong, and a body has room for a million mistakes, whose list would take the memory and the
time of everybody. So there is one mistake of each list (``Many``) and one unknown field of each object (``Fields``).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any, TypeVar, get_type_hints

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, FailFast, ValidationError, model_validator

from ..core.errors import UsageError
from ..serving.limits import check_texts
from ..serving.rows import read_json
from .base import Refused

T = TypeVar("T")


class First(FailFast):
    """Pydantic's own, which cannot stand in a union: it has no hash."""

    def __hash__(self) -> int:
        return hash(type(self))


Many = Annotated[list[T], First()]
"""A list of which the first wrong item is told, and no other is looked at."""


class Fields(BaseModel):
    """An object whose fields are known; of others the first is told."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _one_unknown(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = next((name for name in value if name not in known), None)
        return {name: one for name, one in value.items() if name in known or name == unknown}


class Body(Fields):
    """A whole request: its texts are texts, and it is nested no deeper than anything needs."""

    @model_validator(mode="before")
    @classmethod
    def _is_sound(cls, value: Any) -> Any:
        check_texts(value)
        return value


class Direct(APIRoute):
    """A route whose endpoint takes one body and the request, and returns JSON types.

    FastAPI's own handler allows for all that an endpoint may want besides, and converts what it returns; beside answers
    of a few milliseconds that counts.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        endpoint = self.endpoint
        kinds = [kind for kind in get_type_hints(endpoint).values() if isinstance(kind, type)]
        body = next(kind for kind in kinds if issubclass(kind, Body))

        async def answer(request: Request) -> Response:
            try:
                asking = body.model_validate(await _read(request))
            except ValidationError as error:
                raise RequestValidationError(
                    [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
                ) from error
            return JSONResponse(await endpoint(asking, request))

        return answer


async def _read(request: Request) -> Any:
    """Return the JSON of a request; what is not told to be JSON is bytes, which no body can be."""
    content = await request.body()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        return content
    try:
        return read_json(content)
    except UsageError as error:
        raise Refused(error.message, None, code="invalid_json", hint=error.hint) from error
