"""Turn the rows of a dataset into flat arrays of token ids, once, in constant memory.

Rows are tokenised a thousand at a time and appended to one long array each of ids, types and targets:
in memory for small data, in plain files that are mapped for large. Rows that are wrong stop the run
after all were looked at; rows that are cut or left out stop it when there are more than allowed.
"""

from __future__ import annotations

import errno
import io
import json
import math
import mmap
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError, HardwareError
from . import dealing
from .dataset import Dataset
from .ledger import Ledger

if TYPE_CHECKING:
    from ..tasks.base import Encoding, Problem, Row, Task

_BATCH = 1000
_FEW = 4000  # rows up to which tokenising takes less time than other machines take to begin


@dataclass(frozen=True)
class Encoded:
    """Training examples as flat arrays, mapped from files where they are on disk (then read-only).

    An example is ``group`` sequences of tokens, mostly one. Most rows give one example; a long one may
    give several, and dropped rows give none.

    Attributes:
        ids: int32, (tokens,); sequence i is ``ids[offsets[i]:offsets[i + 1]]``.
        types: uint8, (tokens,), or None where rows have no token types.
        offsets: int64, (sequences + 1,).
        targets: one entry or line per example, (examples, ...), or where ``target_offsets`` are given, those of
            sequence i at ``targets[target_offsets[i]:target_offsets[i + 1]]``; None without labels.
        rows: int64, (examples,): the index in the dataset of the row that each comes from, rising.
        group: sequences of one example.
        reference: float32, (examples, ...), what another model gave for them, where a task compares with it.
    """

    ids: NDArray[np.int32]
    types: NDArray[np.uint8] | None
    offsets: NDArray[np.int64]
    targets: NDArray[Any] | None
    rows: NDArray[np.int64]
    target_offsets: NDArray[np.int64] | None = None
    group: int = 1
    reference: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each example, int32, (examples,)."""
        return np.diff(self.offsets[:: self.group]).astype(np.int32)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """What examples are sorted by for batches of near-equal length, (examples,): their length.

        Where targets are sequences of their own, padded apart, the longer of the two and then their sum: of the
        rectangles of Multi30k (64 rows a batch) that leaves 19 % empty where the sum alone leaves 24 %, in half as
        many shapes.
        """
        lengths = self.lengths.astype(np.int64)
        if self.target_offsets is None or np.array_equal(self.target_offsets, self.offsets):
            return lengths
        targets = np.diff(self.target_offsets[:: self.group])
        both = lengths + targets
        return np.maximum(lengths, targets) * (int(both.max(initial=0)) + 1) + both

    @property
    def tokens(self) -> int:
        """Tokens of all examples."""
        return int(self.offsets[-1])

    def forget(self) -> None:
        """Give the memory of arrays that are mapped from files back; what is read again is mapped again.

        Pages of a map count as resident once they were read, for as long as it is open.
        """
        for array in (self.ids, self.types, self.targets):
            pages = getattr(array, "_mmap", None)
            if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
                pages.madvise(mmap.MADV_DONTNEED)

    def head(self, examples: int) -> Encoded:
        """Return the first examples."""
        return self.part(0, examples)

    def part(self, start: int, stop: int) -> Encoded:
        """Return neighbouring examples."""
        offsets = self.offsets[start * self.group : stop * self.group + 1]
        tokens = slice(int(offsets[0]), int(offsets[-1]))
        targets, target_offsets = self.targets, self.target_offsets
        if targets is not None and target_offsets is not None:
            target_offsets = target_offsets[start * self.group : stop * self.group + 1]
            targets = targets[target_offsets[0] : target_offsets[-1]]
            target_offsets = target_offsets - target_offsets[0]
        elif targets is not None:
            targets = targets[start:stop]
        return replace(
            self,
            ids=self.ids[tokens],
            types=None if self.types is None else self.types[tokens],
            offsets=offsets - offsets[0],
            targets=targets,
            target_offsets=target_offsets,
            rows=self.rows[start:stop],
            reference=None if self.reference is None else self.reference[start:stop],
        )


def flattened(encoding: Encoding, group: int = 1) -> Encoded:
    """Put rows that a task has encoded into flat arrays, without writing anything."""
    with _Arrays(None, group) as arrays:
        count = len(encoding.ids) // group
        arrays.examples(encoding, np.arange(count) if encoding.rows is None else np.asarray(encoding.rows))
        return arrays.finish()


def together(parts: Sequence[Encoded]) -> Encoded:
    """Return the examples of several, encoded alike, one after the other; ``rows`` are numbered anew."""
    first = parts[0]
    if len(parts) == 1:
        return first

    def all_of(name: str) -> Any:
        arrays = [getattr(part, name) for part in parts]
        return None if arrays[0] is None else np.concatenate(arrays)

    def offsets_of(name: str) -> Any:
        if getattr(first, name) is None:
            return None
        return np.concatenate([[0], np.cumsum(np.concatenate([np.diff(getattr(part, name)) for part in parts]))])

    return Encoded(
        all_of("ids"), all_of("types"), offsets_of("offsets"), all_of("targets"),
        np.arange(sum(map(len, parts))), offsets_of("target_offsets"), first.group,
    )  # fmt: skip


def encode(
    dataset: Dataset,
    task: Task,
    tokenizer: Any,
    max_length: int,
    *,
    folder: Path | None = None,
    labelled: bool = True,
    allow_truncated: float = 0.01,
    allow_dropped: float = 0.01,
    ledger: Ledger | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> Encoded:
    """Check and tokenise all rows.

    Args:
        dataset: the rows.
        task: checks rows, encodes them and computes their targets; must be fitted if ``labelled``.
        tokenizer: the model's tokenizer.
        max_length: tokens beyond it are cut.
        folder: write the arrays into this folder and map them; None keeps them in memory.
        labelled: whether rows have labels and targets are wanted.
        allow_truncated: share of the rows that may be cut.
        allow_dropped: share of the rows that may be left out.
        ledger: accounts for every row; it is closed at the end, and also before a share is refused.
        on_rows: called with the number of rows done so far.

    Raises:
        DataError: rows are wrong, all are empty, or more are cut or left out than allowed.
        HardwareError: the disk is full.
    """
    work = _Pass(dataset, task, tokenizer, max_length, labelled, ledger)
    try:
        with _Arrays(folder, task.group) as arrays:
            for rows, found, encoding in work.computed():
                work.take(rows, found, encoding, arrays)
                if on_rows is not None:
                    on_rows(work.done)
            if ledger is not None and not work.findings.wrong:
                ledger.close()
            work.check(allow_truncated, allow_dropped)
            if folder is not None:
                (folder / _INDEX).write_text(json.dumps(arrays.describe()))
            return arrays.finish()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise HardwareError(
            f"no space left in {folder} for the tokens of {dataset.name}",
            hint="free some space, or write to a larger disk",
        ) from error


def opened(folder: Path) -> Encoded:
    """Map the arrays that another process encoded into a folder."""
    index = json.loads((folder / _INDEX).read_text())
    arrays: dict[str, Any] = {
        name: np.memmap(folder / f"{name}.bin", dtype=dtype, mode="r").reshape(-1, *shape)
        for name, (dtype, shape) in index["arrays"].items()
    }
    return Encoded(group=index["group"], **{"types": None, "targets": None, "target_offsets": None, **arrays})


_INDEX = "arrays.json"


def usable_rows(dataset: Dataset, task: Task) -> Iterator[Row]:
    """Yield the labelled rows that can be used, as ``task.fitted`` wants them; at the end, refuse wrong ones.

    Raises:
        DataError: rows are wrong (all were looked at).
    """
    findings, start = _Findings(dataset), 0
    for rows in dataset.batches(_BATCH):
        found = [task.problem(row) for row in rows]
        findings.note(found, range(start, start + len(rows)))
        start += len(rows)
        if not findings.wrong:
            yield from (row for row, problem in zip(rows, found) if problem is None)
    findings.check_wrong()


class _Findings:
    """Rows that are wrong and rows to leave out: counted, the first ten worded."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.wrong = 0
        self._wrong_rows: list[str] = []
        self._dropped: Counter[str] = Counter()
        self._dropped_rows: list[str] = []

    def note(self, found: Sequence[Problem | None], at: Sequence[int] | NDArray[np.int64]) -> None:
        """Enter what a task found in the rows at these places."""
        for place, problem in zip(at, found, strict=True):
            if problem is None:
                continue
            if problem.drop:
                self._dropped[problem.found] += 1
            else:
                self.wrong += 1
            listed = self._dropped_rows if problem.drop else self._wrong_rows
            if len(listed) < 10:
                where = f"{self._dataset.where(int(place))}, field {problem.field}"
                listed.append(f"{where}: found {problem.found}, expected {problem.expected}")

    def check_wrong(self) -> None:
        """Raise if rows were wrong."""
        if self.wrong:
            raise DataError(
                f"{self._dataset.name}: {'1 row is' if self.wrong == 1 else f'{self.wrong} rows are'} wrong",
                problems=self._wrong_rows,
                count=self.wrong,
                hint="correct or remove these rows; columns={...} names other columns for the fields",
            )

    def check_dropped(self, allowed: float) -> None:
        """Raise if all rows were dropped, or more than the allowed share."""
        name, rows, dropped = self._dataset.name, len(self._dataset), self._dropped.total()
        why = ", ".join(f"{reason} ({count})" for reason, count in self._dropped.most_common())
        if dropped == rows:
            message = f"{name}: no row can be used: {why}"
            hint = 'columns={"text": "..."} names the column with the texts'
        elif dropped > allowed * rows:
            message = f"{name}: {_share(dropped, rows)} would be left out: {why}; allowed are {allowed:.1%}"
            hint = f"fill or remove these rows, or allow it with allow_dropped={_up(dropped / rows)}"
        else:
            return
        raise DataError(message, problems=self._dropped_rows, count=dropped, hint=hint)


class _Pass:
    """One pass over the rows that checks, encodes and enters them into the ledger."""

    def __init__(
        self, dataset: Dataset, task: Task, tokenizer: Any, max_length: int, labelled: bool, ledger: Ledger | None
    ) -> None:
        self._dataset, self._max_length, self._ledger = dataset, max_length, ledger
        self._compute = partial(_computed, task, tokenizer, max_length, labelled)
        there = [field for field in task.fields if field.name in dataset.columns]
        self._texts = [field.name for field in there if not field.is_answer]
        self._labels = [field.name for field in there if field.is_answer]
        self._are_labels = all(field.kind == "label" for field in there if field.is_answer)
        self.findings = _Findings(dataset)
        self.done = self._truncated = self._cut = self._longest = 0

    def computed(self) -> Iterator[tuple[list[dict[str, Any]], list[Problem | None], Encoding | None]]:
        """Yield the rows a batch at a time, what the task found in each, and the encoding of the good ones."""
        waiting: deque[list[dict[str, Any]]] = deque()

        def batches() -> Iterator[tuple[list[dict[str, Any]], bool]]:
            for rows in self._dataset.batches(_BATCH):
                waiting.append(rows)
                # once a row is wrong nothing will come of this pass: it only looks for more of them
                yield rows, not self.findings.wrong

        for found, encoding in dealing.dealt(self._compute, batches(), here=len(self._dataset) <= _FEW):
            yield waiting.popleft(), found, encoding

    def take(
        self, rows: list[dict[str, Any]], found: list[Problem | None], encoding: Encoding | None, arrays: _Arrays
    ) -> None:
        """Enter a batch of rows."""
        start, self.done = self.done, self.done + len(rows)
        self.findings.note(found, range(start, self.done))
        if self.findings.wrong:
            return
        kept = np.flatnonzero([problem is None for problem in found])
        cut = np.zeros(len(rows), dtype=np.int64)
        if encoding is not None:
            cut[kept], shown = self._append(encoding, kept + start, arrays)
            self.findings.note([shown.get(i) for i in range(len(kept))], kept + start)
            for i, problem in shown.items():
                found[kept[i]] = problem
        if self._ledger is not None:
            self._ledger.add(
                self._dataset.numbers(np.arange(start, self.done)),
                [tuple(map(_worded, (row[name] for name in self._texts))) for row in rows],
                [_label_of([row.get(name) for name in self._labels], self._are_labels) for row in rows],
                cut.tolist(),
                [None if problem is None else problem.found for problem in found],
            )

    def _append(
        self, encoding: Encoding, at: NDArray[np.int64], arrays: _Arrays
    ) -> tuple[list[int], dict[int, Problem]]:
        """Append the arrays of good rows; return how many tokens were cut from each, and what else was found."""
        arrays.examples(encoding, at if encoding.rows is None else at[encoding.rows])
        problems = encoding.problems or {}
        truncated = [0 if i in problems else cut for i, cut in enumerate(encoding.truncated)]
        self._truncated += sum(cut > 0 for cut in truncated)
        self._cut += sum(truncated)
        self._longest = max(self._longest, self._max_length + max(truncated, default=0))
        return truncated, problems

    def check(self, allow_truncated: float, allow_dropped: float) -> None:
        """Raise if rows were wrong, or more were cut or dropped than allowed."""
        self.findings.check_wrong()
        self.findings.check_dropped(allow_dropped)
        if self._truncated > allow_truncated * self.done:
            share = self._truncated / self.done
            raise DataError(
                f"{self._dataset.name}: {_share(self._truncated, self.done)} would be cut to {self._max_length} tokens "
                f"({self._cut} tokens lost, longest row {self._longest}); allowed are {allow_truncated:.1%}",
                hint=f"raise max_length (max_length={self._longest} cuts nothing, if the model allows it), "
                f"or allow it with allow_truncated={_up(share)}",
            )


def _computed(
    task: Task, tokenizer: Any, max_length: int, labelled: bool, part: tuple[list[dict[str, Any]], bool]
) -> Iterator[tuple[list[Problem | None], Encoding | None]]:
    """Check some rows, and encode the good ones if that is asked for and none is wrong."""
    rows, encodes = part
    found = [task.problem(row, labelled=labelled) for row in rows]
    good = [row for row, problem in zip(rows, found, strict=True) if problem is None]
    if not good or not encodes or any(problem is not None and not problem.drop for problem in found):
        yield found, None
        return
    encoding = task.encode(good, tokenizer, max_length, labelled=labelled)
    yield found, encoding._replace(context=None)  # which only answers need


def _worded(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, sort_keys=True)


def _label_of(answers: list[Any], are_labels: bool) -> Any:
    """Return what a row's answers are compared by: of labels the set, of all else the order counts too."""
    return answers[0] if len(answers) == 1 and are_labels else tuple(map(_worded, answers))


def _share(some: int, rows: int) -> str:
    return f"{some} of {rows} rows ({some / rows:.1%})"


def _up(share: float) -> str:
    """Round a share up to two digits, so that the option in the hint suffices."""
    return f"{min(1.0, math.ceil(share * 100) / 100):g}"


class _Arrays:
    """Arrays that grow at their end, each a file in a folder or a buffer in memory."""

    def __init__(self, folder: Path | None, group: int = 1) -> None:
        self._folder, self._group = folder, group
        self._open: dict[str, IO[bytes]] = {}
        self._dtypes: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        self._ends = {"offsets": 0, "target_offsets": 0}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._append("offsets", np.zeros(1, dtype=np.int64))

    def __enter__(self) -> _Arrays:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            if self._folder is not None:
                file.close()

    def examples(self, encoding: Encoding, rows: NDArray[np.int64]) -> None:
        """Append encoded examples, each with the index of its row."""
        if not encoding.ids:
            return
        self._append("ids", np.concatenate(encoding.ids, dtype=np.int32))
        if encoding.types is not None:
            self._append("types", np.concatenate(encoding.types, dtype=np.uint8))
        self._append_ends("offsets", encoding.ids)
        self._append("rows", rows)
        if isinstance(encoding.targets, list):
            if "target_offsets" not in self._open:
                self._append("target_offsets", np.zeros(1, dtype=np.int64))
            self._append("targets", np.concatenate(encoding.targets))
            self._append_ends("target_offsets", encoding.targets)
        elif encoding.targets is not None:
            self._append("targets", encoding.targets)

    def _append_ends(self, name: str, parts: Sequence[NDArray[Any]]) -> None:
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64) + self._ends[name]
        self._ends[name] = int(ends[-1])
        self._append(name, ends)

    def finish(self) -> Encoded:
        """Return what was appended."""
        return Encoded(
            ids=self._array("ids"),
            types=self._array("types") if "types" in self._open else None,
            offsets=self._array("offsets"),
            targets=self._array("targets") if "targets" in self._open else None,
            target_offsets=self._array("target_offsets") if "target_offsets" in self._open else None,
            rows=self._array("rows"),
            group=self._group,
        )

    def describe(self) -> dict[str, Any]:
        """Return what ``opened`` needs to find the arrays again, as JSON types."""
        arrays = {name: [dtype.str, list(shape)] for name, (dtype, shape) in self._dtypes.items()}
        return {"arrays": arrays, "group": self._group}

    def _append(self, name: str, array: NDArray[Any]) -> None:
        if name not in self._open:
            self._open[name] = io.BytesIO() if self._folder is None else (self._folder / f"{name}.bin").open("wb")
            self._dtypes[name] = array.dtype, array.shape[1:]
        self._open[name].write(np.ascontiguousarray(array).data)

    def _array(self, name: str) -> NDArray[Any]:
        dtype, shape = self._dtypes[name]
        file = self._open[name]
        if isinstance(file, io.BytesIO):
            array: NDArray[Any] = np.frombuffer(file.getbuffer(), dtype=dtype)
        else:
            file.flush()
            array = np.memmap(file.name, dtype=dtype, mode="r")
        return array.reshape(-1, *shape)
