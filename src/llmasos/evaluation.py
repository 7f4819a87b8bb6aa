"""The one evaluation loop: examples through an engine into the task's scorer, nothing kept but counts.

Examples go in blocks of whole rows: inside a block they run by length, and come back in their own order, so
that a task can join what belongs to one row.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from .core.config import EvaluateConfig
from .core.events import Event, Note, Phase, Progress
from .data.batching import Batch, gather, sorted_order
from .data.dataset import Dataset
from .data.encoding import Encoded
from .engines.base import Engine
from .metrics.base import Report, Scorer
from .tasks.base import IGNORED, Row, Task

BLOCK = 4096
"""Examples that are sorted by length together, at least."""


def evaluate(
    engine: Engine,
    task: Task,
    data: Encoded,
    rows: Dataset | None = None,
    *,
    batch_size: int = 64,
    on_rows: Callable[[int], None] | None = None,
    on_outputs: Callable[[Any], None] | None = None,
) -> tuple[float, Scorer]:
    """Score encoded rows.

    Args:
        engine: what runs the model.
        task: says what is scored and how.
        data: the examples.
        rows: the rows that they come from; needed where the task ``scores_rows``.
        batch_size: examples computed at once; the scores do not depend on it.
        on_rows: called with the number of examples done so far.
        on_outputs: called with the outputs of each block of examples, in their own order.

    Returns:
        The mean loss (the task's own, in float32) and the filled scorer.
    """
    scorer = task.scorer()
    total, weight = 0.0, 0.0
    for start, stop in blocks(data):
        part = data.part(start, stop)
        found = []
        for batch, out in computed(engine, part, batch_size):
            loss, one = task.measured(out, batch)
            total, weight = total + loss, weight + one
            found.append((batch, out))
        outputs = in_order(task, part, found)
        texts: Sequence[Row] = ()
        if task.scores_rows:
            assert rows is not None
            texts = rows.rows(np.unique(part.rows))
        task.score(scorer, outputs, part, texts)
        if on_outputs:
            on_outputs(outputs)
        if on_rows:
            on_rows(stop)
    return total / max(weight, 1e-12), scorer


def scored(
    engine: Callable[[], Engine],
    task: Task,
    tokenizer: Any,
    length: int,
    data: Any,
    columns: Mapping[str, str] | None,
    config: EvaluateConfig,
    writing: Mapping[str, Any],
    *,
    untrained: Callable[[], Engine],
    written: Callable[..., Iterable[Any]],
) -> Generator[Event, None, Report]:
    """Score a model on labelled rows, from their source to the report.

    Args:
        engine: opens what runs the model.
        task: what it was tuned for.
        tokenizer: its tokenizer.
        length: the longest example in tokens.
        data, columns, config: as for ``LLM.evaluate``.
        writing: how answers are written, where the task scores them.
        untrained: opens what runs the model as it was before its training.
        written: rows, options, cut -> the answers that the model writes.

    Yields:
        What is being done. The report is the generator's return value.
    """
    from .data.dataset import read
    from .data.encoding import encode
    from .data.ledger import Ledger
    from .data.unknown import unknown_tokens
    from .prediction import Cut

    yield Phase("read")
    rows = read(data, task.fields, columns=columns)
    yield Phase("tokenize", len(rows))
    ledger = Ledger()
    encoded = encode(
        rows, task, tokenizer, length,
        allow_truncated=config.allow_truncated, allow_dropped=config.allow_dropped, ledger=ledger,
    )  # fmt: skip
    account = ledger.summary()
    for name, what in (("truncated", f"cut to {length} tokens"), ("dropped", "left out")):
        if account[name]:
            yield Note(f"{account[name]} of {account['rows']} rows are {what}", "warning")
    if (unknown := unknown_tokens(encoded, rows, task, tokenizer)).is_worth_saying:
        yield Note(str(unknown), "warning")
    if task.needs_reference:
        yield Phase("reference", len(encoded))
        encoded = referenced(untrained(), task, encoded, batch_size=config.batch_size)
    yield Phase("evaluate", len(encoded))
    _, scorer = evaluate(engine(), task, encoded, rows, batch_size=config.batch_size)
    yield Progress(len(encoded))
    if task.scores_answers:
        used = rows.rows(sorted(set(encoded.rows.tolist())))
        yield Phase("write answers", len(used))
        same = ["precision", "speed", "device", "threads"]
        same += ["max_length", "allow_truncated"] if task.cuts_prompts else []
        how = {**{name: getattr(config, name) for name in same}, **writing}
        first, unfinished = int(how.pop("seed", 0)), 0
        for number in range(task.answers_per_row):
            cut = Cut()
            answers = list(written(used, {**how, "seed": first + number}, cut))
            unfinished += sum(getattr(answer, "finish_reason", "") == "length" for answer in answers)
            task.score_answers(scorer, answers, used)
        yield Progress(len(used))
        if cut.rows:
            yield Note(f"to write from, {cut}", "warning")
        if unfinished:
            whole = task.answers_per_row * len(used)
            text = f"{unfinished} of {whole} answers had no room to end; a larger max_new_tokens gives it"
            yield Note(text, "warning")
    return scorer.report()


def referenced(engine: Engine, task: Task, data: Encoded, *, batch_size: int = 64) -> Encoded:
    """Return the examples together with what the engine's model, as it is now, gives for them."""
    parts = []
    for start, stop in blocks(data):
        part = data.part(start, stop)
        parts.append(task.reference(in_order(task, part, computed(engine, part, batch_size)), part))
    return replace(data, reference=np.concatenate(parts))


def blocks(data: Encoded) -> Iterator[tuple[int, int]]:
    """Cut examples into blocks; those of one row stay together."""
    start = 0
    while start < len(data):
        stop = min(start + BLOCK, len(data))
        while stop < len(data) and data.rows[stop] == data.rows[stop - 1]:
            stop += 1
        yield start, stop
        start = stop


def computed(engine: Engine, part: Encoded, batch_size: int) -> Iterator[tuple[Batch, Any]]:
    """Compute examples in batches of near-equal length, several side by side where there are several processes."""
    order = sorted_order(part.sizes, batch_size)
    while rows := list(islice(order, engine.at_once)):
        batches = [gather(part, one) for one in rows]
        yield from zip(batches, engine.together(batches), strict=True)


def in_order(task: Task, part: Encoded, found: Iterable[tuple[Batch, Any]]) -> Any:
    """Put the outputs of batches into the examples' own order.

    Returns (sequences, ...) for outputs of rows, a list of arrays, one a sequence, for outputs of tokens.
    """
    out: list[Any] = [None] * (len(part) * part.group)
    for batch, outputs in found:
        for place, one in zip(_sequences(batch), _split(task, outputs, batch), strict=True):
            out[place] = one
    return out if task.output in ("token", "vocabulary") else np.asarray(out, dtype=np.float32)


def _sequences(batch: Batch) -> np.ndarray[Any, Any]:
    """Return where each sequence of a batch belongs among those of its block."""
    if batch.places is None:
        return batch.rows
    numbers = (batch.rows[:, None] * batch.group + np.arange(batch.group)).reshape(-1)
    out = np.empty_like(numbers)
    out[batch.places] = numbers
    return out


def _split(task: Task, out: Any, batch: Batch) -> Any:
    """Cut outputs of tokens into those of each sequence."""
    if task.output == "token":
        return np.split(out, batch.offsets[1:-1])
    if task.output == "vocabulary":
        assert batch.targets is not None
        assert batch.target_lengths is not None
        ends = np.concatenate([[0], np.cumsum(batch.target_lengths, dtype=np.int64)])
        asked = np.concatenate([[0], np.cumsum(batch.targets != IGNORED)])[ends]
        return np.split(out, asked[1:-1])
    return out
