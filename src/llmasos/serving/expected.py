"""Golden rows as requests, with what must be answered: how a client tells that a server answers as the model did.

The answers are made of the golden outputs by the task's own ``decode``, never by what is served. The same outputs, each
moved by as much as the precision may move it, show which parts of an answer are certain (the others are left out), and
how far its numbers may go.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import golden
from ..certificate import TOLERANCES
from ..core import bundle
from ..core.errors import UsageError
from ..data.encoding import flattened
from ..golden import Golden
from ..tasks.base import Generation, Row, Task
from .rows import plain

if TYPE_CHECKING:
    from .served import Served

MOVED = 24
"""How often outputs are moved, at random; what that does to numbers is doubled, since the worst may not be among it."""


class NoGoldenError(UsageError):
    """A model has no golden rows by which a client could tell."""


class Origin(NamedTuple):
    """What a model was opened from.

    Args:
        folder: with its files.
        task: what it was tuned for.
        precision: what it is computed in.
        engine: what computes it.
    """

    folder: Path
    task: Task | None
    precision: str
    engine: str = ""

    @property
    def version(self) -> str:
        """What changes with the model's files, the engine and the precision."""
        files = (bundle.read_manifest(self.folder) or {}).get("files", {})
        said = [files, bundle.digest(self.folder / golden.FILE), self.engine, self.precision]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


class Case(NamedTuple):
    """A golden row: the body of a request, all that it needs but the model, and the part of its answer that is certain.

    ``writes``: whether a model goes on with tokens; else it answers a row of the task.
    """

    body: Mapping[str, Any]
    expected: Any
    writes: bool = False


class Cases(NamedTuple):
    """All golden rows of a model, and how far a number may be from what is expected."""

    origin: Origin
    task: Task
    cases: Sequence[Case]
    tolerance: float


def cases_of(served: Served, most: int) -> Cases:
    """Return what a model must answer.

    Args:
        served: the model.
        most: tokens that a request may ask for.

    Raises:
        NoGoldenError: there is nothing that it must.
    """
    origin = served.parts.origin
    kept = golden.read(origin.folder) if origin else None
    if origin is None or origin.task is None or kept is None:
        why = served.parts.about.get("checked_why", "it was saved without golden rows")
        raise NoGoldenError(f"{served.name} has no golden rows: {why}", hint="save it with LLMasOS")
    limit = TOLERANCES[origin.precision].outputs * kept.largest
    if kept.answers is None:
        cases, tolerance = answered(origin.task, kept, served.parts.tokenizer, served.parts.max_length, limit)
    else:
        cases, tolerance = list(_written(origin.task, served, kept, most, limit)), 0.0
    if not cases:
        raise NoGoldenError(f"{served.name} has no golden row that can be asked and whose answer is certain in "
                            f"{origin.precision}", hint="--precision float32 is certain of more")  # fmt: skip
    return Cases(origin, origin.task, cases, tolerance)


def answered(
    task: Task, kept: Golden, tokenizer: Any, max_length: int, limit: float
) -> tuple[list[Case], float]:  # fmt: skip
    """Return the rows of which a server reads the same tokens, and the tolerance for all.

    Args:
        task, kept, tokenizer: the model's.
        max_length: the longest text in tokens.
        limit: how far an output may be.
    """
    draw, cases, furthest = np.random.default_rng(0), [], 0.0
    places = golden.examples_of(kept, task, tokenizer)
    for row, examples in zip(kept.rows, places, strict=True):
        asked = _asked(task, row)
        encoding = task.encode([asked], tokenizer, max_length, labelled=False)
        if not examples or golden.tokens_of(flattened(encoding, task.group)) != [kept.ids[at] for at in examples]:
            continue  # it was cut to fewer tokens, or is no question without its answer
        outputs = [kept.outputs[at] for at in examples]

        def answer(outputs: list[NDArray[Any]], encoding: Any = encoding, asked: Row = asked) -> Any:
            whole = outputs if task.output in ("token", "vocabulary") else np.concatenate(outputs)
            (found,) = task.decode(whole, encoding, [asked])
            return plain(found)

        certain, gaps = answer(outputs), [0.0]
        for _ in range(MOVED):
            moved = [one + limit * draw.choice([-1.0, 1.0], one.shape).astype(np.float32) for one in outputs]
            certain = _certain(certain, answer(moved), gaps)
        if certain is not _GONE and certain != {}:
            truncate = {"truncate": True} if any(encoding.truncated) else {}
            cases.append(Case({"inputs": asked, **truncate}, certain))
            furthest = max(furthest, *gaps)
    return cases, 2 * furthest


def _asked(task: Task, row: Row) -> dict[str, Any]:
    return {field.name: row[field.name] for field in task.fields if not field.is_answer and field.name in row}


_GONE: Any = object()


def _certain(one: Any, other: Any, gaps: list[float]) -> Any:
    """Return the part of an answer that is the same in another, but for numbers, whose differences are noted."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        both = {name: _certain(one[name], other[name], gaps) for name in one if name in other}
        return {name: value for name, value in both.items() if value is not _GONE}
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        items = [_certain(*pair, gaps) for pair in zip(one, other, strict=True)]
        return _GONE if any(item is _GONE for item in items) else items
    if isinstance(one, float) and isinstance(other, float):
        gaps.append(abs(one - other))
        return one
    return one if type(one) is type(other) and one == other else _GONE


def _written(task: Task, served: Served, kept: Golden, most: int, limit: float) -> Iterator[Case]:
    """Yield prompts with their answers: to the last token where all must be the same, else as far as they are certain.

    A token is certain whose probability is above a half, and stays so.
    """
    from ..generation.generator import processors_of

    generator = served.parts.generator
    assert generator is not None
    if processors_of(generator.model, generator.ends, golden.WRITTEN, None):
        raise NoGoldenError(f"the golden answers of {served.name} are without what its generation_config.json asks for",
                            hint="compare by hand")  # fmt: skip
    assert served.parts.origin is not None
    longest = min(most, golden.WRITTEN)
    exact = served.parts.origin.precision == "float32" or hasattr(generator, "batcher")
    for row, (prompt,), answer, scores in zip(
        kept.rows, kept.ids, kept.answers or (), kept.outputs, strict=True
    ):  # fmt: skip
        certain = answer[:longest]
        if not exact:
            unsure = np.flatnonzero(scores[: len(certain), 0] + limit >= log(2))
            certain = certain[: int(unsure[0])] if len(unsure) else certain
        if not certain:
            continue
        ends = exact and len(certain) == len(answer) < longest  # it must not go on, then
        count = longest if ends else len(certain)
        text = served.parts.tokenizer.decode(certain, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if served.writes:
            choice = {"temperature": 0, "repetition_penalty": 1, "max_tokens": count}
            yield Case({"prompt": list(prompt), **choice}, {"choices": [{"text": text}]}, writes=True)
        elif task.prompt(_asked(task, row), served.parts.tokenizer) == list(prompt):  # one that was cut is not asked
            found = plain(task.answer(row, Generation(text, list(certain), "", len(prompt))))
            yield Case({"inputs": _asked(task, row), "max_new_tokens": count}, {"text": found["text"]})
