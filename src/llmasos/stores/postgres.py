"""PostgreSQL with pgvector: ``postgresql://user@host/base``, and ``?index=NAME`` for one of several indexes in it.

The tables of an index lie in a schema of its own (``llmasos_NAME``), which is made. Words are what PostgreSQL's English
configuration makes of a text, without stop words and stemmed by Snowball; BM25 is computed over them in SQL, since the
ranking that PostgreSQL has does not know how rare a word is. The nearest vectors are found exactly up to some tens of
thousands; beyond, an index of pgvector (HNSW) answers, which finds nearly all of them.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from ..core.errors import MissingExtraError, RemoteError, UsageError
from ._words import K1, B, asked, indexed
from .base import Entry, Hit, Passage, Vectors

_PREFIXES = ("postgresql://", "postgres://")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
_WIDEST = 2000  # what pgvector's HNSW takes
_TABLES = """
CREATE TABLE {s}.facts (name text PRIMARY KEY, value text NOT NULL);
CREATE TABLE {s}.documents (id text PRIMARY KEY, source text NOT NULL, fingerprint text NOT NULL);
CREATE INDEX ON {s}.documents (source);
CREATE TABLE {s}.passages (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text NOT NULL,
    document text NOT NULL REFERENCES {s}.documents (id) ON DELETE CASCADE, source text NOT NULL, title text NOT NULL,
    heading text NOT NULL, page integer, start integer NOT NULL, "end" integer NOT NULL, length integer NOT NULL);
CREATE INDEX ON {s}.passages (document);
CREATE TABLE {s}.words (
    word text NOT NULL, number bigint NOT NULL REFERENCES {s}.passages (number) ON DELETE CASCADE,
    times integer NOT NULL, PRIMARY KEY (word, number));
CREATE INDEX ON {s}.words (number);
"""
_PUT = """
WITH lexemes AS (SELECT lexeme, cardinality(positions) AS times
                 FROM unnest(to_tsvector('english', %(words)s))),
     passage AS (
        INSERT INTO {s}.passages (text, document, source, title, heading, page, start, "end", length)
        SELECT %(text)s, %(document)s, %(source)s, %(title)s, %(heading)s, %(page)s, %(start)s, %(end)s,
               coalesce((SELECT sum(times) FROM lexemes), 0)
        RETURNING number),
     counted AS (INSERT INTO {s}.words SELECT lexeme, number, times FROM lexemes, passage)
SELECT number FROM passage
"""
# BM25 (Robertson & Zaragoza 2009), with the +1 of Lucene that keeps a frequent word's weight above 0
_BY_WORDS = """
WITH whole AS (SELECT count(*)::float AS many, coalesce(avg(length), 1) AS usual FROM {s}.passages),
     wanted AS (SELECT lexeme, (SELECT count(*) FROM {s}.words WHERE word = lexeme) AS found
                FROM unnest(to_tsvector('english', %(query)s)))
SELECT number, sum(ln(1 + (many - found + 0.5) / (found + 0.5)) * times * (%(k1)s + 1)
                   / (times + %(k1)s * (1 - %(b)s + %(b)s * length / greatest(usual, 1))))::float AS score
FROM wanted JOIN {s}.words ON word = lexeme JOIN {s}.passages USING (number), whole
GROUP BY number ORDER BY score DESC, number LIMIT %(k)s
"""


class Postgres:
    """An address of a database."""

    order = 10

    def matches(self, place: str) -> bool:
        """Say whether the place is a PostgreSQL address."""
        return place.startswith(_PREFIXES)

    def open(self, place: str) -> Schema:
        """Connect, and make the schema if it is not there; see ``Kind.open``."""
        address, name = _taken_apart(place)
        return Schema(address, name)


class Schema:
    """An open index; one connection, which threads use in turn."""

    def __init__(self, address: str, name: str) -> None:
        try:
            import psycopg
            from pgvector.psycopg import register_vector
        except ImportError as error:
            raise MissingExtraError("an index in PostgreSQL", install='"llmasos[postgres]"') from error
        self._lock = threading.RLock()
        self._s = f"llmasos_{name}"
        with _worded():
            self._base = psycopg.connect(address, autocommit=True, connect_timeout=10)
            try:
                with self._base.transaction():
                    self._run("SELECT pg_advisory_xact_lock(hashtext(%s))", (self._s,))  # two may begin at once
                    self._run("CREATE EXTENSION IF NOT EXISTS vector")
                    if self._run("SELECT to_regclass(%s)", (f"{self._s}.facts",))[0][0] is None:
                        self._run("CREATE SCHEMA IF NOT EXISTS {s}")
                        self._run(_TABLES)
                register_vector(self._base)
            except BaseException:
                self._base.close()
                raise

    def facts(self) -> dict[str, str]:
        """Return what was noted when the store was made."""
        return dict(self._rows("SELECT name, value FROM {s}.facts"))

    def begin(self, facts: Mapping[str, str], width: int) -> None:
        """Make the column of vectors, and note the facts."""
        with self._held():
            if width:
                self._run(f"ALTER TABLE {{s}}.passages ADD COLUMN vector vector({width})")
                if width <= _WIDEST:
                    self._run("CREATE INDEX ON {s}.passages USING hnsw (vector vector_cosine_ops)")
            for fact in {**facts, "width": str(width)}.items():
                self._run("INSERT INTO {s}.facts VALUES (%s, %s)", fact)

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprint of each document."""
        return dict(self._rows("SELECT id, fingerprint FROM {s}.documents"))

    def put(self, entries: Iterable[Entry]) -> None:
        """Store documents in one transaction."""
        with self._held():
            for entry in entries:
                self._run("DELETE FROM {s}.documents WHERE id = %s", (entry.document,))
                self._run("INSERT INTO {s}.documents VALUES (%s, %s, %s)",
                          (entry.document, entry.source, entry.fingerprint))  # fmt: skip
                for place, one in enumerate(entry.passages):
                    ((number,),) = self._run(_PUT, {**vars(one), "words": indexed(one.searched)})
                    if entry.vectors is not None:
                        self._run("UPDATE {s}.passages SET vector = %s WHERE number = %s",
                                  (entry.vectors[place], number))  # fmt: skip

    def remove(self, source: str) -> int:
        """Remove the documents of a source, or the one with this id."""
        with self._held():
            gone = self._run("DELETE FROM {s}.documents WHERE source = %s OR id = %s RETURNING id", (source, source))
            return len(gone)

    def by_words(self, query: str, k: int) -> list[Hit]:
        """Find by BM25 over PostgreSQL's lexemes; a word that occurs is enough."""
        words = " ".join(asked(query))
        return [Hit(*one) for one in self._rows(_BY_WORDS, {"query": words, "k": max(k, 0), "k1": K1, "b": B})]

    def by_vector(self, vector: Vectors, k: int) -> list[Hit]:
        """Find by pgvector's cosine distance; more than 1,000 are looked for among all."""
        with self._held():
            if k > 1000:
                self._run("SET LOCAL enable_indexscan = off")
            else:
                self._run(f"SET LOCAL hnsw.ef_search = {max(40, k)}")
            found = self._run("SELECT number, (1 - (vector <=> %s))::float FROM {s}.passages "
                              "ORDER BY vector <=> %s LIMIT %s", (vector, vector, max(k, 0)))  # fmt: skip
        return [Hit(*one) for one in found]

    def passages(self, numbers: Sequence[int]) -> dict[int, Passage]:
        """Return passages by their numbers; those that are gone are left out."""
        rows = self._rows('SELECT number, text, document, source, title, heading, page, start, "end" FROM {s}.passages '
                          "WHERE number = ANY(%s)", (list(numbers),))  # fmt: skip
        return {number: Passage(*rest) for number, *rest in rows}

    def size(self) -> tuple[int, int]:
        """Return how many documents and passages there are."""
        (row,) = self._rows("SELECT (SELECT count(*) FROM {s}.documents), (SELECT count(*) FROM {s}.passages)")
        return row[0], row[1]

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._base.close()

    @contextmanager
    def _held(self) -> Iterator[None]:
        with self._lock, _worded(), self._base.transaction():
            yield

    def _run(self, text: str, values: Any = None) -> list[Any]:
        done = self._base.execute(text.replace("{s}", self._s).encode(), values)
        return done.fetchall() if done.description else []

    def _rows(self, text: str, values: Any = None) -> list[Any]:
        with self._lock, _worded():
            return self._run(text, values)


def _taken_apart(place: str) -> tuple[str, str]:
    parts = urlsplit(place)
    asked_for = dict(parse_qsl(parts.query))
    name = asked_for.pop("index", "index")
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a name for an index", hint="small letters and digits, such as handbook")
    return urlunsplit(parts._replace(query=urlencode(asked_for))), name


@contextmanager
def _worded() -> Iterator[None]:
    """Say what PostgreSQL cannot do in words of ours, without the address, which may hold a password."""
    import psycopg

    try:
        yield
    except (psycopg.errors.UndefinedFile, psycopg.errors.FeatureNotSupported) as error:
        raise UsageError(f"this PostgreSQL has no pgvector: {_line(error)}",
                         hint="install it there (Debian: postgresql-NN-pgvector)") from error  # fmt: skip
    except psycopg.errors.InsufficientPrivilege as error:
        raise UsageError(f"PostgreSQL refuses: {_line(error)}",
                         hint="let the user create schemas, and the extension vector") from error  # fmt: skip
    except psycopg.OperationalError as error:
        raise RemoteError(f"PostgreSQL cannot be reached: {_line(error)}",
                          hint="is it running, and the address right?") from error  # fmt: skip


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


PLUGIN = Postgres()
