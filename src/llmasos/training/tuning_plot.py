"""Draw a search: the metric of each trial, then over the values of each option that was searched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.events import Trial
from ..metrics.base import LOWER_IS_BETTER
from .curves import _BLUE, _GREEN, _GRID, _INK, _ORANGE
from .space import Dimension

_COLUMNS = 3


def plot_tuning(metric: str, trials: Sequence[Trial], best: Trial, space: Sequence[Dimension], out_png: Path) -> None:
    """Draw a search as a PNG, 400 x 360 pixels for each part.

    Args:
        metric: what the trials were compared by.
        trials: those that were begun; one without an evaluation is left out.
        best: the one whose model was kept; it has a star.
        space: the options that were searched, a part for each.
        out_png: where to write the picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    seen = [trial for trial in trials if trial.value is not None]
    lines = math.ceil((1 + len(space)) / _COLUMNS)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.04)
    figure = Figure(figsize=(4 * _COLUMNS, 3.6 * lines), dpi=100, layout=layout)
    first, *others = figure.subplots(lines, _COLUMNS, squeeze=False).flat
    _scatter(first, [trial.number for trial in seen], seen, best)
    best_so_far = _running_best(metric, seen)
    if best_so_far:
        first.step(*zip(*best_so_far), where="post", color=_GREEN, linewidth=1.5, zorder=1)
    _dress(first, "Trials", metric)
    for axes, dimension in zip(others, space, strict=False):
        _scatter(axes, [_place(trial.values[dimension.name], dimension) for trial in seen], seen, best)
        if dimension.log:
            axes.set_xscale("log")
        if dimension.choices:
            axes.set_xticks(range(len(dimension.choices)), [str(choice) for choice in dimension.choices])
            axes.set_xlim(-0.5, len(dimension.choices) - 0.5)
        _dress(axes, dimension.name.replace("_", " ").capitalize(), metric)
    for axes in others[len(space) :]:
        axes.set_visible(False)
    figure.savefig(out_png, metadata={"Software": None})


def _place(value: Any, dimension: Dimension) -> Any:
    return dimension.choices.index(value) if dimension.choices else value


def _running_best(metric: str, trials: Sequence[Trial]) -> list[tuple[int, float]]:
    better = min if metric in LOWER_IS_BETTER else max
    out: list[tuple[int, float]] = []
    for trial in trials:
        if trial.status == "complete" and trial.value is not None:
            out.append((trial.number, better(trial.value, out[-1][1]) if out else trial.value))
    return out


def _scatter(axes: Any, at: Sequence[Any], trials: Sequence[Trial], best: Trial) -> None:
    """Draw completed trials filled, others as crosses, and the best as a star."""
    for where, trial in zip(at, trials, strict=True):
        if trial is best or trial == best:
            axes.plot(where, trial.value, "*", color=_ORANGE, markersize=18, markeredgecolor="white", zorder=3)
        else:
            axes.plot(where, trial.value, "o" if trial.status == "complete" else "x", color=_BLUE, markersize=7)


def _dress(axes: Any, title: str, metric: str) -> None:
    axes.set_title(title, loc="left", fontsize=14, fontweight="bold", color=_INK, pad=10)
    axes.set_ylabel(metric.replace("_", " "), fontsize=11, color=_INK)
    axes.tick_params(labelsize=10, length=0, colors=_INK)
    axes.grid(color=_GRID, linewidth=1)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
