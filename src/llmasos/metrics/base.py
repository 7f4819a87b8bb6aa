"""What a scorer is, the report that it ends in, and the arithmetic that scorers share.

A scorer is fed batch by batch and keeps counts, never logits, so that its memory does not grow with
them. The 95 % intervals are percentile bootstraps over rows (Efron 1979): what the value would have
been, had other rows of the same kind been collected. They say nothing about other data. Only the
calibration error has an interval of its own kind, see ``calibration_interval``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError, TrainingError

Floats = NDArray[np.float64]

BINS = 15
"""Equal-width confidence bins of the calibration error, as in Guo et al. 2017."""

LOWER_IS_BETTER = ("loss", "perplexity", "pseudo_perplexity", "bits_per_byte")
"""Metrics of which the lowest value is the best."""

_AT_ONCE = 2_000_000  # bootstrap draws held at once: 16 MB


class Interval(NamedTuple):
    """A value with the ends of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Confusion:
    """How often each class (line) was taken for each class (column)."""

    labels: list[str]
    matrix: list[list[int]]


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Args:
        rows: how many rows were scored.
        metrics: every scalar, with its interval.
        baseline: the same scalars for always giving the most common answer, with its frequency as
            the confidence (its calibration error is therefore 0).
        per_class: for each label ``precision``, ``recall`` and ``f1`` as intervals, and ``support``,
            the number of rows that carry it.
        confusion: the confusion matrix; None where rows carry several labels.
        signatures: for metrics of which there are many kinds (BLEU), exactly how it was computed.
    """

    rows: int
    metrics: dict[str, Interval]
    baseline: dict[str, float]
    per_class: dict[str, dict[str, Any]]
    confusion: Confusion | None = None
    signatures: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        return {
            "rows": self.rows,
            "metrics": {name: interval._asdict() for name, interval in self.metrics.items()},
            "baseline": dict(self.baseline),
            "per_class": {
                label: {k: v._asdict() if isinstance(v, Interval) else v for k, v in scores.items()}
                for label, scores in self.per_class.items()
            },
            "confusion": None if self.confusion is None else vars(self.confusion).copy(),
            **({"signatures": dict(self.signatures)} if self.signatures else {}),
        }


class Scorer(Protocol):
    """Collects what metrics need from batches of logits and targets."""

    def add(self, outputs: Any, targets: Any, /) -> None:
        """Take in some rows: what the model gave for them and what is right, as the task's ``score`` has both."""

    def values(self) -> dict[str, float]:
        """Return the point values so far; quick enough for every evaluation during training."""

    def baseline(self) -> dict[str, float]:
        """Return the same values for always giving the most common answer."""

    def report(self, samples: int = 1000, seed: int = 0) -> Report:
        """Return the full report, its intervals drawn from ``samples`` resamples of the rows."""


def counted_rows(rows: int) -> int:
    """Return ``rows``.

    Raises:
        DataError: there are none, so that no metric is defined.
    """
    if not rows:
        raise DataError("there are no rows to score", hint="evaluate on data with at least one labelled row")
    return rows


def finite(logits: NDArray[Any]) -> Floats:
    """Return the logits in double precision.

    Raises:
        TrainingError: one is NaN or infinite; a metric over such answers would be a lie.
    """
    if not np.isfinite(logits).all():
        raise TrainingError(
            "the model's outputs are not finite numbers",
            hint="the weights are damaged or the precision overflows: try precision=float32",
        )
    return np.asarray(logits, dtype=np.float64)


def divided(top: NDArray[Any], bottom: NDArray[Any]) -> Floats:
    """Divide, giving 0 where the divisor is 0 (scikit-learn's ``zero_division=0``)."""
    out = np.zeros(np.broadcast(top, bottom).shape)
    return np.asarray(np.divide(top, bottom, out=out, where=np.asarray(bottom) > 0))


def label_scores(hits: NDArray[Any], predicted: NDArray[Any], actual: NDArray[Any]) -> dict[str, Floats]:
    """Return precision, recall and F1 of each label from its counts, all of shape (..., labels)."""
    return {
        "precision": divided(hits, predicted),
        "recall": divided(hits, actual),
        "f1": divided(2 * hits, predicted + actual),
    }


def averages(
    hits: NDArray[Any], predicted: NDArray[Any], actual: NDArray[Any], *, among: NDArray[Any] | None = None
) -> dict[str, Floats]:
    """Return precision, recall and F1 as macro, micro and weighted averages.

    Args:
        hits: rows of each label that were given it, (..., labels).
        predicted: rows that were given each label.
        actual: rows that carry each label.
        among: which labels the macro average is over; all if not given.
    """
    each = label_scores(hits, predicted, actual)
    over = np.ones(hits.shape) if among is None else among.astype(float)
    micro = label_scores(hits.sum(-1), predicted.sum(-1), actual.sum(-1))
    out: dict[str, Floats] = {}
    for name, score in each.items():
        out[f"{name}_macro"] = divided((score * over).sum(-1), over.sum(-1))
        out[f"{name}_micro"] = micro[name]
        out[f"{name}_weighted"] = divided((score * actual).sum(-1), actual.sum(-1))
    return out


def resamples(counts: NDArray[Any], samples: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Resample rows that fall into cells: yield (some samples, cells) until all are drawn.

    Drawing n of n rows with replacement and counting the cells they fall into is, by definition, a
    multinomial draw with the cells' shares as probabilities. So this is the row bootstrap itself, at
    a cost that depends on the number of cells and not on that of rows.
    """
    total = int(counts.sum())
    step = max(1, _AT_ONCE // len(counts))
    for start in range(0, samples, step):
        yield rng.multinomial(total, counts / total, size=min(step, samples - start))


class Blocks:
    """Sums over rows, kept in blocks, which the bootstrap draws.

    Up to 10,000 rows (fewer where there are many columns) each is a block of its own; with more, all join blocks by
    lot. Memory stays the same from there on.

    Args:
        columns: numbers kept for a row.
    """

    def __init__(self, columns: int) -> None:
        self.rows = 0
        self._lot = np.random.default_rng(0)
        self._sums = np.zeros((min(10_000, max(200, 6_000_000 // columns)), columns))

    def add(self, lines: NDArray[Any]) -> None:
        """Take in rows, (rows, columns)."""
        blocks, before = len(self._sums), self.rows
        self.rows += len(lines)
        if self.rows <= blocks:
            self._sums[before : self.rows] = lines
            return
        if before <= blocks:  # one early row in every block would hide what the early rows vary by
            lines = np.vstack([self._sums[:before], lines])
            self._sums[:] = 0.0
        np.add.at(self._sums, self._lot.integers(blocks, size=len(lines)), lines)

    @property
    def total(self) -> Floats:
        """The sum over all rows, (columns,)."""
        return np.asarray(self._sums.sum(axis=0))

    def drawn(self, samples: int, seed: int) -> Floats:
        """Draw blocks with replacement, as many as there are, and add them up, (samples, columns)."""
        blocks, rng = self._sums[: self.rows], np.random.default_rng(seed)
        return np.concatenate([counts @ blocks for counts in resamples(np.ones(len(blocks)), samples, rng)])


def interval(value: float, draws: Floats) -> Interval:
    """Return the value with the 2.5 and 97.5 percentiles of its draws."""
    low, high = np.quantile(draws, (0.025, 0.975))
    return Interval(float(value), float(low), float(high))


def calibration_interval(gaps: Floats, drawn: Floats) -> Interval:
    """Return the calibration error, the sum of the bins' absolute gaps, with its interval.

    Noise in a bin never lowers the error, and resampling adds noise to noise: percentiles of
    resampled errors lie too high, above the truth in 200 of 200 simulated evaluations of a well
    calibrated model. So the upper end reflects the lower percentile at the value (the basic
    bootstrap), and the lower end takes off what noise alone may add: the error of a sample is at most
    the true error plus the sum of the noises' absolute values, and the resamples tell their size.
    In simulations (100 to 5000 rows, calibrated or not) 92 to 100 % of these intervals held the truth.

    Args:
        gaps: share of all rows that were right minus confidence, summed in each bin, (bins,).
        drawn: the same of each resample, (samples, bins).
    """
    value = np.abs(gaps).sum()
    noise = np.quantile(np.abs(drawn - gaps).sum(axis=1), 0.975)
    lower = np.quantile(np.abs(drawn).sum(axis=1), 0.025)
    return Interval(float(value), float(max(0.0, value - noise)), float(max(value, 2 * value - lower)))


def assembled(
    rows: int,
    labels: list[str],
    points: Mapping[str, Any],
    draws: Mapping[str, Floats],
    ece: Interval,
    support: NDArray[Any],
    baseline: dict[str, float],
    confusion: Confusion | None = None,
) -> Report:
    """Build the report. Scalars have draws of shape (samples,), scores of labels (samples, labels)."""
    scalars = {name: interval(points[name], draw) for name, draw in draws.items() if draw.ndim == 1}
    scalars["ece"] = ece
    per_class: dict[str, dict[str, Any]] = {
        label: {
            **{name: interval(points[name][i], draw[:, i]) for name, draw in draws.items() if draw.ndim == 2},
            "support": int(support[i]),
        }
        for i, label in enumerate(labels)
    }
    return Report(rows, scalars, baseline, per_class, confusion)
