"""JSON schemas of pydantic models as a language model is shown them, and pydantic's complaints in a line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def plain(schema: Any) -> Any:
    """Return a schema without the titles that pydantic makes of names: they cost tokens and say nothing."""
    if isinstance(schema, list):
        return [plain(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: plain(value) for key, value in schema.items() if not (key == "title" and isinstance(value, str))}


def worded(problems: Iterable[Any]) -> str:
    """Word the first five of ``ValidationError.errors()``."""
    said = []
    for problem in list(problems)[:5]:
        place = ".".join(map(str, problem["loc"]))
        said.append(f"{place}: {problem['msg']}" if place else str(problem["msg"]))
    return "; ".join(said)
