"""A training that has to end in time: what fits is measured, and what does not is given up, and said.

Steps of the run itself are timed on its own model, which gets its weights back. If the time does not let every row be
seen once, only the last layers are trained, which is quicker; then the number of steps is cut to what fits. The loop
keeps an eye on the clock besides, since a pace can change.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.config import FinetuneConfig, parse_duration
from ..core.errors import UsageError
from ..saving import write_weights
from .prepare import Prepared
from .setup import Setup
from .timing import FINISH, evaluation_seconds, training_seconds, untouched
from .trainer import evaluation_steps

SHARE = 0.95
"""Of the time that is asked for: the rest is for a pace that changes."""
FEWER = "last-2"
"""What is trained where the time does not let every row be seen once."""


@dataclass(frozen=True)
class Costs:
    """Seconds, measured: of a step, of an evaluation, and of everything after the last one."""

    step: float
    evaluation: float
    end: float

    def of(self, setup: Setup) -> float:
        """Return the seconds of a run."""
        return setup.steps * self.step + len(evaluation_steps(setup)) * self.evaluation + self.end


Again = Callable[[FinetuneConfig], tuple[Any, Setup, list[str]]]


def in_time(
    model: Any, setup: Setup, prepared: Prepared, started: float, again: Again | None
) -> tuple[Any, Setup, str]:
    """Cut a run to the time that ``within`` leaves; return model, setup, and words on what was given up.

    Args:
        model, setup, prepared: what would be trained.
        started: when the run began, as ``time.perf_counter`` gave it.
        again: opens the model for other options; None where it cannot be opened again.

    Raises:
        UsageError: the time is too short for a step, an evaluation and a save.
    """
    costs = measured(model, setup, prepared)
    fits = fitted(setup, costs, seconds_left(setup, started))
    config, small = setup.config, fits is None or fits.steps < setup.steps_per_epoch
    if small and again is not None and config.trainable == "all" and config.adapter == "none":
        with contextlib.suppress(UsageError):  # a model without a head, or of fewer layers
            other, less, _ = again(replace(config, trainable=FEWER))
            less = replace(less, train=setup.train, evaluation=setup.evaluation)  # with what they are compared with
            cheaper = measured(other, less, prepared)
            found = fitted(less, cheaper, seconds_left(setup, started))
            if found is not None and (fits is None or found.steps > fits.steps):
                model, fits, costs = other, found, cheaper
    if fits is None:
        left = max(0.0, seconds_left(setup, started))
        parts = f"a step takes {costs.step:.2f} s, an evaluation {costs.evaluation:.1f} s and saving {costs.end:.1f} s"
        raise UsageError(
            f"within={config.within}: {left:.0f} s are left after loading, {parts}",
            hint="more time, fewer evaluation rows, or a smaller model",
        )
    ends = started + parse_duration("within", config.within or "") - costs.evaluation - costs.end - costs.step
    return model, replace(fits, ends=ends), given_up(setup, fits)


def measured(model: Any, setup: Setup, prepared: Prepared) -> Costs:
    """Time steps, an evaluation and a save; the model is as before afterwards."""
    with untouched(model):
        whole = training_seconds(model, setup, prepared).seconds
        every = max(1, len(evaluation_steps(setup)))
        evaluation = evaluation_seconds(model, setup, prepared) / every
        clock = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            write_weights(model, Path(scratch))
        end = 2 * (time.perf_counter() - clock) + FINISH
    return Costs(whole / setup.steps, evaluation, end)


def fitted(setup: Setup, costs: Costs, seconds: float) -> Setup | None:
    """Return the setup with as many steps as fit into the seconds that are left, no more than before; None for none."""
    steps = min(setup.steps, int((seconds - costs.end - costs.evaluation) / costs.step))
    while steps > 0:
        fits = setup if steps == setup.steps else replace(setup, config=replace(setup.config, max_steps=steps))
        if costs.of(fits) <= seconds:
            return fits
        steps = min(steps - 1, math.floor(steps * 0.98))
    return None


def given_up(asked: Setup, fits: Setup) -> str:
    """Word what a run does without to be in time."""
    if fits.steps == asked.steps and fits.config.trainable == asked.config.trainable:
        return f"within {asked.config.within}: nothing has to be given up"
    said = f"{fits.steps} of {asked.steps} steps, {fits.steps / fits.steps_per_epoch:.2f} epochs"
    layers = "" if fits.config.trainable == asked.config.trainable else f"; only {fits.config.trainable} is trained"
    return f"within {asked.config.within}: {said}{layers}"


def seconds_left(setup: Setup, started: float) -> float:
    """Return the seconds that the rest of a run may take. ``started``: as ``time.perf_counter`` gave it."""
    assert setup.config.within is not None
    return SHARE * parse_duration("within", setup.config.within) - (time.perf_counter() - started)
