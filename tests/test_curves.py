"""The picture of a run: drawn from its own lines, whatever they hold."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from llmasos.core.events import Evaluated, Event, Note, Step
from llmasos.training.curves import _smoothed, plot_curves


def run(steps: int, evaluations: int = 0, *, loss: float | None = None) -> list[Event]:
    events: list[Event] = [Note("a line that is no curve")]
    for i in range(1, steps + 1):
        value = 0.7 / i**0.5 if loss is None else loss
        events.append(Step(i, steps, i / steps, value, 2e-5 * (1 - i / steps), 1.0, 32, 100.0, 1.0))
        if evaluations and i % (steps // evaluations) == 0:
            accuracy = 0.5 + 0.4 * i / steps
            events.append(Evaluated(i, i / steps, 0.8 / i**0.5, {"accuracy": accuracy}, "accuracy", True))
    return events


def drawn(folder: Path, events: list[Event]):
    lines, picture = folder / "metrics.jsonl", folder / "curves.png"
    lines.write_text("".join(json.dumps(event.as_dict()) + "\n" for event in events), encoding="utf-8")
    plot_curves(lines, picture)
    return matplotlib.image.imread(picture)


@pytest.mark.parametrize(
    "events",
    [run(0), run(1), run(1, 1), run(2, 1), run(30), run(300, 6), run(300, 100), run(9, loss=0.0), run(9, 3, loss=1e6)],
    ids=["nothing", "a step", "one each", "two steps", "no evaluation", "usual", "many", "zero", "huge"],
)
def test_any_run_gives_a_picture_of_1200_by_450(tmp_path, events):
    assert drawn(tmp_path, events).shape[:2] == (450, 1200)


def test_losses_that_are_not_numbers_leave_a_gap(tmp_path):
    events = run(20, 2)
    events.insert(8, Step(21, 21, 1.0, float("nan"), 0.0, 1.0, 32, 100.0, 0.0))
    assert drawn(tmp_path, events).shape[:2] == (450, 1200)


def test_another_run_gives_another_picture_and_the_same_the_same(tmp_path):
    first, again, other = (drawn(tmp_path, events) for events in (run(50, 5), run(50, 5), run(50, 4)))
    assert (first == again).all()
    assert (first != other).any()


def test_each_curve_has_its_colour(tmp_path):
    picture = drawn(tmp_path, run(300, 6))[..., :3]
    for colour, columns in (("#0072B2", slice(0, 600)), ("#D55E00", slice(0, 600)), ("#009E73", slice(600, 1200))):
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        assert (np.abs(picture[:, columns] - wanted).max(axis=2) < 0.01).sum() > 100


def test_the_smoothed_loss_does_not_lag_behind():
    line = np.linspace(1.0, 0.0, 201)
    assert _smoothed(line)[20:-20] == pytest.approx(line[20:-20])
    noisy = line + np.random.default_rng(0).normal(scale=0.2, size=201)
    assert np.abs(_smoothed(noisy) - line).mean() < 0.4 * np.abs(noisy - line).mean()
