"""Answers for any amount of text: read in blocks, run by length, given back in the order they came.

A block is large enough to find rows of equal length for its batches and small enough to keep memory
constant, whatever the size of the source.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Any

from .core.config import WriteConfig
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
    length: int = 0
    """What they were cut to."""

    def __str__(self) -> str:
        """Say it in words."""
        texts = "1 text was" if self.rows == 1 else f"{self.rows} texts were"
        return (
            f"{texts} cut to {self.length} tokens ({self.tokens} tokens were not seen), the first is row {self.first}; "
            "allow_truncated=0 refuses them"
        )


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
    generator: Generator,
    task: Task,
    rows: Iterable[Row],
    config: WriteConfig,
    options: Mapping[str, Any],
    *,
    cut: Cut | None = None,
) -> Iterator[Any]:
    """Yield the answer that the model writes to each row, in order.

    Args:
        generator: the model.
        task: makes prompts of rows, and predictions of what was written.
        rows: read as they are needed.
        config: how to write.
        options: for ``Generator.answers``.
        cut: filled as the rows go by.

    Raises:
        DataError: a row makes no prompt, or more sources than allowed are longer than ``max_length``.
        UsageError: a prompt does not fit.
    """
    rows, done, cut = iter(rows), 0, cut if cut is not None else Cut()
    longest = _longest(generator, config) if task.cuts_prompts else None
    while block := list(islice(rows, 8 * config.batch_size)):
        _check({i: p for i, row in enumerate(block) if (p := task.problem(row, labelled=False))}, done)
        prompts = [_prompt(task, row, generator.tokenizer, done + i + 1) for i, row in enumerate(block)]
        if longest is not None and any(len(prompt) > longest for prompt in prompts):
            whole = [len(prompt) for prompt in prompts]
            prompts = [
                prompt if len(prompt) <= longest else task.prompt(row, generator.tokenizer, longest)
                for row, prompt in zip(block, prompts, strict=True)
            ]
            shorter = [length - len(prompt) for length, prompt in zip(whole, prompts, strict=True)]
            _note(cut, shorter, done, longest, config.allow_truncated)
        answers = generator.answers(prompts, config, **options)
        yield from (task.answer(row, answer) for row, answer in zip(block, answers, strict=True))
        done += len(block)


def _longest(generator: Generator, config: WriteConfig) -> int | None:
    """Return the longest prompt in tokens; None leaves it to the generator to refuse what does not fit."""
    if config.max_length is None and config.allow_truncated == 0.0:
        return None
    most = generator.limit
    if not generator.encodes:  # prompt and answer are one sequence
        most -= min(256, most // 2) if config.max_new_tokens is None else config.max_new_tokens
    return min(most, config.max_length or most)


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
    cut.rows, cut.tokens, cut.length = cut.rows + len(long), cut.tokens + sum(truncated), max_length
    cut.first = done + long[0] + 1 if cut.first is None else cut.first
