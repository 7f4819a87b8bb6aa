"""Fold an adapter into its base, and prove that the plain model still answers as both did.

Folding only adds numbers, but it rounds them into another matrix, and the folded model may run on another path:
so the outputs are compared, and the metric where rows with answers are given. What loses is refused.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..architectures._adapters import attached, fold
from ..core.errors import ParityError, UsageError
from ..data.dataset import Dataset, read
from ..data.encoding import Encoded, encode, flattened
from ..engines.torch import TorchEngine
from ..evaluation import computed, evaluate, referenced
from ..metrics.base import LOWER_IS_BETTER, Report
from ..tasks.base import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..engines.base import Engine

CHANGE = 1e-3
"""Largest change of an output, relative to the largest output, where no metric decides: float32 rounds to 1e-7, and
sums over thousands of products lose three digits of it."""
COMPARED = 256
"""Examples whose outputs are compared one by one."""


@dataclass(frozen=True)
class Merge:
    """What folding an adapter changed.

    ``largest_change`` is that of a single output (logit, or log probability of a token) and ``largest_output`` what
    it compares to; ``before`` and ``after`` are the metric on ``rows`` rows, None where no data was given.
    """

    largest_change: float
    largest_output: float
    metric: str
    before: float | None
    after: float | None
    rows: int

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Merged:
    """The plain model, what folding changed, and its report on the data where some was given."""

    model: Any
    merge: Merge
    report: Report | None


def merge(
    model: Any,
    task: Task,
    tokenizer: Any,
    max_length: int,
    data: Any = None,
    *,
    columns: Mapping[str, str] | None = None,
    tolerance: float = 0.0,
    untrained: Callable[[], Engine] | None = None,
) -> Merged:
    """Fold a copy of the model, compare, and return it.

    Args:
        model: a transformers model with an adapter; it stays as it is.
        task, tokenizer, max_length: as for an evaluation.
        data: labelled rows for the metric; without them only outputs on the task's own sample are compared.
        columns: task field -> column.
        tolerance: how much of the metric may be lost.
        untrained: opens the model as it was before its training, for a task that compares with it.

    Raises:
        UsageError: there is no adapter, or the tolerance is negative.
        ParityError: the plain model loses more of the metric, or its outputs differ by more than rounding.
    """
    if attached(model) is None:
        raise UsageError("there is no adapter to merge: the model is a plain one", hint="save() writes it as it is")
    if tolerance < 0.0:
        raise UsageError(f"tolerance={tolerance}", hint="how much of the metric may be lost, 0 or more")
    plain = copy.deepcopy(model)
    fold(plain)
    engines = [TorchEngine(each, tokenizer.pad_token_id or 0, output=task.output) for each in (model, plain)]
    rows, encoded = _rows(task, tokenizer, max_length, data, columns)
    change, largest = _change(engines, encoded)
    values, report = [], None
    if rows is not None:
        if task.needs_reference and untrained is not None:
            encoded = referenced(untrained(), task, encoded)
        for engine in engines:
            loss, scorer = evaluate(engine, task, encoded, rows)
            values.append(scorer.values() | {"loss": loss})
        report = scorer.report()
    before, after = (each[task.default_metric] for each in values) if values else (None, None)
    found = Merge(change, largest, task.default_metric, before, after, 0 if rows is None else len(encoded))
    _gate(found, tolerance)
    return Merged(plain, found, report)


def _rows(
    task: Task, tokenizer: Any, max_length: int, data: Any, columns: Mapping[str, str] | None
) -> tuple[Dataset | None, Encoded]:
    if data is not None:
        rows = read(data, task.fields, columns=columns)
        return rows, encode(rows, task, tokenizer, max_length)
    _, sample = type(task).sample()
    # targets are read only where they choose the places that are computed
    encoding = task.encode(sample, tokenizer, max_length, labelled=task.output == "vocabulary")
    return None, flattened(encoding, task.group)


def _change(engines: list[TorchEngine], encoded: Encoded) -> tuple[float, float]:
    part = encoded.head(min(COMPARED, len(encoded)))
    before, after = ([out for _, out in computed(engine, part, 32)] for engine in engines)
    change = max(float(np.abs(a - b).max(initial=0.0)) for a, b in zip(before, after, strict=True))
    return change, max(float(np.abs(a).max(initial=0.0)) for a in before)


def _gate(found: Merge, tolerance: float) -> None:
    hint = "keep the adapter apart; it answers as it did"
    if found.before is not None and found.after is not None:
        sign = -1.0 if found.metric in LOWER_IS_BETTER else 1.0
        lost = sign * (found.before - found.after)
        if not lost <= tolerance + 1e-9:
            raise ParityError(
                f"merging loses {lost:.4g} of {found.metric} ({found.before:.4f} to {found.after:.4f} on {found.rows} "
                f"rows), more than tolerance={tolerance:g}",
                hint=hint,
            )
    elif not found.largest_change <= CHANGE * found.largest_output:
        raise ParityError(
            f"merging changes an output by {found.largest_change:.2g} where the largest is {found.largest_output:.2g}",
            hint=f"{hint}, or give labelled data, whose metric then decides",
        )
