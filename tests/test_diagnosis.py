"""Advice about a run: said when the curves show it, never on noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import pytest

from llmasos.core.config import FinetuneConfig
from llmasos.core.events import Evaluated
from llmasos.training.diagnosis import not_learning, overfitting


def history(losses: Sequence[float], values: Sequence[float]) -> list[Evaluated]:
    best = -1.0
    out = []
    for i, (loss, value) in enumerate(zip(losses, values, strict=True), 1):
        out.append(Evaluated(100 * i, float(i), loss, {"accuracy": value, "ece": 0.1}, "accuracy", value > best))
        best = max(best, value)
    return out


FALLING = [0.6, 0.4, 0.2, 0.1, 0.05]
OVERFITTED = history([0.5, 0.4, 0.45, 0.55, 0.7], [0.8, 0.85, 0.85, 0.84, 0.84])


def test_overfitting_is_named_with_steps_epochs_and_numbers():
    advice = overfitting(OVERFITTED, FALLING)
    for part in ("step 200 (epoch 2)", "0.4 to 0.05", "0.4 to 0.7", "accuracy", "0.85"):
        assert part in advice


@pytest.mark.parametrize("advice", [overfitting(OVERFITTED, FALLING), not_learning(OVERFITTED, {"accuracy": 0.9})])
def test_advice_names_options_that_exist(advice):
    known = {item.name: item for item in fields(FinetuneConfig)}
    for word in advice.replace("(", " ").replace(",", " ").replace(")", " ").split():
        name, sign, value = word.rstrip(".").partition("=")
        if sign and name != "class_weights":  # the task's own
            FinetuneConfig.of({name: value.strip('"')})
            assert name in known


@pytest.mark.parametrize(
    ("losses", "values", "train"),
    [
        ([0.5, 0.4, 0.3, 0.25, 0.2], [0.7, 0.8, 0.85, 0.85, 0.85], FALLING),  # validation still falls
        ([0.5, 0.4, 0.45, 0.55, 0.7], [0.8, 0.85, 0.86, 0.87, 0.88], FALLING),  # surer, but still better
        ([0.5, 0.4, 0.5, 0.6, 0.7], [0.8, 0.85, 0.8, 0.7, 0.6], [0.6, 0.4, 0.5, 0.6, 0.9]),  # it diverges instead
        ([0.5, 0.4, 0.35, 0.3, 0.5], [0.8, 0.85, 0.85, 0.85, 0.84], FALLING),  # a single evaluation
        ([0.5, 0.4, 0.7, 0.7, 0.41], [0.8, 0.85, 0.8, 0.8, 0.8], FALLING),  # it came back
        ([0.004, 0.003, 0.004, 0.005, 0.006], [1.0, 1.0, 1.0, 1.0, 1.0], FALLING),  # almost nothing
    ],
)
def test_no_overfitting_where_there_is_none(losses, values, train):
    assert overfitting(history(losses, values), train) is None


def test_noise_around_a_plateau_is_not_overfitting():
    rng = np.random.default_rng(0)
    for _ in range(200):
        losses = 0.4 * (1 + 0.015 * rng.normal(size=8))
        values = 0.85 + 0.005 * rng.normal(size=8)
        assert overfitting(history(losses, values), np.linspace(0.5, 0.3, 8)) is None


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_evaluations_say_nothing(count):
    assert overfitting(OVERFITTED[1 : 1 + count], FALLING[1 : 1 + count]) is None


def test_a_model_at_the_baseline_has_not_learned():
    advice = not_learning(history([0.69, 0.69], [0.5, 0.48]), {"accuracy": 0.5})
    assert "accuracy" in advice
    assert "learning_rate" in advice
    assert "f1_macro" not in advice


def test_unequal_classes_get_their_own_advice():
    assert "class_weights" in not_learning(history([0.2], [0.95]), {"accuracy": 0.95})


@pytest.mark.parametrize("values", [[0.5, 0.501], [0.8, 0.4], [0.9, 0.9]])
def test_anything_above_the_baseline_counts_as_learned(values):
    assert not_learning(history([0.6, 0.6], values), {"accuracy": 0.5}) is None


def test_nothing_can_beat_a_perfect_baseline():
    assert not_learning(history([0.1], [1.0]), {"accuracy": 1.0}) is None
    assert not_learning([], {"accuracy": 0.5}) is None
