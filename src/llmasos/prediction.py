"""Answers for any amount of text: read in blocks, run by length, given back in the order they came.

A block is large enough to find rows of equal length for its batches and small enough to keep memory
constant, whatever the size of the source.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice, repeat
from typing import Any

import numpy as np

from .core.errors import DataError
from .data.batching import Batch
from .engines.base import Engine
from .tasks.base import Encoding, Row, Task

BLOCK = 4096
"""Rows that are sorted by length together."""


def predict(
    engine: Engine,
    task: Task,
    tokenizer: Any,
    rows: Iterable[Row],
    *,
    max_length: int,
    batch_size: int,
    allow_truncated: float = 1.0,
) -> Iterator[Any]:
    """Yield one prediction per row, in order.

    Raises:
        DataError: a row has no text, or more texts than allowed are longer than ``max_length``.
    """
    rows = iter(rows)
    done = 0
    # a short first block, so that a stream's first answers come soon
    for size in chain([max(batch_size, 64)], repeat(BLOCK)):
        block = list(islice(rows, size))
        if not block:
            return
        _check(task, block, done)
        encoding = task.encode(block, tokenizer, max_length)
        cut = sum(1 for tokens in encoding.truncated if tokens)
        if cut > allow_truncated * len(block):
            at = next(i for i, tokens in enumerate(encoding.truncated) if tokens)
            raise DataError(
                f"{cut} of {len(block)} texts are longer than {max_length} tokens, the first is row {done + at + 1}",
                hint="a larger max_length (the model's limit permitting), or a larger allow_truncated",
            )
        yield from task.decode(_logits(engine, encoding, batch_size))
        done += len(block)


def _check(task: Task, block: list[Row], done: int) -> None:
    problems = [(i, task.problem(row, labelled=False)) for i, row in enumerate(block)]
    wrong = [f"row {done + i + 1}, field {p.field}: found {p.found}, expected {p.expected}" for i, p in problems if p]
    if wrong:
        raise DataError("there are rows without a usable text", problems=wrong, hint="fill or remove these rows")


def _logits(engine: Engine, encoding: Encoding, batch_size: int) -> np.ndarray[Any, Any]:
    """Run rows in batches of near-equal length. Returns (rows, outputs) in the rows' own order."""
    lengths = np.asarray([len(row) for row in encoding.ids], dtype=np.int32)
    order = np.argsort(-lengths, kind="stable")
    out: np.ndarray[Any, Any] | None = None
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        logits = engine.logits(
            Batch(
                np.concatenate([encoding.ids[i] for i in rows]),
                None if encoding.types is None else np.concatenate([encoding.types[i] for i in rows]),
                lengths[rows],
                rows,
            )
        )
        if out is None:
            out = np.empty((len(order), *logits.shape[1:]), dtype=np.float32)
        out[rows] = logits
    assert out is not None
    return out
