"""Draw the curves of a run: losses on the left, the metric that picks the best model on the right.

The colours are those of Okabe and Ito (2008), told apart with any kind of colour vision.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLUE, _ORANGE, _GREEN, _INK, _GRID = "#0072B2", "#D55E00", "#009E73", "#333333", "#E4E4E4"
_LINES = (_BLUE, _ORANGE, _GREEN, "#CC79A7", "#56B4E9", "#E69F00", "#000000")  # one for each run of a comparison
_DOTS = 40  # evaluations up to which each is marked with a dot


def plot_curves(metrics_jsonl: Path, out_png: Path) -> None:
    """Draw the curves of a run as a PNG of 1200 x 450 pixels.

    Args:
        metrics_jsonl: the run's events, one JSON object per line; only ``step`` and ``evaluated``
            count. Without evaluations the learning rate takes the right side.
        out_png: where to write the picture.
    """
    steps, evaluations = _events(metrics_jsonl)
    figure, left, right = _sides()
    _losses(left, steps, evaluations)
    if evaluations:
        _metric(right, evaluations)
    else:
        _learning_rate(right, steps)
    for axes in (left, right):
        _dress(axes, max([1, *(event["step"] for event in (*steps, *evaluations))]))
    figure.savefig(out_png, metadata={"Software": None})


def plot_runs(runs: Mapping[str, Path], out_png: Path) -> None:
    """Draw the curves of several runs into one picture of 1200 x 450 pixels.

    Left are the running means of their training losses, with the validation losses as broken lines; right the metric
    that picks the best model, or the learning rates where a run has no evaluations or the metrics are not the same.

    Args:
        runs: name -> the events of a run, as for ``plot_curves``; the last line may be half written.
        out_png: where to write the picture.
    """
    figure, left, right = _sides()
    left.set_title("Loss (broken: validation)")
    found = {name: _events(path) for name, path in runs.items()}
    metrics = {evaluations[-1]["metric"] if evaluations else None for _, evaluations in found.values()}
    shared = metrics.pop() if len(metrics) == 1 else None
    right.set_title(f"Validation {shared.replace('_', ' ')}" if shared else "Learning rate")
    for number, (name, (steps, evaluations)) in enumerate(found.items()):
        style: dict[str, Any] = {"color": _LINES[number % len(_LINES)], "linewidth": 2.5, "markersize": 7}
        at, evaluated_at = ([event["step"] for event in events] for events in (steps, evaluations))
        losses = _smoothed(np.array([event["loss"] for event in steps], dtype=float))
        left.plot(at, losses, label=name, marker="o" if len(at) == 1 else "", **style)
        left.plot(evaluated_at, [event["loss"] for event in evaluations], linestyle="--", marker="o", **style)
        if shared:
            right.plot(evaluated_at, [event["metrics"][shared] for event in evaluations], marker="o", **style)
        else:
            right.plot(at, [event["learning_rate"] for event in steps], marker="o" if len(at) == 1 else "", **style)
    left.legend(frameon=False, fontsize=11)
    last = max([1, *(event["step"] for both in found.values() for events in both for event in events)])
    for axes in (left, right):
        _dress(axes, last)
    figure.savefig(out_png, metadata={"Software": None})


def _events(metrics_jsonl: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the steps and the evaluations of a run, without a last line that is still being written."""
    whole, _, _ = metrics_jsonl.read_text(encoding="utf-8").rpartition("\n")
    events = [json.loads(line) for line in whole.splitlines() if line.strip()]
    steps, evaluations = ([event for event in events if event["event"] == kind] for kind in ("step", "evaluated"))
    return steps, evaluations


def _sides() -> tuple[Any, Any, Any]:
    """Return a figure of 1200 x 450 pixels and its two sides."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12, wspace=0.04)
    figure = Figure(figsize=(12, 4.5), dpi=100, layout=layout)
    return figure, *figure.subplots(1, 2)


def _losses(axes: Any, steps: list[dict[str, Any]], evaluations: list[dict[str, Any]]) -> None:
    """Draw the training loss, thin as it is and thick as its running mean, and the validation loss."""
    axes.set_title("Loss")
    at, raw = [event["step"] for event in steps], np.array([event["loss"] for event in steps], dtype=float)
    smooth = _smoothed(raw)
    axes.plot(at, raw, color=_BLUE, alpha=0.25, linewidth=1, marker="o" if len(at) == 1 else "")
    axes.plot(at, smooth, color=_BLUE, linewidth=2.5, label="training")
    if evaluations:
        losses = [event["loss"] for event in evaluations]
        axes.plot([event["step"] for event in evaluations], losses, color=_ORANGE, linewidth=2.5,
                  marker="o" if len(losses) <= _DOTS else "", markersize=7, label="validation")  # fmt: skip
        smooth = np.append(smooth, losses)
    _fit(axes, raw, smooth)
    axes.legend(frameon=False, fontsize=13, ncols=2, loc="lower right", bbox_to_anchor=(1.02, 0.98))


def _fit(axes: Any, raw: NDArray[np.float64], lines: NDArray[np.float64]) -> None:
    """Cut off the highest peaks of the raw loss, so that they do not flatten the lines."""
    finite = raw[np.isfinite(raw)]
    lines = lines[np.isfinite(lines)]
    if len(finite) and len(lines):
        top = max(float(np.quantile(finite, 0.99)), float(lines.max()))
        axes.set_ylim(0.0, 1.1 * top or 1.0)


def _metric(axes: Any, evaluations: list[dict[str, Any]]) -> None:
    """Draw the metric of each evaluation and mark the best."""
    name = evaluations[-1]["metric"]
    axes.set_title(f"Validation {name.replace('_', ' ')}")
    at, values = [event["step"] for event in evaluations], [event["metrics"][name] for event in evaluations]
    axes.plot(at, values, color=_GREEN, linewidth=2.5, marker="o" if len(at) <= _DOTS else "", markersize=7)
    span = max(values) - min(values) or 0.1
    axes.set_ylim(min(values) - 0.15 * span, max(values) + 0.3 * span)
    best = next((event for event in reversed(evaluations) if event["best"]), None)
    if best is None:
        return
    value = best["metrics"][name]
    axes.plot([best["step"]], [value], marker="*", markersize=22, color=_GREEN, markeredgecolor="white", zorder=3)
    late = best["step"] > 0.75 * max(at)
    axes.annotate(f"best: {value:.3f} (step {best['step']})", (best["step"], value), xytext=(8 if late else 0, 15),
                  textcoords="offset points", ha="right" if late else "center", fontsize=13, color=_INK)  # fmt: skip


def _learning_rate(axes: Any, steps: list[dict[str, Any]]) -> None:
    axes.set_title("Learning rate")
    rates = [event["learning_rate"] for event in steps]
    axes.plot([event["step"] for event in steps], rates, color=_GREEN, linewidth=2.5,
              marker="o" if len(rates) == 1 else "")  # fmt: skip
    axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:.3g}")


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the running mean over a tenth of the run, centred, so that it does not lag behind."""
    if not len(values):
        return values
    window = np.ones(2 * (len(values) // 20) + 1)
    return np.asarray(np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same"))


def _dress(axes: Any, last: int) -> None:
    """Give both sides the same quiet frame."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(axes.get_title(), loc="left", fontsize=16, fontweight="bold", color=_INK, pad=12)
    axes.set_title("")
    axes.set_xlabel("optimiser step", fontsize=13, color=_INK)
    axes.set_xlim(0, 1.03 * last)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.tick_params(labelsize=12, length=0, colors=_INK)
    axes.grid(color=_GRID, linewidth=1)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
