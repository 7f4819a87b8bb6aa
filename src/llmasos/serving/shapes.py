"""What an answer is made to look like: JSON schemas out of requests, bounded, and put together into one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.errors import UsageError
from .limits import check_schema


def checked(schema: Any) -> dict[str, Any]:
    """Return a schema that is small enough to be enforced, its objects closed.

    Raises:
        UsageError: it is no object, too long or too deep.
    """
    if not isinstance(schema, Mapping):
        raise UsageError("a JSON schema is an object", hint='for example {"type": "object"}')
    check_schema(schema)
    return dict(schema) if "allOf" in json.dumps(schema) else _closed(schema)


def _closed(schema: Any) -> Any:
    """Let an object have no properties but those that are named, where nothing is said: a model might never end.

    What obeys that obeys the schema. Parts of ``allOf`` describe one object together, so none of them is its whole.
    """
    if not isinstance(schema, Mapping):
        return schema
    out = dict(schema)
    for name in {"properties", "patternProperties", "$defs", "definitions"} & out.keys():
        if isinstance(out[name], Mapping):
            out[name] = {key: _closed(one) for key, one in out[name].items()}
    for name in {"items", "additionalProperties"} & out.keys():
        out[name] = _closed(out[name])
    for name in {"anyOf", "oneOf", "prefixItems"} & out.keys():
        if isinstance(out[name], list):
            out[name] = [_closed(one) for one in out[name]]
    together = {"additionalProperties", "patternProperties", "anyOf", "oneOf", "$ref", "if"} & out.keys()
    return out if "properties" not in out or together else {**out, "additionalProperties": False}


def one_of(schemas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the schema of what obeys any of some schemas, whose references stay their own."""
    if len(schemas) == 1:
        return dict(schemas[0])
    parts = {f"part{number}": inside(schema, f"#/$defs/part{number}") for number, schema in enumerate(schemas)}
    return {"$defs": parts, "anyOf": [{"$ref": f"#/$defs/{name}"} for name in parts]}


def inside(schema: Any, place: str) -> Any:
    """Return a schema as a part of another, at a place there: its references begin at its own root."""
    if isinstance(schema, Mapping):
        return {name: place + value[1:] if name == "$ref" and isinstance(value, str) and value.startswith("#")
                else inside(value, place) for name, value in schema.items()}  # fmt: skip
    return [inside(one, place) for one in schema] if isinstance(schema, list) else schema
