"""The default store: one SQLite file, with FTS5 for words (BM25) and sqlite-vec for vectors.

SQLite comes with ``apsw``, for Python's own is often built without loadable extensions. Words are stemmed by Porter's
rules. The nearest vectors are found exactly, by looking at all of them: 100,000 take some tens of milliseconds.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import HardwareError, MissingExtraError, UsageError
from ._words import asked, indexed
from .base import Entry, Hit, Passage, Vectors

if TYPE_CHECKING:
    import apsw

_NAME = 0x4C4C4D69  # "LLMi", SQLite's field for whose file this is
_FURTHEST = 4096  # how many sqlite-vec finds at most
_COLUMNS = 'text, document, source, title, heading, page, start, "end"'
_TABLES = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE documents (id TEXT PRIMARY KEY, source TEXT NOT NULL, fingerprint TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX documents_source ON documents (source);
CREATE TABLE passages (
    number INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT NOT NULL, document TEXT NOT NULL REFERENCES documents (id),
    source TEXT NOT NULL, title TEXT NOT NULL, heading TEXT NOT NULL, page INTEGER, start INTEGER NOT NULL,
    "end" INTEGER NOT NULL);
CREATE INDEX passages_document ON passages (document);
CREATE VIRTUAL TABLE words USING fts5 (
    text, content = '', contentless_delete = 1, tokenize = 'porter unicode61 remove_diacritics 2');
"""


class SQLite:
    """A file; ``:memory:`` keeps nothing."""

    order = 20

    def matches(self, place: str) -> bool:
        """Say whether the place is a path; an address is none."""
        return bool(place) and "://" not in place

    def open(self, place: str) -> File:
        """Open a file, or make it; see ``Kind.open``."""
        return File(place)


class File:
    """An open file; one connection, which threads use in turn."""

    def __init__(self, place: str) -> None:
        try:
            import apsw
            import sqlite_vec
        except ImportError as error:
            raise MissingExtraError("an index in SQLite", install='"llmasos[apps]"') from error
        self._lock = threading.RLock()
        path = place if place == ":memory:" else os.path.abspath(os.path.expanduser(place))
        with _worded(path):
            self._base = apsw.Connection(path)
            try:
                self._base.set_busy_timeout(30_000)  # another program may be writing
                self._open(path)
                self._base.enable_load_extension(True)
                self._base.load_extension(sqlite_vec.loadable_path())
                self._base.enable_load_extension(False)
            except BaseException:
                self._base.close()
                raise

    def _open(self, path: str) -> None:
        name = self._one("PRAGMA application_id")
        if name == 0 and self._one("SELECT count(*) FROM sqlite_schema") == 0:
            self._run("PRAGMA journal_mode = WAL")
            with self._base:
                self._run(_TABLES)
                self._run(f"PRAGMA application_id = {_NAME}")
        elif name != _NAME:
            raise UsageError(f"{path} is a database of something else", hint="give the index a file of its own")

    def facts(self) -> dict[str, str]:
        """Return what was noted when the store was made."""
        return dict(self._rows("SELECT name, value FROM facts"))

    def begin(self, facts: Mapping[str, str], width: int) -> None:
        """Make the table of vectors, and note the facts."""
        with self._lock, self._base:
            if width:
                self._run(f"CREATE VIRTUAL TABLE vectors USING vec0 (vector float[{width}] distance_metric=cosine)")
            for fact in {**facts, "width": str(width)}.items():
                self._run("INSERT INTO facts VALUES (?, ?)", fact)

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprint of each document."""
        return dict(self._rows("SELECT id, fingerprint FROM documents"))

    def put(self, entries: Iterable[Entry]) -> None:
        """Store documents in one transaction."""
        with self._lock, self._base:
            for entry in entries:
                self._drop(entry.document)
                self._run("INSERT INTO documents VALUES (?, ?, ?)", (entry.document, entry.source, entry.fingerprint))
                for place, one in enumerate(entry.passages):
                    told = (one.text, one.document, one.source, one.title, one.heading, one.page, one.start, one.end)
                    self._run(f"INSERT INTO passages ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", told)
                    number = self._base.last_insert_rowid()
                    self._run("INSERT INTO words (rowid, text) VALUES (?, ?)", (number, indexed(one.searched)))
                    if entry.vectors is not None:
                        vector = _bytes(entry.vectors[place])
                        self._run("INSERT INTO vectors (rowid, vector) VALUES (?, ?)", (number, vector))

    def remove(self, source: str) -> int:
        """Remove the documents of a source, or the one with this id."""
        with self._lock, self._base:
            found = self._rows("SELECT id FROM documents WHERE source = ? OR id = ?", (source, source))
            for (document,) in found:
                self._drop(document)
        return len(found)

    def by_words(self, query: str, k: int) -> list[Hit]:
        """Find by FTS5's BM25; a word that occurs is enough."""
        words = " OR ".join(f'"{word}"' for word in asked(query))
        if not words or k < 1:
            return []
        found = self._rows("SELECT rowid, -rank FROM words WHERE words MATCH ? ORDER BY rank, rowid LIMIT ?",
                           (words, k))  # fmt: skip
        return [Hit(*one) for one in found]

    def by_vector(self, vector: Vectors, k: int) -> list[Hit]:
        """Find by sqlite-vec; at most 4096."""
        k = min(k, _FURTHEST)
        if k < 1:
            return []
        found = self._rows("SELECT rowid, 1 - distance FROM vectors WHERE vector MATCH ? AND k = ? ORDER BY distance",
                           (_bytes(vector), k))  # fmt: skip
        return [Hit(*one) for one in found]

    def passages(self, numbers: Sequence[int]) -> dict[int, Passage]:
        """Return passages by their numbers; those that are gone are left out."""
        marks = ", ".join("?" * len(numbers))
        rows = self._rows(f"SELECT number, {_COLUMNS} FROM passages WHERE number IN ({marks})", tuple(numbers))
        return {number: Passage(*rest) for number, *rest in rows}

    def size(self) -> tuple[int, int]:
        """Return how many documents and passages there are."""
        (row,) = self._rows("SELECT (SELECT count(*) FROM documents), (SELECT count(*) FROM passages)")
        return row[0], row[1]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._base.close()

    def _drop(self, document: str) -> None:
        numbers = self._rows("SELECT number FROM passages WHERE document = ?", (document,))
        if numbers and self._one("SELECT count(*) FROM sqlite_schema WHERE name = 'vectors'"):
            self._base.executemany("DELETE FROM vectors WHERE rowid = ?", numbers)
        self._base.executemany("DELETE FROM words WHERE rowid = ?", numbers)
        self._run("DELETE FROM passages WHERE document = ?", (document,))
        self._run("DELETE FROM documents WHERE id = ?", (document,))

    def _run(self, text: str, values: tuple[Any, ...] = ()) -> apsw.Cursor:
        with _worded(self._base.filename):
            return self._base.execute(text, values)

    def _rows(self, text: str, values: tuple[Any, ...] = ()) -> list[Any]:
        with self._lock, _worded(self._base.filename):
            return list(self._base.execute(text, values))

    def _one(self, text: str) -> Any:
        return self._rows(text)[0][0]


@contextmanager
def _worded(path: str) -> Iterator[None]:
    """Say what SQLite cannot do in words of ours."""
    import apsw

    try:
        yield
    except apsw.NotADBError as error:
        raise UsageError(f"{path} is not an index", hint="give the index a file of its own") from error
    except (apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError) as error:
        raise UsageError(f"{path} cannot be opened to write: {error}", hint="give another file") from error
    except apsw.FullError as error:
        raise HardwareError(f"no space left on the disk while writing {path}", hint="free some space") from error
    except apsw.BusyError as error:
        raise UsageError(f"another program is writing to {path}", hint="wait for it, or take another file") from error
    except apsw.CorruptError as error:
        raise UsageError(f"{path} is damaged: {error}", hint="delete it, and add the documents again") from error


def _bytes(vector: Vectors) -> bytes:
    return np.ascontiguousarray(vector, dtype="<f4").tobytes()


PLUGIN = SQLite()
