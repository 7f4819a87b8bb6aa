"""``/docs``: the routes of a server, as a page that loads nothing from elsewhere: code from there could ask too."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

SAFE = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
"""Headers of the page: it runs nothing, loads nothing, and is shown in no other."""

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
pre { overflow-x: auto; padding: .6rem .8rem; border-radius: .4rem; background: #8882; }
summary { cursor: pointer; } code, pre { font: .875rem/1.5 ui-monospace, monospace; }
table { border-collapse: collapse; } td { padding: .2rem 1rem .2rem 0; vertical-align: top; }
""".replace("\n", "")  # fmt: skip


def routes_page(document: Mapping[str, Any], address: str) -> str:
    """Return the page of an OpenAPI document, for a server at an address."""
    groups: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            shown = "".join(_operation(document, address, method.upper(), path, operation))
            groups.setdefault(operation.get("tags", ["other"])[0], []).append(shown)
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    parts = "".join(f"<h2>{escape(name)}</h2>{''.join(shown)}" for name, shown in groups.items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>"
        f'<p>The same for programs: <a href="openapi.json">openapi.json</a>.</p>{parts}'
    )


def _operation(
    document: Mapping[str, Any], address: str, method: str, path: str, operation: Mapping[str, Any]
) -> Iterator[str]:
    yield f"<details><summary><code>{method} {escape(path)}</code> {escape(operation.get('summary', ''))}</summary>"
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    line = f"curl {address}{path}"
    if content is not None:
        schema = _found(document, content.get("schema", {}))
        fields = schema.get("properties", {})
        examples = {name: one["examples"][0] for name, one in fields.items() if "examples" in one}
        example = content.get("example", examples)
        line += f" -H 'content-type: application/json' -d {shlex.quote(json.dumps(example, ensure_ascii=False))}"
    yield f"<pre>{escape(line)}</pre>"
    if content is not None and fields:
        needed = schema.get("required", ())
        rows = (
            f"<tr><td><code>{escape(name)}</code><td>{escape(_kind(one))}{' *' if name in needed else ''}"
            f"<td>{escape(one.get('description', ''))}"
            for name, one in fields.items()
        )
        yield f"<table>{''.join(rows)}</table>"
    yield "</details>"


def _found(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema, or the one that it refers to."""
    name = schema.get("$ref", "").rpartition("/")[2]
    found: Mapping[str, Any] = document["components"]["schemas"][name] if name else schema
    return found


def _kind(schema: Mapping[str, Any]) -> str:
    """Word what a field may be."""
    if ways := schema.get("anyOf"):
        return " or ".join(dict.fromkeys(_kind(way) for way in ways if way.get("type") != "null"))
    if "const" in schema or "enum" in schema:
        return ", ".join(map(json.dumps, schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("$ref", schema.get("type", "anything"))).rpartition("/")[2]
