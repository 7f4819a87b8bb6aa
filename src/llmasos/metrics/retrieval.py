"""Search by embeddings, and scores of any search against relevance judgements (qrels), as trec_eval defines them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import Floats, Report, counted_rows
from .similarity import resampled_means, unit

_QUERIES = 256  # whose similarities with a block of documents are held at once
_DOCUMENTS = 65_536


def search(
    queries: NDArray[Any], documents: NDArray[Any], k: int = 10
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the k documents that are nearest to each query by cosine, nearest first.

    Exact, in blocks: memory does not grow with queries times documents. Of equally near documents the earlier
    comes first.

    Args:
        queries: (queries, width).
        documents: (documents, width).
        k: how many to find; fewer where there are fewer.

    Returns:
        Places of documents and their cosines, both (queries, k).
    """
    k = min(k, len(documents))
    places = np.empty((len(queries), k), dtype=np.int64)
    scores = np.empty((len(queries), k), dtype=np.float32)
    for start in range(0, len(queries), _QUERIES):
        here = slice(start, start + _QUERIES)
        wanted = unit(np.asarray(queries[here]))
        best = np.empty((len(wanted), 0), dtype=np.float32)
        at = np.empty((len(wanted), 0), dtype=np.int64)
        for begin in range(0, len(documents), _DOCUMENTS):
            near = wanted @ unit(np.asarray(documents[begin : begin + _DOCUMENTS])).T
            best = np.concatenate([best, near], axis=1)
            at = np.concatenate([at, np.broadcast_to(np.arange(begin, begin + near.shape[1]), near.shape)], axis=1)
            first = np.argsort(-best, axis=1, kind="stable")[:, :k]
            best, at = np.take_along_axis(best, first, axis=1), np.take_along_axis(at, first, axis=1)
        places[here], scores[here] = at, best
    return places, scores


def ndcg(gains: Sequence[float] | Floats, judged: Iterable[float], k: int = 10) -> float:
    """Return the normalised discounted cumulative gain of one query at k (Järvelin & Kekäläinen 2002).

    Args:
        gains: relevance of the documents found, in their order; 0 where none was judged.
        judged: relevance of all documents that were judged for this query.
        k: how many of the found count.
    """
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    best = sorted((gain for gain in judged if gain > 0), reverse=True)[:k]
    ideal = float(np.dot(best, discount[: len(best)]))
    found = np.maximum(np.asarray(gains[:k], dtype=np.float64), 0.0)
    return float(np.dot(found, discount[: len(found)])) / ideal if ideal else 0.0


def retrieval_report(
    found: Mapping[Any, Sequence[Any]],
    qrels: Mapping[Any, Mapping[Any, float]],
    *,
    cutoffs: Sequence[int] = (10, 100),
    samples: int = 1000,
    seed: int = 0,
) -> Report:
    """Score the documents found for each query.

    ``ndcg@k`` with the judged relevance as gain; ``recall@k``, the share of a query's relevant documents (above
    0) that are among its first k; ``mrr@10``, the mean of 1 / place of the first relevant one. Queries without
    any relevant document are left out, as trec_eval does; a query for which nothing was found scores 0.

    Args:
        found: query -> documents, nearest first; at least as many as the largest cut-off, if there are.
        qrels: query -> document -> relevance, 0 or less for none.
        cutoffs: the k of ndcg@k and recall@k.
        samples, seed: of the bootstrap over queries.

    Raises:
        DataError: no query has a relevant document.
    """
    names = [f"{name}@{k}" for k in cutoffs for name in ("ndcg", "recall")] + ["mrr@10"]
    lines = []
    for query, judged in qrels.items():
        relevant = sum(gain > 0 for gain in judged.values())
        if not relevant:
            continue
        gains = np.asarray([judged.get(document, 0.0) for document in found.get(query, ())])
        line: list[float] = []
        for k in cutoffs:
            line += [ndcg(gains, judged.values(), k), float((gains[:k] > 0).sum()) / relevant]
        hits = np.flatnonzero(gains[:10] > 0)
        lines.append([*line, 1.0 / (1 + hits[0]) if len(hits) else 0.0])
    each: Floats = np.asarray(lines, dtype=np.float64).reshape(-1, len(names))
    counted_rows(len(each))
    metrics = dict(zip(names, resampled_means(each, samples, seed), strict=True))
    return Report(len(each), metrics, baseline={}, per_class={})
