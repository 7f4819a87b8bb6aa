"""Scores of tagged words: whole entities found, and single words.

An entity counts as found if its type, its first and its last word are right, as in the CoNLL shared tasks
(Tjong Kim Sang & De Meulder 2003). Precision, recall and F1 are those that seqeval computes in its default
mode; only counts are kept, so that memory does not grow with the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .base import Blocks, Floats, Interval, Report, counted_rows, divided, interval, label_scores

OUTSIDE = "O"


class Span(NamedTuple):
    """An entity over words ``start`` to ``end`` (the first behind it)."""

    label: str
    start: int
    end: int


def spans_of(tags: Sequence[str]) -> list[Span]:
    """Read IOB tags as the CoNLL evaluation does: ``I-`` goes on with its own type, and else begins anew.

    Example:
        >>> spans_of(["B-PER", "I-PER", "O", "B-LOC"])
        [Span(label='PER', start=0, end=2), Span(label='LOC', start=3, end=4)]
    """
    spans: list[Span] = []
    start, current = 0, ""
    for i, tag in enumerate((*tags, OUTSIDE)):
        kind = tag[2:] if tag[:2] in ("B-", "I-") else ""
        if kind and tag[0] == "I" and kind == current:
            continue
        if current:
            spans.append(Span(current, start, i))
        start, current = i, kind
    return spans


class EntityScorer:
    """Scores rows of tags; rows are what the bootstrap draws (``Blocks``).

    Args:
        labels: the entity types.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = list(labels)
        self._index = {label: i for i, label in enumerate(self.labels)}
        # hits, predicted and actual of each type; words, words right, words without an entity
        self._blocks = Blocks(3 * len(labels) + 3)

    def add(self, given: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> None:
        """Take in rows of IOB tags: those that the model gave, and those that are right."""
        if not given:
            return
        self._blocks.add(np.stack([self._line(*pair) for pair in zip(given, wanted, strict=True)]))

    def _line(self, given: Sequence[str], wanted: Sequence[str]) -> Floats:
        found, there = set(spans_of(given)), set(spans_of(wanted))
        line = np.zeros(3 * len(self.labels) + 3)
        for place, spans in enumerate((found & there, found, there)):
            for span in spans:
                line[place * len(self.labels) + self._index[span.label]] += 1
        right = sum(a == b for a, b in zip(given, wanted, strict=True))
        line[-3:] = len(wanted), right, sum(tag == OUTSIDE for tag in wanted)
        return line

    def values(self) -> dict[str, float]:
        """Return the point values so far."""
        counted_rows(self._blocks.rows)
        return {name: float(score) for name, score in self._scored(self._blocks.total).items()}

    def baseline(self) -> dict[str, float]:
        """Return the values of finding no entity at all."""
        counted_rows(self._blocks.rows)
        line = self._blocks.total
        line[: 2 * len(self.labels)] = 0.0
        line[-2] = line[-1]
        return {name: float(score) for name, score in self._scored(line).items()}

    def report(self, samples: int = 1000, seed: int = 0) -> Report:
        """Return all scores, with intervals over rows, and those of each type."""
        rows, drawn = counted_rows(self._blocks.rows), self._blocks.drawn(samples, seed)
        points, draws = self.values(), self._scored(drawn)
        return Report(
            rows,
            {name: interval(points[name], draws[name]) for name in points},
            self.baseline(),
            self._per_class(self._blocks.total, drawn),
        )

    def _per_class(self, total: Floats, drawn: Floats) -> dict[str, dict[str, Any]]:
        points, draws = label_scores(*self._counts(total)), label_scores(*self._counts(drawn))
        support = self._counts(total)[2]
        out: dict[str, dict[str, Any]] = {}
        for i, label in enumerate(self.labels):
            scores: dict[str, Interval] = {n: interval(float(points[n][i]), draws[n][..., i]) for n in points}
            out[label] = {**scores, "support": int(support[i])}
        return out

    def _counts(self, lines: Floats) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        k = len(self.labels)
        return lines[..., :k], lines[..., k : 2 * k], lines[..., 2 * k : 3 * k]

    def _scored(self, lines: Floats) -> dict[str, Floats]:
        """Score sums of blocks, (..., columns); the macro average is over the types that occur."""
        counts = self._counts(lines)
        each = label_scores(*counts)["f1"]
        there = counts[1] + counts[2] > 0
        micro = label_scores(*(count.sum(-1) for count in counts))
        return {
            **micro,
            "f1_macro": divided((each * there).sum(-1), there.sum(-1)),
            "token_accuracy": divided(lines[..., -2], lines[..., -3]),
        }
