"""Say in words what the curves of a run show, and what to do: overfitting, or nothing learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..core.events import Evaluated
from ..metrics.base import LOWER_IS_BETTER

_CLEAR = 0.1  # relative change of a loss that is more than noise between evaluations
_LEAST = 0.01  # smallest rise of a validation loss that matters at all


def overfitting(history: Sequence[Evaluated], train_losses: Sequence[float]) -> str | None:
    """Return advice if the model began to learn the training rows by heart, else None.

    Said only when all of it holds since the lowest validation loss: two evaluations or more have
    passed, the last two lie clearly above it, the training loss has clearly fallen, and the metric
    has not become better.

    Args:
        history: the evaluations of the run, in order.
        train_losses: for each of them, the mean training loss since the one before.
    """
    losses = [event.loss for event in history]
    if len(losses) < 3:
        return None
    low = int(np.argmin(losses))
    turn, last = history[low], history[-1]
    rise = max(_CLEAR * turn.loss, _LEAST)
    if low > len(losses) - 3 or min(losses[-2:]) < turn.loss + rise:
        return None
    if train_losses[-1] > (1 - _CLEAR) * train_losses[low]:
        return None
    name = last.metric
    sign = -1 if name in LOWER_IS_BETTER else 1
    values = [sign * event.metrics[name] for event in history]
    if max(values[low + 1 :]) > max(values[: low + 1]):
        return None
    return (
        f"the model overfits: since step {turn.step} (epoch {turn.epoch:.3g}) the training loss fell from "
        f"{train_losses[low]:.3g} to {train_losses[-1]:.3g}, but the validation loss rose from {turn.loss:.3g} to "
        f"{last.loss:.3g} and {name} got no better than {sign * max(values):.3g}. Stop earlier "
        f"(epochs={turn.epoch:.3g} or patience=1), add training rows, or regularise: weight_decay=0.1, dropout=0.2, "
        "layer_decay=0.9, augment=0.1"
    )


def not_learning(history: Sequence[Evaluated], baseline: Mapping[str, float]) -> str | None:
    """Return advice if the metric never rose above always giving the most common answer, else None.

    Args:
        history: the evaluations of the run, in order.
        baseline: the metrics of that answer, as from ``Scorer.baseline``.
    """
    if not history or history[-1].metric in LOWER_IS_BETTER:
        return None
    name = history[-1].metric
    common = baseline.get(name, 0.0)
    best = max(event.metrics[name] for event in history)
    if best > common or common >= 1.0:
        return None
    return (
        f"the model has not learned: its best {name}, {best:.3g}, is no better than the {common:.3g} of always giving "
        "the most common answer. Check that the labels fit the texts, give it more time (epochs), or change the "
        "learning_rate: higher if the training loss hardly moved, lower if it jumped"
        + (
            '. The classes are very unequal: metric="f1_macro" and class_weights="balanced" look at the rare ones'
            if name == "accuracy" and common > 0.8
            else ""
        )
    )
