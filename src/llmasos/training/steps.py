"""Which rows an optimiser step of a recorded run has seen."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core import plugins
from ..core.config import FinetuneConfig
from ..core.errors import DataError, UsageError
from ..core.events import result_of
from ..loading import load_tokenizer
from ..sources.base import locate
from ..tasks.base import Row, Task
from .prepare import prepare
from .records import options_of, recorded
from .request import Request
from .setup import order_of, steps_of


@dataclass(frozen=True)
class StepRows:
    """The rows of a step, each with its number in the data, from 1."""

    model: str
    task: Task
    data: str
    max_length: int
    rows: list[tuple[int, Row]]


def rows_of_step(folder: Path, step: int, data: str | None = None) -> StepRows:
    """Return the rows of an optimiser step of the run that wrote (or is writing) a folder.

    Args:
        folder: the model's folder.
        step: the step, from 1.
        data: the training data, if it is no longer where the record says.

    Raises:
        UsageError: no record, or the run has no such step.
        DataError: the data has changed since.
    """
    record = recorded(folder)
    asked, config = record["asked"], FinetuneConfig.of(options_of(record))
    task: Any = plugins.load("tasks", record["task"]["tag"]).from_dict(record["task"])
    source = data or asked["data"]
    located = locate(asked["model"])
    columns = asked["columns"] or None
    request = Request(located, load_tokenizer(located.path), None, task, source, asked["eval_data"], columns)
    with tempfile.TemporaryDirectory() as scratch:
        prepared = result_of(prepare(request, config, folder=Path(scratch), scratch=None))
    before = record["data"]["train"]["fingerprint"]
    if prepared.fingerprints["train"] != before:
        raise DataError(f"{source} has changed since this run", hint="--data FILE names the rows as they were")
    steps = steps_of(len(prepared.train), config)
    if not 1 <= step <= steps:
        raise UsageError(f"there is no step {step}", hint=f"the run has steps 1 to {steps}")
    per_epoch = -(-len(prepared.train) // config.batch_size)
    epoch, at = divmod(step - 1, per_epoch)
    examples = order_of(prepared.train, config, epoch, buckets="buckets" in (config.ways or ()))[at]
    places = sorted({int(prepared.train.rows[example]) for example in examples})
    rows: list[tuple[int, Row]] = list(
        zip(prepared.rows.numbers(places).tolist(), prepared.rows.rows(places), strict=True)
    )
    return StepRows(asked["model"], prepared.task, str(source), prepared.max_length, rows)
