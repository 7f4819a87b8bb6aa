"""What a benchmark keeps: runs, the table's columns, goals, and the sums over them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Run:
    """What one process gave: numbers by name, or why there are none."""

    candidate: str
    seed: int
    values: dict[str, Any] = field(default_factory=dict)
    missing: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Column:
    """A column of the printed table: the median (or mean) of one value over the runs."""

    key: str
    label: str
    digits: int = 2
    statistic: str = "median"


@dataclass(frozen=True)
class Goal:
    """What was aimed at and what came out; ``met`` is None where it could not be measured."""

    text: str
    reached: str
    met: bool | None


@dataclass(frozen=True)
class Result:
    """One benchmark's outcome, as it is written to ``results/NAME.json``.

    The first column is the one that is compared: it also shows its spread, and the ratio to ``baseline``
    (above 1 is better than the baseline, whether less or more of it is better).
    """

    name: str
    title: str
    columns: list[Column]
    candidates: list[str]
    runs: list[Run]
    baseline: str | None = None
    better: str = "lower"
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Result:
        """Rebuild a result from its JSON."""
        parts: dict[str, type] = {"columns": Column, "runs": Run, "goals": Goal}
        rebuilt: dict[str, Any] = {key: [kind(**item) for item in content[key]] for key, kind in parts.items()}
        return cls(**{**content, **rebuilt})


def values(runs: Sequence[Run], candidate: str, key: str) -> list[float]:
    """Return one value of every run of a candidate that has it, in the order of the rounds."""
    found = (run.values.get(key) for run in runs if run.candidate == candidate)
    return [value for value in found if isinstance(value, int | float)]


def middle(runs: Sequence[Run], candidate: str, key: str, statistic: str = "median") -> float | None:
    """Return the median (or mean) of a candidate's values, or None where there are none."""
    numbers = values(runs, candidate, key)
    return float(getattr(statistics, statistic)(numbers)) if numbers else None


def ratio(runs: Sequence[Run], candidate: str, baseline: str, key: str, better: str = "lower") -> float | None:
    """Return how many times better a candidate is than the baseline, by their medians."""
    ours, theirs = middle(runs, candidate, key), middle(runs, baseline, key)
    if not ours or not theirs:
        return None
    return theirs / ours if better == "lower" else ours / theirs


def goal(text: str, value: float | None, limit: float, *, least: bool = True, shown: str = "{:.2f}") -> Goal:
    """Compare a number with its limit: at least that much, or at most with ``least=False``."""
    if value is None:
        return Goal(text, "not measured", None)
    return Goal(text, shown.format(value), value >= limit if least else value <= limit)
