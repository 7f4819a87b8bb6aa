"""pass@k of written programs: how likely one of k tries passes all tests of its row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import Floats, Report, interval, resamples
from .tokens import TokenScorer

AT = (1, 10)
"""The k of pass@k that are reported, as far as there are tries enough."""


class CodeScorer:
    """Scores single tokens, and the programs that a model wrote, where they were run.

    ``add`` is that of ``TokenScorer``. The baseline is that of single tokens: no program passes by chance.
    """

    def __init__(self) -> None:
        self.tokens = TokenScorer()
        self._passed: list[NDArray[np.int64]] = []  # of each try, (rows,)

    def add(self, outputs: Any, targets: Any, /) -> None:
        """Take in single tokens: what an engine gives for each example, and their rows with the tokens asked for."""
        rows, tokens = targets
        self.tokens.add(outputs, rows, targets=tokens)

    def add_try(self, passed: Sequence[bool]) -> None:
        """Take in one more try at each row, in the same order as before."""
        self._passed.append(np.asarray(passed, dtype=np.int64))

    def values(self) -> dict[str, float]:
        """Return the scores of single tokens, and pass@k if programs were run."""
        return {**self.tokens.values(), **{name: float(each.mean()) for name, each in self._each().items()}}

    def baseline(self) -> dict[str, float]:
        """Return the scores of always giving the most common token."""
        return self.tokens.baseline()

    def report(self, samples: int = 1000, seed: int = 0) -> Report:
        """Return all scores with intervals; those of pass@k are over rows."""
        report = self.tokens.report(samples, seed)
        each = self._each()
        if not each:
            return report
        counts, rng = np.ones(len(self._passed[0]), dtype=np.int64), np.random.default_rng(seed)
        drawn = np.concatenate(list(resamples(counts, samples, rng)))
        found = {name: interval(float(one.mean()), drawn @ one / len(one)) for name, one in each.items()}
        kind = f"{len(self._passed)} tries a row, unbiased (Chen et al. 2021)"
        return replace(report, metrics={**report.metrics, **found}, signatures=dict.fromkeys(found, kind))

    def _each(self) -> dict[str, Floats]:
        if not self._passed or not len(self._passed[0]):
            return {}
        passed, tries = np.sum(self._passed, axis=0), len(self._passed)
        return {f"pass@{k}": pass_at(passed, tries, k) for k in AT if k <= tries}


def pass_at(passed: NDArray[np.int64], tries: int, k: int) -> Floats:
    """Return for each row the unbiased 1 - C(n - c, k) / C(n, k) (Chen et al. 2021). passed: c, (rows,)."""
    failed = tries - passed[:, None] - np.arange(k)[None]  # of k tries drawn without replacement, all must fail
    return np.asarray(1.0 - np.prod(np.maximum(failed, 0) / (tries - np.arange(k))[None], axis=1))
