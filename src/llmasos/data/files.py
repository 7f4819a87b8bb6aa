"""Read the rows of a file, lazily and strictly, with the line that each row starts on.

The loaders below ``datasets`` guess: a text that looks like a date becomes a time stamp, 123 becomes
"123", "NA" becomes nothing. Here a row is what the file says, or an error that names the line. The
price is Python's json and csv instead of Arrow's parsers (about 50 MB/s, a tenth of the time that
tokenising then takes).
"""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..core.errors import DataError, MissingExtraError, shown
from ..core.storage import is_url, reaching
from . import squad
from .shards import File, Remote, files_of, stamp

FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "txt", "conll", "bio", "iob2")
_TAGGED = ("conll", "bio", "iob2")
_HEAD = 1000  # rows that are looked at to learn the names of the columns
_LARGEST = 1 << 26  # characters of one row: beyond it, a bracket or a quote was left open
_UTF8 = "save the file as UTF-8"
_ENDINGS = tuple(f".{kind}{packed}" for kind in FORMATS for packed in ("", ".gz"))


class Record(NamedTuple):
    """One row: its values by column, the line that it starts on, where lines make sense, and which file it is in."""

    values: Mapping[str, Any]
    line: int | None = None
    file: int = 0


class Content(NamedTuple):
    """The columns of a source and its rows, each of which can be taken once."""

    columns: list[str]
    records: Iterator[Record]


class Part(NamedTuple):
    """Some rows of a file, in order, and the wrong lines after them, worded, each with what to do about it."""

    rows: list[Record]
    wrong: list[tuple[str, str]]


Complain = Callable[[str, str], None]
"""Takes one wrong line, worded, and what to do about it; may raise."""


def format_of(path: File) -> tuple[str, bool]:
    """Return a file's format and whether it is compressed, from its name.

    Raises:
        DataError: no such file, an empty file, or a name that says nothing.
    """
    suffixes = [suffix.lower().lstrip(".") for suffix in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] == "gz"
    kind = (suffixes[:-1] if packed else suffixes)[-1:]
    if isinstance(path, Path) and not os.path.exists(path):  # unlike Path.exists, answers for a text given as a path
        raise DataError(f"no such file: {str(path)[:200]}", hint=_near(path))
    if not kind or kind[0] not in FORMATS:
        known = ", ".join(f".{name}" for name in FORMATS)
        raise DataError(f"{path.name}: this kind of file is not known", hint=f"one of {known}, each also with .gz")
    if isinstance(path, Path) and not os.access(path, os.R_OK):
        raise DataError(f"{path} may not be read by this user", hint="change its permissions")
    if stamp(path)[1] == 0:
        raise DataError(f"{path.name} is empty (0 bytes)", hint="write at least one row into it")
    return kind[0], packed


def data_files(source: str | Path) -> list[File]:
    """Return the files of one kind that a path, a folder, a glob or a URL names, in the order of their names.

    Raises:
        DataError: there are none, one cannot be read, or their kinds differ.
    """
    found = files_of(source, _ENDINGS)
    kinds = {format_of(file)[0]: file.name for file in found}
    if len(kinds) > 1:
        (one, first), (other, second) = list(kinds.items())[:2]
        raise DataError(
            f"{source}: {first} is .{one}, {second} is .{other}", hint="give files of one kind, such as *.jsonl"
        )
    return found


def parts_of(place: tuple[int, File], columns: Sequence[str] | None) -> Iterator[Part]:
    """Yield the rows of one file of several, some at a time, and what there was to complain about after them.

    Args:
        place: the file's number among them, and the file.
        columns: what a table must have; None for files whose rows name their own.

    Raises:
        DataError: the file as a whole cannot be read, or has other columns.
    """
    number, file = place
    rows: list[Record] = []
    said: list[tuple[str, str]] = []
    content = open_file(file, lambda *words: said.append(words))
    if columns is not None and set(content.columns) != set(columns):
        raise DataError(
            f"{file.name} has the columns {', '.join(content.columns)}, the first file {', '.join(columns)}",
            hint="all files of a data set have the same columns",
        )
    try:
        for record in content.records:
            if said or len(rows) == _HEAD:
                yield Part(rows, list(said))
                rows = []
                said.clear()
            rows.append(record._replace(file=number))
    except DataError:
        yield Part(rows, list(said))
        raise
    yield Part(rows, list(said))


def open_file(path: File, complain: Complain) -> Content:
    """Return the columns and, lazily, the rows of a file.

    Args:
        path: a file of one of ``FORMATS``, perhaps with ``.gz``.
        complain: called with every line that is no row.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    kind, packed = format_of(path)
    if kind == "parquet":
        return _parquet(path, packed)
    if kind in ("csv", "tsv"):
        return _csv(path, packed, "," if kind == "csv" else "\t", complain)
    if kind == "txt":
        lines = enumerate(_lines(path, packed), 1)
        return Content(["line"], (Record({"line": line.rstrip("\r\n")}, number) for number, line in lines))
    if kind in _TAGGED:
        return _tagged(path, packed, complain)
    return _json(path, packed, complain)


def _near(path: Path) -> str:
    folder = path.parent
    if not os.path.isdir(folder):
        return f"the folder {str(folder)[:200]} does not exist either"
    names = [p.name for p in folder.iterdir()]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"nothing in {folder.resolve()} has a similar name"


def _lines(path: File, packed: bool) -> Iterator[str]:
    """Yield lines as text; a line that is not UTF-8 is an error with its line and byte."""
    number = 0
    try:
        with path.open("rb") as raw_file, _unpacked(raw_file, packed) as file:
            for number, raw in enumerate(file, 1):
                if number == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
                    raise DataError(f"{path.name} is UTF-16, not UTF-8", hint=_UTF8)
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        byte = error.start + 1
        raise DataError(
            f"{path.name}, line {number}, byte {byte}: 0x{error.object[error.start]:02x} is not UTF-8",
            hint=f"{_UTF8} (it may be in Latin-1, Windows-1252 or GB18030 now)",
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path.name} is not a complete gzip file: {error}", hint="copy or download it again, or unpack it first"
        ) from error
    except Exception:
        with _reading(path):
            raise


def _reading(path: File) -> AbstractContextManager[None]:
    """Tell of a line that broke off, where a file lies behind a URL."""
    return reaching(str(path)) if isinstance(path, Remote) else nullcontext()


def _unpacked(file: IO[bytes], packed: bool) -> AbstractContextManager[IO[bytes]]:
    return gzip.open(file, "rb") if packed else nullcontext(file)  # type: ignore[return-value]


# -- JSON ---------------------------------------------------------------------------------------------


def _json(path: File, packed: bool, complain: Complain) -> Content:
    """Read a list of objects or one object a line, whatever the name says."""
    lines = _lines(path, packed)
    begin = list(islice((line.strip() for line in _lines(path, packed) if line.strip()), 4))
    first, second = (*begin, "", "")[:2]
    if first.startswith("["):
        records = _json_list(path.name, lines, complain)
    elif not second.startswith("{") and squad.is_nested(" ".join(begin)):
        records = map(Record, squad.questions(path.name, "".join(lines)))
    elif first:
        _check_one_a_line(path, first, second)
        records = _json_lines(path.name, lines, complain)
    else:
        raise DataError(f"{path.name} has no rows: all its lines are blank", hint="write at least one row into it")
    head = list(islice(records, _HEAD))
    columns = list(dict.fromkeys(name for record in head for name in record.values))
    return Content(columns, chain(head, records))


def _check_one_a_line(path: File, first: str, second: str) -> None:
    """Tell one object or value that fills the file from objects on lines of which the first is broken."""
    spread = first.startswith("{") and not first.endswith("}") and not second.startswith("{")
    single = not first.startswith("{") and path.name.lower().removesuffix(".gz").endswith(".json")
    if spread or single:
        what = "an object" if spread else "no list"
        raise DataError(
            f"{path.name}: the top level is {what}, expected a list of objects",
            hint="write a list of objects, or one object a line",
        )


def _json_lines(name: str, lines: Iterator[str], complain: Complain) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            complain(f"{name}, line {number}: {_worded(error)}", "each line is one JSON object in braces")
            continue
        if isinstance(row, dict):
            yield Record(row, number)
        else:
            complain(f"{name}, line {number}: found {shown(row)}, expected an object", 'write {"text": "..."}')


def _json_list(name: str, lines: Iterator[str], complain: Complain) -> Iterator[Record]:
    """Yield the items of a list of objects without holding the list."""
    text = _Window(name, lines)
    text.take("[")
    if text.peek() == "]":
        return
    while True:
        line = text.line
        row = text.value()
        if isinstance(row, dict):
            yield Record(row, line)
        else:
            complain(f"{name}, line {line}: found {shown(row)}, expected an object", 'write {"text": "..."}')
        if text.peek() == "]":
            return
        text.take(",")


class _Window:
    """A JSON text of which only the part around the current value is held."""

    def __init__(self, name: str, lines: Iterator[str]) -> None:
        self._name, self._lines, self._text, self._at, self.line = name, lines, "", 0, 1
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """Skip white space and return the next character, or "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at].isspace():
                self._move(self._at + 1)
            if self._at < len(self._text) or not self._more(1):
                return self._text[self._at : self._at + 1]

    def take(self, sign: str) -> None:
        """Step over one expected character."""
        found = self.peek()
        if found != sign:
            self._fail(f"found {found!r}, expected {sign!r}" if found else f"ends before its {sign!r}")
        self._move(self._at + 1)
        self.peek()

    def value(self) -> Any:
        """Return the next value, reading on as far as it needs."""
        size = 1 << 12
        while True:
            self.peek()
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except (json.JSONDecodeError, RecursionError) as error:
                size *= 2
                if size > _LARGEST or not self._more(size):
                    self._fail(_worded(error))
                continue
            self._move(end)
            return value

    def _more(self, size: int) -> bool:
        parts, length = [self._text[self._at :]], 0
        for line in self._lines:
            parts.append(line)
            length += len(line)
            if length >= size:
                break
        self._text, self._at = "".join(parts), 0
        return length > 0

    def _move(self, to: int) -> None:
        self.line += self._text.count("\n", self._at, to)
        self._at = to

    def _fail(self, what: str) -> None:
        raise DataError(f"{self._name}, line {self.line}: {what}", hint="the file must be a list of JSON objects")


def _worded(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg.lower()} at character {error.colno}"
    return "not JSON: nested too deeply"


# -- words with tags ----------------------------------------------------------------------------------


def _tagged(path: File, packed: bool, complain: Complain) -> Content:
    """Read a word a line, its tag in the last column, a blank line between sentences (CoNLL 2003).

    Lines of one column alone are words without tags. A comment stands before a sentence: "# key = value".
    """
    records = _sentences(path, packed, complain)
    first = next(records, None)
    if first is None:
        raise DataError(f"{path.name} has no rows: no line has a word", hint="write one word a line, its tag behind it")
    return Content(list(first.values), chain([first], records))


def _sentences(path: File, packed: bool, complain: Complain) -> Iterator[Record]:
    wide, start = 0, 0
    lines: list[list[str]] = []
    for number, line in enumerate(chain(_lines(path, packed), ("",)), 1):
        cells = (_TAB if "\t" in line else _GAP).split(line.strip(" \t\r\n"))
        is_comment = not lines and cells[0] == "#" and " = " in line
        if cells[0] in ("", "-DOCSTART-"):
            if lines:
                tags = {"tags": [cells[-1] for cells in lines]} if wide > 1 else {}
                yield Record({"tokens": [cells[0] for cells in lines], **tags}, start)
            lines = []
        elif not is_comment:
            wide = wide or len(cells)
            start = start if lines else number
            if len(cells) == wide:
                lines.append(cells)
            else:
                what = f"{path.name}, line {number}: found {len(cells)} columns, expected {wide} as before"
                complain(what, "one word a line, its tag in the last column, and no spaces inside either")


_TAB, _GAP = re.compile(r" *\t *"), re.compile(" +")  # and no other white space: a no-break space may be a word

# -- tables -------------------------------------------------------------------------------------------


def _csv(path: File, packed: bool, comma: str, complain: Complain) -> Content:
    """Read delimited text; quoting is checked, because a stray quote swallows rows."""
    csv.field_size_limit(max(csv.field_size_limit(), _LARGEST))
    reader = csv.reader(_lines(path, packed), delimiter=comma, strict=True)
    try:
        header = next((row for row in reader if row), [])
    except csv.Error as error:
        raise _csv_error(path, 1, error) from error
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise DataError(f"{path.name} has two columns named {twice[0]!r}", hint="give each column its own name")
    if not header:
        raise DataError(f"{path.name} has no rows: all its lines are blank", hint="write at least one row into it")
    return Content(header, _csv_records(path, reader, header, complain))


def _csv_records(path: File, reader: Any, header: list[str], complain: Complain) -> Iterator[Record]:
    start = reader.line_num + 1
    try:
        for row in reader:
            if len(row) == len(header):
                yield Record(dict(zip(header, row)), start)
            elif row:
                complain(
                    f"{path.name}, line {start}: found {len(row)} fields, expected {len(header)} ({', '.join(header)})",
                    "put a text that holds the separator into double quotes",
                )
            start = reader.line_num + 1
    except csv.Error as error:
        raise _csv_error(path, start, error) from error


def _csv_error(path: File, line: int, error: csv.Error) -> DataError:
    what = {"unexpected end of data": "a double quote is opened and never closed"}.get(str(error), str(error))
    return DataError(
        f"{path.name}, in the row from line {line}: {what}",
        hint='write a double quote inside a text twice, and the text in quotes: "she said ""yes"""',
    )


def _parquet(path: File, packed: bool) -> Content:
    with _opened_parquet(path, packed) as table:
        return Content(list(table.schema_arrow.names), _parquet_records(path, packed))


def _parquet_records(path: File, packed: bool) -> Iterator[Record]:
    with _opened_parquet(path, packed) as table:
        for batch in table.iter_batches(batch_size=_HEAD):
            yield from map(Record, batch.to_pylist())


@contextmanager
def _opened_parquet(path: File, packed: bool) -> Iterator[Any]:
    """Open a parquet file; one in gzip, which has no way to its end, is unpacked into a nameless file."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("reading parquet", install="pyarrow") from error
    try:
        with tempfile.TemporaryFile() if packed else path.open("rb") as file:
            if packed:
                with path.open("rb") as raw, gzip.open(raw, "rb") as compressed:
                    shutil.copyfileobj(compressed, file)
            with pq.ParquetFile(file) as table:
                yield table
    except (pa.ArrowException, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path.name} is not a readable parquet file: {error}", hint="write it again") from error
    except Exception:
        with _reading(path):
            raise


def is_file(text: str) -> bool:
    """Say whether a string names a data file rather than being a text; one word with such an ending does."""
    name = len(text) < 1024 and "\n" not in text and text.lower().endswith(_ENDINGS)
    return name and (is_url(text) or Path(text).is_file() or not any(c.isspace() for c in text))
