"""Draw the curves of a run: losses on the left, the metric that picks the best model on the right.

The colours are those of Okabe and Ito (2008), told apart with any kind of colour vision.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLUE, _ORANGE, _GREEN, _INK, _GRID = "#0072B2", "#D55E00", "#009E73", "#333333", "#E4E4E4"
_DOTS = 40  # evaluations up to which each is marked with a dot


def plot_curves(metrics_jsonl: Path, out_png: Path) -> None:
    """Draw the curves of a run as a PNG of 1200 x 450 pixels.

    Args:
        metrics_jsonl: the run's events, one JSON object per line; only ``step`` and ``evaluated``
            count. Without evaluations the learning rate takes the right side.
        out_png: where to write the picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    events = [json.loads(line) for line in metrics_jsonl.read_text(encoding="utf-8").splitlines() if line.strip()]
    steps = [event for event in events if event["event"] == "step"]
    evaluations = [event for event in events if event["event"] == "evaluated"]
    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12, wspace=0.04)
    figure = Figure(figsize=(12, 4.5), dpi=100, layout=layout)
    left, right = figure.subplots(1, 2)
    _losses(left, steps, evaluations)
    if evaluations:
        _metric(right, evaluations)
    else:
        _learning_rate(right, steps)
    for axes in (left, right):
        _dress(axes, max([1, *(event["step"] for event in (*steps, *evaluations))]))
    figure.savefig(out_png, metadata={"Software": None})


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
