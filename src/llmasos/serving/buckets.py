"""Counts of a quantity by size, as histograms of Prometheus have them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Bounds of waiting times."""

SHORT = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0)
"""Bounds of the time of a token."""

ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
"""Bounds of the size of a batch."""


class Buckets:
    """How often a quantity was at most so large. Filled by one thread, read by others.

    Args:
        bounds: in ascending order; one bucket more takes what is larger.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.total = bounds, 0.0
        self._counts = [0] * (len(bounds) + 1)

    def add(self, value: float, times: int = 1) -> None:
        """Count a value."""
        self._counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self._counts)

    def cumulative(self) -> Iterator[tuple[str, int]]:
        """Yield each bound as text and how many values were not above it, the last without bound."""
        so_far = 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), [*self._counts], strict=True):
            so_far += count
            yield bound, so_far
