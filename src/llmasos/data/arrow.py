"""Keep rows as a typed Arrow table: small ones in memory, large ones in a file that is mapped.

A text is a string or nothing; labels are all strings, all integers, or lists of one of these; numbers
are floats; fields of JSON are kept as JSON text. What does not fit is reported with its row and never
converted, except where nothing is lost: numpy's numbers and strings, True and False (1 and 0), whole floats
(a pandas column of integers with gaps).
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.environment import home
from ..core.errors import DataError, HardwareError, shown
from .files import Record

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

IN_MEMORY = 64 << 20  # bytes of a source up to which its rows are kept in memory
LINE = "_line"  # the column of line numbers
FILE = "_file"  # the column of the numbers of files, where there are several
_CHUNK = 1000
_MERGED = 8 << 20  # bytes of one batch in a mapped file
_UNUSED_DAYS = 30
_LAYOUT = "3"  # raise when what is stored changes
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")


class Problems:
    """Wrong rows: the first ten worded, all counted."""

    def __init__(self) -> None:
        self.count, self.listed, self.hint = 0, list[str](), ""

    def add(self, problem: str, hint: str) -> None:
        """Note one wrong row and what to do about it."""
        self.count += 1
        self.hint = self.hint or hint
        if len(self.listed) < 10:
            self.listed.append(problem)

    def check(self, name: str) -> None:
        """Raise a DataError if any row was wrong."""
        if self.count:
            rows = "1 row" if self.count == 1 else f"{self.count} rows"
            message = f"{name}: {rows} cannot be read"
            raise DataError(message, problems=self.listed, count=self.count, hint=self.hint)


class Stored(NamedTuple):
    """Rows in Arrow: how to map them afresh, the kind of each field, whether labels are digits, names of files."""

    opened: Callable[[], datasets.Dataset]
    kinds: Mapping[str, str]
    digits: bool
    files: tuple[str, ...] = ()


class Layout(NamedTuple):
    """What is stored: the column and the kind of each field, and where rows come from."""

    name: str
    columns: Mapping[str, str]
    kinds: Mapping[str, str]
    digits: bool = False
    """Whether the source has no integers, so that a label column of digits alone means integers."""
    files: tuple[str, ...] = ()
    """Names of the files, where the source has several."""


def store(records: Iterator[Record], layout: Layout, problems: Problems, *, key: str | None = None) -> Stored:
    """Write rows into Arrow.

    Args:
        records: the rows, taken once.
        layout: which columns to keep, and how.
        problems: collects rows of a wrong type, after those that the source itself complains about.
        key: names the rows' content for the cache; None keeps them in memory.

    Raises:
        DataError: rows are wrong (all were looked at), or there are none.
        HardwareError: the disk is full.
    """
    writer = _Writer(layout, problems)
    if key is None:
        return _in_memory(writer, records)
    folder = home() / "datasets"
    digest = hashlib.sha256(repr((_LAYOUT, key, *layout)).encode()).hexdigest()[:24]
    known = next(folder.glob(f"{digest}.*.arrow"), None)
    if known is None:
        return _on_disk(writer, records, folder, digest)
    os.utime(known)
    return Stored(lambda: _mapped(known), layout.kinds, known.name.endswith(".digits.arrow"), layout.files)


def _in_memory(writer: _Writer, records: Iterator[Record]) -> Stored:
    import datasets
    import pyarrow as pa

    batches = list(writer.batches(records))
    data = datasets.Dataset(pa.Table.from_batches(batches))
    return Stored(lambda: data, writer.layout.kinds, writer.integers, writer.layout.files)


def _on_disk(writer: _Writer, records: Iterator[Record], folder: Path, digest: str) -> Stored:
    import pyarrow as pa

    folder.mkdir(parents=True, exist_ok=True)
    _forget_unused(folder)
    unfinished = folder / f"{digest}.{os.getpid()}.unfinished"
    try:
        batches = _merged(writer.batches(records))
        first = next(batches)
        with pa.OSFile(str(unfinished), "wb") as file, pa.ipc.new_stream(file, first.schema) as out:
            out.write_batch(first)
            for batch in batches:
                out.write_batch(batch)
        path = folder / f"{digest}.{'digits' if writer.integers else 'plain'}.arrow"
        unfinished.replace(path)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise HardwareError(
            f"no space left in {folder} for the rows of {writer.layout.name}",
            hint="free some space, or set LLMASOS_HOME to a folder on a larger disk",
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return Stored(lambda: _mapped(path), writer.layout.kinds, writer.integers, writer.layout.files)


def _merged(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Join batches to some megabytes each: opening a map touches every one, 64 kB of memory at a time."""
    import pyarrow as pa

    group: list[pa.RecordBatch] = []
    for batch in batches:
        group.append(batch)
        if sum(part.nbytes for part in group) > _MERGED:
            yield pa.concat_batches(group)
            group = []
    if group:
        yield pa.concat_batches(group)


def _mapped(path: Path) -> datasets.Dataset:
    import datasets

    return datasets.Dataset.from_file(str(path))


def _forget_unused(folder: Path) -> None:
    """Remove cached rows that no run has read for a month."""
    limit = time.time() - _UNUSED_DAYS * 86_400
    for path in folder.glob("*.arrow"):
        if path.stat().st_mtime < limit:
            path.unlink(missing_ok=True)


class _Writer:
    """Turns records into Arrow batches of one schema, which the first batch settles."""

    def __init__(self, layout: Layout, problems: Problems) -> None:
        self.layout, self._problems = layout, problems
        self._kinds: dict[str, type] = {}
        self._lists: dict[str, bool] = {}
        self.integers = layout.digits

    def batches(self, records: Iterator[Record]) -> Iterator[pa.RecordBatch]:
        """Yield Arrow batches; raise at the end if any row was wrong or none was there."""
        import pyarrow as pa

        start = 0
        while chunk := list(islice(records, _CHUNK)):
            columns = {
                field: self._column(field, [record.values.get(column) for record in chunk], start, chunk)
                for field, column in self.layout.columns.items()
            }
            start += len(chunk)
            if self._problems.count:
                continue
            if chunk[0].line is not None:
                columns[LINE] = pa.array([record.line for record in chunk], pa.int64())
            if self.layout.files:
                columns[FILE] = pa.array([record.file for record in chunk], pa.int32())
            yield pa.record_batch(columns)
        self._problems.check(self.layout.name)
        if not start:
            raise DataError(f"{self.layout.name} has no rows", hint="give at least one row")

    def _column(self, field: str, values: list[Any], start: int, chunk: Sequence[Record]) -> pa.Array:
        import pyarrow as pa

        kind_name = self.layout.kinds.get(field, "text")
        if kind_name == "text":
            return pa.array(self._checked(values, str, field, start, chunk), pa.string())
        if kind_name == "number":
            return pa.array([self._number(v, field, start + i, chunk[i]) for i, v in enumerate(values)], pa.float64())
        if kind_name in ("json", "content"):
            return pa.array([self._json(v, field, start + i, chunk[i]) for i, v in enumerate(values)], pa.string())
        if self.layout.digits:
            values = [value or None for value in values]
            self.integers = self.integers and all(_INTEGER.fullmatch(v) for v in set(values) - {None})
        kind, listed = self._settled(field, values)
        arrow = pa.string() if kind is str else pa.int64()
        if listed:
            return pa.array(self._checked_lists(values, kind, field, start, chunk), pa.list_(arrow))
        return pa.array(self._checked(values, kind, field, start, chunk), arrow)

    def _settled(self, field: str, values: Sequence[Any]) -> tuple[type, bool]:
        """Return whether labels are strings or integers, and whether rows have lists of them."""
        if field not in self._kinds:
            self._lists[field] = any(_is_list(value) for value in values)
            flat = [v for value in values for v in (value if _is_list(value) else (value,))]
            first = next((p for p in map(plain, flat) if isinstance(p, str | int)), "")
            self._kinds[field] = str if isinstance(first, str) else int
        return self._kinds[field], self._lists[field]

    def _checked(self, values: list[Any], kind: type, field: str, start: int, chunk: Sequence[Record]) -> list[Any]:
        # Almost every chunk is right as it is; a wrong one is looked at value by value.
        if {type(value) for value in values} <= {kind, type(None)} and _is_storable(values, kind):
            return values
        return [self._one(value, kind, field, start + i, chunk[i]) for i, value in enumerate(values)]

    def _checked_lists(
        self, values: list[Any], kind: type, field: str, start: int, chunk: Sequence[Record]
    ) -> list[Any]:
        out: list[Any] = []
        for i, value in enumerate(values):
            if value is not None and not _is_list(value):
                self._complain(value, "a list, as in other rows", field, start + i, chunk[i])
                value = None
            items = None if value is None else [self._one(v, kind, field, start + i, chunk[i]) for v in value]
            out.append(items)
        return out

    def _one(self, value: Any, kind: type, field: str, row: int, record: Record) -> Any:
        clean = plain(value)
        if clean is None or (isinstance(clean, kind) and _is_storable([clean], kind)):
            return clean
        if isinstance(value, str) and kind is str:
            expected = "a text without half characters (lone surrogates)"
        elif self.layout.kinds.get(field) == "label":
            other = " as in other rows" if isinstance(value, str | int) else ""
            expected = ("a string" if kind is str else "an integer") + other
        else:
            expected = "a string"
        self._complain(value, expected, field, row, record)
        return None

    def _number(self, value: Any, field: str, row: int, record: Record) -> float | None:
        clean = number(value)
        if clean is None and value not in (None, ""):
            self._complain(value, "a number", field, row, record)
        return clean

    def _json(self, value: Any, field: str, row: int, record: Record) -> str | None:
        """Return JSON text; text from a file without structure (CSV) is taken for JSON if it is."""
        try:
            as_it_is = isinstance(value, str) and self.layout.kinds.get(field) == "content"
            return None if value is None else json.dumps(value if as_it_is else structure(value), ensure_ascii=False)
        except (TypeError, ValueError):
            self._complain(value, "what JSON can say", field, row, record)
            return None

    def _complain(self, value: Any, expected: str, field: str, row: int, record: Record) -> None:
        place = place_of(self.layout.name, row, record.line, self.layout.files[record.file :])
        hint = "correct these rows; labels are all strings or all integers, texts are strings"
        self._problems.add(f"{place}, field {field}: found {shown(value)}, expected {expected}", hint)


def number(value: Any) -> float | None:
    """Return a finite number, also where a file without types (CSV) writes it as text; else None."""
    value = plain(value)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def structure(value: Any) -> Any:
    """Return lists, objects and plain values of JSON; text that is a JSON list or object is read."""
    if isinstance(value, str):
        text = value.strip()
        if text[:1] in ("[", "{"):
            try:
                return json.loads(text)
            except ValueError:
                return value
        return value
    if isinstance(value, Mapping):
        return {str(key): structure(item) if not isinstance(item, str) else item for key, item in value.items()}
    if _is_list(value):
        return [item if isinstance(item, str) else structure(item) for item in value]
    value = plain(value)
    json.dumps(value, allow_nan=False)  # raises for what JSON cannot say
    return value


def place_of(name: str, row: int, line: int | None, files: Sequence[str] = ()) -> str:
    """Word the place of a row, counted from 0, as a person counts; ``files`` begins with the row's own, if named."""
    where = [*files[:1], *(() if line is None else (f"line {line}",))]
    return f"{name}, row {row + 1}" + (f" ({', '.join(where)})" if where else "")


def plain(value: Any) -> Any:
    """Return a numpy or pandas value as Python's own, missing ones as None."""
    if value is None or type(value) in (str, int):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return int(value) if value.is_integer() else value
    if isinstance(value, str):
        return str(value)
    return int(value) if isinstance(value, int) else value


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | set) or getattr(value, "ndim", 0) == 1


def _is_storable(values: Sequence[Any], kind: type) -> bool:
    """Whether Arrow takes the values: no lone surrogates, no integer beyond 64 bits."""
    if kind is int:
        return all(value is None or -(1 << 63) <= value < 1 << 63 for value in values)
    try:
        "".join(value for value in values if value is not None).encode()
    except UnicodeEncodeError:
        return False
    return True
