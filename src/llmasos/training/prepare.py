"""From whatever the user calls data to encoded rows for training and validation, with the row ledgers.

The plan and the run both come through here, so that a plan speaks of exactly the rows that a run sees.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..core.atomic import write_json
from ..core.config import FinetuneConfig
from ..core.errors import DataError, UsageError
from ..core.events import Event, Note, Phase, Progress
from ..data.dataset import Dataset, read, split
from ..data.encoding import Encoded, encode, opened
from ..data.ledger import Ledger
from ..data.unknown import check_known
from ..loading import longest_input
from ..tasks.base import Task
from .request import Request


@dataclass(frozen=True)
class Prepared:
    """Data that is ready to train on, with the task settled.

    ``fingerprints`` and ``ledgers`` have the keys "train" and, where there is one, "evaluation".
    """

    task: Task
    rows: Dataset
    train: Encoded
    evaluation_rows: Dataset | None
    evaluation: Encoded | None
    max_length: int
    ledgers: dict[str, dict[str, Any]] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    scale: float = 1.0
    """Rows of the data for each row prepared; above 1 where a sample stands for all (a plan)."""
    evaluation_scale: float = 1.0
    """The same for the evaluation data."""

    def describe(self, index: int) -> str:
        """Word a row of the encoded training data for a message: file, row and line."""
        return self.rows.where(int(self.train.rows[index]))


def prepare(
    request: Request,
    config: FinetuneConfig,
    *,
    folder: Path | None,
    scratch: Path | None,
    most: int | None = None,
) -> Generator[Event, None, Prepared]:
    """Read, check, split and encode.

    Args:
        request: model, task and data; the task's labels may be settled or not.
        config: max_length, eval_split and what may be cut or dropped.
        folder: where the ledgers go; None keeps them in memory.
        scratch: where the arrays go; None keeps them in memory.
        most: prepare only a random sample of so many rows, if there are more.

    Yields:
        What is being done. The result is the generator's return value.
    """
    task, tokenizer = request.task, request.tokenizer
    _check_augment(config, task)
    max_length = _checked_length(config, longest_input(request.located.path, tokenizer))
    yield Phase("read")
    rows, held = _read(request)
    task, notes = _fitted(task, rows, tokenizer)
    for note in notes:
        yield Note(note)
    if held is None and config.eval_split > 0:
        total = len(rows)
        rows, held = split(rows, config.eval_split, config.seed, task.undivided)
        how = f"drawn by {task.undivided or 'class'}"
        yield Note(f"no evaluation data given: {len(held)} of {total} rows are set aside (eval_split), {how}")
    if not len(rows):
        raise DataError("no row is left to train on", hint="a smaller eval_split, or more rows")
    totals = (len(rows), len(held or ()))
    rows, held = (_sampled(part, most, config.seed) for part in (rows, held))
    scale, held_scale = totals[0] / len(rows), totals[1] / max(1, len(held or ()))
    ledgers: dict[str, Ledger] = {}
    encoded: dict[str, Encoded | None] = {"evaluation": None}
    for name, part in (("evaluation", held), ("train", rows)):
        if part is None:
            continue
        file = "ledger.jsonl" if name == "train" else "ledger-evaluation.jsonl"
        ledgers[name] = Ledger(folder and folder / file, evaluation=ledgers.get("evaluation"))
        encoded[name] = yield from _encoded(part, name, task, tokenizer, max_length, config, scratch, ledgers[name])
    summaries = {name: ledger.summary() for name, ledger in ledgers.items()}
    if scale == 1.0:
        yield from _ledger_notes(summaries, max_length)
    train = encoded["train"]
    assert train is not None
    prints = (
        {}
        if scale != 1.0 or held_scale > 1.0
        else {"train": rows.fingerprint()} | ({} if held is None else {"evaluation": held.fingerprint()})
    )
    if scratch is not None:
        told = {"task": task.to_dict(), "max_length": max_length, "ledgers": summaries, "fingerprints": prints}
        write_json(scratch / _PREPARED, told)
    return Prepared(task, rows, train, held, encoded["evaluation"], max_length, summaries, prints, scale, held_scale)


def _read(request: Request) -> tuple[Dataset, Dataset | None]:
    fields, columns = request.task.fields, request.columns
    held = None if request.eval_data is None else read(request.eval_data, fields, columns=columns)
    return read(request.data, fields, columns=columns), held


def prepared_by_another(request: Request, config: FinetuneConfig, scratch: Path) -> Prepared:
    """Open what another process has prepared: its arrays are mapped, nothing is tokenised again.

    Raises:
        UsageError: the folder is not there: the machines do not share it.
    """
    try:
        told = json.loads((scratch / _PREPARED).read_text())
    except OSError as error:
        raise UsageError(
            f"{scratch} cannot be read, where the first process has put the tokens",
            hint="name an output on a disk that all machines share",
        ) from error
    task = type(request.task).from_dict(told["task"])
    rows, held = _read(request)
    if held is None and config.eval_split > 0:
        rows, held = split(rows, config.eval_split, config.seed, task.undivided)
    evaluation = None if held is None else opened(scratch / "evaluation")
    return Prepared(
        task,
        rows,
        opened(scratch / "train"),
        held,
        evaluation,
        told["max_length"],
        told["ledgers"],
        told["fingerprints"],
    )


_PREPARED = "prepared.json"


def _sampled(rows: Any, most: int | None, seed: int) -> Any:
    if rows is None or most is None or len(rows) <= most:
        return rows
    return rows.select(np.sort(np.random.default_rng(seed).choice(len(rows), most, replace=False)))


def _check_augment(config: FinetuneConfig, task: Task) -> None:
    if config.augment and task.output in ("token", "vocabulary"):
        raise UsageError(
            f"augment={config.augment} moves tokens, but {task.tag} has targets at their places",
            hint="leave augment out for this task",
        )


def _checked_length(config: FinetuneConfig, limit: int) -> int:
    if config.max_length is not None and config.max_length > limit:
        raise UsageError(
            f"max_length={config.max_length}, but this model takes at most {limit} tokens",
            hint=f"max_length={limit}, or a model for longer texts",
        )
    return config.max_length or limit


def _fitted(task: Task, rows: Dataset, tokenizer: Any) -> tuple[Task, list[str]]:
    """Settle the labels on the rows that are in order; the others are reported when rows are encoded."""
    good = (row for batch in rows.batches() for row in batch if task.problem(row) is None)
    first = next(good, None)
    if first is None:
        return task, []

    def again() -> Any:
        yield first
        yield from good

    return task.fitted(again(), tokenizer)


def _encoded(
    rows: Dataset,
    name: str,
    task: Task,
    tokenizer: Any,
    max_length: int,
    config: FinetuneConfig,
    scratch: Path | None,
    ledger: Ledger,
) -> Generator[Event, None, Encoded]:
    yield Phase("tokenize", len(rows))
    encoded = encode(
        rows,
        task,
        tokenizer,
        max_length,
        folder=scratch and scratch / name,
        allow_truncated=config.allow_truncated,
        allow_dropped=config.allow_dropped,
        ledger=ledger,
    )
    yield Progress(len(rows))
    for note in check_known(encoded, rows, task, tokenizer, config.allow_unknown):
        yield Note(note, "warning")
    return encoded


def _ledger_notes(summaries: dict[str, dict[str, Any]], max_length: int) -> list[Note]:
    """Say what the ledgers found: nothing is cut, left out or doubled in silence."""
    notes = []
    for name, summary in summaries.items():
        where = "training" if name == "train" else "evaluation"
        said = [
            (summary["truncated"], f"cut to {max_length} tokens, losing {summary['tokens_cut']} tokens"),
            (summary["dropped"], "left out: " + ", ".join(summary["reasons"])),
            (summary["duplicates"], "repeat an earlier row"),
            (summary["contradictory"], "repeat an earlier row with another label"),
            (summary["in_evaluation_data"], "are also in the evaluation data: its score will flatter"),
        ]
        notes += [
            Note(f"{count} of {summary['rows']} {where} rows {text} (see {_LEDGERS[name]})", "warning")
            for count, text in said
            if count
        ]
    return notes


_LEDGERS = {"train": "ledger.jsonl", "evaluation": "ledger-evaluation.jsonl"}


def used_tokens(train: Encoded) -> np.ndarray[Any, Any]:
    """Return the sorted ids of all tokens that occur, in constant memory."""
    seen = np.zeros(0, dtype=bool)
    for start in range(0, train.tokens, _STRETCH):
        ids = train.ids[start : start + _STRETCH]
        seen = np.pad(seen, (0, max(0, int(ids.max()) + 1 - len(seen))))
        seen[ids] = True
        train.forget()
    return np.flatnonzero(seen)


_STRETCH = 1 << 22  # tokens
