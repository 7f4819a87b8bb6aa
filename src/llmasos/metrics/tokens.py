"""Scores of predicted tokens: loss, perplexity, how many were the likeliest, bits per byte.

Perplexity is the exponential of the mean negative log probability of a token (Jelinek et al. 1977). It
depends on how the tokenizer cuts the text; bits per byte, the same sum over the bytes of the text, do not,
and compare models of different tokenizers (Gao et al. 2020, "The Pile").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import Blocks, Floats, Report, counted_rows, divided, finite, interval

_LARGEST = 700.0
"""The exponential of a larger loss is no finite number."""


class TokenScorer:
    """Scores the tokens that a model was asked for, row by row; rows are what the bootstrap draws (``Blocks``).

    Args:
        bytes: whether the texts' bytes are given, so that bits per byte can be told.
        perplexity: what the exponential of the loss is called; "pseudo_perplexity" for masked tokens, whose
            probabilities do not multiply to that of a text (Salazar et al. 2020).
    """

    def __init__(self, *, bytes: bool = False, perplexity: str = "perplexity") -> None:
        self._with_bytes, self._perplexity = bytes, perplexity
        self._blocks = Blocks(4)  # loss, hits, tokens, bytes
        self._counts = np.zeros(0, dtype=np.int64)  # of each target

    def add(
        self,
        outputs: Sequence[NDArray[Any]],
        rows: NDArray[Any] | Sequence[int],
        bytes: NDArray[Any] | Sequence[int] | None = None,
        *,
        targets: NDArray[Any] | None = None,
    ) -> None:
        """Take in the tokens of some whole rows.

        Args:
            outputs: for each sequence what an engine gives, (tokens, 2): the negative log probability of the
                target, and whether it was the likeliest.
            rows: for each sequence the row that it comes from; those of one row come together, in one call.
            bytes: for each row, in rising order, the bytes of its text; needed if the scorer was told so.
            targets: the ids asked for, of all sequences, end to end; what the baseline guesses from.
        """
        if not len(outputs):
            return
        _, row = np.unique(np.asarray(rows), return_inverse=True)
        lines = np.zeros((int(row.max()) + 1, 4))
        counts = [len(one) for one in outputs]
        tokens, owner = finite(np.concatenate(outputs)), np.repeat(row, counts)
        np.add.at(lines[:, 0], owner, tokens[:, 0])
        np.add.at(lines[:, 1], owner, tokens[:, 1])
        np.add.at(lines[:, 2], row, counts)
        if self._with_bytes:
            assert bytes is not None
            lines[:, 3] = bytes
        if targets is not None:
            self._counts = _added(self._counts, np.bincount(targets))
        self._blocks.add(lines)

    def values(self) -> dict[str, float]:
        """Return the point values so far."""
        counted_rows(self._blocks.rows)
        return {name: float(score) for name, score in self._scored(self._blocks.total).items()}

    def baseline(self) -> dict[str, float]:
        """Return the values of the best guess that reads nothing: each token as often as it occurs here.

        Its loss is the entropy of the targets' own frequencies; empty where targets were not given.
        """
        counted_rows(self._blocks.rows)
        total = self._counts.sum()
        if not total:
            return {}
        share = self._counts[self._counts > 0] / total
        bytes_ = self._blocks.total[3]
        line = np.asarray([-(share * np.log(share)).sum() * total, self._counts.max(), total, bytes_])
        return {name: float(score) for name, score in self._scored(line).items()}

    def report(self, samples: int = 1000, seed: int = 0) -> Report:
        """Return all scores, with intervals over rows."""
        rows = counted_rows(self._blocks.rows)
        points, draws = self.values(), self._scored(self._blocks.drawn(samples, seed))
        return Report(rows, {name: interval(points[name], draws[name]) for name in points}, self.baseline(), {})

    def _scored(self, lines: Floats) -> dict[str, Floats]:
        """Score sums of blocks, (..., 4)."""
        loss = divided(lines[..., 0], lines[..., 2])
        out = {
            "loss": loss,
            self._perplexity: np.exp(np.minimum(loss, _LARGEST)),
            "token_accuracy": divided(lines[..., 1], lines[..., 2]),
        }
        if self._with_bytes:
            out["bits_per_byte"] = divided(lines[..., 0], lines[..., 3] * np.log(2.0))
        return out


def _added(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """Add counts of different lengths."""
    out = np.zeros(max(len(one), len(other)), dtype=np.int64)
    out[: len(one)] += one
    out[: len(other)] += other
    return out
