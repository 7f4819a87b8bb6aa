"""What a request to write may ask for: bounds on everything that costs memory or time before a token is written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import from_json

from ..core.config import GenerateConfig, ServeConfig
from ..core.errors import UsageError

BEAMS = 8
"""Texts that a request may have searched side by side."""

STOPS, STOP_LENGTH = 16, 256
"""Stop strings of a request, and characters of one."""

SCHEMA = 64 << 10
"""Characters of a JSON schema."""

SCHEMA_DEPTH = 32
"""Levels of a JSON schema."""

DEPTH = 100
"""Levels of a request: more than a schema in a tool in a request has, and fewer than any library gives up at."""


def check_count(count: int, config: ServeConfig) -> None:
    """Refuse too many texts in one request.

    Raises:
        UsageError: there are more than may be.
    """
    if count > config.max_inputs:
        raise UsageError(f"{count} inputs, and a request may have {config.max_inputs}", hint="ask in parts")


def check_texts(value: Any) -> None:
    """Refuse texts, wherever they are in lists and mappings, that are not made of characters, and endless nesting.

    Raises:
        UsageError: one holds half of a surrogate pair, which JSON can say and nothing can read; or it is nested deeper
            than a request may be.
    """
    level, depth = [value], 0
    while level:
        below: list[Any] = []
        for one in level:
            if isinstance(one, str):
                if not one.isascii() and _HALF.search(one):
                    raise UsageError("a text holds half of a surrogate pair, which is no character", hint="send UTF-8")
            elif isinstance(one, dict):
                below += [*one, *one.values()]
            elif isinstance(one, list | tuple):
                below += one
        if depth > DEPTH:
            raise UsageError(f"the request is nested deeper than {DEPTH} levels", hint="send it flatter")
        level, depth = below, depth + 1


_HALF = re.compile("[\ud800-\udfff]")


def check_writing(
    prompts: Sequence[Sequence[int]], config: GenerateConfig, more: Mapping[str, Any], bounds: ServeConfig
) -> None:
    """Refuse a request to write that is larger than the server allows.

    Raises:
        UsageError: what is too large, and how large it may be.
    """
    check_count(len(prompts), bounds)
    stop = more.get("stop") or ()
    longest = max(map(len, stop), default=0)
    for name, given, most in (
        ("max_new_tokens", config.max_new_tokens or 0, bounds.max_new_tokens),
        ("num_beams", config.num_beams, BEAMS),
        ("the number of stop strings", len(stop), STOPS),
        ("the length of a stop string", longest, STOP_LENGTH),
    ):
        if given > most:
            raise UsageError(f"{name} is {given}, and this server allows {most}", hint="ask for less")
    if (schema := more.get("json_schema")) is not None:
        check_schema(schema)


def check_schema(schema: Any) -> None:
    """Refuse a JSON schema that is too large, too deep, or that leads elsewhere.

    Raises:
        UsageError: it does.
    """
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema)
        if len(text) > SCHEMA:
            raise UsageError(f"json_schema has {len(text)} characters, and this server allows {SCHEMA}",
                             hint="simplify it")  # fmt: skip
        depth = _depth(parsed(text) if isinstance(schema, str) else schema)
    except RecursionError:
        depth = SCHEMA_DEPTH + 1
    except (TypeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError("json_schema is not JSON", hint='for example {"type": "object"}') from error
    if depth > SCHEMA_DEPTH:
        raise UsageError(f"json_schema is deeper than the {SCHEMA_DEPTH} levels that this server allows",
                         hint="name its parts in $defs")  # fmt: skip


def parsed(text: bytes | str) -> Any:
    """Return JSON, by a parser that counts its levels: Python's own goes as deep as the stack and fails anywhere there.

    Raises:
        RecursionError: it is nested far deeper than a request may be.
        ValueError: it is no JSON.
    """
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        if "recursion limit" in str(error):
            raise RecursionError("it is nested too deeply") from None
        raise


def _depth(value: Any) -> int:
    """Return how deep lists and mappings lie in each other; not more than one level more than may be."""
    level, depth = [value], 0
    while level and depth <= SCHEMA_DEPTH + 1:
        level = [part for one in level if isinstance(one, dict | list)
                 for part in (one.values() if isinstance(one, dict) else one)]  # fmt: skip
        depth += 1
    return depth - 1
