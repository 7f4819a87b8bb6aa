"""Scores of preferences: how often the chosen answer has the higher reward, and by how much.

The reward of an answer is what direct preference optimisation makes of one: beta times the log ratio of its
probability under the model to that under the reference (Rafailov et al. 2023, section 4).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .base import Floats, Report, counted_rows, finite, interval, resamples


class PreferenceScorer:
    """Scores pairs of answers by their rewards. Of each pair four numbers are kept.

    A pair of equal rewards is half right: nobody was preferred. A model that has learned nothing gives equal
    rewards to all: that is the baseline.
    """

    def __init__(self) -> None:
        self._pairs: list[Floats] = []  # (pairs, 4): accuracy, margin, chosen, rejected

    def add(self, rewards: NDArray[np.floating], targets: NDArray[np.floating] | None = None) -> None:
        """Take in pairs. rewards: of the chosen and the rejected answer, (pairs, 2)."""
        del targets
        chosen, rejected = finite(rewards).T
        margin = chosen - rejected
        self._pairs.append(np.stack([0.5 * (1 + np.sign(margin)), margin, chosen, rejected], axis=1))

    def values(self) -> dict[str, float]:
        """Return the means over all pairs."""
        return _named(self._all().mean(axis=0))

    def baseline(self) -> dict[str, float]:
        """Return the same before any training: every reward is 0."""
        return _named(np.asarray([0.5, 0.0, 0.0, 0.0]))

    def report(self, samples: int = 1000, seed: int = 0) -> Report:
        """Return the means with intervals over pairs."""
        pairs, rng = self._all(), np.random.default_rng(seed)
        ones = np.ones(len(pairs), dtype=np.int64)
        drawn = np.concatenate([counts @ pairs for counts in resamples(ones, samples, rng)]) / len(pairs)
        points = self.values()
        metrics = {name: interval(points[name], drawn[:, i]) for i, name in enumerate(NAMES)}
        return Report(len(pairs), metrics, self.baseline(), {})

    def _all(self) -> Floats:
        counted_rows(len(self._pairs))
        return np.concatenate(self._pairs)


NAMES = ("reward_accuracy", "reward_margin", "chosen_reward", "rejected_reward")


def _named(values: Floats) -> dict[str, float]:
    return {name: float(value) for name, value in zip(NAMES, values, strict=True)}
