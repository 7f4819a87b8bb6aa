"""Score a model as a search: queries, the documents that they are looked for in, and judgements (qrels).

These are the three files of TREC and BEIR: every document is a candidate of every query, and what nobody judged is
not relevant. The texts become vectors by ``LLM.embed``, so no tuning is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from math import isfinite
from typing import Any

from .core.config import EvaluateConfig
from .core.errors import DataError, UsageError, shown
from .core.events import Event, Note, Phase
from .data.dataset import Dataset, read
from .metrics.base import Report
from .metrics.retrieval import retrieval_report, search
from .tasks.base import Field

_TEXT = ("text", "query", "question", "document", "passage", "content", "contents", "body")
_QUERY = ("query_id", "query-id", "qid")
_DOCUMENT = ("doc_id", "document_id", "corpus-id", "corpus_id", "docid", "docno", "pid")

_TEXTS = {
    "queries": (
        Field("id", ("id", "_id", *_QUERY), kind="label", answer=False, doc="the query's name in the judgements"),
        Field("text", _TEXT, doc="the query"),
    ),
    "documents": (
        Field("id", ("id", "_id", *_DOCUMENT), kind="label", answer=False, doc="its name in the judgements"),
        Field("text", _TEXT, doc="the document"),
    ),
}
_QRELS = (
    Field("query_id", _QUERY, kind="label", answer=False, doc="the id of a query"),
    Field("doc_id", _DOCUMENT, kind="label", answer=False, doc="the id of a document"),
    Field("relevance", ("relevance", "score", "rel", "label", "grade"), kind="number", answer=False,
          doc="how relevant the document is, a number; 0 or less for not at all"),
)  # fmt: skip

_FOUND = 100  # documents looked at for each query: the largest k of the scores

Judgements = dict[str, dict[str, float]]


def evaluate_search(
    embed: Callable[..., Any],
    queries: Any,
    documents: Any,
    qrels: Any,
    config: EvaluateConfig,
    columns: Mapping[str, str] | None = None,
) -> Generator[Event, None, Report]:
    """Search every query among all documents and score what is found: ndcg@k, recall@k and mrr@10.

    Args:
        embed: ``LLM.embed``.
        queries, documents: rows with id and text.
        qrels: rows with the ids of a query and a document, and how relevant the document is.
        config: how texts are embedded, and how many may be left out because they are empty.
        columns: refused, since three files have columns.

    Raises:
        UsageError: documents or judgements are missing, or columns are given.
        DataError: ids occur twice or fit nothing, or more texts are empty than allowed.
    """
    if documents is None or qrels is None or columns:
        raise UsageError(
            "a search is scored with documents and qrels, and without columns",
            hint="name the columns id and text in queries and documents, query_id, doc_id and relevance in qrels",
        )
    yield Phase("read")
    asked, known, judged = _texts(queries, "queries"), _texts(documents, "documents"), _judgements(qrels)
    yield from _gaps(asked, known, judged)
    judged = {query: found for query, found in judged.items() if query in asked}
    vectors = []
    for name, texts in (("queries", {query: asked[query] for query in judged}), ("documents", known)):
        yield from _without_empty(texts, name, config.allow_dropped)
        yield Phase(f"embed {name}", len(texts))
        options = {key: value for key, value in config.to_dict().items() if key != "allow_dropped"}
        notes: list[Event] = []
        vectors.append((list(texts), embed(list(texts.values()), progress=notes.append, **options)))
        yield from notes
    (asking, wanted), (ids, candidates) = vectors
    yield Phase("search", len(asking))
    places, _ = search(wanted, candidates, _FOUND)
    found = {query: [ids[i] for i in line] for query, line in zip(asking, places, strict=True)}
    return retrieval_report(found, judged)


def _texts(data: Any, what: str) -> dict[str, str]:
    """Read texts by their ids."""
    rows, out = read(data, _TEXTS[what]), {}
    for at, row in _rows(rows):
        name = _id(row, "id", rows, at)
        if not isinstance(row["text"], str):
            raise _wrong(rows, at, "text", shown(row["text"]), "a string")
        if name in out:
            raise _wrong(rows, at, "id", f"{name} a second time", "an id of its own")
        out[name] = row["text"]
    return out


def _judgements(qrels: Any) -> Judgements:
    rows = read(qrels, _QRELS)
    out: Judgements = {}
    for at, row in _rows(rows):
        query, document = _id(row, "query_id", rows, at), _id(row, "doc_id", rows, at)
        value = row["relevance"]
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise _wrong(rows, at, "relevance", shown(value), "a number")
        if out.setdefault(query, {}).setdefault(document, float(value)) != value:
            raise _wrong(rows, at, "relevance", f"{value:g}, and earlier another", "one judgement of a document")
    return out


def _rows(rows: Dataset) -> Any:
    return enumerate(row for batch in rows.batches() for row in batch)


def _id(row: dict[str, Any], field: str, rows: Dataset, at: int) -> str:
    """Return an id as text: the same where one file has numbers and another strings."""
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise _wrong(rows, at, field, shown(value), "a string or a whole number")
    return str(value)


def _wrong(rows: Dataset, at: int, field: str, found: str, expected: str) -> DataError:
    return DataError(f"{rows.where(at)}, field {field}: found {found}, expected {expected}", hint="correct this row")


def _gaps(asked: dict[str, str], known: dict[str, str], judged: Judgements) -> Generator[Event, None, None]:
    """Say which judgements and queries do not fit together.

    Raises:
        DataError: none do.
    """
    both = asked.keys() & judged.keys()
    relevant = [document for query in both for document, value in judged[query].items() if value > 0]
    if not known.keys() & set(relevant):
        raise DataError(
            f"no judgement of the {len(judged)} judged queries names a query and a relevant document that are there",
            hint=f"ids must agree: queries have {_first(asked)}, documents {_first(known)}, judgements "
            f"{_first(judged)} and {_first(document for found in judged.values() for document in found)}",
        )
    said = (
        (len(asked) - len(both), "queries have no judgement and are not scored"),
        (len(judged) - len(both), "judged queries are not among the queries and are not scored"),
        (sum(document not in known for document in relevant), "relevant documents are not there and cannot be found"),
    )
    yield from (Note(f"{count} {text}", "warning") for count, text in said if count)


def _first(names: Any) -> str:
    return repr(next(iter(names), None))


def _without_empty(texts: dict[str, str], what: str, allowed: float) -> Generator[Event, None, None]:
    """Take out empty texts, which have no vector.

    Raises:
        DataError: there are more than allowed.
    """
    empty = [name for name, text in texts.items() if not text.strip()]
    if len(empty) > allowed * len(texts):
        raise DataError(
            f"{len(empty)} of {len(texts)} {what} are empty, the first is {empty[0]}; allowed are {allowed:.1%}",
            hint="fill or remove them, or a larger allow_dropped",
        )
    for name in empty:
        del texts[name]
    if empty:
        yield Note(f"{len(empty)} of {len(texts) + len(empty)} {what} are empty and are not found", "warning")
