"""Models that answer: rows of many requests computed together, in batches of near-equal length.

A request of many rows is computed in parts, so that a small one beside it need not wait for its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..core.errors import DataError, TooLongError
from ..data.encoding import Encoded, flattened, together
from ..engines.base import Engine
from ..evaluation import computed, in_order
from ..tasks.base import Encoding, Row, Task
from .scheduler import Counts, Work


@dataclass(eq=False)
class Rows:
    """Rows of one request, as tokens.

    Args:
        task, engine: the model that they are for.
        rows, encoding: what the task decodes outputs with.
        part: their examples.
        done: how many examples have been computed.
        outputs: what was computed of them, sequence by sequence.
    """

    task: Task
    engine: Engine
    rows: Sequence[Row]
    encoding: Encoding
    part: Encoded
    done: int = 0
    outputs: list[Any] = field(default_factory=list)

    @property
    def begun(self) -> bool:
        """Whether any of it has been computed."""
        return self.done > 0

    @property
    def left(self) -> int:
        """Tokens that are still to be computed."""
        return self.part.tokens - int(self.part.offsets[self.done * self.part.group])


def encoded(
    task: Task, engine: Engine, tokenizer: Any, rows: Sequence[Row], max_length: int, *, truncate: bool
) -> Rows:  # fmt: skip
    """Return rows as tokens.

    Raises:
        DataError: a row makes no sense.
        TooLongError: one is longer than ``max_length``, and may not be cut.
    """
    problems = {i: p for i, row in enumerate(rows) if (p := task.problem(row, labelled=False))}
    encoding = None if problems else task.encode(list(rows), tokenizer, max_length, labelled=False)
    problems = problems or (encoding.problems if encoding else None) or {}
    if problems or encoding is None:
        wrong = [f"input {i + 1}, {p.field}: found {p.found}, expected {p.expected}" for i, p in problems.items()]
        raise DataError(wrong[0], problems=wrong[1:], hint="correct the input")
    cut = next((i for i, tokens in enumerate(encoding.truncated) if tokens), None)
    if cut is not None and not truncate:
        length = max_length + encoding.truncated[cut]
        raise TooLongError(
            f"input {cut + 1} has {length} tokens, and the model takes at most {max_length}",
            hint="shorten it, or allow it to be cut with truncate=true",
        )
    return Rows(task, engine, rows, encoding, flattened(encoding, task.group))


class Answering:
    """The lane of a model that answers, and of adapters over it: their batches take turns.

    Args:
        batch_size: sequences computed at once.
        most_tokens: tokens computed before new requests are looked at.
    """

    def __init__(self, *, batch_size: int, most_tokens: int) -> None:
        self._batch_size, self._most_tokens = batch_size, most_tokens
        self._works: list[Work] = []

    @property
    def running(self) -> list[Work]:
        """Works that have begun and not ended."""
        return [*self._works]

    def admit(self, take: Callable[[], Work | None], back: Callable[[Work], None]) -> None:
        """Take works until a step is full; the last may go on in the next one."""
        del back
        tokens = sum(work.content.left for work in self._works)
        while tokens < self._most_tokens and (work := take()) is not None:
            self._works.append(work)
            tokens += work.content.left

    def advance(self, counts: Counts) -> list[Work]:
        """Compute a part of each work."""
        first: Rows = self._works[0].content
        engine, task, group = first.engine, first.task, first.part.group
        works = [work for work in self._works if _alike(work.content, first)]
        taken, share = [], max(1, self._most_tokens // len(works))
        for work in works:
            rows: Rows = work.content
            lengths = np.cumsum(rows.part.lengths[rows.done :])
            taken.append((work, rows.done, rows.done + max(1, int(np.searchsorted(lengths, share, side="right")))))
        parts = [work.content.part.part(start, stop) for work, start, stop in taken]
        merged = together(parts)
        found = in_order(task, merged, computed(engine, merged, self._batch_size))
        counts.steps, counts.rows = counts.steps + 1, counts.rows + len(merged)
        counts.tokens_read += merged.tokens
        at, ended = 0, []
        for (work, _, _), part in zip(taken, parts, strict=True):
            rows = work.content
            rows.outputs.extend(found[at : at + len(part) * group])
            at, rows.done = at + len(part) * group, rows.done + len(part)
            if rows.done == len(rows.part):
                work.say(rows)
                ended.append(work)
        others = [work for work in self._works if work not in works]
        self._works = others + [work for work in works if work not in ended]  # whoever waited is next
        return ended

    def drop(self, works: list[Work], counts: Counts) -> None:
        """Give up works that have begun."""
        counts.tokens_saved += sum(work.content.left for work in works)
        self._works = [work for work in self._works if work not in works]

    def reset(self) -> None:
        """Forget everything, after an error."""
        self._works = []


def _alike(one: Rows, other: Rows) -> bool:
    """Say whether rows can be computed in one batch: of one model, pairs or single texts."""
    return one.engine is other.engine and one.part.group == other.part.group


def decoded(rows: Rows) -> list[Any]:
    """Return one prediction a row, of outputs."""
    task = rows.task
    outputs = rows.outputs if task.output in ("token", "vocabulary") else np.asarray(rows.outputs, dtype=np.float32)
    return task.decode(outputs, rows.encoding, rows.rows)
