"""The same few steps in torch, JAX and TensorFlow, compared: losses, logits and metrics.

Each trains the same weights on the same rows in the same order, without dropout, in float32 and through the plain
forward. What differs afterwards is the order of sums, which each step carries on: differences grow with the steps.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..architectures._plain import transformers_outputs
from ..core import hardware
from ..core.config import FinetuneConfig
from ..core.events import Event, Phase, Step
from ..data.batching import Batch, gather
from ..evaluation import evaluate
from ..frameworks.supported import FRAMEWORKS, settled
from ..loading import load_config
from .keras import KerasStepper
from .prepare import Prepared, prepare
from .request import Request
from .run import ready
from .setup import Setup
from .stepper import Stepper, seen
from .trainer import _batches, stepper_of

TOLERANCE = 1e-4
"""Largest difference from torch: of a loss or a logit, relative to it where it is above 1."""
_ROWS = 16  # whose logits are compared


@dataclass(frozen=True)
class Trial:
    """What one framework came to. ``losses``: of each step; ``loss`` and ``metrics``: on the validation rows.

    ``loss_difference`` is the largest from torch's, over these losses; ``logit_difference`` that of the final logits of
    a few rows, as this framework itself computes them.
    """

    framework: str
    losses: list[float]
    loss: float | None
    metrics: dict[str, float]
    seconds: float
    loss_difference: float = 0.0
    logit_difference: float = 0.0


@dataclass(frozen=True)
class Parity:
    """The trials, torch's first, and whether all stay within the tolerance."""

    trials: list[Trial]
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether no loss and no logit differs by more than the tolerance."""
        worst = (max(trial.loss_difference, trial.logit_difference) for trial in self.trials)
        return all(difference <= self.tolerance for difference in worst)  # NaN is beyond it

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON types."""
        return {**asdict(self), "holds": self.holds}


def parity(
    request: Request,
    config: FinetuneConfig,
    *,
    steps: int,
    frameworks: Sequence[str] = FRAMEWORKS,
    tolerance: float = TOLERANCE,
) -> Generator[Event, None, Parity]:
    """Train ``steps`` steps in torch and in each framework. ``request`` as for ``run.finetune``.

    Of ``config`` the framework, dropout, steps, precision, device and forward are set for the comparison.

    Raises:
        UsageError: a framework can't honour an option, or do this task with this architecture.
    """
    request, model_config = request.suited(), load_config(request.located.path)
    config = replace(config, max_steps=steps, dropout=0.0)
    configs = [settled(replace(config, framework=name), request.task, model_config) for name in frameworks]
    hardware.set_threads(config.threads)
    with tempfile.TemporaryDirectory() as scratch:
        prepared: Prepared = yield from prepare(request, config, folder=None, scratch=Path(scratch))
        trials: list[tuple[Trial, np.ndarray[Any, Any]]] = []
        for one in (replace(configs[0], framework="torch"), *configs):
            yield Phase("load")
            model, setup, _ = ready(request, prepared, one)
            trials.append((yield from _trial(model, setup)))
    (reference, logits), *others = trials
    return Parity([reference, *(_compared(trial, reference, own, logits) for trial, own in others)], tolerance)


def _trial(model: Any, setup: Setup) -> Generator[Event, None, tuple[Trial, np.ndarray[Any, Any]]]:
    started = time.perf_counter()
    losses: list[float] = []
    data = setup.train if setup.evaluation is None else setup.evaluation
    batch = gather(data, np.arange(min(_ROWS, len(data))))
    yield Phase("train", setup.steps)
    stepper = stepper_of(model, setup)
    try:
        for step, rows in enumerate(_batches(setup, 0)):
            part = seen(setup, rows, step)
            loss, norm = stepper.compute(part, step)
            rate = stepper.update(step)
            losses.append(loss)
            spent = (time.perf_counter() - started) / (step + 1)
            yield Step(
                step + 1, setup.steps, (step + 1) / setup.steps_per_epoch, loss, rate, norm, len(part),
                len(part) / spent, spent * (setup.steps - step - 1),
            )  # fmt: skip
        own = _logits(stepper, model, setup, batch)
    finally:
        stepper.release()
    validation, metrics = None, {}
    if setup.evaluation is not None:
        yield Phase("evaluate", len(setup.evaluation))
        validation, scorer = evaluate(setup.engine(model), setup.task, setup.evaluation, setup.evaluation_rows)
        metrics = scorer.values()
    return Trial(setup.config.framework, losses, validation, metrics, time.perf_counter() - started), own


def _logits(stepper: Stepper | KerasStepper, model: Any, setup: Setup, batch: Batch) -> np.ndarray[Any, Any]:
    """Return the logits of a few rows as the framework itself computes them."""
    if isinstance(stepper, KerasStepper):
        return stepper.logits(batch).numpy()
    with torch.no_grad():
        out = transformers_outputs(model.eval(), batch, setup.pad_id, setup.task.output)
    assert isinstance(out, torch.Tensor)
    return out.numpy()


def _compared(trial: Trial, reference: Trial, own: np.ndarray[Any, Any], logits: np.ndarray[Any, Any]) -> Trial:
    losses = [[*one.losses, *([] if one.loss is None else [one.loss])] for one in (trial, reference)]
    return replace(
        trial,
        loss_difference=_difference(np.asarray(losses[0]), np.asarray(losses[1])),
        logit_difference=_difference(own, logits),
    )


def _difference(values: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    return float((np.abs(values - wanted) / np.maximum(1.0, np.abs(wanted))).max())
