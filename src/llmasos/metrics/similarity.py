"""Scores of embeddings: how well cosines follow given scores, and how well they find the right partner.

``ScoredPairsScorer`` is for pairs with a score. ``PartnerScorer`` is for pairs and triplets that belong
together: each text looks for its partner among those of the other rows. A row keeps two numbers, never its
vectors, but for the first rows, whose texts are what all rows search in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import Floats, Interval, Report, counted_rows, finite, interval, resamples

CUTOFFS = (1, 10)
"""The k of recall@k."""
_FIRST = 10  # the k of ndcg@k
_DIGITS = 6  # of a cosine: the same two texts get the same one, whatever batch they were computed in
_AT_ONCE = 512  # rows whose similarities with all candidates are held at once


def unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Scale vectors to length 1, as torch's ``normalize`` does (a vector of zeros stays). (..., width)."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-12), dtype=np.float32)


def grouped(vectors: NDArray[Any], group: int) -> NDArray[np.float32]:
    """Return checked unit vectors, example by example. vectors: (examples * group, width)."""
    examples: NDArray[np.float32] = unit(finite(vectors)).reshape(-1, group, vectors.shape[-1])
    return examples


def cosines(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosine of each pair of unit vectors, at most 1. (pairs, width) -> (pairs,)."""
    found = np.einsum("ij,ij->i", first, second, dtype=np.float64)
    return np.asarray(np.clip(found, -1.0, 1.0).round(_DIGITS), dtype=np.float32)


def belonging(ids: NDArray[np.int64], pool: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Say which candidates no row may count as wrong answers.

    These are the row's own partner wherever it stands, partners of the row's own text in other rows, and that
    text itself.

    Args:
        ids: a number for each text of each row: anchor, positive and perhaps negative, (rows, 2 or 3).
        pool: the same of the rows whose positives, then negatives, are the candidates.

    Returns:
        (rows, candidates), candidates being as many as rows in the pool, or twice that.
    """
    anchor, positive = ids[:, 0, None], ids[:, 1, None]
    parts = [(positive == pool[:, 1]) | (anchor == pool[:, 0]) | (anchor == pool[:, 1])]
    if pool.shape[1] > 2:
        parts.append((positive == pool[:, 2]) | (anchor == pool[:, 2]))
    return np.concatenate(parts, axis=1)


class ScoredPairsScorer:
    """Correlates the cosine of pairs with their scores.

    ``spearman`` compares ranks, ``pearson`` the values (scipy's definitions); both are 0 where either side is
    constant.
    """

    def __init__(self) -> None:
        self._cosines: list[NDArray[np.float32]] = []
        self._scores: list[NDArray[np.float32]] = []

    def add(self, logits: NDArray[Any], targets: NDArray[Any]) -> None:
        """Take in some pairs. logits: embeddings, (2 * pairs, width); targets: scores, (pairs,)."""
        pairs = grouped(logits, 2)
        self._cosines.append(cosines(pairs[:, 0], pairs[:, 1]))
        self._scores.append(np.asarray(targets, dtype=np.float32))

    def values(self) -> dict[str, float]:
        """Return both correlations."""
        from scipy.stats import pearsonr, spearmanr

        given, wanted = self._arrays()
        if np.ptp(given) == 0 or np.ptp(wanted) == 0:
            return self.baseline()
        return {
            "spearman": float(spearmanr(given, wanted).statistic),
            "pearson": float(pearsonr(given.astype(np.float64), wanted.astype(np.float64)).statistic),
        }

    def baseline(self) -> dict[str, float]:
        """Return 0: one answer for all orders nothing."""
        counted_rows(sum(map(len, self._scores)))
        return {"spearman": 0.0, "pearson": 0.0}

    def report(self, samples: int = 1000, seed: int = 0) -> Report:
        """Return both correlations, their intervals from resampled pairs."""
        given, wanted = self._arrays()
        ranks = [_ranks_of(values) for values in (given, wanted)]
        plain = given.astype(np.float64), wanted.astype(np.float64)
        draws: dict[str, list[Floats]] = {"spearman": [], "pearson": []}
        for counts in resamples(np.ones(len(given)), samples, np.random.default_rng(seed)):
            draws["spearman"].append(_correlation(counts, *(ranked(counts) for ranked in ranks)))
            draws["pearson"].append(_correlation(counts, *plain))
        found = {name: interval(value, np.concatenate(draws[name])) for name, value in self.values().items()}
        return Report(len(given), found, self.baseline(), per_class={})

    def _arrays(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        counted_rows(sum(map(len, self._scores)))
        return np.concatenate(self._cosines), np.concatenate(self._scores)


def _ranks_of(values: NDArray[Any]) -> Callable[[NDArray[Any]], Floats]:
    """Return a function: how often each value occurs, (samples, values), -> its rank in that sample, ties shared."""
    distinct, place = np.unique(values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(distinct)))

    def ranked(counts: NDArray[Any]) -> Floats:
        each = np.add.reduceat(counts[:, order], starts, axis=1).astype(np.float64)
        return np.asarray((each.cumsum(axis=1) - 0.5 * (each - 1.0))[:, place])

    return ranked


def _correlation(counts: NDArray[Any], x: Floats, y: Floats) -> Floats:
    """Return Pearson's correlation of each weighted sample, 0 where undefined. counts: (samples, values)."""
    rows = counts.sum(axis=1, keepdims=True)
    x, y = (v - (counts * v).sum(axis=1, keepdims=True) / rows for v in (x, y))
    top = (counts * x * y).sum(axis=1)
    bottom = np.sqrt((counts * x * x).sum(axis=1) * (counts * y * y).sum(axis=1))
    return np.asarray(np.divide(top, bottom, out=np.zeros(len(top)), where=bottom > 1e-12))


class PartnerScorer:
    """Ranks each anchor's positive among the candidates: the positives (and negatives) of the first rows scored.

    These are the first ``score`` call's rows, some thousands, so that neither memory nor work explode with the
    data; the positive itself is always there. A candidate that belongs to the row too is left out
    (``belonging``); one that is as near as the positive counts as nearer. ``recall@k`` is the share of rows
    whose positive is among the first k, ``mrr`` the mean of 1 / rank, ``ndcg@10`` that of 1 / log2(1 + rank) where
    the rank is at most 10 (Järvelin & Kekäläinen 2002, for one relevant text), and for triplets ``accuracy`` the
    share whose positive is nearer than their own negative.
    """

    def __init__(self, *, triplets: bool = False) -> None:
        self.group = 3 if triplets else 2
        self._pool: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None
        self._ranks: list[NDArray[np.int64]] = []
        self._rivals: list[NDArray[np.int64]] = []
        self._right: list[NDArray[np.bool_]] = []

    def add(self, logits: NDArray[Any], targets: NDArray[Any]) -> None:
        """Take in some rows. logits: embeddings, (group * rows, width); targets: a number for each text."""
        vectors = grouped(logits, self.group)
        if self._pool is None:
            self._pool = np.concatenate([vectors[:, i] for i in range(1, self.group)]), targets
        candidates, ids = self._pool
        own = cosines(vectors[:, 0], vectors[:, 1])
        for start in range(0, len(vectors), _AT_ONCE):
            here = slice(start, start + _AT_ONCE)
            rival = ~belonging(targets[here], ids)
            nearer = (vectors[here, 0] @ candidates.T > own[here, None] - 10.0**-_DIGITS) & rival
            self._ranks.append(1 + nearer.sum(axis=1))
            self._rivals.append(rival.sum(axis=1))
        if self.group == 3:
            self._right.append(own > cosines(vectors[:, 0], vectors[:, 2]))

    def values(self) -> dict[str, float]:
        """Return recall, mean reciprocal rank, and the accuracy of triplets."""
        return {name: float(each.mean()) for name, each in self._each().items()}

    def baseline(self) -> dict[str, float]:
        """Return what a random order gives on average."""
        places = 1 + self._joined(self._rivals)
        harmonic = np.cumsum(1.0 / np.arange(1, int(places.max()) + 1))
        out = {f"recall@{k}": float(np.minimum(1.0, k / places).mean()) for k in CUTOFFS}
        out["mrr"] = float((harmonic[places - 1] / places).mean())
        gains = _gains(np.arange(1, int(places.max()) + 1)).cumsum()
        out[f"ndcg@{_FIRST}"] = float((gains[places - 1] / places).mean())
        return out | ({"accuracy": 0.5} if self.group == 3 else {})

    def report(self, samples: int = 1000, seed: int = 0) -> Report:
        """Return all scores, their intervals from resampled rows."""
        each = self._each()
        metrics = dict(zip(each, resampled_means(np.stack(list(each.values()), axis=1), samples, seed), strict=True))
        return Report(len(each["mrr"]), metrics, self.baseline(), per_class={})

    def _each(self) -> dict[str, Floats]:
        """Return the scores of each row, (rows,)."""
        ranks = self._joined(self._ranks)
        out = {f"recall@{k}": (ranks <= k).astype(np.float64) for k in CUTOFFS}
        out["mrr"] = 1.0 / ranks
        out[f"ndcg@{_FIRST}"] = _gains(ranks)
        return out | ({"accuracy": np.concatenate(self._right).astype(np.float64)} if self.group == 3 else {})

    @staticmethod
    def _joined(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
        counted_rows(sum(map(len, parts)))
        return np.concatenate(parts)


def _gains(ranks: NDArray[np.int64]) -> Floats:
    """Return the normalised discounted gain of one relevant text at each rank, from 1."""
    return np.where(ranks <= _FIRST, 1.0 / np.log2(1.0 + ranks), 0.0)


def resampled_means(each: Floats, samples: int, seed: int) -> Iterator[Interval]:
    """Yield the mean of each column with its interval. each: (rows, columns)."""
    cells, counts = np.unique(each, axis=0, return_counts=True)  # rows that scored alike are one cell
    parts = [drawn @ cells for drawn in resamples(counts, samples, np.random.default_rng(seed))]
    draws = np.concatenate(parts) / len(each)
    return (interval(value, draws[:, i]) for i, value in enumerate(each.mean(axis=0)))
