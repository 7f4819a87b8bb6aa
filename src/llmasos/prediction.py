"""Answers for any amount of text: read in blocks, run by length, given back in the order they came.

A block is large enough to find rows of equal length for its batches and small enough to keep memory
constant, whatever the size of the source.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Any

from .core.config import GenerateConfig
from .core.errors import DataError
from .data.encoding import flattened
from .engines.base import Engine
from .evaluation import computed, in_order
from .tasks.base import Problem, Row, Task

if TYPE_CHECKING:
    from .generation.generator import Generator

BLOCK = 4096
"""Rows that are sorted by length together."""


@dataclass
class Cut:
    """What was cut so far: rows longer than the model takes, and tokens that it did not see."""

    rows: int = 0
    tokens: int = 0
    first: int | None = None
    """Number of the first such row, from 1."""


def predict(
    engine: Engine,
    task: Task,
    tokenizer: Any,
    rows: Iterable[Row],
    *,
    max_length: int,
    batch_size: int,
    allow_truncated: float = 1.0,
    cut: Cut | None = None,
) -> Iterator[Any]:
    """Yield one prediction per row, in order.

    Args:
        engine, task, tokenizer: the model.
        rows: read as they are needed.
        max_length: tokens beyond it are cut, and counted in ``cut``.
        batch_size: sequences computed at once; the answers do not depend on it.
        allow_truncated: share of the rows that may be cut, block by block.
        cut: filled as the rows go by.

    Raises:
        DataError: a row has no text, or more texts than allowed are longer than ``max_length``.
    """
    rows, cut = iter(rows), cut if cut is not None else Cut()
    done = 0
    # a short first block, so that a stream's first answers come soon
    for size in chain([max(batch_size, 64)], repeat(BLOCK)):
        block = list(islice(rows, size))
        if not block:
            return
        _check({i: p for i, row in enumerate(block) if (p := task.problem(row, labelled=False))}, done)
        encoding = task.encode(block, tokenizer, max_length, labelled=False)
        _check(encoding.problems or {}, done)
        _note(cut, encoding.truncated, done, max_length, allow_truncated)
        part = flattened(encoding, task.group)
        outputs = in_order(task, part, computed(engine, part, batch_size))
        yield from task.decode(outputs, encoding, block)
        done += len(block)


def written(
    generator: Generator, task: Task, rows: Iterable[Row], config: GenerateConfig, options: Mapping[str, Any]
) -> Iterator[Any]:
    """Yield the answer that the model writes to each row, in order.

    Args:
        generator: the model.
        task: makes prompts of rows, and predictions of what was written.
        rows: read as they are needed.
        config: how to write.
        options: for ``Generator.answers``.

    Raises:
        DataError: a row makes no prompt.
        UsageError: a prompt does not fit; nothing is cut.
    """
    rows, done = iter(rows), 0
    while block := list(islice(rows, 8 * config.batch_size)):
        _check({i: p for i, row in enumerate(block) if (p := task.problem(row, labelled=False))}, done)
        prompts = [_prompt(task, row, generator.tokenizer, done + i + 1) for i, row in enumerate(block)]
        answers = generator.answers(prompts, config, **options)
        yield from (task.answer(row, answer) for row, answer in zip(block, answers, strict=True))
        done += len(block)


def _prompt(task: Task, row: Row, tokenizer: Any, number: int) -> list[int]:
    try:
        return task.prompt(row, tokenizer)
    except DataError as error:
        raise DataError(f"row {number}, {error.message}", hint=error.hint) from error


def _check(problems: Mapping[int, Problem], done: int) -> None:
    wrong = [
        f"row {done + i + 1}, field {p.field}: found {p.found}, expected {p.expected}" for i, p in problems.items()
    ]
    if wrong:
        raise DataError("there are rows without usable content", problems=wrong, hint="fill or remove these rows")


def _note(cut: Cut, truncated: list[int], done: int, max_length: int, allowed: float) -> None:
    """Count what is cut from a block; refuse it if that is more than allowed."""
    long = [i for i, tokens in enumerate(truncated) if tokens]
    if not long:
        return
    if len(long) > allowed * len(truncated):
        raise DataError(
            f"{len(long)} of {len(truncated)} texts are longer than {max_length} tokens, the first is row "
            f"{done + long[0] + 1}",
            hint="a larger max_length (the model's limit permitting), or a larger allow_truncated",
        )
    cut.rows, cut.tokens = cut.rows + len(long), cut.tokens + sum(truncated)
    cut.first = done + long[0] + 1 if cut.first is None else cut.first
