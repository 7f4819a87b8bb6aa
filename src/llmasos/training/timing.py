"""How long steps, evaluations and a whole run take, foreseen from a few that are measured here.

Seconds per step are fitted as a constant plus a share per place that is computed, which is what a step costs: over
packed rows a place is a token, in a rectangle padding counts as well.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..architectures.base import pack
from ..core import hardware
from ..data.batching import Batch, gather
from ..evaluation import evaluate, referenced
from .prepare import Prepared
from .setup import Setup
from .stepper import Stepper
from .trainer import evaluation_steps

if TYPE_CHECKING:
    from ..data.encoding import Encoded

BUDGET = 8.0
"""Seconds that the measured steps may take, once the first few are done."""
FINISH = 1.5
"""Seconds for the report's intervals, the curves and the records."""
_MEASURED = 16  # steps to measure at most
_KEPT = 100  # shapes whose products a CPU keeps: oneDNN's cache has 1024 places, a shape takes about ten


class Timed(NamedTuple):
    """Seconds of all steps of a run; bytes of memory still to come; seconds of the first step, which also warms up."""

    seconds: float
    growth: int
    first: float


@contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Give a model its weights back at the end."""
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    try:
        yield
    finally:
        with torch.no_grad():
            model.load_state_dict(before)


def steps_planned(setup: Setup, prepared: Prepared) -> int:
    """Return the optimiser steps of a run over all rows, where those prepared may be a sample of them."""
    steps = math.ceil(setup.config.epochs * _epoch(setup, prepared))
    return min(steps, setup.config.max_steps or steps)


def _epoch(setup: Setup, prepared: Prepared) -> int:
    """Return the steps of one epoch."""
    return math.ceil(len(prepared.train) * prepared.scale / setup.config.batch_size)


def training_seconds(model: Any, setup: Setup, prepared: Prepared, budget: float | None = None) -> Timed:
    """Time real steps, the longest batch first; predict the seconds of the run, and the memory still to come.

    A CPU keeps the products that it has compiled for each shape (decision 003), and steps of changing sizes leave
    holes in the heap: what a new shape took in the measured steps is what those take that the rest of the run will
    bring. So the steps come in no order of size, as in a run: from large to small they would leave no holes.
    """
    order = setup.order(0)
    rng = np.random.default_rng(setup.config.seed)
    batches = [setup.task.noised(gather(setup.train, rows), rng) for rows in order]
    places = np.asarray([_places(batch, setup) for batch in batches])
    by_size = np.argsort(-places, kind="stable")
    spread = by_size[np.linspace(0, len(by_size) - 1, min(_MEASURED, len(by_size))).astype(int)]
    picks = [by_size[0], *rng.permutation(spread)]
    stepper = Stepper(model, setup)
    measured: list[tuple[int, float]] = []
    again: list[tuple[int, float]] = []  # steps over rows whose states are kept
    seen: set[tuple[Any, ...]] = set()
    first = held = new = 0
    warm = 0.0
    begin = time.perf_counter()
    for i, pick in enumerate(picks):
        clock = time.perf_counter()
        stepper.compute(batches[pick])
        stepper.update(0)
        spent = time.perf_counter() - clock
        if i == 0:
            warm, begin = spent, time.perf_counter()
        elif not (setup.activations and pick == picks[0]):
            measured.append((int(places[pick]), spent))
        if setup.activations:
            clock = time.perf_counter()
            stepper.compute(batches[pick])
            stepper.update(0)
            again.append((int(places[pick]), time.perf_counter() - clock))
        shapes = _shapes(batches[pick], setup)
        new, held = new + (len(shapes - seen) if i else 0), hardware.resident_memory()
        first, seen = first or held, seen | shapes
        if len(measured) >= 3 and time.perf_counter() - begin > (BUDGET if budget is None else budget):
            break
    stepper.release()
    steps = steps_planned(setup, prepared)
    every = set().union(*(_shapes(batch, setup) for batch in batches))
    to_come = max(0, min(len(every), _KEPT) - len(seen))
    growth = max(0, held - first) // max(1, new) * to_come
    later = max(0, steps - _epoch(setup, prepared)) if again else 0
    each = float(places.mean())
    seconds = _fit(measured or again, steps - later, (steps - later) * each)
    return Timed(seconds + (_fit(again, later, later * each) if again else 0.0), growth, warm)


def _places(batch: Batch, setup: Setup) -> int:
    """Return how many places a step computes."""
    return batch.tokens if setup.architecture is not None else len(batch.lengths) * int(batch.lengths.max())


def _shapes(batch: Batch, setup: Setup) -> set[tuple[Any, ...]]:
    """Return the shapes of the products in a step."""
    if setup.architecture is None:
        return {(len(batch.lengths), int(batch.lengths.max()))}
    made = pack(batch, output=setup.task.output)
    return {(len(made.ids),), *((group.rows, group.length) for group in made.groups)}


def _fit(measured: list[tuple[int, float]], steps: int, places: float) -> float:
    """Least squares for seconds = a + b places, both at least zero; returns the sum over the run."""
    x = np.asarray([m[0] for m in measured], dtype=float)
    y = np.asarray([m[1] for m in measured])
    slope = 0.0 if np.ptp(x) == 0 else float(np.cov(x, y, bias=True)[0, 1] / x.var())
    slope = min(max(slope, 0.0), float((y / x).min()))
    constant = max(0.0, float(np.median(y - slope * x)))
    return constant * steps + slope * places


def with_reference(model: Any, setup: Setup, prepared: Prepared) -> tuple[Setup, float]:
    """Let the model answer for some examples, where the task compares with it; the others are taken to be alike.

    Returns also the seconds that all would take.
    """
    if not setup.task.needs_reference:
        return setup, 0.0
    engine, few = setup.engine(model), setup.train.head(256)
    referenced(engine, setup.task, few.head(1))  # warms up, and proves the packed forward
    clock = time.perf_counter()
    answers = referenced(engine, setup.task, few).reference
    each = (time.perf_counter() - clock) / few.tokens
    assert answers is not None

    def repeated(data: Encoded) -> Encoded:
        return replace(data, reference=np.resize(answers, (len(data), *answers.shape[1:])))

    held = setup.evaluation
    tokens = setup.train.tokens * prepared.scale + (0 if held is None else held.tokens * prepared.evaluation_scale)
    held = None if held is None else repeated(held)
    return replace(setup, train=repeated(setup.train), evaluation=held), each * tokens


def evaluation_seconds(model: Any, setup: Setup, prepared: Prepared) -> float:
    """Time a part of the validation rows; predict the seconds of all evaluations of the run."""
    if setup.evaluation is None:
        return 0.0
    engine, rows = setup.engine(model), setup.evaluation_rows
    part = setup.evaluation.head(min(len(setup.evaluation), 512))
    evaluate(engine, setup.task, part.head(1), rows)  # warms up, and proves the packed forward
    clock = time.perf_counter()
    evaluate(engine, setup.task, part, rows)
    each = (time.perf_counter() - clock) / part.tokens
    return each * setup.evaluation.tokens * prepared.evaluation_scale * len(evaluation_steps(setup))
