"""Rows from anything, in Arrow, under the task's own field names, each knowing where it came from.

``read`` takes lists, dicts of columns, pandas, Hugging Face datasets and files; ``stream`` yields the
rows of an iterator or a file one by one for prediction. Large sources are kept in a mapped file, so
that their size does not matter. Nothing given is changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError, UsageError, shown
from .arrow import FILE, LINE, Layout, Problems, Stored, number, place_of, store, structure
from .columns import choose
from .lines import joined
from .origin import origin_of, spread

if TYPE_CHECKING:
    from ..tasks.base import Field

_MAPPED = 128 << 20  # bytes of a mapped file after which it is mapped afresh


class Dataset:
    """Rows in a fixed order. ``columns`` tells which column of the source carries each field.

    Attributes:
        name: the source as errors name it: "train.jsonl", "<list>".
        columns: task field -> column of the source.
    """

    def __init__(
        self, name: str, columns: Mapping[str, str], stored: Stored, indices: NDArray[np.int64] | None = None
    ) -> None:
        self.name, self.columns = name, dict(columns)
        self._stored, self._indices = stored, indices
        self._data = stored.opened()
        self._fingerprint: str | None = None

    @property
    def labels(self) -> frozenset[str]:
        """The fields that are labels."""
        return frozenset(name for name, kind in self._stored.kinds.items() if kind == "label")

    def __len__(self) -> int:
        return len(self._data) if self._indices is None else len(self._indices)

    def __repr__(self) -> str:
        return f"Dataset({self.name}, {len(self)} rows, columns={self.columns})"

    def batches(self, size: int = 1000) -> Iterator[list[dict[str, Any]]]:
        """Yield all rows in order, ``size`` at a time, as dicts keyed by field name."""
        window = max(size, len(self) * _MAPPED // max(1, self._data.data.nbytes))  # selected rows may lie far apart
        fresh = -window
        for start in range(0, len(self), size):
            if start >= fresh + window:
                # Pages of a map count as resident until it is closed: a new one starts from none.
                data, fresh = self._stored.opened(), start
            stop = min(start + size, len(self))
            yield self._taken(data, np.arange(start, stop) if self._indices is None else self._indices[start:stop])

    def rows(self, indices: Sequence[int] | NDArray[np.int64]) -> list[dict[str, Any]]:
        """Return single rows, in the order asked for."""
        return self._taken(self._data, self._stored_at(indices))

    def where(self, index: int) -> str:
        """Word where a row came from: "train.csv, row 17 (line 18)", counted from 1 in the source."""
        at = int(self._stored_at([index])[0])
        row = self._data[at]
        return place_of(self.name, at, row.get(LINE), self._stored.files[row.get(FILE, 0) :])

    def numbers(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers that rows have in the source, counted from 1, as in ``where``."""
        return self._stored_at(indices) + 1

    def fingerprint(self) -> str:
        """Return a SHA-256 over the fields' names and all values, the same for the same rows in any format."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for rows in self.batches():
                digest.update(json.dumps(rows, ensure_ascii=False, sort_keys=True).encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> Dataset:
        """Return some of the rows, which keep their numbers for ``where``."""
        return Dataset(self.name, self.columns, self._stored, self._stored_at(indices))

    def _stored_at(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        wanted = np.asarray(indices, dtype=np.int64)
        outside = wanted[(wanted < 0) | (wanted >= len(self))]
        if len(outside):
            raise IndexError(f"row {outside[0]} of {len(self)} rows")
        return wanted if self._indices is None else self._indices[wanted]

    def _taken(self, data: Any, at: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Return rows by their place in Arrow: a slice where they lie together, else one by one."""
        if not len(at):
            return []
        low, high = int(at.min()), int(at.max()) + 1
        if high - low <= 4 * len(at):
            columns = data[low:high]
            picks = None if high - low == len(at) and (np.diff(at) == 1).all() else (at - low).tolist()
        else:
            columns, picks = data[at.tolist()], None
        values = [self._field(name, columns[name], picks) for name in self.columns]
        names = tuple(self.columns)
        return [dict(zip(names, row)) for row in zip(*values)]

    def _field(self, name: str, values: list[Any], picks: list[int] | None) -> list[Any]:
        if picks is not None:
            values = [values[i] for i in picks]
        kind = self._stored.kinds.get(name)
        if kind in ("json", "content"):
            values = [None if value is None else json.loads(value) for value in values]
        if self._stored.digits and kind == "label":
            values = [None if value is None else int(value) for value in values]
        return values


def read(
    source: Any, fields: Sequence[Field], *, columns: Mapping[str, str] | None = None, labelled: bool = True
) -> Dataset:
    """Read all rows of a source.

    Args:
        source: a list of (text, label), of texts or of dicts; a dict of columns; a pandas DataFrame;
            a Hugging Face Dataset; the path of a .jsonl, .json, .csv, .tsv, .parquet or .txt file (or .gz), or
            a folder, a glob or a URL of such files.
        fields: the task's fields, which are looked for under their aliases.
        columns: the column of a field, where it has a name of its own: ``{"text": "review"}``.
        labelled: whether labels are wanted; without, none is needed and any is ignored.

    Raises:
        DataError: the source cannot be read, has no rows, or rows of a wrong type.
        UsageError: ``columns`` makes no sense.

    Example:
        >>> len(read([("works well", "praise"), ("broke", "complaint")], TextClassificationTask().fields))
        2
    """
    problems = Problems()
    origin = spread(origin_of(source, fields, problems.add), fields)
    if not origin.content.columns:
        problems.check(origin.name)
        raise DataError(f"{origin.name} has no rows", hint="give at least one row")
    chosen = choose(origin.name, origin.content.columns, fields, columns, labelled=labelled)
    kinds = {field.name: field.kind for field in fields if field.name in chosen}
    layout = Layout(origin.name, chosen, kinds, origin.digits, origin.files)
    records, key = origin.content.records, origin.key
    for field in fields:
        if field.joins and field.name in chosen:
            records = joined(records, chosen[field.name], field.joins)
            key = key and f"{key}, lines joined to {field.joins}"
    return Dataset(origin.name, chosen, store(records, layout, problems, key=key))


def stream(
    source: Any, fields: Sequence[Field], *, columns: Mapping[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield rows without labels, in order and as they come, for prediction.

    Nothing is read ahead of an iterator but its first item; memory does not grow with the source.

    Raises:
        DataError: when a wrong row is reached.
    """

    def stop(problem: str, hint: str) -> None:
        raise DataError(problem, hint=hint)

    origin = spread(origin_of(source, fields, stop, head=1), fields)
    if not origin.content.columns:
        return
    chosen = choose(origin.name, origin.content.columns, fields, columns, labelled=False)
    kinds = {field.name: field.kind for field in fields}
    optional = {field.name for field in fields if not field.required}
    several = len(optional) == len(kinds)  # rows of several layouts: each has its own fields
    for place, record in enumerate(origin.content.records):
        row: dict[str, Any] = {}
        for field, column in chosen.items():
            value = record.values.get(column)
            if value is None and several:
                continue
            row[field], expected = _streamed(value, kinds[field])
            if expected:
                where = place_of(origin.name, place, record.line, origin.files[record.file :])
                stop(f"{where}, field {field}: found {shown(value)}, expected {expected}", "correct this row")
        yield row


def _streamed(value: Any, kind: str) -> tuple[Any, str]:
    """Return a value as its kind wants it, and what was expected where it is something else."""
    if kind == "text":
        return value, "" if isinstance(value, str) else "a string"
    if kind == "number":
        return number(value), "" if number(value) is not None else "a number"
    if kind == "content" and isinstance(value, str):
        return value, ""
    try:
        return structure(value), "" if value is not None else "some content"
    except (TypeError, ValueError):
        return None, "what JSON can say"


def split(dataset: Dataset, fraction: float, seed: int, undivided: str | None = None) -> tuple[Dataset, Dataset]:
    """Set a share of the rows aside for evaluation, of each label alike.

    Every label keeps at least one row for training. The same dataset, share and seed give the same
    rows; both parts keep the order of the source. Rows with lists of labels are divided by the whole
    list where enough lists occur twice, else at random. Rows with the same content of the field
    ``undivided`` stay together, unless all have the same.

    Returns:
        The rows for training and those for evaluation.

    Raises:
        UsageError: the share is not between 0 and 1.
        DataError: no row can be set aside.
    """
    if not 0.0 < fraction < 1.0:
        raise UsageError(f"a share of {fraction} cannot be set aside", hint="a share above 0 and below 1")
    wanted = min(max(1, round(len(dataset) * fraction)), len(dataset) - 1)
    if undivided in dataset.columns:
        groups = np.asarray(_numbered(row[undivided] for rows in dataset.batches() for row in rows))
        if groups.max() > 0:
            apart = _whole_groups(groups, wanted, seed)
            return dataset.select(np.flatnonzero(~apart)), dataset.select(np.flatnonzero(apart))
    classes, has_lists = _classes(dataset)
    spare = np.bincount(classes) - 1
    if has_lists and spare.sum() < wanted:
        classes, spare = np.zeros_like(classes), np.asarray([len(dataset) - 1])
    if not spare.sum():
        raise DataError(
            f"{dataset.name}: none of its {len(dataset)} rows can be set aside for evaluation",
            hint="every label needs at least two rows; or give evaluation data of its own",
        )
    chosen = _drawn(classes, _quotas(spare, wanted), seed)
    return dataset.select(np.flatnonzero(~chosen)), dataset.select(np.flatnonzero(chosen))


def _numbered(values: Iterable[Hashable]) -> list[int]:
    """Number values in order of appearance."""
    known: dict[Hashable, int] = {}
    return [known.setdefault(hash(value), len(known)) for value in values]


def _whole_groups(groups: NDArray[np.int64], wanted: int, seed: int) -> NDArray[np.bool_]:
    """Mark groups in a random order while they hold at most ``wanted`` rows, and at least one; never all."""
    sizes = np.bincount(groups)
    order = np.random.default_rng(seed).permutation(len(sizes))
    taken = order[np.cumsum(sizes[order]) <= wanted]
    return np.isin(groups, taken if len(taken) else order[[sizes[order].argmin()]])


def _classes(dataset: Dataset) -> tuple[NDArray[np.int64], bool]:
    """Number the rows by their label, in order of appearance; say whether labels are lists."""
    label = next((name for name in dataset.columns if name in dataset.labels), None)
    if label is None:
        return np.zeros(len(dataset), dtype=np.int64), False
    known: dict[Hashable, int] = {}
    numbers = np.empty(len(dataset), dtype=np.int64)
    has_lists, start = False, 0
    for rows in dataset.batches():
        values = [row[label] for row in rows]
        has_lists = has_lists or any(isinstance(value, list) for value in values)
        keys = [tuple(sorted(map(str, value))) if isinstance(value, list) else value for value in values]
        numbers[start : start + len(rows)] = [known.setdefault(key, len(known)) for key in keys]
        start += len(rows)
    return numbers, has_lists


def _quotas(spare: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
    """Share ``wanted`` rows out by class size, largest remainders first, at most ``spare`` from each."""
    exact = (spare + 1) * (min(wanted, int(spare.sum())) / int((spare + 1).sum()))
    quotas: NDArray[np.int64] = np.minimum(np.floor(exact).astype(np.int64), spare)
    while (missing := min(wanted, int(spare.sum())) - int(quotas.sum())) > 0:
        open_classes = np.flatnonzero(quotas < spare)
        by_need = open_classes[np.argsort(quotas[open_classes] - exact[open_classes], kind="stable")]
        quotas[by_need[:missing]] += 1
    return quotas


def _drawn(classes: NDArray[np.int64], quotas: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Mark the first ``quotas`` rows of each class in a random order."""
    order = np.random.default_rng(seed).permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    sizes = np.bincount(classes)
    rank = np.arange(len(classes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = np.zeros(len(classes), dtype=np.bool_)
    chosen[order[rank < np.repeat(quotas, sizes)]] = True
    return chosen
