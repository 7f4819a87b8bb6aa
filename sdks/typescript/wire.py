"""Write src/client/wire.ts: the types of what a server is asked, from its own OpenAPI document.

    python sdks/typescript/wire.py

What stands under ``/v1`` is the client's; the other routes are those of other projects' protocols.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PLACE = Path(__file__).parent / "src" / "client" / "wire.ts"
HEAD = "/** What a server is asked: made from its OpenAPI document by wire.py, and not to be changed by hand. */\n"
NAMES = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}


def document() -> dict[str, Any]:
    """Return the OpenAPI document of a server without models."""
    from llmasos.core.config import ServeConfig
    from llmasos.serving.app import application
    from llmasos.serving.desk import Desk
    from llmasos.serving.guard import Guard

    return application(Desk({}, ServeConfig.of({})), Guard(), version="0").openapi()


def operations(openapi: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield method, path and operation of each route under ``/v1``."""
    for path, methods in openapi["paths"].items():
        if path.startswith("/v1/"):
            for method, operation in methods.items():
                yield method.upper(), path, operation


def typescript(openapi: dict[str, Any]) -> str:
    """Return the types of all bodies under ``/v1``, and of what they are made of."""
    bodies = {
        path: operation["requestBody"]["content"]["application/json"]["schema"]
        for _, path, operation in operations(openapi)
        if "requestBody" in operation
    }
    schemas, wanted, written = openapi["components"]["schemas"], list(bodies.values()), dict[str, str]()
    while wanted:
        for name in sorted(_named(wanted.pop())):
            if name not in written:
                written[name] = _interface(name, schemas[name])
                wanted.append(schemas[name])
    lines = "".join(f"  {json.dumps(path)}: {_type(schema)};\n" for path, schema in bodies.items())
    routes = f"/** Bodies by the route that takes them. */\nexport interface Bodies {{\n{lines}}}\n"
    return "\n".join([HEAD, *(written[name] for name in sorted(written, key=_short)), routes])


def _short(name: str) -> str:
    return name.rpartition("__")[2]


def _named(schema: Any) -> set[str]:
    """Return the names of all schemas that one refers to."""
    if isinstance(schema, list):
        return set().union(*map(_named, schema))
    if not isinstance(schema, dict):
        return set()
    own = {schema["$ref"].rpartition("/")[2]} if "$ref" in schema else set()
    return own.union(*map(_named, schema.values()))


def _interface(name: str, schema: dict[str, Any]) -> str:
    lines = [*_told(schema, ""), f"export interface {_short(name)} {{"]
    for key, one in schema["properties"].items():
        mark = "" if key in schema.get("required", ()) else "?"
        lines += [*_told(one, "  "), f"  {key}{mark}: {_type(one)};"]
    return "\n".join([*lines, "}\n"])


def _told(schema: dict[str, Any], margin: str) -> list[str]:
    text = schema.get("description", "").replace("``", "`").replace("\n\n", "\n").replace("\n", f"\n{margin} * ")
    return [f"{margin}/** {text} */"] if text else []


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return _short(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(map(_type, schema["anyOf"])))
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " | ".join(map(json.dumps, schema["enum"]))
    kind = schema.get("type")
    if kind == "array":
        if "prefixItems" in schema:
            return f"readonly [{', '.join(map(_type, schema['prefixItems']))}]"
        inner = _type(schema["items"])
        return f"readonly ({inner})[]" if " " in inner else f"readonly {inner}[]"
    if kind == "object":
        more = schema.get("additionalProperties")
        return f"Record<string, {_type(more)}>" if isinstance(more, dict) else "object"
    return NAMES.get(str(kind), "unknown")


if __name__ == "__main__":
    PLACE.write_text(typescript(document()), encoding="utf-8")
