"""Scores of classifiers: one label per row, or several.

Precision, recall, F1, accuracy and the Matthews coefficient depend on counts alone, and those are all
that is kept. The expected calibration error (Guo et al. 2017) is the mean distance between how sure
the model was and how often it was right, over 15 bins of confidence.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import (
    BINS,
    Blocks,
    Confusion,
    Floats,
    Report,
    assembled,
    averages,
    calibration_interval,
    counted_rows,
    divided,
    finite,
    label_scores,
    resamples,
)

_FINE = 100  # cells per calibration bin in the bootstrap: a row's confidence moves by under 1/1500


class ClassificationScorer:
    """Scores rows of one label each.

    Macro averages are over the classes that occur among the targets or the predictions, as
    scikit-learn does it by default: a class that the data lacks has no recall to average.

    Args:
        labels: the class names, in the order of the model's outputs.
    """

    def __init__(self, labels: list[str]) -> None:
        self.labels = labels
        self._matrix = np.zeros((len(labels), len(labels)), dtype=np.int64)  # (target, prediction)
        self._count = np.zeros((BINS * _FINE, 2), dtype=np.int64)  # (confidence, right or not)
        self._gap = np.zeros((BINS * _FINE, 2))  # sums of right - confidence

    def add(self, logits: NDArray[Any], targets: NDArray[Any]) -> None:
        """Take in one batch. logits: (rows, labels); targets: (rows,) class numbers."""
        exact = finite(logits)
        best = exact.argmax(axis=1)
        # In float32 the sums of up to half a million rows are exact: batches change nothing.
        confidence = (1.0 / np.exp(exact - exact.max(axis=1, keepdims=True)).sum(axis=1)).astype(np.float32)
        right = (best == targets).astype(np.int64)
        cell = (_bin(confidence, BINS * _FINE), right)
        np.add.at(self._matrix, (targets, best), 1)
        np.add.at(self._count, cell, 1)
        np.add.at(self._gap, cell, right - confidence.astype(np.float64))

    def values(self) -> dict[str, float]:
        """Return the point values so far."""
        rows = counted_rows(int(self._matrix.sum()))
        return {**_plain(_class_values(*_margins(self._matrix))), "ece": float(np.abs(self._gaps(rows)).sum())}

    def baseline(self) -> dict[str, float]:
        """Return the values of always naming the most common class."""
        counted_rows(int(self._matrix.sum()))
        matrix = np.zeros_like(self._matrix)
        actual = self._matrix.sum(axis=1)
        matrix[:, actual.argmax()] = actual
        return {**_plain(_class_values(*_margins(matrix))), "ece": 0.0}

    def report(self, samples: int = 1000, seed: int = 0) -> Report:
        """Return all scores; the point values are scikit-learn's."""
        rows = counted_rows(int(self._matrix.sum()))
        rng = np.random.default_rng(seed)
        draws = self._draws(samples, rng)
        ece = calibration_interval(self._gaps(rows), self._gap_draws(samples, rng))
        actual = self._matrix.sum(axis=1)
        confusion = Confusion(list(self.labels), self._matrix.tolist())
        return assembled(rows, self.labels, self._reference(), draws, ece, actual, self.baseline(), confusion)

    def _draws(self, samples: int, rng: np.random.Generator) -> dict[str, Floats]:
        """Resample the filled cells of the matrix and score each resample."""
        target, best = np.nonzero(self._matrix)  # sorted by target
        by_best = np.argsort(best, kind="stable")
        parts = []
        for cells in resamples(self._matrix[target, best], samples, rng):
            counts = np.zeros((3, len(cells), len(self.labels)), dtype=np.int64)
            counts[0][:, target[target == best]] = cells[:, target == best]
            counts[1][:, np.unique(best)] = _sums(cells[:, by_best], best[by_best])
            counts[2][:, np.unique(target)] = _sums(cells, target)
            parts.append({**_class_values(*counts), **label_scores(*counts)})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _gaps(self, rows: int) -> Floats:
        return np.asarray(self._gap.reshape(BINS, -1).sum(axis=1) / rows)

    def _gap_draws(self, samples: int, rng: np.random.Generator) -> Floats:
        """Resample the filled cells of confidence, each row taken at its cell's mean."""
        (filled,) = np.nonzero(self._count.ravel())
        counts = self._count.ravel()[filled]
        gap = np.zeros((len(filled), BINS))
        gap[np.arange(len(filled)), filled // (2 * _FINE)] = self._gap.ravel()[filled] / counts
        drawn = [cells @ gap for cells in resamples(counts, samples, rng)]
        return np.asarray(np.concatenate(drawn) / counts.sum())

    def _reference(self) -> dict[str, Any]:
        """Let scikit-learn score the matrix: each filled cell is one row with a weight."""
        from sklearn.metrics import accuracy_score, matthews_corrcoef

        target, best = np.nonzero(self._matrix)
        weight = self._matrix[target, best]
        alone = (np.concatenate([target, best]) == target[0]).all()  # one class only: undefined, and a warning
        return {
            "accuracy": accuracy_score(target, best, sample_weight=weight),
            "mcc": 0.0 if alone else matthews_corrcoef(target, best, sample_weight=weight),
            **_sklearn_scores(target, best, weight, range(len(self.labels))),
        }


class MultiLabelScorer:
    """Scores rows that carry any number of labels.

    ``accuracy`` is the share of rows with exactly the right labels; the calibration error is over all
    decisions, the confidence being the probability of the answer given. Labels of one row belong
    together, so the bootstrap draws rows (``Blocks``).

    Args:
        labels: the label names, in the order of the model's outputs.
        threshold: the probability from which a label counts.
    """

    def __init__(self, labels: list[str], threshold: float = 0.5) -> None:
        self.labels = labels
        self._threshold = threshold
        # hits, predicted and actual of each label; rows, rows all right; gaps of each bin
        self._blocks = Blocks(3 * len(labels) + 2 + BINS)
        self._targets: list[NDArray[np.uint8]] = []  # one bit per label

    def add(self, logits: NDArray[Any], targets: NDArray[Any]) -> None:
        """Take in one batch. logits: (rows, labels); targets: zeros and ones of that shape."""
        if not len(logits):
            return
        probability = np.exp(-np.logaddexp(0.0, -finite(logits)))
        given, wanted = probability >= self._threshold, targets > 0.5
        confidence = np.where(given, probability, 1.0 - probability).astype(np.float32)
        gap = (given == wanted) - confidence.astype(np.float64)
        rows = len(given)
        cell = _bin(confidence, BINS) + BINS * np.arange(rows)[:, None]
        gaps = np.bincount(cell.ravel(), gap.ravel(), minlength=BINS * rows).reshape(rows, BINS)
        right = (given == wanted).all(axis=1, keepdims=True)
        self._blocks.add(np.hstack([given & wanted, given, wanted, np.ones((rows, 1)), right, gaps]))
        self._targets.append(np.packbits(wanted, axis=1))

    def values(self) -> dict[str, float]:
        """Return the point values so far."""
        counted_rows(self._blocks.rows)
        lines = self._blocks.total
        return {**_plain(self._scored(lines)), "ece": float(np.abs(self._gaps(lines)).sum())}

    def baseline(self) -> dict[str, float]:
        """Return the values of always giving the most common set of labels."""
        rows, k = counted_rows(self._blocks.rows), len(self.labels)
        sets, counts = np.unique(np.concatenate(self._targets), axis=0, return_counts=True)
        common = np.unpackbits(sets[counts.argmax()], count=k).astype(np.float64)
        actual = self._blocks.total[2 * k : 3 * k]
        scores: list[Any] = [common * actual, common * rows, actual, [rows, counts.max()]]
        return {**_plain(self._scored(np.concatenate(scores))), "ece": 0.0}

    def report(self, samples: int = 1000, seed: int = 0) -> Report:
        """Return all scores; precision, recall and F1 are scikit-learn's."""
        rows = counted_rows(self._blocks.rows)
        lines, total = self._blocks.drawn(samples, seed), self._blocks.total
        draws = {**self._scored(lines), **label_scores(*self._counts(lines))}
        points = {**self.values(), **self._reference()}
        ece = calibration_interval(self._gaps(total), self._gaps(lines))
        support = self._counts(total)[2]
        return assembled(rows, self.labels, points, draws, ece, support, self.baseline())

    def _counts(self, lines: Floats) -> tuple[Floats, Floats, Floats]:
        k = len(self.labels)
        return lines[..., :k], lines[..., k : 2 * k], lines[..., 2 * k : 3 * k]

    def _scored(self, lines: Floats) -> dict[str, Floats]:
        """Score sums of blocks, (..., columns)."""
        k = len(self.labels)
        hits, given, wanted = self._counts(lines)
        rows = lines[..., 3 * k]
        wrong = (given + wanted - 2 * hits).sum(-1)
        return {
            "accuracy": lines[..., 3 * k + 1] / rows,
            **averages(hits, given, wanted),
            "hamming_loss": wrong / (rows * k),
        }

    def _gaps(self, lines: Floats) -> Floats:
        k = len(self.labels)
        return np.asarray(lines[..., 3 * k + 2 :] / (lines[..., 3 * k, None] * k))

    def _reference(self) -> dict[str, Any]:
        """Let scikit-learn score the counts: per label one weighted row of hits, misses, false alarms."""
        k = len(self.labels)
        hits, given, wanted = self._counts(self._blocks.total)
        one, none = np.eye(k, dtype=np.int8), np.zeros((k, k), dtype=np.int8)
        target, answer = np.vstack([one, one, none]), np.vstack([one, none, one])
        return _sklearn_scores(target, answer, np.concatenate([hits, wanted - hits, given - hits]), range(k))


def _bin(confidence: NDArray[np.float32], bins: int) -> NDArray[np.int64]:
    """Return the number of each confidence's bin; bins are open below and closed above."""
    return np.clip(np.ceil(confidence.astype(np.float64) * bins).astype(np.int64) - 1, 0, bins - 1)


def _margins(matrix: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return hits, predictions and targets of each class of a confusion matrix."""
    return matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)


def _sums(cells: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Add up neighbouring columns of the same group; groups are sorted."""
    return np.add.reduceat(cells, np.unique(groups, return_index=True)[1], axis=1)


def _class_values(hits: NDArray[Any], predicted: NDArray[Any], actual: NDArray[Any]) -> dict[str, Floats]:
    """Return what follows from the confusion matrix's margins, of shape (..., classes)."""
    rows = actual.sum(-1)
    return {
        "accuracy": hits.sum(-1) / rows,
        **averages(hits, predicted, actual, among=predicted + actual > 0),
        "mcc": _matthews(hits, predicted, actual),
    }


def _matthews(hits: NDArray[Any], predicted: NDArray[Any], actual: NDArray[Any]) -> Floats:
    """Return the Matthews correlation of several classes (Gorodkin 2004), 0 where it is undefined."""
    rows = actual.sum(-1, dtype=np.float64)
    p, t = predicted / rows[..., None], actual / rows[..., None]
    spread = np.sqrt((1 - (p * p).sum(-1)).clip(0)) * np.sqrt((1 - (t * t).sum(-1)).clip(0))
    return divided(hits.sum(-1) / rows - (p * t).sum(-1), np.where(spread > 1e-9, spread, 0.0))


def _sklearn_scores(target: NDArray[Any], answer: NDArray[Any], weight: NDArray[Any], labels: range) -> dict[str, Any]:
    """Return scikit-learn's precision, recall and F1: of each label, and their averages."""
    from sklearn.metrics import precision_recall_fscore_support

    names = ("precision", "recall", "f1")
    each = precision_recall_fscore_support(target, answer, labels=list(labels), sample_weight=weight, zero_division=0)
    out: dict[str, Any] = dict(zip(names, each, strict=False))
    for average in ("macro", "micro", "weighted"):
        scores = precision_recall_fscore_support(target, answer, average=average, sample_weight=weight, zero_division=0)
        out |= {f"{name}_{average}": float(score) for name, score in zip(names, scores, strict=False)}
    return out


def _plain(scores: dict[str, Floats]) -> dict[str, float]:
    """Return single scores as Python floats."""
    return {name: float(score) for name, score in scores.items()}
