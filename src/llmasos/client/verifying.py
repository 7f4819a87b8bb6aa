"""Whether a server answers as its model did when it was saved: its golden rows, asked over the routes that users ask.

Numbers may differ by what the server says that its precision may change; all else that it expects must be the same.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

from ..core.errors import ParityError, RemoteError
from .answers import Verified
from .calls import Call, golden

Steps = Generator[Call[Any], Any, Verified]
"""Calls to be performed, each told its answer, and what follows from all."""


class Gap(NamedTuple):
    """A difference: how far, where in the answer, and what there is and should be."""

    size: float
    where: str
    found: Any
    expected: Any


def verifying(
    url: str, model: str | None, timeout: float | None, known: MutableMapping[tuple[str, str], Verified]
) -> Steps:
    """Ask golden rows.

    Args:
        url: of the server.
        model: its name there.
        timeout: seconds for each row.
        known: what was found of models by their versions; they are not asked again.

    Raises:
        ParityError: it answers otherwise.
    """
    told = yield golden(model, timeout=timeout)
    try:
        key, tolerance = (str(told["model"]), str(told["version"])), float(told["tolerance"])
        rows = [(str(row["path"]), row["body"], row["expected"]) for row in told["rows"]]
    except (LookupError, TypeError, ValueError) as error:
        raise RemoteError(f"{url} tells of its golden rows what makes no sense: {error!r}",
                          hint="is it llmasos serve?") from error  # fmt: skip
    if key in known:
        return known[key]
    worst: list[tuple[Gap, int]] = []
    for number, (path, body, expected) in enumerate(rows, 1):
        found = yield Call("POST", path, lambda answered: json.loads(answered.content), body, timeout=timeout)
        worst.append((max(gaps(found, expected), default=Gap(0.0, "", None, None), key=lambda gap: gap.size), number))
    wrong = [one for one in worst if not one[0].size <= tolerance]
    if wrong:
        gap, number = max(wrong, key=lambda one: one[0].size)
        raise ParityError(
            f"{key[0]} at {url} does not answer as when it was saved, in {len(wrong)} of {len(rows)} golden rows; the "
            f"worst is row {number}: {gap.where} is {gap.found!r}, not {gap.expected!r} (numbers may differ by "
            f"{tolerance:.2g})",
            hint="ask who runs the server: another model may answer under this name",
        )
    largest = max((gap.size for gap, _ in worst), default=0.0)
    known[key] = Verified(*key, task=str(told.get("task")), rows=len(rows), largest=largest, tolerance=tolerance)
    return known[key]


def gaps(found: Any, expected: Any, where: str = "") -> Iterator[Gap]:
    """Yield the differences of an answer from what is expected of it; what is not a number differs infinitely."""
    if isinstance(expected, Mapping):
        for name, value in expected.items():
            there = isinstance(found, Mapping) and name in found
            yield from gaps(found[name] if there else None, value, f"{where}.{name}" if where else name)
    elif isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        for number, (one, wanted) in enumerate(zip(found, expected, strict=True)):
            yield from gaps(one, wanted, f"{where}[{number}]")
    elif _is_number(expected) and _is_number(found):
        size = abs(found - expected)
        yield Gap(size if size == size else float("inf"), where, found, expected)
    elif type(found) is not type(expected) or found != expected:
        yield Gap(float("inf"), where, found, expected)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
